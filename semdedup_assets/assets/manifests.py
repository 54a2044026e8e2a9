"""The asset `manifests`."""

from collections.abc import Iterator

import dagster as dg

from semdedup_assets.assets.checks import check_specs, checks_of
from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.assets.provenance import ALL, PartitionRecorder


def manifests_asset(declaration: Declaration) -> dg.AssetsDefinition:
    """One partition an epsilon and k: what a training job reads."""

    @dg.asset(
        **declaration.described("manifests"),
        partitions_def=declaration.with_k("epsilon"),
        deps=[declaration.key("keep_masks"), declaration.every("embeddings")],
        backfill_policy=dg.BackfillPolicy.single_run(),
        check_specs=check_specs(declaration, "manifests"),
    )
    def manifests(
        context: dg.AssetExecutionContext,
        config: declaration.run_config,  # type: ignore[name-defined]
    ) -> Iterator[dg.MaterializeResult[None]]:
        from semdedup_assets.stages.duplicate_scores import AssignedShards
        from semdedup_assets.stages.manifests import write_manifest

        work = declaration.work(context, config)
        recorder = PartitionRecorder(context, declaration, "manifests")
        assigned: dict[str, AssignedShards] = {}
        for partition in recorder.partitions:
            epsilon, k = partition.split("|")
            inputs = recorder.inputs({declaration.key("keep_masks"): partition, declaration.key("embeddings"): ALL})
            shards = assigned.setdefault(k, AssignedShards(work, k))
            recipe = write_manifest(work, epsilon, assigned=shards)
            recorder.record(partition, recipe, inputs=inputs)
        yield from recorder.finish(*checks_of(work, "manifests"))

    return manifests
