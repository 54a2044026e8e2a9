"""The asset `galleries`."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg

from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.assets.metadata import picture
from semdedup_assets.assets.provenance import ALL, PartitionRecorder

if TYPE_CHECKING:
    from semdedup_assets.stages.work import Work
    from semdedup_assets.storage.results import Recipe


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
    from semdedup_assets.storage.files import is_local, read_bytes

    page = work.layout.gallery_file(*partition, recipe.details["page"])
    metadata: dict[str, Any] = {
        "gallery": dg.MetadataValue.path(page) if is_local(page) else dg.MetadataValue.url(page)
    }
    for name, file in recipe.details["parts"].items():
        content = read_bytes(work.layout.gallery_file(*partition, file))
        if file.endswith(".png"):
            metadata[name] = picture(content, title=name)
        elif rows := json.loads(content):
            metadata[name] = dg.MetadataValue.table([dg.TableRecord(row) for row in rows])
    return metadata
