"""Checks that a result is fit to go on with."""

import dagster as dg

from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.stages.work import Work

_NAME = "skipped_share"


def skipped_share_spec(declaration: Declaration) -> dg.AssetCheckSpec:
    """Fails where more than a settable share of a shard's items is broken; blocks what follows."""
    return dg.AssetCheckSpec(
        _NAME,
        asset=declaration.key("embeddings"),
        blocking=True,
        description=f"At most {declaration.pipeline.max_skipped:.2%} of any shard's items are broken (`max_skipped`).",
    )


def skipped_share(work: Work) -> dg.AssetCheckResult:
    """The verdict on all embedded shards, also those of earlier runs: another shard's run does not clear one."""
    from semdedup_assets.stages.embeddings import broken_shards

    broken = broken_shards(work)
    for shard in broken:
        work.log(
            f"{shard.shard}: {shard.share:.2%} of its items are broken, more than {work.pipeline.max_skipped:.2%}; "
            f"the first: {shard.examples}"
        )
    return dg.AssetCheckResult(
        check_name=_NAME,
        passed=not broken,
        metadata={
            "limit": work.pipeline.max_skipped,
            "shards_above": dg.MetadataValue.json({shard.shard: shard.share for shard in broken}),
        },
    )


def refuse_broken_shards(work: Work) -> None:
    """Hold a refresh back where the check would fail.

    Raises:
        dagster.Failure: names the shards and the cure.
    """
    from semdedup_assets.stages.embeddings import broken_shards

    broken = broken_shards(work)
    if broken:
        named = ", ".join(f"{shard.shard} ({shard.share:.2%}: {shard.examples})" for shard in broken[:5])
        message = (
            f"{_NAME}: {len(broken)} of {work.pipeline.dataset}'s shards have more than "
            f"{work.pipeline.max_skipped:.2%} broken items: {named}; mend the files, or raise `max_skipped`"
        )
        raise dg.Failure(message, allow_retries=False)
