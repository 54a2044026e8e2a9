import os
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from semdedup_assets_tests.postgres import PostgresServer

from semdedup_assets_tests.object_store import ObjectStore, object_store


def pytest_configure(config: pytest.Config) -> None:
    # What a shell starts in the background ignores Ctrl-C, and so would the processes that tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Dagster's own doing, wherever an observed source becomes part of a graph.
    config.addinivalue_line("filterwarnings", "ignore:Property `OpDefinition.version` is deprecated:DeprecationWarning")


# Files whose tests wait for a daemon or a browser, or take minutes: begun last, they alone would run at the end.
LONGEST = (
    "test_ray.py",
    "test_daemon.py",
    "test_browser.py",
    "test_processes.py",
    "test_recompute.py",
    "test_lost_runs.py",
    "test_launchers.py",
    "test_demo.py",
    "test_faults.py",
    "test_automation.py",
)


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


@pytest.fixture(scope="session")
def postgres() -> Iterator["PostgresServer"]:
    """A real Postgres server, started for the tests that need one."""
    from semdedup_assets_tests.postgres import SKIP, PostgresNotFoundError, running_postgres

    if os.environ.get(SKIP) == "1":
        pytest.skip(f"{SKIP}=1: DAGSTER'S RECORD IN POSTGRES IS NOT TESTED; install postgresql and unset it")
    try:
        with running_postgres() as server:
            yield server
    except PostgresNotFoundError as error:
        pytest.fail(f"{error}; {SKIP}=1 leaves these tests out", pytrace=False)
