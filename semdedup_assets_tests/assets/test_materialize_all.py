"""What *Materialize all* of a pipeline's group relies on; `test_browser.py` presses the button."""

from pathlib import Path

import dagster as dg
import pytest

from semdedup_assets.execution.partitions import Partition
from semdedup_assets.storage.results import RECORD
from semdedup_assets_tests.pipeline_runs import PipelineRuns
from semdedup_assets_tests.toy_source import near_duplicates, write_shard


def test_a_run_whose_inputs_are_missing_says_what_to_make_first_and_makes_the_others(unmade: PipelineRuns) -> None:
    unmade.observe()
    missing = r"assignments: 3 partitions cannot be made yet: .*embeddings, partition s000000; .* or launch toy__"
    with pytest.raises(dg.Failure, match=missing):
        unmade.materialise("assignments", "3|s000000", "3|s000002")
    unmade.refresh()
    more = unmade.changed(clustering={"k": [3, 4]})
    more.materialise("centroids", "4")
    location = more.context.location("embeddings", Partition(shard="s000001"))
    Path(f"{location}{RECORD}").unlink()
    before = more.last_record
    with pytest.raises(
        dg.Failure, match=r"assignments: 1 partitions cannot be made yet: .*embeddings, partition s000001"
    ):
        more.materialise("assignments", "4|s000000", "4|s000002")
    assert more.materialised_since(before) == {"assignments": ["4|s000000", "4|s000002"]}


def test_a_centroid_made_by_itself_is_not_stale_for_new_embeddings(unmade: PipelineRuns) -> None:
    unmade.refresh()
    unmade.materialise("centroids", "3", config={"again": True})
    write_shard(unmade.folder, "9", near_duplicates(9))
    unmade.observe()
    unmade.materialise("embeddings", "s000003")
    assert "centroids" not in unmade.stale()
