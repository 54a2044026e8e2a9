"""Several observe a source at once, and none takes out what another has just found."""

from pathlib import Path

import pytest

from semdedup_assets.execution.source_index import update_shard_index
from semdedup_assets.sources.vectors import Vectors
from semdedup_assets.storage.files import Listing
from semdedup_assets_tests.stage_runs import small_pipeline
from semdedup_assets_tests.toy_source import near_duplicates, write_shard


@pytest.mark.parametrize("changed", [True, False])
def test_an_older_listing_takes_out_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, changed: bool) -> None:
    runs = small_pipeline(tmp_path)
    runs.observe()
    if changed:
        write_shard(tmp_path, "1", near_duplicates(5))
    listing, listed = Vectors.listing, list[int]()

    def slow(source: Vectors) -> Listing:
        found = listing(source)
        listed.append(len(found.files))
        if len(listed) == 1:
            # Another lists the source, and is done, before this one has its answer.
            write_shard(tmp_path, "new", near_duplicates(7))
            assert len(runs.observe()) == 4
        return found

    monkeypatch.setattr(Vectors, "listing", slow)
    index = update_shard_index(runs.context())
    assert listed == [3, 4, 4]
    assert [shard.name for shard in index.shards] == [f"s{number:06d}" for number in range(4)]
    assert index == runs.context().shard_index


def test_an_index_that_others_always_change_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, listing = small_pipeline(tmp_path), Vectors.listing
    runs.observe()
    count, within = [0], [False]

    def overtaken(source: Vectors) -> Listing:
        found = listing(source)
        if not within[0]:
            count[0] += 1
            write_shard(tmp_path, f"new{count[0]}", near_duplicates(count[0]))
            within[0] = True
            runs.observe()
            within[0] = False
        return found

    monkeypatch.setattr(Vectors, "listing", overtaken)
    with pytest.raises(OSError, match=r"shard_index\.json: others changed it each time"):
        update_shard_index(runs.context())
    assert len(runs.context().shard_index.shards) == 3 + count[0]
