"""Sources on a web server, by a real one."""

import email.utils
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from semdedup_assets.sources import Folder, JsonLines, Parquet, WebDataset
from semdedup_assets.sources.reading import opened

pytest.importorskip("aiohttp")


class Server(SimpleHTTPRequestHandler):
    """Files without ranges, as Python's own server has them; some without their length, some broken."""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if "broken" in self.path:
            self.send_error(500)
        elif "cut" in self.path:
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(bytes(50_000))
            self.close_connection = True
        else:
            super().do_GET()

    def do_HEAD(self) -> None:
        if "broken" in self.path:
            self.send_error(500)
        else:
            super().do_HEAD()

    def send_header(self, keyword: str, value: str) -> None:
        if not ("nolength" in self.path and keyword == "Content-Length"):
            super().send_header(keyword, value)


class RangeServer(Server):
    """Files of which a part can be asked for."""

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        path = Path(self.translate_path(self.path))
        if not wanted or not path.is_file():
            super().do_GET()
            return
        first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        content = path.read_bytes()
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}")
        self.send_header("Content-Length", str(len(content[first : last + 1])))
        self.end_headers()
        self.wfile.write(content[first : last + 1])


@pytest.fixture(params=[Server, RangeServer])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    root = tmp_path / "site"
    root.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(request.param, directory=str(root))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", root
        server.shutdown()


