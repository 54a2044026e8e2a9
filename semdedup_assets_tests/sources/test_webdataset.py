import bz2
import gzip
import io
import json
import lzma
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from semdedup_assets.records import Invalid, Item, Record
from semdedup_assets.sources import TruncatedFile, WebDataset
from semdedup_assets.sources.tar_members import Tar


def image_bytes(color: str, format: str = "JPEG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(content, format)
    return content.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def sample(key: str, color: str = "red", **fields: object) -> list[tuple[str, bytes]]:
    """A sample as img2dataset writes it."""
    document = {"url": f"https://example.org/{key}.jpg", "key": key, **fields}
    return [
        (f"{key}.jpg", image_bytes(color)),
        (f"{key}.json", json.dumps(document).encode()),
        (f"{key}.txt", f"a {color} square".encode()),
    ]


def until_cut(rows: Iterator[Any]) -> tuple[list[Any], str | None]:
    """What is read of a file, and why not all of it."""
    found = []
    try:
        found.extend(rows)
    except TruncatedFile as cut:
        return found, str(cut)
    return found, None


def read_all(source: WebDataset) -> list[Record | Invalid]:
    return [item for file in source.files() for item in source.read(file.path)]


def all_items(source: WebDataset) -> list[Item]:
    return [item for file in source.files() for item in source.read_items(file.path)]


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar.xz", "w:xz"), ("a.tbz2", "w:bz2")],
)
def test_a_tar_of_img2dataset_gives_images_captions_urls_and_columns(tmp_path: Path, name: str, mode: str) -> None:
    members = sample("000000001", "red", similarity=0.31, width=640) + sample("000000002", "blue", width=None)
    source = WebDataset(
        path=str(write_tar(tmp_path / name, members, mode)), columns={"similarity": "float", "width": "int"}
    )
    assert read_all(source) == [Record("000000001", image_bytes("red")), Record("000000002", image_bytes("blue"))]
    assert all_items(source) == [
        Item(
            "000000001",
            {"caption": "a red square", "url": "https://example.org/000000001.jpg", "similarity": 0.31, "width": 640},
        ),
        Item(
            "000000002",
            {"caption": "a blue square", "url": "https://example.org/000000002.jpg", "similarity": None, "width": None},
        ),
    ]
    assert source.column_types == {"caption": "string", "url": "string", "similarity": "float", "width": "int"}


def test_keys_are_those_of_the_webdataset_package(tmp_path: Path) -> None:
    names = ["a/b.c/001.jpg", "a/b.c/001.seg.png", "002.JPG", "./003.jpg", "._004.jpg", "004.jpg", "none", "d/é 5.webp"]
    path = write_tar(tmp_path / "a.tar", [(name, image_bytes("red")) for name in names])
    with path.open("rb") as stream:
        samples = group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}]))
        expected = [found["__key__"] for found in samples]
    assert [item.key for item in read_all(WebDataset(path=str(path)))] == expected
    assert expected == ["a/b.c/001", "002", "./003", "004", "d/é 5"]


def test_the_caption_falls_back_to_the_json(tmp_path: Path) -> None:
    members = [
        ("1.json", b'{"caption": "from json"}'),
        ("1.png", image_bytes("red", "PNG")),
        ("2.jpg", image_bytes("red")),
    ]
    items = all_items(WebDataset(path=str(write_tar(tmp_path / "a.tar", members))))
    assert [item.columns for item in items] == [
        {"caption": "from json", "url": None},
        {"caption": None, "url": None},
    ]


