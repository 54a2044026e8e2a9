"""Rows are counted in the files, whatever the rows hold."""

import csv
import gzip
from pathlib import Path

import pytest

from semdedup_assets.stages import manifest_rows
from semdedup_assets.stages.manifest_rows import rows_written

CAPTIONS = ["a cat", 'a "cat"\non two lines', "", '"', '""\n""\n', "tab\there", "x" * 300_000]


@pytest.mark.parametrize("block", [1, 2, 3, 1 << 20])
def test_a_caption_with_line_breaks_and_quotes_is_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(manifest_rows, "_BLOCK", block)
    captions = CAPTIONS if block > 3 else CAPTIONS[:-1]
    with (tmp_path / "open_clip.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(["filepath", "title"])
        writer.writerows((f"{row}.jpg", caption) for row, caption in enumerate(captions))
    assert rows_written(str(tmp_path), ["open_clip.csv"]) == {"open_clip.csv": len(captions)}


def test_the_rows_of_a_formats_files_add_up_and_tars_are_not_counted(tmp_path: Path) -> None:
    for shard, lines in enumerate([3, 0, 4]):
        for folder, suffix in (("jsonl", "jsonl.gz"), ("keep_lists", "tsv"), ("webdataset", "tar")):
            path = tmp_path / folder / f"s{shard:06d}.{suffix}"
            path.parent.mkdir(exist_ok=True)
            content = b'{"text": "one"}\n' * lines
            path.write_bytes(gzip.compress(content) if folder == "jsonl" else content)
    files = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("s*")]
    assert rows_written(str(tmp_path), files) == {"jsonl": 7, "keep_lists": 7}
