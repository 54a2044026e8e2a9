"""Somebody's Dagster project, into which a deduplicated data set is to come."""
