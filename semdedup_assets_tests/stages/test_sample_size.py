"""How large the training sample is, and what follows where it is too small for a k that comes later."""

from pathlib import Path

import numpy as np
import pytest

from semdedup_assets.algorithm.kmeans import suggest_k
from semdedup_assets.checks.centroids import sample_is_large_enough
from semdedup_assets.estimate import estimate
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.progress import reporting_to
from semdedup_assets.execution.stage import StageGraph
from semdedup_assets.stages.centroids import CENTROIDS
from semdedup_assets.stages.training_sample import SAMPLE
from semdedup_assets.storage.vectors import read_vectors
from semdedup_assets_tests.stage_runs import PLAIN, StageRuns
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard

ITEMS = 600


@pytest.fixture
def runs(tmp_path: Path) -> StageRuns:
    """600 vectors in two shards; 50 are wanted for a cluster."""
    for seed in range(2):
        write_shard(tmp_path, f"{seed}", near_duplicates(seed, groups=ITEMS // 6))
    settings = vectors_settings(tmp_path, training_sample={"per_cluster": 50})
    return StageRuns(settings, StageGraph((estimate.STAGE, *PLAIN.stages)))


def with_k(runs: StageRuns, *ks: str) -> StageRuns:
    return runs.changed(clustering={"k": ks})


def drawn(runs: StageRuns) -> set[int]:
    """Ids of the sampled vectors."""
    (table,) = read_vectors(runs.record("training_sample").file(SAMPLE))
    return set(table.ids.tolist())


def fitted(runs: StageRuns, k: str) -> bytes:
    return runs.record("centroids", k).file(CENTROIDS).content()


def problems(runs: StageRuns) -> dict[str, str]:
    return {
        each.partition: f"{each.measured}; {each.remedy}" for each in sample_is_large_enough(runs.context()).problems
    }


@pytest.mark.parametrize(
    ("ks", "setting", "size"),
    [
        (["3"], {}, 150),
        (["8", "3"], {}, 400),
        (["3", "20"], {}, ITEMS),  # there are no more
        (["auto"], {"per_cluster": 10}, 10 * suggest_k(ITEMS)),
        (["auto", "2"], {"per_cluster": 10}, 10 * suggest_k(ITEMS)),
        (["2"], {"per_cluster": "all"}, 512),
        (["3"], {"size": 77}, 77),
        (["3"], {"size": "all"}, ITEMS),
    ],
)
def test_the_sample_follows_the_greatest_k_unless_a_size_is_set(
    runs: StageRuns, ks: list[str], setting: dict[str, int | str], size: int
) -> None:
    changed = with_k(runs, *ks).changed(training_sample=setting)
    changed.run(until="training_sample")
    assert len(drawn(changed)) == changed.record("training_sample").details["vectors"] == size


def test_centroids_are_byte_for_byte_those_of_any_larger_sample(runs: StageRuns, tmp_path: Path) -> None:
    ks = ("3", "5")
    sizes = ("auto", 400, 1_000_000, "all")
    made = [
        with_k(runs, *ks).changed(training_sample={"size": size}, store=str(tmp_path / f"{size}")) for size in sizes
    ]
    for each in made:
        each.run(until="centroids")
    assert [len(drawn(each)) for each in made] == [250, 400, ITEMS, ITEMS]
    for k in ks:
        assert len({fitted(each, k) for each in made}) == 1


def test_another_k_makes_only_itself_and_a_sample_too_small_for_it_is_reported(
    runs: StageRuns,
) -> None:
    runs.run(until="centroids")
    assert problems(runs) == {}
    sample, first, several = drawn(runs), fitted(runs, "3"), with_k(runs, "3", "6")
    lines: list[str] = []
    with reporting_to(lines.append):
        assert several.run(until="centroids") == {"centroids": ["6"]}
    assert (drawn(several), fitted(several, "3")) == (sample, first)
    reported = "25.0 sampled vectors a cluster of 100.0 items, 50 are wanted"
    remedy = "materialise toy/precomputed/training_sample with `refit`: a sample for the greatest k is drawn"
    assert list(problems(several)) == ["6"]
    assert problems(several)["6"].startswith(f"{reported}; {remedy}")
    assert any(f"150 sampled vectors are 25.0 a cluster, where 50 are wanted; {remedy}" in line for line in lines)

    several.make("training_sample")
    assert len(drawn(several)) == 300
    assert drawn(several) > sample
    assert several.run(until="centroids") == {"centroids": ["3", "6"]}
    assert fitted(several, "3") == first
    assert problems(several) == {}


def test_the_estimate_reports_a_sample_that_is_too_small(runs: StageRuns) -> None:
    def estimated(some: StageRuns) -> str | None:
        some.make("estimate")
        shown = estimate.STAGE.shown(some.context(), Partition(), some.record("estimate"))
        return str(shown["training sample"]) if "training sample" in shown else None

    runs.run(until="training_sample")
    assert estimated(runs) is None
    reported = estimated(with_k(runs, "3", "6"))
    assert reported is not None
    assert reported.startswith("25.0 vectors a cluster at k = 6, where 50 are wanted; materialise toy/precomputed/")


def test_a_sample_of_the_earlier_default_size_stays(runs: StageRuns) -> None:
    """A million was the default before the sample followed k: such stores are not made again."""
    earlier = runs.changed(training_sample={"size": 1_000_000})
    earlier.run(until="centroids")
    version = earlier.record("training_sample").version
    assert runs.run(until="centroids") == {}
    assert runs.record("training_sample").version == version


def test_a_size_that_is_set_is_not_met_by_a_smaller_sample_that_followed_k(runs: StageRuns) -> None:
    runs.run(until="centroids")
    explicit = runs.changed(training_sample={"size": 1_000_000})
    assert explicit.stale("training_sample") == [""]
    assert explicit.run(until="training_sample") == {"training_sample": [""]}
    assert len(drawn(explicit)) == ITEMS
    assert np.isclose(explicit.record("training_sample").details["share"], 1)
    assert runs.stale("training_sample") == []
