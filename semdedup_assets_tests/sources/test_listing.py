"""Which files a path stands for: links, hidden names, literal names, braces; and what is passed over."""

import os
import socket
from pathlib import Path

import pytest
from braceexpand import braceexpand
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.sources.paths import expanded_braces
from semdedup_assets.sources.reading import source_listing
from semdedup_assets.storage.files import write_bytes
from semdedup_assets.storage.walk import HIDDEN, LOOPS, NOWHERE, SPECIAL, UNREADABLE


def written(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def names_of(path: object, *suffixes: str) -> list[str]:
    return [os.path.relpath(file.path, root_of(path)) for file in source_listing(str(path), suffixes or (".x",)).files]


def root_of(path: object) -> str:
    """The folder before the first wildcard or brace of a path."""
    return str(path).partition("*")[0].partition("{")[0].rpartition("/")[0]


def test_links_to_files_and_folders_are_followed_and_stamped_by_their_target(tmp_path: Path) -> None:
    written(tmp_path, "in/a.x", "out/b.x", "out/deep/c.x")
    (tmp_path / "in" / "link.x").symlink_to(tmp_path / "out" / "b.x")
    (tmp_path / "in" / "folder").symlink_to("../out")
    listing = source_listing(f"{tmp_path}/in", (".x",))
    assert names_of(f"{tmp_path}/in/*", ".x") == ["a.x", "link.x"]
    assert [Path(file.path).relative_to(tmp_path / "in").as_posix() for file in listing.files] == [
        "a.x",
        "folder/b.x",
        "folder/deep/c.x",
        "link.x",
    ]
    target = (tmp_path / "out" / "b.x").stat()
    assert listing.files[3].size == target.st_size
    os.utime(tmp_path / "out" / "b.x", (1, 1))
    changed = source_listing(f"{tmp_path}/in", (".x",)).files
    assert [one != other for one, other in zip(listing.files, changed, strict=True)] == [False, True, False, True]


def test_links_that_loop_or_lead_nowhere_end_and_are_counted(tmp_path: Path) -> None:
    written(tmp_path, "a/1.x", "b/2.x")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "other").symlink_to("../b")
    (tmp_path / "b" / "other").symlink_to("../a")
    (tmp_path / "self.x").symlink_to("self.x")
    (tmp_path / "lost.x").symlink_to("missing")
    listing = source_listing(str(tmp_path), (".x",))
    assert {Path(file.path).name for file in listing.files} == {"1.x", "2.x"}
    assert len(listing.files) == len({file.path for file in listing.files}) < 10
    assert listing.passed_over[NOWHERE] == 1
    assert listing.passed_over[LOOPS] > 1


def test_folders_that_link_to_each_other_are_not_walked_in_every_order(tmp_path: Path) -> None:
    for folder in range(12):
        written(tmp_path, f"{folder}/a.x")
        for other in range(12):
            (tmp_path / f"{folder}" / f"to{other}").symlink_to(f"../{other}")
    listing = source_listing(str(tmp_path), (".x",))
    assert {f"{tmp_path}/{folder}/a.x" for folder in range(12)} <= {file.path for file in listing.files}
    assert len(listing.files) < 2000


def test_a_hub_cache_gives_its_files_under_the_snapshot_s_names(tmp_path: Path) -> None:
    cache = tmp_path / ".cache" / "hub" / "datasets--a--b"
    written(cache, "blobs/0f3e", "blobs/77aa", "refs/main")
    for name, blob in {"train/1.x": "0f3e", "2.x": "77aa"}.items():
        link = cache / "snapshots" / "9c1" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(cache / "blobs" / blob, link.parent))
    assert names_of(f"{cache}/snapshots/*/**") == ["9c1/2.x", "9c1/train/1.x"]
    files = source_listing(str(cache), (".x",)).files
    assert [file.path for file in files] == [f"{cache}/snapshots/9c1/2.x", f"{cache}/snapshots/9c1/train/1.x"]


HIDDEN_NAMES = [
    "._a.x",
    "_temporary/0/part-0.x",
    ".ipynb_checkpoints/a-checkpoint.x",
    "deep/_delta_log/0.x",
    "deep/.hidden.x",
]


@pytest.mark.parametrize("where", ["local", "memory"])
def test_hidden_names_are_counted_and_passed_over_but_not_where_the_path_has_them(where: str, tmp_path: Path) -> None:
    root = str(tmp_path) if where == "local" else f"memory:/{tmp_path}"
    for name in [*HIDDEN_NAMES, "a.x", "deep/_year=2020/b.x"]:
        write_bytes(f"{root}/{name}", name.encode())

    def listed(path: str) -> tuple[list[str], int]:
        found = source_listing(f"{root}{path}", (".x",))
        return [file.path.partition(f"{tmp_path}/")[2] for file in found.files], found.passed_over.get(HIDDEN, 0)

    assert listed("") == listed("/**") == (["a.x", "deep/_year=2020/b.x"], 5)
    assert listed("/**/*.x") == (["a.x", "deep/_year=2020/b.x"], 5)
    assert listed("/*.x") == (["a.x"], 1)
    assert listed("/_temporary") == (["_temporary/0/part-0.x"], 0)
    assert listed("/_temporary/*/*.x") == (["_temporary/0/part-0.x"], 0)
    assert listed("/*/_delta_log/*.x")[0] == ["deep/_delta_log/0.x"]
    assert listed("/._*")[0] == ["._a.x"]
    assert listed("/._a.x") == (["._a.x"], 0)