def write_tar(path: Path, keys: str, size: int = 100_000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key in keys:
            for suffix, content in (("jpg", key.encode() * size), ("txt", f"caption {key}".encode())):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def keys_of(source: WebDataset) -> list[str]:
    records = [record for file in source.files() for record in source.read(file.path)]
    items = [item for file in source.files() for item in source.read_items(file.path)]
    assert [item.key for item in items] == [record.key for record in records]
    assert [item.columns["caption"] for item in items] == [f"caption {item.key}" for item in items]
    assert [record.payload for record in records] == [record.key.encode() * 100_000 for record in records]
    return [record.key for record in records]


def test_tars_are_read_by_url_by_braces_by_page_and_by_glob(site: tuple[str, Path]) -> None:
    url, root = site
    for number, keys in enumerate(("ab", "c", "de")):
        write_tar(root / "laion" / f"{number:05d}.tar", keys)
    write_tar(root / "laion" / "._00000.tar", "x")
    (root / "laion" / "00000_stats.json").write_text("{}")
    for path in ("/laion/{00000..00002}.tar", "/laion/*.tar", "/laion", "/laion/", "/laion/0000[0-2].tar", "/**/*.tar"):
        source = WebDataset(path=f"{url}{path}")
        assert source.problems() == []
        assert [file.path for file in source.files()] == [f"{url}/laion/{number:05d}.tar" for number in range(3)], path
    assert keys_of(source) == list("abcde")
    assert keys_of(WebDataset(path=f"{url}/laion/00001.tar")) == ["c"]
    assert WebDataset(path=f"{url}/laion").listing().passed_over == {
        "suffix .json": 1,
        "hidden names (. or _ first)": 1,
    }
    assert all(file.size == Path(root / "laion" / Path(file.path).name).stat().st_size for file in source.files())


def test_a_server_without_lengths_is_read_to_its_end(site: tuple[str, Path]) -> None:
    url, root = site
    write_tar(root / "nolength.tar", "abc")
    assert keys_of(WebDataset(path=f"{url}/nolength.tar")) == ["a", "b", "c"]
    (root / "nolength.jsonl").write_bytes(b"".join(json.dumps({"text": f"t{n}"}).encode() + b"\n" for n in range(9)))
    source = JsonLines(path=f"{url}/nolength.jsonl")
    assert len(list(source.read(source.files()[0].path))) == 9


@pytest.mark.parametrize("name", ["a.parquet", "nolength.parquet"])
def test_parquet_is_read_also_where_the_server_cannot_send_a_part(site: tuple[str, Path], name: str) -> None:
    url, root = site
    pq.write_table(pa.table({"text": [f"text {n}" for n in range(5000)]}), root / name, row_group_size=1000)
    source = Parquet(path=f"{url}/{name}", text="text")
    (file,) = source.files()
    assert [record.payload for record in source.read(file.path)] == [f"text {n}" for n in range(5000)]


def test_a_change_of_equal_size_is_seen_by_its_date(site: tuple[str, Path]) -> None:
    url, root = site
    for name in ("a.tar", "nolength.tar"):
        write_tar(root / name, "a")
        source = WebDataset(path=f"{url}/{name}")
        before = source.files()
        assert source.files() == before
        write_tar(root / name, "b")
        os.utime(root / name, (1_000_000_000, 1_000_000_000))
        (after,) = source.files()
        assert after.size == before[0].size
        assert after.stamp == email.utils.formatdate(1_000_000_000, usegmt=True) != before[0].stamp


def test_images_and_captions_of_a_page_are_items(site: tuple[str, Path]) -> None:
    url, root = site
    (root / "photos" / "deep").mkdir(parents=True)
    for name in ("1.png", "deep/2.png", "deep/a b.png"):
        (root / "photos" / name).write_bytes(name.encode())
    (root / "photos" / "deep" / "2.txt").write_text("two")
    source = Folder(path=f"{url}/photos/")
    files = source.files()
    assert [next(source.read(file.path)).key for file in files] == ["1.png", "deep/2.png", "deep/a b.png"]
    assert [next(source.read_items(file.path)).columns["caption"] for file in files] == [None, "two", None]


@pytest.mark.parametrize("folder", ["photos", "a folder [1]", "ü%20"])
def test_images_have_the_keys_and_captions_of_their_local_folder(site: tuple[str, Path], folder: str) -> None:
    url, root = site
    names = ["a b.png", "ü.png", "100%.png", "a%20b.png", "deep er/c&d.png", "deep er/#1.png"]
    for name in names:
        (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_bytes(name.encode())
    (root / folder / "a b.txt").write_text("beside")
    lines = [json.dumps({"file_name": name, "text": f"caption of {name}"}) for name in names]
    (root / folder / "metadata.jsonl").write_text("\n".join(lines))

    def items_of(path: str) -> dict[str, object]:
        source = Folder(path=path)
        listing = source.listing()
        assert listing.passed_over == {}, path
        found = [item for file in listing.files for item in source.read_items(file.path)]
        assert [next(source.read(file.path)).key for file in listing.files] == [item.key for item in found]
        return {item.key: item.columns["caption"] for item in found}

    local = items_of(str(root / folder))
    assert local == {name: f"caption of {name}" for name in names} | {"a b.png": "beside"}
    assert items_of(f"{url}/{quote(folder)}") == items_of(f"{url}/{quote(folder)}/") == local
    assert items_of(f"{url}/{quote(folder)}/**") == local
    if "%" not in folder:
        # As a person writes it; `%20` is an escape in every URL.
        assert items_of(f"{url}/{folder}") == items_of(f"{url}/{folder}/**") == local


def test_an_image_by_its_unescaped_url_is_the_same_item(site: tuple[str, Path]) -> None:
    url, root = site
    (root / "a b.png").write_bytes(b"image")
    (root / "a b.txt").write_text("beside")
    for path in (f"{url}/a b.png", f"{url}/a%20b.png"):
        source = Folder(path=path)
        (file,) = source.files()
        (item,) = source.read_items(file.path)
        assert (item.key, item.columns["caption"], item.invalid_values) == ("a b.png", "beside", ())
        assert "txt:" in file.stamp


PAGES = {
    "/set/": """<a href="?C=N;O=D">Name</a> <a href="./?C=M">Date</a> <a href="../">up</a> <a href="./">here</a>
        <a href="./a.jsonl">a</a> <a href="a.jsonl#part">a again</a> <a href="/set/b.jsonl">b</a> <a href="./sub/">sub</a>
        <a href="x/../c.jsonl">c</a> <a href="p&amp;q.jsonl">p&amp;q</a> <a href="./.hidden/">h</a> <a href="./notes.md">n</a>
        <a href="../other/z.jsonl">elsewhere</a> <a href="//elsewhere.example/z.jsonl">elsewhere</a>""",
    "/set/sub/": '<a href="../">up</a> <a href="./../sub/">here</a> <a href="./d.jsonl">d</a> <a href="/set/">up</a>',
    "/set/.hidden/": '<a href="./e.jsonl">e</a>',
}


@pytest.mark.parametrize("path", ["/set", "/set/", "/set/**", "/set/**/*.jsonl", "/set/./"])
def test_links_of_an_index_page_are_resolved_and_followed_once(path: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), PageServer) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        listing = JsonLines(path=f"{url}{path}").listing()
        server.shutdown()
    names = ("a.jsonl", "b.jsonl", "c.jsonl", "p&q.jsonl", "sub/d.jsonl")
    assert [file.path for file in listing.files] == [f"{url}/set/{name}" for name in names]
    assert listing.passed_over.pop("hidden names (. or _ first)") == 1
    assert listing.passed_over in ({"suffix .md": 1}, {})


def test_a_glob_over_links_with_a_dot_finds_its_files() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), PageServer) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        found = {
            path: [file.path.removeprefix(f"{url}/set/") for file in JsonLines(path=f"{url}{path}").files()]
            for path in ("/set/*.jsonl", "/set/[ab].jsonl", "/set/*/*.jsonl", "/set/s*/d.jsonl")
        }
        server.shutdown()
    assert list(found.values()) == [
        ["a.jsonl", "b.jsonl", "c.jsonl", "p&q.jsonl"],
        ["a.jsonl", "b.jsonl"],
        ["sub/d.jsonl"],
        ["sub/d.jsonl"],
    ]


