"""References in Dagster: made by refreshes, removed by masks, and looked for again."""

import shutil
from dataclasses import replace
from pathlib import Path

import dagster as dg
import numpy as np

from semdedup_assets.assets.builder import AssetBuilder
from semdedup_assets.execution.stage import StageGraph
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets_tests.pipeline_runs import UNDRAWN, PipelineRuns
from semdedup_assets_tests.toy_source import near_duplicates

REFERRING = {"reference_embeddings": [None], "reference_matches": ["3"], "reference_leaks": ["3"]}
FOLLOWING = {"keep_masks", "manifests", "galleries"}


def last_check(runs: PipelineRuns, asset: str, check: str) -> bool:
    key = dg.AssetCheckKey(runs.key(asset), check)
    (record,) = runs.instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
    event = record.event
    assert event is not None
    assert event.asset_check_evaluation is not None
    return event.asset_check_evaluation.passed


def test_a_refresh_makes_what_a_new_reference_asks_for_and_follows_its_files(
    runs: PipelineRuns, tmp_path: Path
) -> None:
    folder = tmp_path / "test"
    folder.mkdir()
    np.save(folder / "0.npy", near_duplicates(0)[:10])
    test = {"source": {"kind": "vectors", "path": str(folder)}, "epsilon": 0.05}
    graph = StageGraph((*UNDRAWN.stages, GRAPH["reference_leaks"]))
    referring = replace(runs, graph=graph).changed(references={"test": test})
    assert referring.refresh() == REFERRING
    assert not last_check(referring, "reference_leaks", "no_leaks")
    assert referring.refresh() == {}
    # A change of its files alone starts nothing but what the reference itself asks for.
    np.save(folder / "0.npy", near_duplicates(1)[:20])
    assert referring.refresh() == REFERRING
    removing = referring.changed(references={"test": {**test, "remove": True}})
    made = removing.refresh()
    assert set(made) == {"reference_leaks", *FOLLOWING}
    assert last_check(removing, "reference_leaks", "no_leaks")
    shutil.rmtree(folder)
    assert removing.refresh() == {}
    # By hand it is made of the files that there are: none.
    failed = removing.materialise("reference_embeddings", config={"again": True}, raise_on_error=False)
    assert not failed.success


def test_what_masks_need_is_made_without_being_asked_for(tmp_path: Path) -> None:
    encoder = Path(__file__).parents[2] / "examples" / "emoji" / "encoder"
    settings = {
        "dataset": "photos",
        "store": str(tmp_path / "store"),
        "source": {"kind": "folder", "path": str(tmp_path / "source")},
        "encoder": {"kind": "openclip", "model": str(encoder)},
        "epsilons": [0.05],
    }
    for spared in (None, 0.5):
        pipeline = Pipeline.model_validate({**settings, "selection": {"spare_captions_below": spared}})
        builder = AssetBuilder(pipeline, GRAPH)
        automatic = {asset.stage.name for asset in builder.automatic}
        assert ("caption_embeddings" in automatic) == (spared is not None)
        assert "caption_disagreement" not in automatic
        assert {"caption_embeddings", "caption_disagreement"} <= {asset.stage.name for asset in builder.assets}
