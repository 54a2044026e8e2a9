import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from semdedup_assets_tests.pipeline_runs import UNDRAWN, PipelineRuns
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard


@pytest.fixture
def unmade(tmp_path: Path) -> Iterator[PipelineRuns]:
    """Three shards, nothing made yet."""
    for seed in range(3):
        write_shard(tmp_path, f"{seed}", near_duplicates(seed))
    with dg.DagsterInstance.ephemeral() as instance:
        yield PipelineRuns(instance, vectors_settings(tmp_path), UNDRAWN)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with three shards and all that is made of them, and an untouched copy of it."""
    folder = tmp_path_factory.mktemp("finished")
    for seed in range(3):
        write_shard(folder / "used", f"{seed}", near_duplicates(seed))
    with dg.DagsterInstance.ephemeral() as instance:
        PipelineRuns(instance, vectors_settings(folder / "used"), UNDRAWN).refresh()
    shutil.copytree(folder / "used", folder / "untouched")
    return folder / "used", folder / "untouched"


@pytest.fixture
def runs(finished: tuple[Path, Path]) -> Iterator[PipelineRuns]:
    """Three shards, everything made, and Dagster knows it."""
    used, untouched = finished
    # Shards are known by the paths and times of their files: the copy goes where they were.
    shutil.rmtree(used)
    shutil.copytree(untouched, used)
    with dg.DagsterInstance.ephemeral() as instance:
        made = PipelineRuns(instance, vectors_settings(used), UNDRAWN)
        assert made.refresh() == {}
        yield made
