import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from semdedup_assets.records import Invalid, Item, Record
from semdedup_assets.sources import TruncatedFile, WebDataset


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


def read_all(source: WebDataset) -> list[Record | Invalid]:
    return [item for file in source.files() for item in source.read(file.path)]


def all_items(source: WebDataset) -> list[Item]:
    return [item for file in source.files() for item in source.read_items(file.path)]


@pytest.mark.parametrize(
    ("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar.xz", "w:xz")]
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
        "1": "no image: none of jpg jpeg png webp gif bmp tif among its files",
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


def test_a_link_to_an_image_is_an_invalid_sample_and_not_lost(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("2.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "1.jpg"
        tar.addfile(link)
    source = WebDataset(path=str(tmp_path / "a.tar"))
    (record,), (item,) = read_all(source), all_items(source)
    assert isinstance(record, Invalid)
    assert record.key == item.key == "2"


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


def test_a_tar_cut_anywhere_gives_every_whole_sample_and_one_invalid_file(three: bytes, tmp_path: Path) -> None:
    ends = member_ends(three)
    samples = [0, *ends[2::3]]
    path = tmp_path / "cut.tar"
    for cut in sorted({*range(0, ends[-1] + 512, 37), *range(0, ends[-1] + 1, 512)}):
        path.write_bytes(three[:cut])
        source = WebDataset(path=str(path))
        *records, last = source.read(str(path))
        assert [item.key for item in source.read_items(str(path))] == [*(record.key for record in records), last.key], (
            cut
        )
        whole = sum(end <= cut for end in samples[1:])
        if cut in ends:  # it cannot be seen whether the last sample had more files
            whole = -(-(ends.index(cut) + 1) // 3)
        elif whole and cut < samples[whole] + 512:  # nor where the next header is cut
            whole -= 1
        assert [(record.key, record.payload) for record in records] == [
            (str(n + 1), image_bytes("red")) for n in range(whole)
        ], cut
        assert isinstance(last, Invalid)
        assert last.key == "cut.tar"
        assert f"{path}: cut off or damaged " in last.reason
        with pytest.raises(TruncatedFile, match="cut off or damaged"):
            list(WebDataset(path=str(path)).samples(str(path)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(data=st.data())
def test_a_damaged_tar_never_crashes(three: bytes, tmp_path: Path, data: st.DataObject) -> None:
    packed = data.draw(st.booleans())
    content = bytearray(gzip.compress(three) if packed else three)
    at = data.draw(
        st.integers(0, len(content) - 1) | st.integers(0, len(content) // 512 - 1).map(lambda block: block * 512)
    )
    damage = data.draw(st.binary(min_size=1, max_size=600))
    content[at : at + len(damage)] = damage
    path = tmp_path / "damaged.tar"
    path.write_bytes(content)
    source = WebDataset(path=str(path))
    records = list(source.read(str(path)))
    assert all(isinstance(record, Record | Invalid) for record in records)
    assert [item.key for item in source.read_items(str(path))] == [record.key for record in records]


def test_a_cut_gzipped_tar_gives_what_came_before(tmp_path: Path) -> None:
    noise = [(f"{key}.jpg", bytes((i * i * 31 + key * 7) % 251 for i in range(50_000))) for key in range(20)]
    content = write_tar(tmp_path / "a.tar.gz", noise, "w:gz").read_bytes()
    path = tmp_path / "cut.tar.gz"
    path.write_bytes(content[: len(content) // 2])
    source = WebDataset(path=str(path))
    *records, last = source.read(str(path))
    assert [item.key for item in source.read_items(str(path))] == [*(record.key for record in records), last.key]
    assert [(record.key, record.payload) for record in records] == [
        (name.removesuffix(".jpg"), content) for name, content in noise[: len(records)]
    ]
    assert 0 < len(records) < 20
    assert isinstance(last, Invalid)


@pytest.mark.parametrize("content", [b"", b"this is no tar at all " * 100])
def test_what_is_no_tar_is_one_invalid_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    (item,) = read_all(WebDataset(path=str(tmp_path)))
    assert item.key == "a.tar"
    assert str(tmp_path / "a.tar") in item.reason


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
