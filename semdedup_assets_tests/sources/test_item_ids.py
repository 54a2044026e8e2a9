import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.records import TooManyRowsError, id_rows, id_shards, item_ids, positions_by_shard


def test_ids_give_back_shard_and_row() -> None:
    rows = np.array([0, 1, 2**32 - 1])
    for shard in (0, 7, 2**31 - 1):
        ids = item_ids(shard, rows)
        assert ids.tolist() == [shard * 2**32 + row for row in rows.tolist()]
        assert id_shards(ids).tolist() == [shard] * 3
        assert id_rows(ids).tolist() == rows.tolist()
    assert item_ids(3, np.empty(0, np.int64)).tolist() == []


@pytest.mark.parametrize("row", [2**32, -1])
def test_a_row_that_would_be_an_id_of_another_shard_is_rejected(row: int) -> None:
    with pytest.raises(TooManyRowsError, match=rf"shard 3: rows .*{row}.* exceed the range 0 to 2\*\*32 - 1"):
        item_ids(3, np.array([0, row]))


@pytest.mark.parametrize("shard", [2**31, -1])
def test_a_shard_beyond_what_ids_can_number_is_rejected(shard: int) -> None:
    with pytest.raises(ValueError, match=rf"shard {shard}: its index exceeds the range 0 to 2\*\*31 - 1"):
        item_ids(shard, np.array([0]))


@given(st.lists(st.tuples(st.sampled_from([0, 1, 255, 256, 2**16, 2**31 - 1]), st.integers(0, 2**32 - 1))))
def test_each_shard_s_ids_are_found_where_they_stand(items: list[tuple[int, int]]) -> None:
    ids = np.array([shard * 2**32 + row for shard, row in items], np.uint64)
    expected: dict[int, list[int]] = {}
    for position, (shard, _) in enumerate(items):
        expected.setdefault(shard, []).append(position)
    found = [(shard, positions.tolist()) for shard, positions in positions_by_shard(ids)]
    assert found == sorted(expected.items())
