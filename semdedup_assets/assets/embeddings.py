"""The asset `embeddings`."""

from collections.abc import Iterator

import dagster as dg

from semdedup_assets.assets.checks import skipped_share, skipped_share_spec
from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.assets.provenance import PartitionRecorder


def embeddings_asset(declaration: Declaration) -> dg.AssetsDefinition:
    """One partition a shard: ids, keys, unit vectors and carried columns, skipped items with their reasons beside."""

    @dg.asset(
        **declaration.described("embeddings"),
        partitions_def=declaration.shard,
        deps=[declaration.key("shards")],
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool="gpu",
        check_specs=[skipped_share_spec(declaration)],
    )
    def embeddings(
        context: dg.AssetExecutionContext,
        config: declaration.run_config,  # type: ignore[name-defined]
    ) -> Iterator[dg.MaterializeResult[None]]:
        from semdedup_assets.stages.embeddings import embed_shard

        work, source = declaration.work(context, config), declaration.key("shards")
        recorder = PartitionRecorder(context, declaration, "embeddings")
        shards = {shard.name: shard for shard in work.shards()}
        model = work.pipeline.encoder.load(work.compute)
        for partition in recorder.partitions:
            inputs = recorder.inputs({source: partition})
            if partition not in shards:
                message = f"{partition}: its files are gone; observe {work.pipeline.dataset}/shards anew"
                raise dg.Failure(message, allow_retries=False)
            recipe = embed_shard(work, shards[partition], model=model)
            recorder.record(partition, recipe, inputs=inputs)
        yield from recorder.finish(skipped_share(work))

    return embeddings
