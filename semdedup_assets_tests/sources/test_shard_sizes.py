"""Files are joined to shards of a good size, in their order, each once."""

from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.sources.shard_sizes import grouped
from semdedup_assets.storage.files import FileStat

GIB = 1 << 30


def files_of(sizes: list[int]) -> list[FileStat]:
    return [FileStat(f"{number:06d}", size, "") for number, size in enumerate(sizes)]


def counts(sizes: list[int], *, files_per_shard: int | None = None, one_item_each: bool = False) -> list[int]:
    found = grouped(files_of(sizes), files_per_shard=files_per_shard, one_item_each=one_item_each)
    return [len(group) for group in found]


@given(st.lists(st.integers(0, GIB), max_size=60), st.none() | st.integers(1, 7), st.booleans())
def test_every_file_is_in_one_shard_and_their_order_stays(
    sizes: list[int], files_per_shard: int | None, one_item_each: bool
) -> None:
    files = files_of(sizes)
    groups = list(grouped(files, files_per_shard=files_per_shard, one_item_each=one_item_each))
    assert [file for group in groups for file in group] == files
    assert all(groups)
    if files_per_shard is not None:
        assert all(len(group) == files_per_shard for group in groups[:-1])
    elif one_item_each:
        assert all(len(group) == 1 or sum(file.size for file in group) <= GIB for group in groups)


def test_pictures_of_a_folder_are_joined_to_ten_thousand_or_a_gigabyte() -> None:
    assert counts([50_000] * 25_000, one_item_each=True) == [10_000, 10_000, 5_000]
    assert counts([GIB // 4] * 10, one_item_each=True) == [4, 4, 2]
    assert counts([3 * GIB, 1, 1], one_item_each=True) == [1, 2]
    assert counts([1] * 12, one_item_each=True) == [12]


def test_tars_are_shards_of_their_own_until_there_are_very_many() -> None:
    assert counts([GIB // 2] * 300) == [1] * 300
    assert counts([1000] * 1000) == [1] * 1000
    assert counts([1000] * 1001) == [1001]
    assert counts([GIB // 2] * 1002) == [2] * 501


def test_a_number_in_the_settings_is_what_it_says() -> None:
    assert counts([GIB] * 7, files_per_shard=3) == [3, 3, 1]
    assert counts([GIB] * 7, files_per_shard=3, one_item_each=True) == [3, 3, 1]
