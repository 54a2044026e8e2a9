"""What the two rules keep, against their definitions on whole matrices."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from semdedup_assets.analyses.rule_comparison import COMPARISON
from semdedup_assets.storage.results import MissingResultError
from semdedup_assets_tests import oracle
from semdedup_assets_tests.analyses.small_pipelines import SmallPipeline, analysed_settings, made, read_table
from semdedup_assets_tests.toy_source import near_duplicates, write_shard

SETTINGS = {"clustering": {"k": [5], "buckets": 2, "iterations": 10}, "epsilons": ["0.01", "0.1", "0.3"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rules")
    for seed in range(2):
        write_shard(folder, f"{seed}", near_duplicates(seed, groups=12, copies=8))
    return folder


@pytest.fixture(scope="module", params=["chain", "greedy"])
def pipeline(folder: Path, request: pytest.FixtureRequest) -> SmallPipeline:
    return made(analysed_settings(folder) | SETTINGS | {"selection": {"rule": request.param}}, "rule_comparison")


@pytest.mark.parametrize("epsilon", SETTINGS["epsilons"])
def test_both_rules_keep_what_their_definitions_keep(pipeline: SmallPipeline, epsilon: str) -> None:
    record, items = pipeline.record("rule_comparison", f"{epsilon}|5"), pipeline.items(f"{epsilon}|5")
    expected = []
    for (cluster,), own in items.group_by("cluster", maintain_order=True):
        rows = own["unit"].to_numpy()
        number = float(epsilon)
        similarity = oracle.unit(rows) @ oracle.unit(rows).T
        pairs = similarity[np.triu_indices(len(rows), k=1)]
        # Float32 decides as float64 does only where no pair lies at the threshold.
        assert np.abs(pairs - (1 - number)).min() > 2e-6
        chain, greedy = oracle.chain_keep(rows, number), oracle.greedy_keep(rows, number)
        expected.append((cluster, len(rows), int(chain.sum()), int(greedy.sum())))
    table = read_table(record, COMPARISON)
    assert dict(table.schema) == {"cluster": pl.Int32} | dict.fromkeys(table.columns[1:], pl.Int64)
    assert table.rows() == sorted(expected)
    chain, greedy = table["kept_by_chain"].sum(), table["kept_by_greedy"].sum()
    details = record.details
    assert (details["items"], details["kept_by_chain"], details["kept_by_greedy"]) == (len(items), chain, greedy)
    assert (details["difference"], details["share"]) == (greedy - chain, pytest.approx((greedy - chain) / len(items)))
    kept = pipeline.record("keep_masks", f"{epsilon}|5").details["kept"]
    assert kept == (greedy if pipeline.context.selection.rule == "greedy" else chain)


def test_the_rules_differ_at_a_large_epsilon_here(pipeline: SmallPipeline) -> None:
    assert pipeline.record("rule_comparison", "0.3|5").details["difference"] > 0


def test_without_masks_there_is_nothing_to_compare(pipeline: SmallPipeline) -> None:
    with pytest.raises(MissingResultError, match=r"materialise toy/precomputed/keep_masks, partition 0.2\|5"):
        pipeline.make_partition("rule_comparison", "0.2|5")
