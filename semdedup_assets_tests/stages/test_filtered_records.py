"""JSON lines and tars with the kept records only, against the source as plain Python reads it."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import tarfile
import tempfile
from collections.abc import Callable
from itertools import compress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from semdedup_assets import read_manifest
from semdedup_assets.checks.manifests import counts_are_conserved
from semdedup_assets.sources import JsonLines, WebDataset
from semdedup_assets.sources.filtering import write_lines
from semdedup_assets.sources.jsonl import count_lines
from semdedup_assets.sources.packing import Packing, packed
from semdedup_assets.stages import filtered_files
from semdedup_assets.storage.files import read_bytes
from semdedup_assets_tests.assets.test_images_and_texts import checkpoint
from semdedup_assets_tests.stage_runs import StageRuns, stored_files
from semdedup_assets_tests.stages.hostile_sources import LINES, TAR_MEMBERS, image, write_tar
from semdedup_assets_tests.stages.test_manifest_readers import KEPT, clip, pipeline
from semdedup_assets_tests.stages.test_source_copies import refused, unseen
from semdedup_assets_tests.toy_source import STATIC_TEXTS, vectors_settings

BOM = b"\xef\xbb\xbf"
ZSTD = zstandard.ZstdCompressor()
UNPACK: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"\x28\xb5": lambda content: zstandard.ZstdDecompressor().stream_reader(content, read_across_frames=True).read(),
    b"BZ": bz2.decompress,
    b"\xfd7": lzma.decompress,
}


def unpacked(path: Path) -> tuple[bytes, bytes]:
    """How a file begins that is packed, and its content."""
    content = path.read_bytes()
    magic = content[:2] if content[:2] in UNPACK else b""
    return magic, UNPACK[magic](content) if magic else content


def kept_rows(runs: StageRuns, key: str, counts: dict[str, int]) -> dict[str, list[int]]:
    """The rows of each file of the source that the masks keep, by the records that each has."""
    masks, found = runs.masks(key), {}
    kept = set(masks.filter(masks["kept"])["id"].to_list())
    for shard in runs.context().shards:
        first = shard.index << 32
        for file in shard.files:
            rows = range(counts[file.path])
            found[file.path] = [row for row in rows if first + row in kept]
            first += len(rows)
    return found


def filtered(runs: StageRuns, key: str) -> Path:
    return runs.manifest(key)[0] / "filtered"


# JSON lines


def line(text: str, **fields: Any) -> bytes:
    return json.dumps({"text": text, **fields}, ensure_ascii=False).encode()


def sentences(seed: int, count: int = 12) -> list[bytes]:
    words = ["cat", "dog", "train", "river", "winter", "number", "parser", "matrix", "ü", "\u2028", "🙂"]
    draw = random.Random(seed)
    return [line(f"{seed} {' '.join(draw.choices(words, k=6))}", good=True, n=row) for row in range(count)]


def write_texts(source: Path) -> None:
    """Files of every packing and encoding; `copies` holds nothing that `plain` does not, and `none` no line at all."""
    (source / "sub dir").mkdir(parents=True)
    plain = sentences(1) + LINES
    (source / "plain.jsonl").write_bytes(BOM + b"\n".join(plain))
    (source / "copies.json.gz").write_bytes(gzip.compress(b"".join(each + b"\r\n" for each in sentences(1)[::-1])))
    members = b"\n".join([*sentences(2), b"", b"no JSON", *sentences(3)]) + b"\n"
    halves = members[:701], members[701:]
    (source / "sub dir" / "members.jsonl.gz").write_bytes(b"".join(map(gzip.compress, halves)) + bytes(40))
    (source / "frames.ndjson.zst").write_bytes(b"".join(ZSTD.compress(each) for each in halves))
    (source / "named.jsonl.gz").write_bytes(b"\n".join(sentences(4)))
    wide = b"\n".join([*sentences(1, 2), *sentences(5)]).decode()
    (source / "wide.jsonl").write_bytes(wide.encode("utf-16"))
    (source / "big-endian.jsonl").write_bytes(f"{wide}\n".encode("utf-16-be"))
    (source / "none.jsonl").write_bytes(b"")
    (source / "none.jsonl.gz").write_bytes(gzip.compress(b""))


def lines_of(path: Path) -> tuple[str, bytes, list[bytes]]:
    """Encoding, mark and lines of a file, each with its end."""
    _, content = unpacked(path)
    encoding = {"wide.jsonl": "utf-16-le", "big-endian.jsonl": "utf-16-be"}.get(path.name, "utf-8")
    mark = "\ufeff".encode(encoding)
    head = mark if content.startswith(mark) else b""
    body = content.removeprefix(head)
    end = "\n".encode(encoding)
    width, lines, start = len(end), [], 0
    for at in range(0, len(body), width):
        if body[at : at + width] == end:
            lines.append(body[start : at + width])
            start = at + width
    return encoding, head, [*lines, *([body[start:]] if start < len(body) else [])]


def text_settings(folder: Path, **changes: Any) -> dict[str, Any]:
    source = {"kind": "jsonl", "path": str(folder / "source"), "columns": {"n": "int"}}
    return (
        vectors_settings(folder, source=source, encoder=STATIC_TEXTS, manifests=["filtered"], max_skipped=1) | changes
    )


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    folder = tmp_path_factory.mktemp("texts")
    write_texts(folder / "source")
    runs = StageRuns(text_settings(folder, shards={"files_per_shard": 3}, epsilons=["0.05", "0.3"]))
    runs.run()
    return runs


@pytest.mark.parametrize("key", ["0.05|3", "0.3|3"])
def test_lines_are_those_of_the_source_byte_for_byte_in_files_of_its_own_form(texts: StageRuns, key: str) -> None:
    source = Path(texts.settings["source"]["path"])
    found = {str(path): lines_of(path) for path in source.rglob("*") if path.is_file()}
    kept = kept_rows(texts, key, {path: len(lines) for path, (_, _, lines) in found.items()})
    written = filtered(texts, key)
    names = {os.path.relpath(path, source) for path in kept}
    assert {str(path.relative_to(written)) for path in written.rglob("*") if path.is_file()} == names
    for path, rows in kept.items():
        _, head, lines = found[path]
        file = written / os.path.relpath(path, source)
        magic, content = unpacked(file)
        assert magic == unpacked(Path(path))[0]
        assert content == b"".join([head if rows else b"", *(lines[row] for row in rows)])
    _, details = texts.manifest(key)
    assert details["rows_written"] == {"filtered": details["kept"]}
    assert details["kept"] == sum(map(len, kept.values())) < sum(len(lines) for _, _, lines in found.values())
    assert counts_are_conserved(texts.context()).problems == []
    again = JsonLines(path=str(written))
    assert sum(1 for file in again.files() for _ in again.read(file.path)) == details["kept"]


def test_a_file_of_which_nothing_is_kept_is_there_without_lines(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_texts(source)
    for name in ("copies.json.gz", "frames.ndjson.zst", "wide.jsonl"):
        path = source / name
        encoding, head, _ = lines_of(path)
        body = b"".join(each.replace(b'"good": true', b'"good": false') + b"\n" for each in sentences(1)).decode()
        content = head + body.encode(encoding)
        magic, _ = unpacked(path)
        pack = {b"\x1f\x8b": gzip.compress, b"\x28\xb5": ZSTD.compress}.get(magic, bytes)
        path.write_bytes(pack(content))
    protecting = text_settings(tmp_path, selection={"protect": "good"})
    protecting["source"]["columns"] = {"good": "bool"}
    runs = StageRuns(protecting)
    runs.run()
    for name in ("copies.json.gz", "frames.ndjson.zst", "wide.jsonl"):
        assert unpacked(filtered(runs, "0.05|3") / name) == (unpacked(source / name)[0], b"")
    assert counts_are_conserved(runs.context()).problems == []


def test_lines_that_are_not_what_was_embedded_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "source" / "0.jsonl"
    path.parent.mkdir()
    path.write_bytes(b"\n".join([line("a cat sat"), line("two trains left", note="x"), line("rain")]))
    runs = StageRuns(text_settings(tmp_path, epsilons=["0.000001"], clustering={"k": [1], "buckets": 1}))
    runs.run()
    unseen(path, lambda content: content.replace(b"two trains", b"two planes"))
    refused(runs, r"0\.jsonl: changed since it was embedded: record 1 \(counted from 0\) is not the one")
    path.write_bytes(line("a cat sat"))
    refused(
        runs, r"0\.jsonl: changed since it was embedded: it has 1 records|0\.jsonl was changed since it was observed"
    )


def test_a_bucket_holds_the_same(tmp_path: Path, bucket: str) -> None:
    write_texts(tmp_path / "source")
    runs = StageRuns(text_settings(tmp_path))
    runs.run()
    before = stored_files(filtered(runs, "0.05|3"))
    remote = runs.changed(store=f"{bucket}/store")
    remote.run()
    record = remote.record("manifests", "0.05|3")
    found = read_manifest(record.location)
    contents = {path.partition("/filtered/")[2]: read_bytes(path) for path in found.files("filtered")}
    assert contents == before
    assert len(before) == 9
    assert found.details["rows_written"] == runs.manifest("0.05|3")[1]["rows_written"]


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_lines_in_any_form_are_those_that_were_chosen(data: st.DataObject) -> None:
    """Of texts with line breaks of other readers and of any length, with marks within, and ends of all kinds."""
    encoding = data.draw(st.sampled_from(["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]))
    texts = data.draw(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), min_size=1, max_size=9))
    ends = data.draw(st.lists(st.sampled_from(["\n", "\r\n", " \n"]), min_size=len(texts), max_size=len(texts)))
    inner = data.draw(st.sampled_from(["", "\ufeff"]))
    lines = [
        f"{inner if row else ''}{line(text).decode()}{end}"
        for row, (text, end) in enumerate(zip(texts, ends, strict=True))
    ]
    lines[-1] = lines[-1] if data.draw(st.booleans()) else lines[-1].rstrip()
    # UTF-32 is known by its mark alone.
    mark = "\ufeff" if encoding.startswith("utf-32") or data.draw(st.booleans()) else ""
    packing: Packing | None = data.draw(st.sampled_from([None, "gzip", "zstandard"]))
    keep = data.draw(st.lists(st.booleans(), min_size=len(lines), max_size=len(lines)))
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        with packed(file, packing) as stream:
            stream.write((mark + "".join(lines)).encode(encoding))
        file.flush()
        written = io.BytesIO()
        write_lines(file.name, compress(JsonLines(path=file.name).whole_lines(file.name), keep), written)
        file.seek(0)
        file.truncate()
        file.write(written.getvalue())
        file.flush()
        magic, content = unpacked(Path(file.name))
    expected = "".join(compress(lines, keep))
    assert content.decode(encoding) == (mark + expected if expected else "")
    assert (magic != b"") == (packing is not None)
    assert count_lines(io.BufferedReader(io.BytesIO(written.getvalue()))) == sum(keep)


# Tars


def samples_of(content: bytes) -> list[list[tuple[str, bytes]]]:
    """The samples of an unpacked tar, in its order: names and contents of their files."""
    samples: list[list[tuple[str, bytes]]] = []
    last, seen = None, set[str]()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in tar:
            folder, _, name = member.name.rpartition("/")
            stem, _, suffix = name.partition(".")
            stream = tar.extractfile(member) if not member.isdir() else None
            if stream is None or not stem or not suffix:
                continue
            if (folder, stem) != last or suffix.lower() in seen:
                samples.append([])
                seen = set()
            last = folder, stem
            seen.add(suffix.lower())
            samples[-1].append((member.name, stream.read()))
    return samples


def plain_tar(members: list[tuple[str, bytes | str]]) -> bytes:
    """A tar of files, and of hard links where a name stands in place of the content."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            if isinstance(data, str):
                member.type, member.linkname = tarfile.LNKTYPE, data
                tar.addfile(member)
            else:
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def test_tars_hold_the_kept_samples_under_their_own_names(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    write_tar(source / "deep" / "hostile.tar", TAR_MEMBERS, seed=1)
    linked: list[tuple[str, bytes | str]] = [
        ("one.JPG", image(1)), ("one.Json", b"{}"), ("_x/one.txt", b""), ("two.png", "one.JPG"), ("two.cls", b"7"),
        ("three.png", image(2)), ("./four.png", image(2)), ("./four.seg.png", image(9)), ("README", b"of no sample"),
    ]  # fmt: skip
    (source / "links.tar").write_bytes(plain_tar(linked))
    # All of these are in `links.tar` already, which comes before them.
    (source / "packed.tar.gz").write_bytes(gzip.compress(plain_tar([("a.png", image(1)), ("b.png", image(2))])))
    others: list[tuple[str, bytes | str]] = [(f"{number}.png", image(20 + number // 2)) for number in range(8)]
    # The samples between are removed; then two of one key lie side by side.
    others += [("twin.png", image(40)), ("copy.png", image(20)), ("twin.png", image(41)), ("twin-1.txt", b"")]
    for suffix, pack in (("bz2", bz2.compress), ("xz", lzma.compress), ("zst", ZSTD.compress)):
        (source / f"packed.tar.{suffix}").write_bytes(pack(plain_tar(others)))
    runs = pipeline(tmp_path, {"kind": "webdataset"}, clip(checkpoint(tmp_path / "clip", seed=0)), ["filtered"])
    runs.run()
    found = {str(path): samples_of(unpacked(path)[1]) for path in source.rglob("*.tar*")}
    kept = kept_rows(runs, KEPT, {path: len(samples) for path, samples in found.items()})
    renamed = 0
    for path, rows in kept.items():
        file = filtered(runs, KEPT) / os.path.relpath(path, source)
        magic, content = unpacked(file)
        assert magic == unpacked(Path(path))[0]
        written = samples_of(content)
        assert len(written) == len(rows)
        for row, members in zip(rows, written, strict=True):
            expected = found[path][row]
            assert [data for _, data in members] == [data for _, data in expected]
            if [name for name, _ in members] != [name for name, _ in expected]:
                renamed += 1
    _, details = runs.manifest(KEPT)
    assert details["changed"] == {"filtered_renamed_samples": renamed}
    assert details["rows_written"] == {"filtered": details["kept"]}
    assert renamed > 0
    assert [] in kept.values()
    assert counts_are_conserved(runs.context()).problems == []
    again = WebDataset(path=str(filtered(runs, KEPT)))
    read = sum(1 for file in again.files() for _ in again.read(file.path))
    assert read == details["kept"]


# Images beside tables


def test_images_beside_a_table_are_put_into_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filtered_files, "_IMAGE_BYTES", 3000)
    source = tmp_path / "source"
    (source / "pictures").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for number in range(24):
        name, content = f"pictures/{number}.png", image(number // 2)
        beside = number % 3 == 0
        if beside:
            (source / name).write_bytes(content)
        rows.append({"bytes": None if beside else content, "path": name})
    rows[5] = {"bytes": b"no image", "path": None}
    kind = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])
    schema = pa.schema(
        [pa.field("picture", kind, metadata={"a": "b"}), ("n", pa.int8())], metadata={"huggingface": "{}"}
    )
    pq.write_table(pa.table([pa.array(rows, kind), range(24)], schema=schema), source / "0.parquet", row_group_size=7)
    encoder = clip(checkpoint(tmp_path / "clip", seed=0))
    runs = pipeline(tmp_path, {"kind": "parquet", "image": "picture"}, encoder, ["filtered"])
    runs.run()
    found = pq.read_table(filtered(runs, KEPT) / "0.parquet")
    assert found.schema.equals(schema, check_metadata=True)
    kept = kept_rows(runs, KEPT, {str(source / "0.parquet"): 24})[str(source / "0.parquet")]
    whole = [{"bytes": image(row // 2), "path": f"pictures/{row}.png"} for row in kept]
    assert found.to_pylist() == [{"picture": each, "n": row} for each, row in zip(whole, kept, strict=True)]
    _, details = runs.manifest(KEPT)
    assert details["changed"] == {"images_put_into_tables": sum(row % 3 == 0 for row in kept)}
    assert details["removed"] > 0
    (source / "pictures" / "0.png").write_bytes(image(99))
    refused(runs, r"0\.parquet: changed since it was embedded: record 0 ")