def test_invalid_samples_keep_their_row_and_sidecars_never_drop_an_image(tmp_path: Path) -> None:
    members = [
        *sample("0"),
        ("1.txt", b"no image at all"),
        *sample("2", score="abc"),
        ("3.jpg", b""),
        ("4.jpg", image_bytes("red")),
        ("4.json", b"{damaged"),
        ("5.jpg", image_bytes("red")),
        ("5.txt", b"\xff"),
        *sample("6", score=7),
    ]
    source = WebDataset(path=str(write_tar(tmp_path / "a.tar", members)), columns={"score": "int"})
    records, items = read_all(source), all_items(source)
    assert [record.key for record in records] == [item.key for item in items] == list("0123456")
    assert {record.key: record.reason.partition(" (")[0] for record in records if isinstance(record, Invalid)} == {
        "1": "no image among its 1 file",
        "3": "empty image: 0 bytes",
    }
    assert {item.key: item.invalid_values[0].partition(" (")[0] for item in items if item.invalid_values} == {
        "2": "column 'score': 'abc' is not an int",
        "4": "json: not JSON",
        "5": "txt: not UTF-8 at byte 0",
    }
    assert [item.columns["caption"] for item in items[1:3]] == ["no image at all", "a red square"]
    assert [items[4].columns, items[5].columns] == [{"caption": None, "url": None, "score": None}] * 2


