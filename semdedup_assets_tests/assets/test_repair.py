"""A selection that repairs, made by Dagster's own refresh."""

from semdedup_assets_tests.pipeline_runs import PipelineRuns


def test_a_refresh_makes_the_repair_before_the_masks_and_keeps_what_it_does_not_touch(runs: PipelineRuns) -> None:
    repaired = runs.changed(selection={"repair": {"clusters": 1, "epsilon": 0.1}})
    made = repaired.refresh()
    assert made["cross_cluster_scores"] == made["repaired_scores"] == ["3"]
    assert len(made["boundary_items"]) == 3
    assert made["keep_masks"] == made["manifests"] == ["0.05|3"]
    order = list(made)
    assert order.index("boundary_items") < order.index("cross_cluster_scores") < order.index("repaired_scores")
    assert order.index("repaired_scores") < order.index("keep_masks")
    # The scores within clusters are those of the selection without a repair.
    assert not {"embeddings", "assignments", "duplicate_scores"} & made.keys()
    assert not any(repaired.stale().values())
    assert runs.refresh() == {}
