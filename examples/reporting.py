"""Documents with pictures and tables of results, which are made where they are missing."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.runner import run_partitions
from semdedup_assets.execution.stage import Picture, Rows
from semdedup_assets.storage.results import ResultRecord

_WIDEST, _COLOURS = 860, 32
# A result's table of more rows is for a program.
_MOST_ROWS = 20


@dataclass
class Report:
    """The document as it grows: lines of Markdown.

    Attributes:
        images: folder of its pictures, beside the document.
        lines: of the document.
    """

    images: Path
    lines: list[str] = field(default_factory=list)

    def add(self, *lines: str) -> None:
        """Add lines, and an empty one."""
        self.lines += [*lines, ""]

    def table(self, rows: Sequence[Mapping[str, Any]], *, most: int | None = None) -> None:
        """Add a table; nothing where there are no rows.

        Args:
            rows: of the table, each with the same columns.
            most: rows that are shown, with a line that says how many there are; None: all.
        """
        if not rows:
            return
        lines = [[_cell(value) for value in row.values()] for row in rows[:most]]
        self.add(*(f"| {' | '.join(line)} |" for line in [list(rows[0]), ["-"] * len(rows[0]), *lines]))
        if len(lines) < len(rows):
            self.add(f"*The first {len(lines)} of {len(rows):,} rows.*")

    def picture(self, png: bytes, name: str, title: str) -> None:
        """Add a picture, with as few colours and pixels as show it."""
        picture = Image.open(io.BytesIO(png)).convert("RGB")
        picture.thumbnail((_WIDEST, 4 * _WIDEST))
        picture.quantize(_COLOURS).save(self.images / f"{name}.png", optimize=True)
        self.add(f"![{title}]({self.images.name}/{name}.png)")

    def show(self, context: StageContext, stage: str, partition: str = "", *, only: Sequence[str] = ()) -> ResultRecord:
        """Make a result where it is missing, and add its pictures and tables, or some of them."""
        record = made(context, stage, partition)
        found = context.graph[stage]
        for name, value in found.shown(context, Partition.parse(partition, found.dimensions), record).items():
            if only and name not in only:
                continue
            if isinstance(value, Picture):
                self.picture(
                    value.png,
                    f"{context.pipeline.dataset}-{stage}-{name}".replace(" ", "-").replace("–", "-"),
                    value.title,
                )
            elif isinstance(value, Rows):
                self.table(value.rows, most=_MOST_ROWS)
        return record


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value).replace("|", "\\|")


def made(context: StageContext, stage: str, partition: str = "") -> ResultRecord:
    """The record of a stage's partition, made with whatever it is made from; what is up to date is not made again."""
    found, graph = context.graph[stage], context.graph
    wanted = Partition.parse(partition, found.dimensions)
    for each in [*graph.before(found, context.pipeline, context.selection), found]:
        within = wanted if each is found else wanted.only(each.dimensions)
        stale = context.index.stale(each.name, context.index.partitions(each.name, within))
        for made, _ in run_partitions(context, each, stale):
            print(f"   {context.asset(each.name)} {made}", flush=True)
    return context.index.require(stage, wanted)
