"""`semdedup removed`: what was removed, and for which kept item, as lines."""

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, TextIO

from semdedup_assets.command_line.lines import LineFormat, table
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.stages.removed_rows import COLUMNS, removed_rows

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
        BrokenPipeError: whoever reads has enough.
    """
    rows = islice(_rows(context, partition), limit)
    out = sys.stdout
    match form:
        case LineFormat.table:
            _write_tables(rows, out)
        case LineFormat.csv:
            # A key may hold what no line can: it is quoted.
            writer = csv.writer(out, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows([json.dumps(each) if isinstance(each, bool) else each for each in row] for row in rows)
        case LineFormat.jsonl:
            for row in rows:
                out.write(json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False) + "\n")
    out.flush()


def _rows(context: StageContext, partition: Partition) -> Iterator[Sequence[Any]]:
    for part in removed_rows(context, partition):
        for key, file, row, kept, similarity, by_chain in zip(*(each.to_pylist() for each in part), strict=True):
            yield key, file, row, kept, None if similarity is None else round(similarity, 6), by_chain


def _write_tables(rows: Iterator[Sequence[Any]], out: TextIO) -> None:
    """Write rows below one another, as wide as the first thousand need."""
    while part := list(islice(rows, _AT_ONCE)):
        lines = table([COLUMNS, *(list(map(_cell, row)) for row in part)], right={2, 4})
        out.writelines(f"{line}\n" for line in lines)


def _cell(value: Any) -> str:
    """A value in a column: the end of a long one, where paths differ."""
    text = {None: "", True: "yes", False: ""}.get(value) if value is None or isinstance(value, bool) else str(value)
    plain = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text or "")
    return plain if len(plain) <= _WIDEST else f"…{plain[1 - _WIDEST :]}"
