"""The asset `assignments`."""

from collections.abc import Iterator

import dagster as dg

from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.assets.provenance import PartitionRecorder


def assignments_asset(declaration: Declaration) -> dg.AssetsDefinition:
    """One partition a k and shard: the shard's rows in the order of their clusters."""

    @dg.asset(
        key=declaration.key("assignments"),
        partitions_def=declaration.with_k("shard"),
        deps=[declaration.same("embeddings", "shard"), declaration.same("centroids", "k")],
        code_version=declaration.code_version("assignments"),
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name=declaration.group,
        kinds={"torch", "arrow"},
        pool="gpu",
        description=(
            "Each item's nearest centroid by cosine similarity (SemDeDup, section 3). Holds the shard's ids, "
            "similarities to the centroid and vectors in the order of their clusters, for one sequential read a bucket."
        ),
    )
    def assignments(
        context: dg.AssetExecutionContext,
        config: declaration.run_config,  # type: ignore[name-defined]
    ) -> Iterator[dg.MaterializeResult[None]]:
        from semdedup_assets.stages.assignments import FittedClusters, assign_shard

        work = declaration.work(context, config)
        recorder = PartitionRecorder(context, declaration.code_version("assignments"))
        clusters: dict[str, FittedClusters] = {}
        with work.progress("assignments", total=len(recorder.partitions), unit="shards") as progress:
            for partition in recorder.partitions:
                k, shard = partition.split("|")
                inputs = recorder.inputs({declaration.key("embeddings"): shard, declaration.key("centroids"): k})
                fitted = clusters.setdefault(k, FittedClusters(work, k))
                recipe = assign_shard(work, shard, clusters=fitted)
                recorder.record(partition, version=recipe.version, details=recipe.details, inputs=inputs)
                progress.advance(1)
        yield from recorder.finish()

    return assignments
