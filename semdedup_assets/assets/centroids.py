"""The asset `centroids`."""

from collections.abc import Iterator

import dagster as dg

from semdedup_assets.assets.checks import check_specs, checks_of
from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.assets.metadata import picture
from semdedup_assets.assets.provenance import ALL, PartitionRecorder


def centroids_asset(declaration: Declaration) -> dg.AssetsDefinition:
    """One partition a k: k × d unit vectors."""

    @dg.asset(
        **declaration.described("centroids"),
        partitions_def=declaration.k,
        deps=[declaration.key("training_sample")],
        backfill_policy=dg.BackfillPolicy.single_run(),
        check_specs=check_specs(declaration, "centroids"),
        pool="gpu",
    )
    def centroids(
        context: dg.AssetExecutionContext,
        config: declaration.run_config,  # type: ignore[name-defined]
    ) -> Iterator[dg.MaterializeResult[None]]:
        from semdedup_assets.figures.plots import convergence
        from semdedup_assets.stages.centroids import fit_centroids

        work = declaration.work(context, config)
        recorder = PartitionRecorder(context, declaration, "centroids")
        with work.progress("centroids", total=len(recorder.partitions), unit="fits") as progress:
            for k in recorder.partitions:
                inputs = recorder.inputs({declaration.key("training_sample"): ALL})
                recipe = fit_centroids(work, k)
                curve = convergence(recipe.details["objective"], title=f"k-means, k = {recipe.details['k']}")
                pictures = {"convergence": picture(curve, title="mean similarity to the centroid by iteration")}
                recorder.record(k, recipe, inputs=inputs, pictures=pictures)
                progress.advance(1)
        yield from recorder.finish(*checks_of(work, "centroids"))

    return centroids
