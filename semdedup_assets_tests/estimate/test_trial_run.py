import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from semdedup_assets.estimate.actual_usage import ActualUsage, stage_rows
from semdedup_assets.estimate.encoder_timing import time_encoder
from semdedup_assets.estimate.item_counts import count_items
from semdedup_assets.estimate.trial_run import scale_of, trial_run
from semdedup_assets.kept_sets import Clustering
from semdedup_assets_tests.stage_runs import StageRuns, small_pipeline, stored_files
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_table


def trial_usage(runs: StageRuns, *, items: int | None = None) -> dict[tuple[str, str], ActualUsage]:
    """What each row of a trial used; its vectors have 32 numbers."""
    runs.observe()
    context = runs.context()
    counts, rows = count_items(context), stage_rows(context)
    clusterings = [row.clustering or context.pipeline.clusterings[0] for row in rows]
    scales = [scale_of(context, counts.by_shard, each, dimension=32) for each in clusterings]
    trial = trial_run(context, counts, list(zip(rows, scales, strict=True)), items=items or counts.items)
    return {key: used for key, (used, _) in trial.items()}


def test_a_trial_of_texts_copies_the_sources_own_lines(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for index in range(3):
        rows = (
            json.dumps({"text": f"{row} {np.random.default_rng([index, row]).bytes(99).hex()}"}) for row in range(100)
        )
        (source / f"{index}.jsonl").write_text("\n".join(rows))
    runs = StageRuns(
        {
            "dataset": "texts",
            "store": str(tmp_path / "store"),
            "source": {"kind": "jsonl", "path": str(source)},
            "encoder": {"kind": "transformers", "model": str(tmp_path)},
            "clustering": {"k": [3]},
            "manifests": ["jsonl"],
            "epsilons": ["0.0001"],
        }
    )
    used = trial_usage(runs)
    assert all(each.complete and each.seconds > 0 for each in used.values())
    # Hexadecimal digits compress to about half.
    assert 300 * 99 < used["manifests", "3"].bytes < 300 * 230


def test_a_trial_of_images_copies_as_many_as_fit(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for index in range(40):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "png")
        (source / f"{index}.png").write_bytes(content.getvalue())
    runs = StageRuns(
        {
            "dataset": "images",
            "store": str(tmp_path / "store"),
            "source": {"kind": "folder", "path": str(source)},
            "encoder": {"kind": "openclip", "pretrained": "openai"},
            "clustering": {"k": [3], "iterations": 5},
            "manifests": ["webdataset", "csv", "parquet"],
            "epsilons": ["0.0001"],
        }
    )
    used = trial_usage(runs)
    assert used["items", ""].items == 40
    assert used["manifests", "3"].bytes > 40 * 192


@pytest.mark.parametrize("kind", ["vectors", "parquet"])
def test_a_trial_writes_the_sources_own_files_of_fewer_rows(tmp_path: Path, kind: str) -> None:
    names = [f"a text of the row {row}" for row in range(60)]
    for shard in range(2):
        write_table(tmp_path, f"{shard}", near_duplicates(shard), {"text": names})
    source = {"kind": kind, "path": str(tmp_path / "source"), **({"text": "text"} if kind == "parquet" else {})}
    encoder = {"kind": "precomputed"} if kind == "vectors" else {"kind": "transformers", "model": str(tmp_path)}
    settings = vectors_settings(tmp_path, source=source, encoder=encoder, model="m", manifests=["filtered"])
    used = trial_usage(StageRuns(settings), items=80)
    (manifests,) = (each for (stage, _), each in used.items() if stage == "manifests")
    assert manifests.complete
    assert manifests.bytes > 1000


def test_a_trial_of_several_selections_runs_each(tmp_path: Path) -> None:
    selections = {"paper": {}, "strict": {"rule": "greedy", "keep": "random"}}
    used = trial_usage(small_pipeline(tmp_path, selections=selections))
    stages = ("duplicate_scores", "keep_masks", "manifests")
    assert {key for key in used if "/" in key[0]} == {
        (f"{name}/{stage}", "3") for name in selections for stage in stages
    }
    assert all(each.complete for each in used.values())


@pytest.mark.parametrize(
    ("remove", "selection"),
    [(False, {"repair": {}}), (True, {"spare_captions_below": 0.5})],
    ids=["repair", "captions"],
)
def test_a_trial_needs_no_contents_references_captions_or_repair(
    tmp_path: Path, remove: bool, selection: dict[str, Any]
) -> None:
    for name in ("source", "reference"):
        (tmp_path / name).mkdir()
        for index in range(20):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / name / f"{index}.png")
            (tmp_path / name / f"{index}.txt").write_text(f"caption {index}")
    source = {"kind": "folder", "path": str(tmp_path / "source")}
    runs = StageRuns(
        {
            "dataset": "images",
            "store": str(tmp_path / "store"),
            "source": source,
            "encoder": {"kind": "openclip", "pretrained": "openai"},
            "clustering": {"k": [2], "iterations": 5},
            "epsilons": ["0.05"],
            "selections": {"paper": {}, "other": selection},
            "references": {"test": {"source": {**source, "path": str(tmp_path / "reference")}, "remove": remove}},
        }
    )
    used = trial_usage(runs)
    assert used["paper/manifests", "2"].complete
    assert used["other/manifests", "2"].complete


def test_a_trial_leaves_nothing_in_the_store(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path)
    runs.observe()
    before = stored_files(tmp_path / "store")
    trial_usage(runs)
    assert stored_files(tmp_path / "store") == before
    assert not list((tmp_path / "store").rglob(".trial-*"))


def test_a_source_without_an_item_that_can_be_embedded_is_refused(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path, shards=0)
    (tmp_path / "source").mkdir()
    np.save(tmp_path / "source" / "0.npy", np.full((5, 8), np.nan, np.float32))
    runs.observe()
    context = runs.context()
    with pytest.raises(ValueError, match=r"toy: no item of .*0.npy can be embedded; check `source` in the settings"):
        time_encoder(context, count_items(context).heads)


def test_one_cluster_holds_every_pair_and_many_hold_few(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path, clustering={"k": [1, 180]})
    runs.observe()
    one, many = (scale_of(runs.context(), {"s000000": 180}, Clustering(k), dimension=16).pairs for k in ("1", "180"))
    assert one == 180 * 179 / 2
    assert 0 <= many < 180
