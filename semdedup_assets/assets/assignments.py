"""The asset `assignments`."""

from collections.abc import Iterator

import dagster as dg

from semdedup_assets.assets.checks import check_specs, checks_of
from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.assets.provenance import PartitionRecorder


def assignments_asset(declaration: Declaration) -> dg.AssetsDefinition:
    """One partition a k and shard: the shard's rows in the order of their clusters."""

    @dg.asset(
        **declaration.described("assignments"),
        partitions_def=declaration.with_k("shard"),
        deps=[declaration.same("embeddings", "shard"), declaration.same("centroids", "k")],
        backfill_policy=dg.BackfillPolicy.single_run(),
        check_specs=check_specs(declaration, "assignments"),
        pool="gpu",
    )
    def assignments(
        context: dg.AssetExecutionContext,
        config: declaration.run_config,  # type: ignore[name-defined]
    ) -> Iterator[dg.MaterializeResult[None]]:
        from semdedup_assets.stages.assignments import FittedClusters, assign_shard

        work = declaration.work(context, config)
        recorder = PartitionRecorder(context, declaration, "assignments")
        clusters: dict[str, FittedClusters] = {}
        with work.progress("assignments", total=len(recorder.partitions), unit="shards") as progress:
            for partition in recorder.partitions:
                k, shard = partition.split("|")
                inputs = recorder.inputs({declaration.key("embeddings"): shard, declaration.key("centroids"): k})
                fitted = clusters.setdefault(k, FittedClusters(work, k))
                recipe = assign_shard(work, shard, clusters=fitted)
                recorder.record(partition, recipe, inputs=inputs)
                progress.advance(1)
        yield from recorder.finish(*checks_of(work, "assignments"))

    return assignments