def test_a_repeated_key_or_suffix_is_a_record_of_its_own(tmp_path: Path) -> None:
    members = [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.jpg", b"3"), ("a.jpg", b"4"), ("a.txt", b"of the last")]
    source = WebDataset(path=str(write_tar(tmp_path / "a.tar", members)))
    records, items = read_all(source), all_items(source)
    assert [item.key for item in items] == [record.key for record in records]
    assert [
        (record.key, record.payload, item.columns["caption"]) for record, item in zip(records, items, strict=True)
    ] == [
        ("a", b"1", None),
        ("b", b"2", None),
        ("a", b"3", None),
        ("a", b"4", "of the last"),
    ]


def link(name: str, target: str, kind: bytes = tarfile.LNKTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_a_hard_link_has_the_content_of_the_earlier_member(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"{number}.jpg").write_bytes(image_bytes("red" if number == 1 else "blue"))
        (tmp_path / f"{number}.txt").write_text(f"caption {number}")
    for suffix in ("jpg", "txt"):
        (tmp_path / f"3.{suffix}").hardlink_to(tmp_path / f"1.{suffix}")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("1.jpg", "1.txt", "2.jpg", "2.txt", "3.jpg", "3.txt"):
            tar.add(tmp_path / name, f"./{name}")
        assert [member.name for member in tar if member.islnk()] == ["./3.jpg", "./3.txt"]
    source = WebDataset(path=str(tmp_path / "a.tar"))
    assert [record.payload for record in read_all(source)] == [image_bytes(c) for c in ("red", "blue", "red")]
    assert [item.columns["caption"] for item in all_items(source)] == ["caption 1", "caption 2", "caption 1"]
    assert list(source.samples(str(tmp_path / "a.tar")))[2] == ("./3", {"jpg": image_bytes("red"), "txt": b"caption 1"})
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    *_, last = read_all(WebDataset(path=str(packed)))
    assert isinstance(last, Invalid)
    assert "a hard link to './1.jpg', which cannot be read again in a compressed" in last.reason
    *_, item = all_items(WebDataset(path=str(packed)))
    assert item.columns["caption"] is None
    assert "txt: a hard link to" in item.invalid_values[0]


def test_a_symbolic_link_is_invalid_with_its_reason(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(link("1.jpg", "/etc/passwd", tarfile.SYMTYPE))
        tar.addfile(link("2.jpg", "2.jpg"))
    one, two = read_all(WebDataset(path=str(tmp_path / "a.tar")))
    assert one == Invalid("1", "jpg: a symbolic link to '/etc/passwd'; pack files, not links (`tar --dereference`)")
    assert isinstance(two, Invalid)
    assert "not among the members before it" in two.reason


def test_files_of_a_key_that_are_not_adjacent_are_named(tmp_path: Path) -> None:
    whole = {name: content for key in "ab" for name, content in sample(key)}
    images_first = sorted(whole, key=lambda name: (name[-3:], name))
    for order in (images_first, images_first[::-1]):
        path = write_tar(tmp_path / "a.tar", [(name, whole[name]) for name in order])
        source = WebDataset(path=str(path))
        records, items = read_all(source), all_items(source)
        assert [record.key for record in records] == [item.key for item in items]
        assert sorted(record.key for record in records if isinstance(record, Record)) == ["a", "b"]
        reasons = [record.reason for record in records if isinstance(record, Invalid)]
        reasons += [reason for item in items for reason in item.invalid_values]
        for key in "ab":
            assert any(f"sample split: the files of key '{key}' are not next to each other; sort" in r for r in reasons)


def test_dotted_names_that_make_one_sample_are_named_in_a_short_message(tmp_path: Path) -> None:
    tracemalloc = pytest.importorskip("tracemalloc")
    names = [f"IMG.{number:04d}.png" for number in range(3000)]
    path = write_tar(tmp_path / "a.tar", [("0.png", b"x"), *((name, bytes(10_000)) for name in names), ("z.png", b"y")])
    source = WebDataset(path=str(path))
    tracemalloc.start()
    try:
        records, items, samples = read_all(source), all_items(source), list(source.samples(str(path)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [record.key for record in records] == [item.key for item in items] == ["0", "IMG", "z"]
    assert isinstance(records[1], Invalid)
    assert (
        "3,000 files, of which a sample may have 1,000 (0000.png, 0001.png, 0002.png and 2,997 more)"
        in records[1].reason
    )
    assert "ends a key at the first dot of a file's name; rename the files" in records[1].reason
    assert len(records[1].reason) < 500
    assert samples[1] == ("IMG", {})
    assert peak < 15_000_000


def sparse_tar(path: Path, real_size: int) -> Path:
    """A tar of a few kilobytes with a member of any size, as GNU tar writes files with holes."""
    header = bytearray(link("1.jpg", "").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"%011o\0" % 512  # bytes in the tar
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = b"%011o\0%011o\0" % (0, 512)
    header[410:434] = b"%011o\0%011o\0" % (real_size, 0)
    header[483:495] = b"%011o\0" % real_size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    rest = write_tar(path.with_name("rest"), sample("2")).read_bytes()
    path.write_bytes(bytes(header) + b"\xff" * 512 + rest)
    return path


def test_a_member_with_holes_is_read_or_invalid_but_never_in_memory(tmp_path: Path) -> None:
    tracemalloc = pytest.importorskip("tracemalloc")
    source = WebDataset(path=str(sparse_tar(tmp_path / "a.tar", 100_000)))
    assert read_all(source)[0] == Record("1", b"\xff" * 512 + bytes(100_000 - 512))
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:700])
    with pytest.raises(TruncatedFile, match=r"a\.tar: cut off or damaged"):
        read_all(source)
    source = WebDataset(path=str(sparse_tar(tmp_path / "a.tar", 5_000_000_000)))
    tracemalloc.start()
    try:
        first, second = read_all(source)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert first == Invalid(
        "1",
        "sample of 1 files: 5,000,000,000 bytes or more exceed max_item_mib (256 MiB); raise it, or make the item smaller",
    )
    assert isinstance(second, Record)
    assert peak < 20_000_000


def test_a_sample_above_the_bound_is_invalid_and_the_next_is_read(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar",
        [("1.jpg", bytes(2 << 20)), ("1.txt", b"one"), ("2.jpg", b"x"), ("2.mp4", bytes(2 << 20)), ("3.jpg", b"y")],
    )
    source = WebDataset(path=str(path), max_item_mib=1)
    records, items = read_all(source), all_items(source)
    assert [type(record) for record in records] == [Invalid, Invalid, Record]
    assert "max_item_mib (1 MiB)" in records[0].reason
    assert [item.key for item in items] == ["1", "2", "3"]
    assert items[0].columns["caption"] == "one"
    assert [members for _, members in source.samples(str(path))] == [{}, {}, {"jpg": b"y"}]
    assert all(isinstance(record, Record) for record in read_all(WebDataset(path=str(path))))


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstandard.compress])
def test_a_packed_bomb_takes_little_memory(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    tracemalloc = pytest.importorskip("tracemalloc")
    path = tmp_path / "a.tar.gz"
    content = write_tar(tmp_path / "a.tar", [("1.jpg", bytes(64 << 20)), ("2.jpg", b"x")]).read_bytes()
    path.write_bytes(pack(content))
    del content
    tracemalloc.start()
    try:
        first, second = WebDataset(path=str(path), max_item_mib=1).read(str(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(first, Invalid)
    assert second == Record("2", b"x")
    assert peak < 16_000_000


def test_a_header_of_a_gigabyte_is_damage_and_not_memory(tmp_path: Path) -> None:
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 5 << 30
    (tmp_path / "a.tar").write_bytes(member.tobuf() + bytes(10_000))
    found, reason = until_cut(WebDataset(path=str(tmp_path)).read(str(tmp_path / "a.tar")))
    assert found == []
    assert "a header of 5,368,709,120 bytes" in str(reason)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile_in_every_format(tmp_path: Path, format: int) -> None:
    names = [
        "a.jpg",
        "d/" * 30 + "b.jpg",
        f"{'long/' * 40}c.jpg",
        "é ü.jpg",
        f"{'n' * 98}.jpg",
        "dir.d/e.jpg",
        "f.jpg/",
    ]
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as tar:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = number * 300, 1.5 if format == tarfile.PAX_FORMAT else 1
            try:
                tar.addfile(member, io.BytesIO(bytes([number]) * member.size))
            except ValueError:  # USTAR holds no longer names
                continue
        tar.addfile(link("folder.d", "", tarfile.DIRTYPE))
    with tarfile.open(tmp_path / "a.tar") as tar, (tmp_path / "a.tar").open("rb") as stream:
        expected = [(m.name, m.size, (tar.extractfile(m) or io.BytesIO()).read()) for m in tar if m.isreg()]
        read = Tar(stream)
        found = [(m.name, m.size, read.content(m)) for m in read if m.kind == "file"]
    assert found == expected
    assert len(found) >= 5


def test_tars_joined_by_cat_are_named(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "a.tar", sample("1")).read_bytes()
    (tmp_path / "a.tar").write_bytes(one + write_tar(tmp_path / "b", sample("2")).read_bytes())
    records, reason = until_cut(WebDataset(path=str(tmp_path)).read(str(tmp_path / "a.tar")))
    assert [record.key for record in records] == ["1"]
    assert "more follows after its end-of-archive marker" in str(reason)


def test_a_packed_tar_whose_checksum_differs_is_damaged(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar.gz", sample("1"), "w:gz")
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    records, reason = until_cut(WebDataset(path=str(path)).read(str(path)))
    assert "CRC check failed" in str(reason)
    assert len(records) <= 1


def test_folders_of_tools_in_a_tar_are_no_samples(tmp_path: Path) -> None:
    names = [
        "./1.jpg",
        "a/.ipynb_checkpoints/1-checkpoint.jpg",
        "__MACOSX/._1.jpg",
        "__MACOSX/x.jpg",
        "a/../2.jpg",
        "_3.jpg",
    ]
    source = WebDataset(path=str(write_tar(tmp_path / "a.tar", [(name, b"x") for name in names])))
    assert [record.key for record in read_all(source)] == ["./1", "a/../2", "_3"]


def test_empty_members_take_microseconds_each(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as stream:
        for number in range(100_000):
            stream.write(tarfile.TarInfo(f"{number:07d}.jpg").tobuf())
        stream.write(bytes(1024))
    start = time.process_time()
    assert sum(1 for _ in WebDataset(path=str(path)).read(str(path))) == 100_000
    assert time.process_time() - start < 12


def test_samples_are_the_raw_bytes_by_suffix(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [*sample("1"), ("2.CLS", b"7"), ("2.seg.png", b"8")])
    found = list(WebDataset(path=str(path)).samples(str(path)))
    assert found == [
        ("1", {name.split(".", 1)[1]: content for name, content in sample("1")}),
        ("2", {"cls": b"7", "seg.png": b"8"}),
    ]


def test_an_archive_of_nothing_has_no_records(tmp_path: Path) -> None:
    assert read_all(WebDataset(path=str(write_tar(tmp_path / "a.tar", [])))) == []


THREE = [part for key in "123" for part in sample(key)]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tar(tmp_path_factory.mktemp("tar") / "a.tar", THREE).read_bytes()


def member_ends(content: bytes) -> list[int]:
    """Where the last block of each member ends."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [member.offset_data + -(-member.size // 512) * 512 for member in tar]


def test_a_tar_cut_anywhere_gives_every_whole_sample_and_then_raises(three: bytes, tmp_path: Path) -> None:
    ends = member_ends(three)
    samples = [0, *ends[2::3]]
    path = tmp_path / "cut.tar"
    for cut in sorted({*range(0, ends[-1] + 512, 37), *range(0, ends[-1] + 1, 512)}):
        path.write_bytes(three[:cut])
        source = WebDataset(path=str(path))
        records, reason = until_cut(source.read(str(path)))
        items, _ = until_cut(source.read_items(str(path)))
        assert [item.key for item in items] == [record.key for record in records], cut
        whole = sum(end <= cut for end in samples[1:])
        if cut in ends:  # it cannot be seen whether the last sample had more files
            whole = -(-(ends.index(cut) + 1) // 3)
        elif whole and cut < samples[whole] + 512:  # nor where the next header is cut
            whole -= 1
        assert [(record.key, record.payload) for record in records] == [
            (str(n + 1), image_bytes("red")) for n in range(whole)
        ], cut
        assert reason is not None
        assert reason.startswith(f"{path}: cut off or damaged")
        assert reason.endswith(f"{len(records) - (cut in ends)} samples were read") or cut in ends
        samples_read, reason = until_cut(source.samples(str(path)))
        assert (len(samples_read), reason is None) == (len(records), False)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(data=st.data())
def test_a_damaged_tar_never_crashes(three: bytes, tmp_path: Path, data: st.DataObject) -> None:
    packed = data.draw(st.booleans())
    content = bytearray(gzip.compress(three, mtime=0) if packed else three)
    at = data.draw(
        st.integers(0, len(content) - 1) | st.integers(0, len(content) // 512 - 1).map(lambda block: block * 512)
    )
    damage = data.draw(st.binary(min_size=1, max_size=600))
    content[at : at + len(damage)] = damage
    path = tmp_path / "damaged.tar"
    path.write_bytes(content)
    source = WebDataset(path=str(path))
    records, records_cut = until_cut(source.read(str(path)))
    items, items_cut = until_cut(source.read_items(str(path)))
    assert all(isinstance(record, Record | Invalid) for record in records)
    assert [item.key for item in items] == [record.key for record in records]
    assert records_cut == items_cut


def test_a_cut_gzipped_tar_gives_what_came_before(tmp_path: Path) -> None:
    noise = [(f"{key}.jpg", bytes((i * i * 31 + key * 7) % 251 for i in range(50_000))) for key in range(20)]
    content = write_tar(tmp_path / "a.tar.gz", noise, "w:gz").read_bytes()
    path = tmp_path / "cut.tar.gz"
    path.write_bytes(content[: len(content) // 2])
    source = WebDataset(path=str(path))
    records, reason = until_cut(source.read(str(path)))
    items, _ = until_cut(source.read_items(str(path)))
    assert [item.key for item in items] == [record.key for record in records]
    assert [(record.key, record.payload) for record in records] == [
        (name.removesuffix(".jpg"), content) for name, content in noise[: len(records)]
    ]
    assert 0 < len(records) < 20
    assert reason is not None
    assert f"{len(records)} samples were read" in reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes"),
        (b"this is no tar at all " * 100, "where a member should start"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html>" * 100, "a web page"),
        (b"PK\x03\x04" + bytes(1000), "not a tar: this is a ZIP archive"),
        (gzip.compress(b"", mtime=0), "0 bytes"),
        (gzip.compress(b"no tar either" * 100, mtime=0), "where a member should start"),
    ],
)
def test_what_is_no_tar_is_named_for_what_it_is(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    source = WebDataset(path=str(tmp_path))
    for rows in (source.read, source.read_items, source.samples):
        found, raised = until_cut(rows(str(tmp_path / "a.tar")))
        assert found == []
        assert raised is not None
        assert raised.startswith(str(tmp_path / "a.tar"))
        assert reason in raised


def test_a_missing_tar_raises_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.tar: cannot be opened"):
        list(WebDataset(path=str(tmp_path)).read(str(tmp_path / "missing.tar")))


def test_a_path_that_is_a_folder_raises_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "a.tar").mkdir()
    with pytest.raises(OSError, match=r"a\.tar: cannot be opened"):
        list(WebDataset(path=str(tmp_path)).read(str(tmp_path / "a.tar")))


def test_only_tars_are_taken_from_what_img2dataset_writes(tmp_path: Path) -> None:
    for name in ("00000.tar", "00000.parquet", "00000_stats.json", "00001.tar"):
        write_tar(tmp_path / name, sample("1"))
    for path in (tmp_path, tmp_path / "*", tmp_path / "0000?.tar"):
        assert [Path(file.path).name for file in WebDataset(path=str(path)).files()] == ["00000.tar", "00001.tar"]
    with pytest.raises(FileNotFoundError, match=r"set `path` to"):
        WebDataset(path=str(tmp_path / "2*.tar")).files()


def test_reading_holds_one_sample_at_a_time(tmp_path: Path) -> None:
    tracemalloc = pytest.importorskip("tracemalloc")
    path = write_tar(tmp_path / "a.tar", [(f"{key}.jpg", bytes(200_000)) for key in range(200)])
    tracemalloc.start()
    try:
        count = sum(1 for _ in WebDataset(path=str(path)).read(str(path)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 200
    assert peak < 8_000_000 < path.stat().st_size


def test_field_names_are_those_of_the_first_samples(tmp_path: Path) -> None:
    path = str(write_tar(tmp_path / "a.tar", sample("0", exif={"iso": 100}) + sample("1", late=1)))
    source = WebDataset(path=path)
    assert source.field_names(path) == ["url", "key", "exif", "exif.iso", "caption", "late"]
    assert "late" not in source.field_names(path, limit=1)


def test_members_of_no_sample_are_counted_by_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    image = image_bytes("red")
    write_tar(path, [*sample("1"), ("noext", image), ("a/noext.", image), ("./.h.png", image), ("a/._1.jpg", image)])
    with tarfile.open(path, "a") as tar:
        for name in ("__MACOSX/a.png", ".ipynb_checkpoints/b.png", "./.git/noext"):
            member = tarfile.TarInfo(name)
            tar.addfile(member)
        folder, pipe = tarfile.TarInfo("folder.d"), tarfile.TarInfo("pipe.jpg")
        folder.type, pipe.type = tarfile.DIRTYPE, tarfile.FIFOTYPE
        tar.addfile(folder)
        tar.addfile(pipe)
    items = WebDataset(path=str(path)).read_items(str(path))
    keys = []
    while True:
        try:
            keys.append(next(items).key)
        except StopIteration as end:
            passed_over = end.value
            break
    assert keys[0] == "1"
    assert passed_over == {
        "members without a suffix": 1,
        "members with hidden names (. first)": 2,
        "members in hidden folders (. first, __MACOSX)": 3,
        "neither file nor folder": 1,
    }


@pytest.mark.parametrize("suffix", ["tar.zst", "tar.gz", "tar.xz", "tar.bz2"])
def test_a_packed_tar_cut_before_its_first_block_is_not_called_empty(tmp_path: Path, suffix: str) -> None:
    packed = {"zst": zstandard.compress, "gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}
    whole = packed[suffix.partition(".")[2]](write_tar(tmp_path / "a.tar", sample("1")).read_bytes())
    path = tmp_path / f"b.{suffix}"
    path.write_bytes(whole[:14])
    _, reason = until_cut(WebDataset(path=str(path)).read(str(path)))
    assert reason is not None
    assert "cut off or damaged: 0 bytes could be unpacked" in reason or "its compressed data" in reason


def test_captions_before_their_images_name_the_order_of_the_tar(tmp_path: Path) -> None:
    members = [(f"{key}.txt", b"caption") for key in "ab"] + [(f"{key}.jpg", image_bytes("red")) for key in "ab"]
    source = WebDataset(path=str(write_tar(tmp_path / "a.tar", members)))
    *texts, first, second = read_all(source)
    assert [record.key for record in texts] == ["a", "b"]
    assert all(re.search(r"\(txt\); sample split, if .*--sort=name", record.reason) for record in texts)
    assert isinstance(first, Record)
    assert isinstance(second, Record)
    assert all("sample split" in item.invalid_values[0] for item in all_items(source)[2:])
