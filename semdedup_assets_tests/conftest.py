from collections.abc import Iterator

import pytest

from semdedup_assets_tests.object_store import ObjectStore, object_store


def pytest_configure(config: pytest.Config) -> None:
    # Dagster's own doing, wherever an observed source becomes part of a graph.
    config.addinivalue_line("filterwarnings", "ignore:Property `OpDefinition.version` is deprecated:DeprecationWarning")


# Files whose tests wait for a daemon or a browser, or take a minute each: begun last, they alone would run at the end.
LONGEST = ("test_daemon.py", "test_faults.py", "test_browser.py", "test_demo.py", "test_another_project.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, where files are shared out among processes in their order."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="module")
def served_store() -> Iterator[ObjectStore]:
    """A real S3-compatible server with an empty bucket, named in the configuration of fsspec, that counts requests."""
    with object_store() as store:
        yield store


@pytest.fixture(scope="module")
def bucket(served_store: ObjectStore) -> str:
    """URL of that bucket."""
    return served_store.url