def test_what_is_passed_over_is_counted_by_reason(tmp_path: Path) -> None:
    written(tmp_path, "a.x", "b.HEIC", "deep/c.heic", "README")
    os.mkfifo(tmp_path / "pipe.x")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket.x"))
    assert source_listing(str(tmp_path), (".x",)).passed_over == {"suffix .heic": 2, "no suffix": 1, SPECIAL: 2}
    (tmp_path / "a.x").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file here ends in \.x; passed over: 2 × .*set `path`"):
        source_listing(str(tmp_path), (".x",))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_counted(tmp_path: Path) -> None:
    written(tmp_path, "a.x", "locked/b.x")
    (tmp_path / "locked").chmod(0)
    try:
        listing = source_listing(str(tmp_path), (".x",))
    finally:
        (tmp_path / "locked").chmod(0o700)
    assert (len(listing.files), listing.passed_over) == (1, {UNREADABLE: 1})


@pytest.mark.parametrize(
    "name", ["data[1]/f.x", "a*b/f.x", "a?b/f.x", "{a,b}/f.x", "a::b/f.x", "s3::a/f::g.x", "é {x/f.x"]
)
def test_a_literal_name_comes_before_what_it_would_match(tmp_path: Path, name: str) -> None:
    written(tmp_path, name, "data1/f.x", "aXb/f.x", "a/f.x", "b/f.x")
    for path in (tmp_path / name, (tmp_path / name).parent):
        assert [file.path for file in source_listing(str(path), (".x",)).files] == [str(tmp_path / name)]


@pytest.mark.parametrize("where", ["local", "memory"])
def test_folders_of_a_glob_are_literal_as_far_as_they_are_there(where: str, tmp_path: Path) -> None:
    root = str(tmp_path) if where == "local" else f"memory:/{tmp_path}"
    names = ["data[1]/a.x", "data[1]/run[2]/b.x", "data1/a.x", "data1/run2/b.x", "only2/c.x", "a?/d.x", "ab/d.x"]
    for name in names:
        write_bytes(f"{root}/{name}", name.encode())

    def listed(path: str) -> list[str]:
        return [file.path.partition(f"{tmp_path}/")[2] for file in source_listing(f"{root}/{path}", (".x",)).files]

    assert listed("data[1]/*.x") == ["data[1]/a.x"]
    assert listed("data[1]/**") == listed("data[[]1]/**") == ["data[1]/a.x", "data[1]/run[2]/b.x"]
    assert listed("data[1]/run[2]/*") == listed("data[1]/run[[]2]/*") == ["data[1]/run[2]/b.x"]
    assert listed("data[1]/*/*.x") == listed("data[1]/{run[2],run[2]}/*.x") == ["data[1]/run[2]/b.x"]
    assert listed("only[2]/*.x") == ["only2/c.x"]
    assert listed("a?/*.x") == ["a?/d.x"]


def test_a_relative_glob_has_literal_folders_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "data[1]/a.x", "data1/a.x")
    monkeypatch.chdir(tmp_path)
    assert [file.path for file in source_listing("data[1]/*.x", (".x",)).files] == [f"{tmp_path}/data[1]/a.x"]


def test_a_relative_name_with_colons_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "zip::a/f.x", "b::c.x")
    monkeypatch.chdir(tmp_path)
    assert [file.path for file in source_listing("zip::a", (".x",)).files] == [f"{tmp_path}/zip::a/f.x"]
    assert [file.path for file in source_listing("b::c.x", (".x",)).files] == [f"{tmp_path}/b::c.x"]


@pytest.mark.parametrize("where", ["local", "memory"])
def test_braces_stand_for_each_of_their_paths(where: str, tmp_path: Path) -> None:
    root = str(tmp_path) if where == "local" else f"memory:/{tmp_path}"
    for shard in range(12):
        write_bytes(f"{root}/train/{shard:05d}.x", b"1")
    write_bytes(f"{root}/val/0.x", b"1")
    assert len(source_listing(f"{root}/train/{{00000..00011}}.x", (".x",)).files) == 12
    assert len(source_listing(f"{root}/{{train,val}}/*.x", (".x",)).files) == 13
    assert len(source_listing(f"{root}/{{train/0000{{1..3}},val/0}}.x", (".x",)).files) == 4
    assert len(source_listing(f"{root}/{{val,val/0.x}}", (".x",)).files) == 1
    with pytest.raises(
        FileNotFoundError, match=r"nothing is there for 4 of the 16 paths .*00012\.x, .*00013\.x, .*1 more"
    ):
        source_listing(f"{root}/train/{{00000..00015}}.x", (".x",))
    with pytest.raises(FileNotFoundError, match=r"no file here ends in"):
        source_listing(f"{root}/train/{{x,y}}.x", (".x",))


@given(st.text("{},.01ab", max_size=12))
def test_braces_are_expanded_as_the_field_s_package_does(text: str) -> None:
    try:
        expected = list(dict.fromkeys(braceexpand(text)))
    except ValueError:  # it refuses what is not balanced
        return
    assert expanded_braces(text) == expected


def test_a_file_in_two_alternatives_is_one_file(tmp_path: Path) -> None:
    written(tmp_path, "a.x")
    assert names_of(f"{tmp_path}/{{a,*}}.x") == ["a.x"]
