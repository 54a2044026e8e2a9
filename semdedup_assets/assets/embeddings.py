"""The asset `embeddings`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg

from semdedup_assets.assets.checks import check_specs, checks_of
from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.assets.provenance import PartitionRecorder

if TYPE_CHECKING:
    from semdedup_assets.sources.catalogue import Shard
    from semdedup_assets.stages.work import Work


def embeddings_asset(declaration: Declaration) -> dg.AssetsDefinition:
    """One partition a shard: ids, keys, unit vectors and carried columns, skipped items with their reasons beside."""

    @dg.asset(
        **declaration.described("embeddings"),
        partitions_def=declaration.shard,
        deps=[declaration.key("shards")],
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool="gpu",
        check_specs=check_specs(declaration, "embeddings"),
    )
    def embeddings(
        context: dg.AssetExecutionContext,
        config: declaration.run_config,  # type: ignore[name-defined]
    ) -> Iterator[dg.MaterializeResult[None]]:
        from semdedup_assets.stages.embeddings import embed_shards

        work, source = declaration.work(context, config), declaration.key("shards")
        recorder = PartitionRecorder(context, declaration, "embeddings")
        wanted = _wanted_shards(work, recorder.partitions)
        inputs = {shard.name: recorder.inputs({source: shard.name}) for shard in wanted}
        model = work.pipeline.encoder.load(work.compute)
        with work.progress("embeddings", total=len(wanted), unit="shards") as progress:
            for shard, recipe in embed_shards(work, wanted, model=model):
                recorder.record(shard.name, recipe, inputs=inputs[shard.name])
                progress.advance(1)
        yield from recorder.finish(*checks_of(work, "embeddings"))

    return embeddings


def _wanted_shards(work: "Work", partitions: list[str]) -> list["Shard"]:
    shards = {shard.name: shard for shard in work.shards()}
    gone = [partition for partition in partitions if partition not in shards]
    if gone:
        message = f"{', '.join(gone)}: their files are gone; observe {work.pipeline.dataset}/shards anew"
        raise dg.Failure(message, allow_retries=False)
    return [shards[partition] for partition in partitions]
