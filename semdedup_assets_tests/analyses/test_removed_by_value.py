"""What is removed by value of a column, against the masks and the source."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from semdedup_assets.analyses import removed_by_value
from semdedup_assets.checks.removed_by_value import COUNTS, no_value_removed_beyond_its_limit
from semdedup_assets.execution.stage import Rows, StageGraph
from semdedup_assets_tests.stage_runs import METHOD, StageRuns
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_table

GRAPH = StageGraph((*METHOD.stages, removed_by_value.STAGE))
HOSTILE = "a\nb\t|\u202e\U0001f600" + "x" * 10_000
TYPES = {"source": "string", "year": "int", "size": "uint", "mine": "bool", "score": "float"}
ARROW = {"source": pa.string(), "year": pa.int64(), "size": pa.uint64(), "mine": pa.bool_(), "score": pa.float64()}
LIMITS = [{"column": column, "max_removed": 0.5} for column in TYPES]


def columns_of(file: int) -> dict[str, list[Any]]:
    rng = np.random.default_rng(file)
    values: dict[str, list[Any]] = {
        "source": ["web", "book", "null", None, HOSTILE],
        "year": [-(2**63), 2**53 + 1, 2**53, None],
        "size": [2**64 - 1, 2**63, 0],
        "mine": [True, False, None],
        "score": [0.1, -1.5, None],
    }
    return {name: [options[i] for i in rng.integers(len(options), size=60)] for name, options in values.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    folder = tmp_path_factory.mktemp("by_value")
    for file in range(3):
        # One item cannot be embedded: it is in no mask, and counts nowhere.
        vectors = [None if row == 5 else each for row, each in enumerate(near_duplicates(file))]
        columns = {name: pa.array(values, ARROW[name]) for name, values in columns_of(file).items()}
        write_table(folder, str(file), vectors, columns)
    settings = vectors_settings(folder, max_skipped=0.5, selection={"limit": LIMITS}, epsilons=["0.02", "0.3"])
    settings["source"] |= {"key": "name", "columns": TYPES}
    runs = StageRuns(settings, GRAPH).changed(shards={"files_per_shard": 2})
    runs.run()
    return runs


def as_text(value: Any) -> str | None:
    return {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else value and str(value)


@pytest.mark.parametrize("key", ["0.02|3", "0.3|3"])
def test_the_table_counts_the_removed_items_of_each_value(runs: StageRuns, key: str) -> None:
    kept = dict(runs.masks(key).select("id", "kept").iter_rows())
    expected: dict[str, Counter[Any]] = {name: Counter() for name in TYPES}
    removed: dict[str, Counter[Any]] = {name: Counter() for name in TYPES}
    for file in range(3):
        for name, values in columns_of(file).items():
            for row, value in enumerate(values):
                item = ((file // 2) << 32) + (file % 2) * 60 + row
                if item in kept:
                    text = None if value is None else "0" if value == 0 and name == "size" else as_text(value)
                    expected[name][text] += 1
                    removed[name][text] += not kept[item]
    table = pl.read_parquet(runs.record("removed_by_value", key).file(COUNTS).path)
    for name in TYPES:
        rows = table.filter(pl.col("column") == name)
        assert dict(rows.select("value", "items").iter_rows()) == dict(expected[name])
        assert dict(rows.select("value", "removed").iter_rows()) == dict(removed[name])
        assert rows["share"].to_list() == sorted((rows["removed"] / rows["items"]).to_list(), reverse=True)
    details = runs.record("removed_by_value", key).details
    assert details["items"] == len(kept) == 177
    assert details["values"] == {name: len(counts) for name, counts in expected.items()}
    assert sum(row["removed"] for row in details["most_removed"] if row["column"] == "source") == sum(
        not each for each in kept.values()
    )


def test_values_above_their_limit_fail_the_check_by_name(runs: StageRuns) -> None:
    loose = runs.changed(selection={"limit": {"column": "source", "max_removed": 1}})
    assert not no_value_removed_beyond_its_limit(loose.context()).problems  # Of other columns: not today's settings.
    table = pl.read_parquet(runs.record("removed_by_value", "0.3|3").file(COUNTS).path)
    shares = {(row["column"], row["value"]): row for row in table.to_dicts()}
    limit = float(np.median(table["share"].to_numpy()))
    strict = runs.changed(selection={"limit": [{**each, "max_removed": limit} for each in LIMITS]})
    assert strict.run() == {}  # Another limit makes nothing again.
    result = no_value_removed_beyond_its_limit(strict.context())
    (text,) = (problem.measured for problem in result.problems if problem.partition == "0.3|3")
    above = [row for row in shares.values() if row["share"] > limit]
    assert 0 < len(above) < len(shares)
    assert text.count(" removed, ") == min(10, len(above))
    for row in above[:10]:
        named = "null" if row["value"] is None else repr(row["value"][:80])
        assert f"{row['column']} {named}" in text
        assert f"{row['removed']:,} of {row['items']:,} removed, {row['share']:.1%} where {limit:.1%} may be" in text
    assert len(text) < 5000


def test_what_is_shown_is_bounded_also_where_no_value_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removed_by_value, "_PENDING", 7)
    monkeypatch.setattr("semdedup_assets.storage.tables._ROW_GROUP", 50)
    for file in range(3):
        write_table(tmp_path, str(file), near_duplicates(file), {"url": [f"{file}/{row}" for row in range(60)]})
    settings = vectors_settings(tmp_path, selection={"limit": {"column": "url", "max_removed": 0.9}}, epsilons=["0.1"])
    settings["source"] |= {"columns": {"url": "string"}}
    runs = StageRuns(settings, GRAPH)
    runs.run()
    record, removed = runs.record("removed_by_value", "0.1|3"), runs.record("keep_masks", "0.1|3").details["removed"]
    table = pl.read_parquet(record.file(COUNTS).path)
    assert len(table) == 180
    assert table["removed"].sum() == removed > 20
    assert len(record.details["most_removed"]) == 10
    shown = GRAPH["removed_by_value"].shown(
        runs.context(), runs.context().index.partitions("removed_by_value")[0], record
    )
    assert isinstance(shown["most_removed"], Rows)
    (problem,) = no_value_removed_beyond_its_limit(runs.context()).problems
    assert problem.measured.endswith(f"; and {removed - 10:,} more values")


def test_without_a_limit_there_is_no_such_table(runs: StageRuns) -> None:
    plain = runs.changed(selection={"limit": []})
    assert not GRAPH["removed_by_value"].applies(plain.pipeline, plain.pipeline.selection)
    assert plain.run() == {}


def test_of_no_items_the_table_is_empty(tmp_path: Path) -> None:
    write_table(tmp_path, "0", near_duplicates(0), {"source": ["a"] * 60, "mine": [True, False, None] * 20})
    protected = {"protect": "mine", "limit": {"column": "source", "max_removed": 0}}
    settings = vectors_settings(tmp_path, selection=protected)
    settings["source"] |= {"columns": {"source": "string", "mine": "bool"}}
    runs = StageRuns(settings, GRAPH)
    runs.run()
    (problem,) = no_value_removed_beyond_its_limit(runs.context()).problems
    assert problem.measured.startswith("source 'a': ")
    write_table(tmp_path, "0", [], {"source": pa.array([], pa.string()), "mine": pa.array([], pa.bool_())})
    runs.run()
    record = runs.record("removed_by_value", "0.05|3")
    table = pl.read_parquet(record.file(COUNTS).path)
    assert table.columns == ["column", "value", "items", "removed", "share"]
    assert len(table) == record.details["items"] == 0
    assert runs.scores("3")["protected_similarity"].dtype == pl.Float32
    assert not no_value_removed_beyond_its_limit(runs.context()).problems
