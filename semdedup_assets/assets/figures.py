"""The asset `figures`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg

from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.assets.metadata import picture
from semdedup_assets.assets.provenance import ALL, PartitionRecorder

if TYPE_CHECKING:
    from semdedup_assets.stages.work import Work


def figures_asset(declaration: Declaration) -> dg.AssetsDefinition:
    """One partition a k: what the scores tell, in pictures, with their numbers."""

    @dg.asset(
        **declaration.described("figures"),
        partitions_def=declaration.k,
        deps=[declaration.same("duplicate_scores", "k")],
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool="gpu",
    )
    def figures(
        context: dg.AssetExecutionContext,
        config: declaration.run_config,  # type: ignore[name-defined]
    ) -> Iterator[dg.MaterializeResult[None]]:
        from semdedup_assets.stages.figures import draw_figures

        work = declaration.work(context, config)
        recorder = PartitionRecorder(context, declaration, "figures")
        for k in recorder.partitions:
            inputs = recorder.inputs({declaration.key("duplicate_scores"): ALL})
            recipe = draw_figures(work, k)
            recorder.record(k, recipe, inputs=inputs, pictures=_pictures(work, k))
        yield from recorder.finish()

    return figures


def _pictures(work: "Work", k: str) -> dict[str, Any]:
    """Each picture as it is seen in the UI, and where it lies with its numbers."""
    from semdedup_assets.figures.plots import TITLES
    from semdedup_assets.stages.figures import read_figure

    metadata: dict[str, Any] = {}
    for name, title in TITLES.items():
        metadata[name] = picture(read_figure(work, k, f"{name}.png"), title=title)
    files = [work.layout.figure(k, f"{name}{suffix}") for name in TITLES for suffix in (".png", ".parquet")]
    return {**metadata, "files": dg.MetadataValue.json(files)}
