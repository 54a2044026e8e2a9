"""`semdedup removed`: what was removed, and for which kept item, as lines."""

import csv
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from semdedup_assets.command_line.lines import LineFormat, Output, table
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.records import visible
from semdedup_assets.stages.keep_masks import REMOVED_BY
from semdedup_assets.stages.manifest_tables import removed_rows
from semdedup_assets.stages.mask_adjustments import removing_references

COLUMNS = ("key", "file", "file_row", "kept_key", "kept_file", "kept_file_row", "similarity", "is_orphan")
"""Of the lines, named as in the manifest format `removed`; a table has no room for the file of what is kept.

Where references remove, `removed_by` follows."""

_NARROW = tuple(name for name in COLUMNS if not name.startswith("kept_file"))
_AT_ONCE = 1000
_WIDEST = 60


def write_removed(context: StageContext, partition: Partition, form: LineFormat, *, limit: int | None) -> None:
    """Write the removed items of a kept set to standard output, in the order of the source.

    Args:
        context: of the pipeline and the selection.
        partition: a kept set, whose masks are there.
        form: of the lines.
        limit: how many items at most; None: all.

    Raises:
        MissingResultError: items or vectors are missing.
        ReaderGoneError: whoever reads has enough.
        OSError: standard output cannot be written.
    """
    removing = (REMOVED_BY.name,) if removing_references(context.pipeline) else ()
    columns = (*(_NARROW if form == LineFormat.table else COLUMNS), *removing)
    rows, out = islice(_rows(context, partition, columns), limit), Output()
    match form:
        case LineFormat.table:
            _write_tables(rows, columns, out)
        case LineFormat.csv:
            writer = csv.writer(out, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows([json.dumps(each) if isinstance(each, bool) else each for each in row] for row in rows)
        case LineFormat.jsonl:
            for row in rows:
                out.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n")
    out.flush()


def _rows(context: StageContext, partition: Partition, columns: Sequence[str]) -> Iterator[Sequence[Any]]:
    for part in removed_rows(context, partition):
        for row in zip(*(part.column(name).to_pylist() for name in columns), strict=True):
            # float32 has seven digits.
            yield [round(value, 7) if isinstance(value, float) else value for value in row]


def _write_tables(rows: Iterator[Sequence[Any]], columns: Sequence[str], out: Output) -> None:
    """Write rows below one another, a thousand at a time as wide as they need."""
    head = [columns]
    while part := list(islice(rows, _AT_ONCE)):
        for line in table([*head, *(list(map(_cell, row)) for row in part)], right={2, 4}):
            out.write(f"{line}\n")
        head = []


def _cell(value: Any) -> str:
    """A value in a column: the end of a long one, where paths differ."""
    text = {None: "", True: "yes", False: ""}.get(value) if value is None or isinstance(value, bool) else str(value)
    plain = visible(text or "")
    return plain if len(plain) <= _WIDEST else f"…{plain[1 - _WIDEST :]}"
