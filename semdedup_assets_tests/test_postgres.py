"""Dagster's record in Postgres, by the commented block of `dagster.yaml`: on a real server."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import dagster as dg
import pytest

from semdedup_assets.execution.stage import StageGraph
from semdedup_assets.storage.results import RECORD, read_record
from semdedup_assets_tests.dagster_process import ROOT, configured_instance
from semdedup_assets_tests.pipeline_runs import MAIN_WAY, PipelineRuns
from semdedup_assets_tests.postgres import PostgresServer
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard

YAML = (ROOT / "dagster.yaml").read_text()

AFTER_ASSIGNMENTS = ("duplicate_scores", "keep_masks", "manifests")
TO_MANIFESTS = StageGraph(tuple(stage for stage in MAIN_WAY.stages if stage.name not in ("figures", "galleries")))

NewInstance = Callable[[str], dg.DagsterInstance]


@pytest.fixture
def new_instance(tmp_path: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[NewInstance]:
    """Makes instances, each by a `dagster.yaml` in a folder of its own; the database is for those in Postgres."""
    for name, value in postgres.new_database().items():
        monkeypatch.setenv(name, value)
    with ExitStack() as opened:

        def made(text: str) -> dg.DagsterInstance:
            home = tmp_path / f"home{len(list(tmp_path.glob('home*')))}"
            home.mkdir()
            (home / "dagster.yaml").write_text(text)
            return opened.enter_context(configured_instance(home))

        yield made


def versions(runs: PipelineRuns) -> dict[str, str]:
    """The version of every result in the store, by its path there."""
    root = Path(runs.context.layout.folder)
    found = {}
    for path in sorted(root.rglob(f"*{RECORD}")):
        record = read_record(str(path).removesuffix(RECORD))
        assert record is not None
        found[str(path.relative_to(root))] = record.version
    return found


def test_the_commented_block_is_all_that_postgres_needs(new_instance: NewInstance, postgres: PostgresServer) -> None:
    instance = new_instance(postgres.dagster_yaml(YAML))
    for storage in (instance.run_storage, instance.event_log_storage):
        assert storage.postgres_url.startswith("postgresql+psycopg2://")
    assert instance.get_runs() == []
    # What launchers write into command lines names the variable, not what it holds.
    reference = str(instance.get_ref().to_dict())
    assert "DAGSTER_PG_PASSWORD" in reference
    assert postgres.password not in reference


def test_a_pipeline_runs_on_postgres_and_goes_there_from_sqlite_with_nothing_made_again(
    tmp_path: Path, new_instance: NewInstance, postgres: PostgresServer
) -> None:
    for seed in range(2):
        write_shard(tmp_path, f"{seed}", near_duplicates(seed))
    before = PipelineRuns(new_instance(YAML), vectors_settings(tmp_path), TO_MANIFESTS)
    made = before.refresh()
    assert made["manifests"] == ["0.05|3"]
    stored = versions(before)

    adopting = PipelineRuns(new_instance(postgres.dagster_yaml(YAML)), before.settings, TO_MANIFESTS)
    assert adopting.refresh() == {}
    assert adopting.materialised_since(0) == made
    assert adopting.stale() == {}
    assert versions(adopting) == stored

    # From here on Postgres is the record, in runs of Dagster's own too.
    write_shard(tmp_path, "2", near_duplicates(2))
    adopting.observe()
    last = adopting.last_record
    adopting.materialise("embeddings", "s000000", "s000002")
    assert adopting.materialised_since(last) == {"embeddings": ["s000000", "s000001", "s000002"]}
    assert adopting.refresh() == {
        "items": ["s000002"],
        "assignments": ["3|s000002"],
        **{name: partitions for name, partitions in made.items() if name in AFTER_ASSIGNMENTS},
    }
    assert adopting.refresh() == {}
    assert adopting.stale() == {}
