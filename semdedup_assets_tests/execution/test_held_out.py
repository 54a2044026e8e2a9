"""Which items are held out: of each item its own hash decides, and nothing else."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.execution.held_out import HeldOutRecord, HoldOut, HoldOutReader
from semdedup_assets.records import Invalid, Record
from semdedup_assets.sources.jsonl import JsonLines
from semdedup_assets.sources.reading import TruncatedFile
from semdedup_assets.training_settings import HeldOut, HeldOutGroups

SHARES = st.floats(0.01, 0.99)
SEEDS = st.integers(0, 2**70)
KEYS = st.text()
VALUES = st.one_of(st.none(), st.text(), st.integers(-(2**63), 2**64 - 1), st.booleans(), st.floats())


def holding_out(share: float, seed: int, groups: float | None = None) -> HoldOut:
    column = None if groups is None else HeldOutGroups(column="package", share=groups)
    return HoldOut(HeldOut(share=share, seed=seed, groups=column))


def fraction(text: str) -> float:
    return xxhash.xxh3_64(text.encode("utf-8", "surrogatepass")).intdigest() / 2**64


@given(KEYS, VALUES, SHARES, SHARES, SEEDS)
def test_each_item_is_held_out_as_its_hashes_say(key: str, value: Any, share: float, groups: float, seed: int) -> None:
    in_group = value is not None and fraction(f"{seed} group {value}") < groups
    expected = "groups" if in_group else "random" if fraction(f"{seed} key {key}") < share else None
    assert holding_out(share, seed, groups).split(key, value) == expected


@given(SHARES, SEEDS)
def test_the_held_out_share_is_near_the_one_asked_for(share: float, seed: int) -> None:
    hold_out, n = holding_out(share, seed), 3000
    held = sum(hold_out.split(f"python:module.py#L{row}") is not None for row in range(n))
    assert abs(held / n - share) < 6 * (share * (1 - share) / n) ** 0.5


@given(st.lists(st.tuples(KEYS, VALUES), max_size=50), SHARES, SHARES, SEEDS)
def test_a_greater_share_holds_out_all_that_a_smaller_one_does(
    items: list[tuple[str, Any]], share: float, groups: float, seed: int
) -> None:
    few, many = holding_out(share / 2, seed, groups / 2), holding_out(share, seed, groups)
    for item in items:
        assert few.split(*item) is None or many.split(*item) is not None


@given(SEEDS, SEEDS)
def test_ranks_say_nothing_of_what_is_held_out(seed: int, other: int) -> None:
    """The held-out items' ranks are spread over all of 64 bits, so that the first ones are a fair choice of them."""
    hold_out = holding_out(0.1, seed)
    held = [key for key in (f"{other}-{row}" for row in range(4000)) if hold_out.split(key)]
    below = sum(hold_out.rank(key) < 2**63 for key in held)
    assert abs(below - len(held) / 2) < 6 * len(held) ** 0.5 / 2


def lines(path: Path, rows: list[dict[str, Any] | str]) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def test_a_group_is_held_out_as_a_whole_and_rows_without_a_value_are_in_none(tmp_path: Path) -> None:
    rows = [{"text": f"text {row}", "package": f"p{row % 40}"} if row % 9 else {"text": "alone"} for row in range(400)]
    source = JsonLines(path=str(tmp_path), columns={"package": "string"})
    hold_out = holding_out(0, 5, 0.3)
    read = list(HoldOutReader(source, hold_out).read(str(lines(tmp_path / "0.jsonl", rows))))
    held = {row for row, record in enumerate(read) if isinstance(record, HeldOutRecord)}
    packages = {rows[row]["package"] for row in held}
    assert 4 < len(packages) < 20
    assert held == {row for row, found in enumerate(rows) if found.get("package") in packages}


def test_what_is_read_is_as_without_held_out_items_and_invalid_ones_keep_their_reason(tmp_path: Path) -> None:
    rows: list[dict[str, Any] | str] = [{"text": f"text {row}", "package": "all"} for row in range(20)]
    rows[3:5] = ["no JSON", {"package": "all"}]
    source = JsonLines(path=str(tmp_path), columns={"package": "string"})
    path = str(lines(tmp_path / "0.jsonl", rows))
    plain = list(source.read(path))
    read = list(HoldOutReader(source, holding_out(0, 0, 0.999_999)).read(path))
    assert [each.record if isinstance(each, HeldOutRecord) else each for each in read] == plain
    assert [row for row, each in enumerate(read) if isinstance(each, Invalid)] == [3, 4]
    assert not any(isinstance(each, Record) for each in read)


def until_cut(records: Iterator[Any]) -> list[Any]:
    found = list[Any]()
    with pytest.raises(TruncatedFile):
        found.extend(records)
    return found


def test_a_file_that_ends_early_gives_its_rows_and_then_the_same_error(tmp_path: Path) -> None:
    content = gzip.compress(b"".join(json.dumps({"text": f"text {row}"}).encode() + b"\n" for row in range(9000)))
    path = tmp_path / "0.jsonl.gz"
    path.write_bytes(content[: len(content) // 2])
    source = JsonLines(path=str(tmp_path), columns={"package": "string"})

    plain = until_cut(source.read(str(path)))
    held = until_cut(HoldOutReader(source, holding_out(0.5, 0, 0.5)).read(str(path)))
    assert len(plain) > 1000
    assert [each.record if isinstance(each, HeldOutRecord) else each for each in held] == plain
