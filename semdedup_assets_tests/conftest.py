import pytest


def pytest_configure(config: pytest.Config) -> None:
    # Dagster's own doing, wherever an observed source becomes part of a graph.
    config.addinivalue_line("filterwarnings", "ignore:Property `OpDefinition.version` is deprecated:DeprecationWarning")
