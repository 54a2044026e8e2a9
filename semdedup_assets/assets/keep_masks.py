"""The asset `keep_masks`."""

from collections.abc import Iterator

import dagster as dg

from semdedup_assets.assets.checks import check_specs, checks_of
from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.assets.provenance import ALL, PartitionRecorder


def keep_masks_asset(declaration: Declaration) -> dg.AssetsDefinition:
    """One partition an epsilon and k: kept or removed by item, and the nearest kept item of each removed one."""

    @dg.asset(
        **declaration.described("keep_masks"),
        partitions_def=declaration.with_k("epsilon"),
        deps=[declaration.every_of_same_k("duplicate_scores", "bucket", "epsilon")],
        backfill_policy=dg.BackfillPolicy.single_run(),
        check_specs=check_specs(declaration, "keep_masks"),
    )
    def keep_masks(
        context: dg.AssetExecutionContext,
        config: declaration.run_config,  # type: ignore[name-defined]
    ) -> Iterator[dg.MaterializeResult[None]]:
        from semdedup_assets.stages.duplicate_scores import AssignedShards
        from semdedup_assets.stages.keep_masks import select_items

        work = declaration.work(context, config)
        recorder = PartitionRecorder(context, declaration, "keep_masks")
        assigned: dict[str, AssignedShards] = {}
        for partition in recorder.partitions:
            epsilon, k = partition.split("|")
            inputs = recorder.inputs({declaration.key("duplicate_scores"): ALL})
            shards = assigned.setdefault(k, AssignedShards(work, k))
            recipe = select_items(work, epsilon, assigned=shards)
            recorder.record(partition, recipe, inputs=inputs)
        yield from recorder.finish(*checks_of(work, "keep_masks"))

    return keep_masks
