"""The asset `duplicate_scores`."""

from collections.abc import Iterator

import dagster as dg

from semdedup_assets.assets.checks import check_specs, checks_of
from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.assets.provenance import ALL, PartitionRecorder


def duplicate_scores_asset(declaration: Declaration) -> dg.AssetsDefinition:
    """One partition a bucket and k: the greatest similarity of each item to an earlier item of its cluster."""

    @dg.asset(
        **declaration.described("duplicate_scores"),
        partitions_def=declaration.with_k("bucket"),
        deps=[declaration.every_of_same_k("assignments", "shard", "bucket"), declaration.key("catalogue")],
        backfill_policy=dg.BackfillPolicy.single_run(),
        check_specs=check_specs(declaration, "duplicate_scores"),
        pool="gpu",
    )
    def duplicate_scores(
        context: dg.AssetExecutionContext,
        config: declaration.run_config,  # type: ignore[name-defined]
    ) -> Iterator[dg.MaterializeResult[None]]:
        from semdedup_assets.stages.duplicate_scores import AssignedShards, score_bucket

        work = declaration.work(context, config)
        recorder = PartitionRecorder(context, declaration, "duplicate_scores")
        assigned: dict[str, AssignedShards] = {}
        for partition in recorder.partitions:
            bucket, k = partition.split("|")
            inputs = recorder.inputs({declaration.key("assignments"): ALL, declaration.key("catalogue"): ALL})
            shards = assigned.setdefault(k, AssignedShards(work, k))
            recipe = score_bucket(work, work.buckets.index(bucket), assigned=shards)
            recorder.record(partition, recipe, inputs=inputs)
        yield from recorder.finish(*checks_of(work, "duplicate_scores"))

    return duplicate_scores
