"""The asset `galleries`."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.assets.metadata import picture
from semdedup_assets.assets.provenance import ALL, PartitionRecorder

if TYPE_CHECKING:
    from semdedup_assets.stages.work import Work
    from semdedup_assets.storage.results import Recipe

_TEXT = 80


def galleries_asset(declaration: Declaration) -> dg.AssetsDefinition:
    """One partition an epsilon and k: items to look at, as a page and as small pictures or tables."""

    @dg.asset(
        **declaration.described("galleries"),
        partitions_def=declaration.with_k("epsilon"),
        deps=[declaration.key("keep_masks"), declaration.every("embeddings")],
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def galleries(
        context: dg.AssetExecutionContext,
        config: declaration.run_config,  # type: ignore[name-defined]
    ) -> Iterator[dg.MaterializeResult[None]]:
        from semdedup_assets.stages.duplicate_scores import AssignedShards
        from semdedup_assets.stages.galleries import draw_gallery

        work = declaration.work(context, config)
        recorder = PartitionRecorder(context, declaration, "galleries")
        assigned: dict[str, AssignedShards] = {}
        for partition in recorder.partitions:
            epsilon, k = partition.split("|")
            inputs = recorder.inputs({declaration.key("keep_masks"): partition, declaration.key("embeddings"): ALL})
            shards = assigned.setdefault(k, AssignedShards(work, k))
            recipe = draw_gallery(work, epsilon, assigned=shards)
            recorder.record(partition, recipe, inputs=inputs, pictures=_pictures(work, recipe, (k, epsilon)))
        yield from recorder.finish()

    return galleries


def _pictures(work: "Work", recipe: "Recipe", partition: tuple[str, str]) -> dict[str, Any]:
    """The page as a link, and its parts as pictures or tables."""
    from semdedup_assets.storage.files import filesystem, is_local, read_bytes

    page = work.layout.gallery_file(*partition, recipe.details["page"])
    # Whole, so that it can be opened from wherever one is.
    local = Path(filesystem(page)[1]).absolute() if is_local(page) else None
    metadata: dict[str, Any] = {"gallery": dg.MetadataValue.path(local) if local else dg.MetadataValue.url(page)}
    for name, file in recipe.details["parts"].items():
        content = read_bytes(work.layout.gallery_file(*partition, file))
        if file.endswith(".png"):
            metadata[name] = picture(content, title=name)
        elif rows := json.loads(content):
            metadata[name] = _table(rows)
    return metadata


def _table(rows: Sequence[Mapping[str, str]]) -> dg.MarkdownMetadataValue:
    """Rows as a table for a dialog of 600 pixels: Dagster's own would run out of the page. Of texts, the begin."""
    # A text tells more than its key.
    columns = [name for name in rows[0] if name != "key" or "text" not in rows[0]]
    lines = [[_cell(row[name]) for name in columns] for row in rows]
    return dg.MetadataValue.md(
        "\n".join(f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *lines])
    )


def _cell(text: str) -> str:
    """A text that Markdown shows as it is: no link, picture or tag in it comes to life."""
    short = text if len(text) <= _TEXT else f"{text[: _TEXT - 1]}…"
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", short)
