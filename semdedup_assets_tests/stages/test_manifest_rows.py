"""Rows are counted in the files, whatever the rows hold."""

import csv
import gzip
import io
import tarfile
from collections import Counter
from pathlib import Path
from unicodedata import normalize

import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from semdedup_assets.stages.manifest_names import SampleKeys, sample_suffixes
from semdedup_assets.stages.manifest_rows import SampleCounter, count_rows, kind_of

CELLS = ["a cat", 'a "cat"\non two lines', "", '"', '""\n""\n', "tab\there", "lone\rreturn", "x" * 300_000]


def rows_written(folder: str, names: list[str]) -> dict[str, int]:
    """Rows of some files of a manifest, by the file or the folder that holds a format."""
    rows = Counter[str]()
    for name in names:
        with (Path(folder) / name).open("rb") as stream:
            rows[kind_of(name)] += count_rows(name, stream)
    return rows


def test_a_cell_with_line_breaks_and_quotes_is_one_row(tmp_path: Path) -> None:
    with (tmp_path / "open_clip.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(["filepath", "title"])
        writer.writerows((f"{row}.jpg", cell) for row, cell in enumerate(CELLS))
    limit = csv.field_size_limit()
    assert rows_written(str(tmp_path), ["open_clip.csv"]) == {"open_clip.csv": len(CELLS)}
    assert csv.field_size_limit() == limit


def test_a_row_that_a_lone_carriage_return_splits_is_not_counted_as_one(tmp_path: Path) -> None:
    """As Python before 3.11.9 and 3.12.3 wrote it."""
    (tmp_path / "open_clip.csv").write_bytes(b"filepath\ttitle\n1.jpg\ta\rb\n2.jpg\tc\td\n3.jpg\te\n")
    assert rows_written(str(tmp_path), ["open_clip.csv"]) == {"open_clip.csv": 2}


def test_the_rows_of_a_formats_files_add_up(tmp_path: Path) -> None:
    for shard, rows in enumerate([3, 0, 4]):
        for folder, suffix in (("jsonl", "jsonl.gz"), ("keep_lists", "tsv"), ("samples", "tsv"), ("webdataset", "tar")):
            path = tmp_path / folder / f"s{shard:06d}.{suffix}"
            path.parent.mkdir(exist_ok=True)
            if folder == "jsonl":
                path.write_bytes(gzip.compress(b'{"text": "one"}\n' * rows))
            elif folder == "webdataset":
                path.write_bytes(tar_of([(f"{row}", ["png", "txt"]) for row in range(rows)]))
            else:
                path.write_text(("a\t0\tb\tc\n" if folder == "samples" else "a\t0\tb\n") * rows)
    files = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("s*.*")]
    assert rows_written(str(tmp_path), files) == dict.fromkeys(("jsonl", "keep_lists", "samples", "webdataset"), 7)


def tar_of(samples: list[tuple[str, list[str]]], stream: io.RawIOBase | None = None) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=stream or content, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for number, (key, suffixes) in enumerate(samples):
            for suffix in suffixes:
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = 700 * number
                tar.addfile(member, io.BytesIO(b"\x01" * member.size))
    return content.getvalue()


NAMES = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("./_-aA\n"), max_size=12)


@settings(deadline=None, max_examples=60)
@given(names=st.lists(NAMES, max_size=8), suffixes=st.lists(NAMES, min_size=1, max_size=3), repeat=st.integers(1, 120))
def test_any_names_become_distinct_samples_to_webdataset(names: list[str], suffixes: list[str], repeat: int) -> None:
    keys, samples = SampleKeys(), []
    for row, name in enumerate(names * 2):
        plain = sample_suffixes([suffix.replace("/", "_").lower() for suffix in suffixes])
        samples.append((keys.add(name * repeat, row), plain))
    sent = io.BytesIO()
    counter = SampleCounter(sent)
    tar_of(samples, counter)
    assert counter.samples == len(samples)
    files = [{"url": "a.tar", "stream": io.BytesIO(sent.getvalue())}]
    found = list(webdataset.tariterators.group_by_keys(webdataset.tariterators.tar_file_expander(files)))
    assert [sample["__key__"] for sample in found] == [key for key, _ in samples]
    assert all(len(suffixes) == len(sample) - 2 for sample in found)
    assert len({normalize("NFC", key).casefold() for key, _ in samples}) == len(samples)