class PageServer(SimpleHTTPRequestHandler):
    """Index pages as some servers write them; a line of JSON under every other name that they have."""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self.wfile.write(self._answer())

    def _answer(self) -> bytes:
        path = self.path if self.path.endswith((".jsonl", "/")) else f"{self.path}/"
        content = PAGES.get(path, '{"text": "one"}' if "%5B" not in path and path.endswith(".jsonl") else "").encode()
        self.send_response(200 if content else 404)
        self.send_header("Content-Type", "text/html" if path in PAGES else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content


def test_what_is_missing_or_fails_is_told_apart(site: tuple[str, Path]) -> None:
    url, root = site
    write_tar(root / "1.tar", "a")
    (root / "empty").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"missing\.tar: its server has no such file .*404.*needs an index page"
    ):
        WebDataset(path=f"{url}/missing.tar").files()
    with pytest.raises(FileNotFoundError, match=r"empty: no file here"):
        WebDataset(path=f"{url}/empty").files()
    with pytest.raises(FileNotFoundError, match=r"nothing is there for 1 of the 2 paths .*2\.tar"):
        WebDataset(path=f"{url}/{{1..2}}.tar").files()
    with pytest.raises(OSError, match=r"broken\.tar: its server does not answer as it should .*500"):
        WebDataset(path=f"{url}/broken.tar").files()
    with pytest.raises(FileNotFoundError, match=r"missing\.tar: cannot be opened"):
        list(WebDataset(path=url).read(f"{url}/missing.tar"))


def test_a_connection_that_ends_early_is_a_fault_of_the_store_and_not_the_end_of_the_file(
    site: tuple[str, Path],
) -> None:
    url, _ = site

    def read() -> None:
        with opened(f"{url}/cut.tar") as stream:
            while stream.read(1 << 16):
                pass

    with pytest.raises(OSError, match=r"cut\.tar: cannot be read further") as raised:
        read()
    assert raised.value.errno is not None
