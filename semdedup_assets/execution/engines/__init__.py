"""Where tasks run. An engine knows neither Dagster nor stages: it maps tasks over workers that set up once."""
