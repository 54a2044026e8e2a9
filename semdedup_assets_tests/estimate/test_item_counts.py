import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from semdedup_assets.estimate.item_counts import ItemCount, count_items
from semdedup_assets_tests.stage_runs import StageRuns, small_pipeline
from semdedup_assets_tests.toy_source import near_duplicates, write_shard, write_table


def counted(runs: StageRuns) -> ItemCount:
    runs.observe()
    return count_items(runs.context())


def texts(tmp_path: Path, *, files: int, lines: int, suffix: str) -> StageRuns:
    """JSON lines on disk, of a pipeline whose model is never loaded."""
    source = tmp_path / "source"
    source.mkdir()
    for index in range(files):
        rows = (json.dumps({"text": f"line {row} of file {index}: {'abc ' * (row % 9)}"}) for row in range(lines))
        content = "\n".join(rows).encode()
        (source / f"{index:03d}{suffix}").write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    return StageRuns(
        {
            "dataset": "texts",
            "store": str(tmp_path / "store"),
            "source": {"kind": "jsonl", "path": str(source)},
            "encoder": {"kind": "transformers", "model": str(tmp_path)},
        }
    )


def test_ready_vectors_are_counted_exactly_without_reading_them(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path, shards=1)
    write_table(tmp_path, "1", near_duplicates(1, groups=10, copies=7))
    write_shard(tmp_path, "2", near_duplicates(2, groups=10, copies=5))
    counts = counted(runs)
    assert counts.by_shard == {"s000000": 60, "s000001": 70, "s000002": 50}
    assert counts.exact
    assert counts.counted.startswith("exact: 3 of 3 files")


def test_small_files_are_counted_exactly_when_all_of_them_are_read(tmp_path: Path) -> None:
    counts = counted(texts(tmp_path, files=3, lines=70, suffix=".jsonl"))
    assert (counts.items, counts.exact) == (210, True)


def test_many_files_are_extrapolated_from_some_and_that_is_said(tmp_path: Path) -> None:
    counts = counted(texts(tmp_path, files=40, lines=70, suffix=".jsonl.gz"))
    assert not counts.exact
    assert counts.items == pytest.approx(40 * 70, rel=0.05)
    assert "extrapolated by size: 8 of 40 files" in counts.counted


def test_a_large_file_is_extrapolated_from_its_head(tmp_path: Path) -> None:
    lines = 250_000
    counts = counted(texts(tmp_path, files=1, lines=lines, suffix=".jsonl"))
    assert not counts.exact
    assert counts.items == pytest.approx(lines, rel=0.05)


def test_invalid_lines_are_not_items(tmp_path: Path) -> None:
    runs = texts(tmp_path, files=1, lines=5, suffix=".jsonl")
    path = tmp_path / "source" / "000.jsonl"
    path.write_text(path.read_text() + "\nnot json\n")
    assert counted(runs).items == 5


def test_a_damaged_array_has_no_items(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path, shards=1)
    (tmp_path / "source" / "1.npy").write_bytes(b"no array")
    assert counted(runs).by_shard == {"s000000": 60, "s000001": 0}


def test_embedded_shards_are_counted_by_their_records_unless_their_files_changed(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path)
    runs.run(until="embeddings")
    assert counted(runs).counted == "exact: 3 embedded shards by their records"
    write_shard(tmp_path, "0", np.concatenate([near_duplicates(1), near_duplicates(2)]))
    counts = counted(runs)
    assert counts.by_shard == {"s000000": 120, "s000001": 60, "s000002": 60}
    assert counts.counted.startswith("2 embedded shards by their records; exact: 1 of 1 files")
