import numpy as np
import pytest

from semdedup_assets.records import id_rows, id_shards, item_ids


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
    with pytest.raises(ValueError, match=rf"shard 3: rows .*{row}.* exceed the range 0 to 2\*\*32 - 1"):
        item_ids(3, np.array([0, row]))
