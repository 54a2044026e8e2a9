import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.sources.shard_index import ShardIndex, VanishedFilesError
from semdedup_assets.sources.shard_sizes import grouped
from semdedup_assets.storage.files import FileStat

FILES = st.dictionaries(
    st.text("abcé/\ud800", min_size=1, max_size=3),
    st.tuples(st.integers(0, 9), st.text("xy\"'", max_size=2)),
    max_size=12,
).map(lambda found: [FileStat(path, *rest) for path, rest in found.items()])
LISTINGS = st.lists(st.tuples(FILES, st.integers(1, 4)), max_size=6)


def by(files_per_shard: int) -> Callable[[Sequence[FileStat]], Iterable[tuple[FileStat, ...]]]:
    return partial(grouped, files_per_shard=files_per_shard, one_item_each=False)


def index_after(listings: list[tuple[list[FileStat], int]]) -> ShardIndex:
    index = ShardIndex.empty()
    for files, per_shard in listings:
        index = index.updated(files, group=by(per_shard))
    return index


def shard_of_each_file(index: ShardIndex) -> dict[str, int]:
    return {file.path: shard.index for shard in index.shards for file in shard.files}


@given(LISTINGS, FILES, st.integers(1, 4))
def test_every_file_is_in_exactly_one_shard_as_it_was_listed_last(
    listings: list[tuple[list[FileStat], int]], files: list[FileStat], per_shard: int
) -> None:
    index = index_after([*listings, (files, per_shard)])
    held = [file for shard in index.shards for file in shard.files]
    assert sorted(held, key=lambda file: file.path) == sorted(files, key=lambda file: file.path)
    assert all(shard.files for shard in index.shards)


@given(LISTINGS, FILES, st.integers(1, 4))
def test_no_file_ever_changes_its_shard_and_no_number_is_given_twice(
    listings: list[tuple[list[FileStat], int]], files: list[FileStat], per_shard: int
) -> None:
    before = index_after(listings)
    after = before.updated(files, group=by(per_shard))
    old, new = shard_of_each_file(before), shard_of_each_file(after)
    ever = {path: index for index, paths in before.homes for path in paths} | old
    assert all(new[path] == ever[path] for path in ever.keys() & new.keys())
    assert all(new[path] >= before.next_index for path in new.keys() - ever.keys())
    assert [shard.index for shard in after.shards] == sorted({*new.values()})
    assert max([before.next_index - 1, *new.values()]) == after.next_index - 1


@given(FILES, FILES, st.integers(1, 4), st.integers(1, 4))
def test_adding_files_changes_no_existing_shard(
    files: list[FileStat], added: list[FileStat], per_shard: int, later_per_shard: int
) -> None:
    before = ShardIndex.empty().updated(files, group=by(per_shard))
    known = {file.path for file in files}
    more = [*files, *(file for file in added if file.path not in known)]
    after = before.updated(more, group=by(later_per_shard))
    assert after.shards[: len(before.shards)] == before.shards
    fingerprints = [shard.fingerprint for shard in after.shards]
    assert fingerprints[: len(before.shards)] == [shard.fingerprint for shard in before.shards]
    assert len(set(fingerprints)) == len(fingerprints)


@given(FILES.filter(bool), st.integers(1, 4), st.data())
def test_a_missing_or_changed_file_changes_its_own_shard_only(
    files: list[FileStat], per_shard: int, data: st.DataObject
) -> None:
    before = ShardIndex.empty().updated(files, group=by(per_shard))
    victim = data.draw(st.sampled_from(files))
    others = [file for file in files if file != victim]
    touched = shard_of_each_file(before)[victim.path]
    unchanged = {shard.index: shard.fingerprint for shard in before.shards if shard.index != touched}
    for now in (others, [*others, FileStat(victim.path, victim.size, victim.stamp + "2")]):
        after = {shard.index: shard.fingerprint for shard in before.updated(now, group=by(per_shard)).shards}
        assert after.pop(touched, None) not in {shard.fingerprint for shard in before.shards}
        assert after == unchanged


