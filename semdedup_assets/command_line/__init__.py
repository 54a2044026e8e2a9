"""`semdedup`: a pipeline of a `defs.yaml` checked, made and read without Dagster."""
