"""What a manifest copies of the source is what was embedded, or there is no manifest."""

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from semdedup_assets.checks.manifests import counts_are_conserved
from semdedup_assets.execution.pipeline_stages import PipelineStages
from semdedup_assets.execution.refresh import RefreshListener, RefreshPlan, refresh
from semdedup_assets.execution.shard_reader import SourceChangedError
from semdedup_assets.records import Record, content_hash
from semdedup_assets.sources import JsonLines
from semdedup_assets_tests.assets.test_images_and_texts import checkpoint
from semdedup_assets_tests.stage_runs import StageRuns, record_path, stored_files
from semdedup_assets_tests.stages.hostile_sources import image, write_tar
from semdedup_assets_tests.stages.test_manifest_readers import KEPT, clip, pipeline
from semdedup_assets_tests.toy_source import STATIC_TEXTS

TEXTS = ["The cat sat.", "Rain falls in spring.", "Add two numbers.", "A train to Bern leaves."]


def write_texts(path: Path, texts: list[str], *, note: str = "first") -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, "note": note}) + "\n" for text in texts))


def unseen(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the content of a file so that its size and times do not show it."""
    before, content = path.stat(), path.read_bytes()
    changed = change(content)
    assert len(changed) == len(content)
    assert changed != content
    path.write_bytes(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def texts(tmp_path: Path) -> StageRuns:
    """Two shards of texts, all made."""
    for number in range(2):
        write_texts(tmp_path / "source" / f"{number}.jsonl", [f"{text} {number}" for text in TEXTS])
    runs = pipeline(tmp_path, {"kind": "jsonl"}, STATIC_TEXTS, ["parquet", "jsonl"]).changed(
        shards={"files_per_shard": 1}
    )
    runs.run()
    return runs


def lines(runs: StageRuns) -> list[dict[str, Any]]:
    folder, _ = runs.manifest(KEPT)
    content = b"".join(gzip.decompress(path.read_bytes()) for path in sorted((folder / "jsonl").iterdir()))
    return [json.loads(line) for line in content.splitlines()]


def refused(runs: StageRuns, match: str) -> None:
    """Making the manifest fails, and leaves the earlier one, its record and the pointer as they were."""
    store = Path(runs.settings["store"])
    before = stored_files(store)
    with pytest.raises(SourceChangedError, match=match):
        runs.make("manifests", KEPT)
    assert stored_files(store) == before


def test_texts_that_differ_from_the_embedded_ones_are_refused(texts: StageRuns, tmp_path: Path) -> None:
    unseen(tmp_path / "source" / "1.jsonl", lambda content: content.replace(b"Add two", b"Sub two"))
    refused(texts, r"1\.jsonl: changed since it was embedded: record 2 \(counted from 0\) is not the one")


def test_a_file_that_was_changed_since_it_was_observed_is_refused(texts: StageRuns, tmp_path: Path) -> None:
    write_texts(tmp_path / "source" / "0.jsonl", [f"{text} 0" for text in TEXTS], note="second")
    refused(texts, r"0\.jsonl was changed since it was observed; observe the shards")


def test_a_file_that_vanished_or_ends_early_is_refused(texts: StageRuns, tmp_path: Path) -> None:
    path = tmp_path / "source" / "1.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"\n") + 1])
    refused(texts, r"1\.jsonl: changed since it was embedded: it has 1 records, and record 3 ")
    path.unlink()
    refused(texts, r"1\.jsonl: changed since it was embedded: .*cannot be opened")


@pytest.mark.parametrize("again", ["items", "embeddings"])
def test_keys_and_vectors_of_two_states_are_refused_in_every_format(
    texts: StageRuns, tmp_path: Path, again: str
) -> None:
    """Also where no format copies the source: the rows of the one are not those of the other."""
    tables = texts.changed(manifests=["parquet"])
    tables.run()
    write_texts(tmp_path / "source" / "0.jsonl", [f"{text} 0" for text in TEXTS], note="second")
    for runs in (texts, tables):
        runs.observe()
        runs.make(again, "s000000")
        refused(runs, "toy, shard s000000: its files changed between the reading of its keys, of its vectors and now")


def test_a_file_that_changes_while_the_manifest_is_written_leaves_none(
    texts: StageRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = JsonLines.lines

    def changing(self: JsonLines, path: str) -> Iterator[bytes]:
        found = list(usual(self, path))
        if path.endswith("1.jsonl"):
            write_texts(Path(path), ["Another text."])
        return iter(found)

    # All lines are those that were embedded: only the file's time and size show the change.
    monkeypatch.setattr(JsonLines, "lines", changing)
    refused(texts, r"1\.jsonl was changed since it was observed")


def test_what_copies_follows_a_change_that_vectors_and_columns_do_not_show(texts: StageRuns, tmp_path: Path) -> None:
    path = tmp_path / "source" / "0.jsonl"
    first, times = path.read_bytes(), path.stat()
    assert {line["note"] for line in lines(texts)} == {"first"}
    write_texts(path, [f"{text} 0" for text in TEXTS], note="second")
    texts.observe()
    assert texts.stale("manifests") == [KEPT]
    assert texts.run() == {"items": ["s000000"], "embeddings": ["s000000"], "manifests": [KEPT]}
    assert [line["note"] for line in lines(texts)] == ["second"] * 4 + ["first"] * 4
    assert counts_are_conserved(texts.context()).problems == []
    path.write_bytes(first)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    texts.run()
    assert {line["note"] for line in lines(texts)} == {"first"}
    assert texts.run() == {}


def test_formats_that_copy_nothing_do_not_follow_it(texts: StageRuns, tmp_path: Path) -> None:
    tables = texts.changed(manifests=["parquet"])
    tables.run()
    write_texts(tmp_path / "source" / "0.jsonl", [f"{text} 0" for text in TEXTS], note="second")
    assert tables.run() == {"items": ["s000000"], "embeddings": ["s000000"]}


def test_an_excluded_shard_is_left_out_of_what_copies(texts: StageRuns, tmp_path: Path) -> None:
    (tmp_path / "source" / "2.jsonl.gz").write_bytes(b"\x1f\x8b" + b"\0" * 40)
    texts.run()
    assert len(lines(texts)) == 8
    assert counts_are_conserved(texts.context()).problems == []


def test_images_that_differ_from_the_embedded_ones_are_refused(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "clip", seed=0)
    other = image(1)[:-20] + bytes(20)
    (tmp_path / "tars" / "source").mkdir(parents=True)
    write_tar(tmp_path / "tars" / "source" / "0.tar", ["a.png", "b.png"], seed=0)
    tars = pipeline(tmp_path / "tars", {"kind": "webdataset"}, clip(model), ["webdataset"])
    tars.run()
    with tarfile.open(tmp_path / "tars" / "source" / "0.tar") as tar:
        old = tar.extractfile("b.png").read()  # type: ignore[union-attr]
    unseen(tmp_path / "tars" / "source" / "0.tar", lambda content: content.replace(old, bytes(len(old))))
    refused(tars, r"0\.tar: changed since it was embedded: record 1 ")

    (tmp_path / "folder" / "source").mkdir(parents=True)
    for number in range(2):
        (tmp_path / "folder" / "source" / f"{number}.png").write_bytes(image(number))
    folder = pipeline(tmp_path / "folder", {"kind": "folder"}, clip(model), ["webdataset", "csv"])
    folder.run()
    unseen(tmp_path / "folder" / "source" / "1.png", lambda _: other)
    refused(folder, r"1\.png: changed since it was embedded: record 0 ")


def test_the_embedded_image_of_a_sample_is_among_its_files(tmp_path: Path) -> None:
    """Which one it is, the source decides: what is verified must be what it reads."""
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        for suffix, seed in (("png", 1), ("jpg", 2), ("txt", 3)):
            content = image(seed)
            member = tarfile.TarInfo(f"a.{suffix}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    from semdedup_assets.sources import WebDataset

    source = WebDataset(path=str(path))
    (record,), ((_, members),) = source.read(str(path)), source.samples(str(path))
    assert isinstance(record, Record)
    assert isinstance(record.payload, bytes)
    assert content_hash(record.payload) in [content_hash(member) for member in members.values()]


# What is tampered with afterwards


def reported(runs: StageRuns) -> str:
    (problem,) = counts_are_conserved(runs.context()).problems
    assert problem.partition == KEPT
    return problem.measured


@pytest.mark.parametrize("name", ["parquet/s000000.parquet", "jsonl/s000001.jsonl.gz"])
@pytest.mark.parametrize("fault", ["shorter", "flipped", "missing"])
def test_a_manifest_that_was_tampered_with_is_reported_and_made_again(texts: StageRuns, name: str, fault: str) -> None:
    folder, _ = texts.manifest(KEPT)
    path, sound = folder / name, (folder / name).read_bytes()
    if fault == "missing":
        path.unlink()
    else:
        changed = bytearray(sound[:-9] if fault == "shorter" else sound)
        changed[20] ^= 1
        path.write_bytes(bytes(changed))
    assert name in reported(texts)
    assert reported(texts) != ""  # not only once
    assert texts.run() == {"manifests": [KEPT]}
    assert counts_are_conserved(texts.context()).problems == []
    assert (texts.manifest(KEPT)[0] / name).read_bytes() == sound or name.endswith("parquet")


@pytest.mark.parametrize("content", [b"{", None, b'{"folder": "0123456789abcdef-000000"}'])
def test_a_refresh_names_the_recorded_manifest_as_the_current_one(texts: StageRuns, content: bytes | None) -> None:
    folder, _ = texts.manifest(KEPT)
    pointer = folder.parent / "current.json"
    sound = pointer.read_bytes()
    if content is None:
        pointer.unlink()
    else:
        pointer.write_bytes(content)
    made = refresh(RefreshPlan(PipelineStages(texts.pipeline, texts.graph)), RefreshListener())
    assert not any(run.partitions for run in made)
    assert pointer.read_bytes() == sound


def test_a_pointer_to_another_manifest_is_reported(texts: StageRuns) -> None:
    folder, _ = texts.manifest(KEPT)
    pointer = folder.parent / "current.json"
    sound = pointer.read_bytes()
    pointer.write_bytes(sound.replace(folder.name.encode(), b"0123456789abcdef-000000"))
    assert "current.json names 0123456789abcdef-000000" in reported(texts)
    pointer.write_bytes(b"{")
    assert reported(texts) == "current.json is damaged"
    pointer.unlink()
    assert reported(texts) == "current.json is missing"
    pointer.write_bytes(sound)
    assert counts_are_conserved(texts.context()).problems == []
    record_path(texts.record("manifests", KEPT)).unlink()
    assert "and the record is missing" in reported(texts)


def test_a_store_that_was_copied_is_not_taken_for_a_tampered_one(texts: StageRuns) -> None:
    folder, _ = texts.manifest(KEPT)
    for path in folder.rglob("*.*"):
        os.utime(path)
    assert counts_are_conserved(texts.context()).problems == []
    assert len(pl.read_parquet(f"{folder}/parquet/*.parquet")) == 8