@given(LISTINGS, FILES, st.integers(1, 4), st.randoms())
def test_updating_again_in_any_order_changes_nothing(
    listings: list[tuple[list[FileStat], int]], files: list[FileStat], per_shard: int, random: Random
) -> None:
    once = index_after([*listings, (files, per_shard)])
    shuffled = random.sample(files, len(files))
    assert once.updated(shuffled, group=by(per_shard)) == once
    assert index_after([*listings, (shuffled, per_shard)]) == once


@given(LISTINGS, FILES, st.integers(1, 4), st.lists(st.tuples(st.sets(st.integers(0, 11)), st.integers(1, 4))))
def test_files_that_vanish_and_return_leave_the_index_as_if_they_had_stayed(
    listings: list[tuple[list[FileStat], int]],
    files: list[FileStat],
    per_shard: int,
    absences: list[tuple[set[int], int]],
) -> None:
    before = index_after([*listings, (files, per_shard)])
    now = before
    for missing, later_per_shard in absences:
        now = now.updated([f for n, f in enumerate(files) if n not in missing], group=by(later_per_shard))
        now = ShardIndex.from_json(now.to_json())
        listed = {shard.index: [file.path for file in shard.files] for shard in now.shards}
        whole = {shard.index: [file.path for file in shard.files] for shard in before.shards}
        assert all([path for path in whole[index] if path in paths] == paths for index, paths in listed.items())
    assert now.updated(files, group=by(per_shard)) == before


@given(FILES.filter(bool), FILES, st.integers(1, 4))
def test_a_new_file_never_gets_the_number_of_a_shard_whose_files_vanished(
    files: list[FileStat], others: list[FileStat], per_shard: int
) -> None:
    known = {file.path for file in files}
    new = [file for file in others if file.path not in known]
    emptied = ShardIndex.empty().updated(files, group=by(per_shard)).updated([], group=by(per_shard))
    assert emptied.shards == ()
    after = ShardIndex.from_json(emptied.to_json()).updated(new, group=by(per_shard))
    assert all(shard.index >= emptied.next_index for shard in after.shards)
    restored = {shard.index: shard for shard in after.updated([*files, *new], group=by(per_shard)).shards}
    first = ShardIndex.empty().updated(files, group=by(per_shard)).shards
    assert [restored[shard.index] for shard in first] == list(first)


def test_an_index_without_homes_is_read() -> None:
    index = ShardIndex.from_json(b'{"shard_index":1,"next_index":3,"shards":[[1,[["a",1,"s"]]]]}')
    assert index.updated([], group=by(1)).homes == ((1, ("a",)),)


@given(LISTINGS)
def test_json_keeps_everything(listings: list[tuple[list[FileStat], int]]) -> None:
    index = index_after(listings)
    assert ShardIndex.from_json(index.to_json()) == index


