"""A draw by another seed is what the stage writes where that seed is the first."""

import json
from pathlib import Path
from typing import Any

import pytest

from semdedup_assets.baselines.random_draws import RandomManifests, write_random_manifest
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.storage.results import MissingResultError
from semdedup_assets_tests.baselines.baseline_runs import docstrings, edited, emoji_runs, text_runs
from semdedup_assets_tests.stage_runs import StageRuns, stored_files

KEPT_SET = Partition.parse("0.1|2", ("epsilon", "k"))
STAGES: tuple[RandomManifests, ...] = ("random_manifests", "sized_random_manifests")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    texts = edited(docstrings(120), 3)
    return text_runs(tmp_path_factory.mktemp("texts"), texts, manifests=["parquet", "keep_lists", "jsonl"])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    return emoji_runs(tmp_path_factory.mktemp("pictures"), manifests=["parquet", "keep_lists", "webdataset"])


def manifest_folder(runs: StageRuns, stage: str) -> Path:
    location = Path(runs.record(stage, "0.1|2").location)
    return location / json.loads((location / "current.json").read_text())["folder"]


def without_name(files: dict[str, bytes]) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files of a manifest, and what its `manifest.json` says of anything but its folder and inputs."""
    said = json.loads(files.pop("manifest.json"))
    return files, {name: value for name, value in said.items() if name not in ("manifest", "inputs")}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["texts", "pictures"])
def test_a_draw_is_what_the_stage_writes_by_that_seed(
    kind: str, stage: RandomManifests, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    runs: StageRuns = request.getfixturevalue(kind)
    drawn = {}
    for seed in (5, 6):
        folder = tmp_path / f"seed-{seed}"
        count = write_random_manifest(runs.context(), KEPT_SET, stage=stage, seed=seed, folder=str(folder))
        drawn[seed] = stored_files(folder)
        assert count == json.loads(drawn[seed]["manifest.json"])["kept"] > 0
    assert not list(tmp_path.glob("*.json"))

    by_stage = runs.changed(analyses={"random_pruning": {"seeds": [6]}})
    by_stage.make(stage.replace("manifests", "masks"))
    by_stage.make(stage)
    expected = stored_files(manifest_folder(by_stage, stage))
    inputs = json.loads(drawn[6]["manifest.json"])["inputs"]
    assert inputs.items() <= json.loads(expected["manifest.json"])["inputs"].items()
    assert without_name(drawn[6]) == without_name(expected)
    assert without_name(drawn[5])[0] != expected


def test_draws_need_no_stage_of_their_own_but_the_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = text_runs(tmp_path, list(docstrings(12)), shards=2)
    folder = tmp_path / "draw"
    monkeypatch.chdir(tmp_path)
    for name in (str(folder), "relative", "with a slash/"):
        count = write_random_manifest(runs.context(), KEPT_SET, stage="random_manifests", seed=1, folder=name)
        assert json.loads((tmp_path / name / "manifest.json").read_text())["kept"] == count > 0
    other = Partition.parse("0.2|2", ("epsilon", "k"))
    with pytest.raises(MissingResultError, match=r"materialise .*keep_masks.*0\.2\|2"):
        write_random_manifest(
            runs.changed(epsilons=["0.1", "0.2"]).context(), other, stage="random_manifests", seed=1, folder=str(folder)
        )