def test_new_files_make_new_shards_in_the_order_of_their_paths() -> None:
    files = [FileStat(f"{name}.tar", 1, "s") for name in "dbace"]
    index = ShardIndex.empty().updated(files, group=by(2))
    assert [(shard.name, [file.path[0] for file in shard.files]) for shard in index.shards] == [
        ("s000000", ["a", "b"]),
        ("s000001", ["c", "d"]),
        ("s000002", ["e"]),
    ]
    grown = index.updated([*files[1:], FileStat("aa.tar", 1, "s")], group=by(2))
    assert [(shard.name, [file.path for file in shard.files]) for shard in grown.shards] == [
        ("s000000", ["a.tar", "b.tar"]),
        ("s000001", ["c.tar"]),
        ("s000002", ["e.tar"]),
        ("s000003", ["aa.tar"]),
    ]
    emptied = grown.updated([], group=by(2))
    assert (emptied.shards, emptied.next_index) == ((), 4)
    assert emptied.updated([FileStat("b.tar", 1, "s")], group=by(2)).shards[0].name == "s000000"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"shard_index":2,"next_index":0,"shards":[]}',
        b'{"shard_index":1,"next_index":0,"shards":[[0,[["a",1,"s"]]]]}',
        b'{"shard_index":1,"next_index":1,"shards":[[0,[]]]}',
        b'{"shard_index":1,"next_index":1,"shards":[[0,[["a",1]]]]}',
        b'{"shard_index":1,"next_index":1,"shards":[[0,[["a","1","s"]]]]}',
        b'{"shard_index":1,"next_index":2,"shards":[[1,[["a",1,"s"]]],[0,[["b",1,"s"]]]]}',
        b'{"shard_index":1,"next_index":2,"shards":[[0,[["a",1,"s"]]],[1,[["a",1,"s"]]]]}',
        b'{"shard_index":1,"next_index":"2","shards":[]}',
        b'{"shard_index":1,"next_index":2,"shards":[],"homes":[[2,["a"]]]}',
        b'{"shard_index":1,"next_index":2,"shards":[],"homes":[[1,["a"]],[0,["b"]]]}',
        b'{"shard_index":1,"next_index":2,"shards":[[0,[["a",1,"s"]]]],"homes":[[0,["a"]]]}',
        b'{"shard_index":1,"next_index":2,"shards":[[0,[["a",1,"s"]]]],"homes":[[0,["b"]]]}',
        b'{"shard_index":1,"next_index":2,"shards":[[0,[["a",1,"s"]]]],"homes":[[1,["a"]]]}',
        ShardIndex.empty().updated([FileStat("a", 1, "s")], group=by(1)).to_json()[:-1],
    ],
)
def test_content_that_is_no_shard_index_is_rejected(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a shard index"):
        ShardIndex.from_json(content)


def test_a_path_that_is_listed_twice_is_rejected() -> None:
    with pytest.raises(ValueError, match="1 of 2 files are repeated"):
        ShardIndex.empty().updated([FileStat("a", 1, "s")] * 2, group=by(1))


def test_a_quarter_of_a_million_files_take_seconds() -> None:
    files = [FileStat(f"s3://bucket/laion/{n:07d}.tar", n, f"stamp{n}") for n in range(250_000)]
    start = time.perf_counter()
    index = ShardIndex.empty().updated(files, group=by(100))
    again = ShardIndex.from_json(index.to_json()).updated(files[1:], group=by(100))
    assert time.perf_counter() - start < 20
    assert len(index.shards) == len(again.shards) == 2_500
    assert [one == other for one, other in zip(index.shards, again.shards, strict=True)].count(False) == 1


@given(FILES, FILES, st.integers(0, 12), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_a_listing_that_lacks_more_than_a_share_of_the_files_is_refused(
    files: list[FileStat], others: list[FileStat], kept: int, share: float
) -> None:
    index = ShardIndex.empty().updated(files, group=by(2))
    listing = {file.path: file for file in [*others, *files[:kept]]}
    missing = [file.path for file in files if file.path not in listing]
    if len(missing) > 1 and len(missing) > share * len(files):
        with pytest.raises(VanishedFilesError, match=f"^{len(missing)} of the {len(files)} files .* are missing"):
            index.require_present([*listing.values()], max_vanished=share)
    else:
        index.require_present([*listing.values()], max_vanished=share)


def test_no_more_shards_are_made_than_ids_can_number() -> None:
    almost = ShardIndex((), 2**31 - 2)
    files = [FileStat(name, 1, "s") for name in "abc"]
    assert almost.updated(files[:2], group=by(1)).next_index == 2**31
    with pytest.raises(ValueError, match=r"3 new files make 3 shards after 2,147,483,646 .*`shards\.files_per_shard`"):
        almost.updated(files, group=by(1))
    assert almost.updated(files, group=by(3)).next_index == 2**31 - 1
