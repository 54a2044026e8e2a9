"""What a change of `shards.files_per_shard` does, and how to start over with it."""

from semdedup_assets.settings import Pipeline
from semdedup_assets.sources.shard_index import ShardIndex
from semdedup_assets.storage.files import join


def unfollowed_shard_setting(pipeline: Pipeline, index: ShardIndex) -> str | None:
    """Why shards are not as the setting says, and the remedy; None where they are, or where that was not noted.

    Args:
        pipeline: its settings.
        index: of its dataset.
    """
    now = pipeline.shards.files_per_shard or "automatic"
    if not index.shards or index.files_per_shard in (None, now):
        return None
    return (
        f"shards.files_per_shard is {now}, and the {len(index.shards):,} shards there are were made with "
        f"{index.files_per_shard}: a file never leaves its shard, so the setting counts for new files only. To start over, "
        f"remove {join(pipeline.store, pipeline.dataset)} with everything that was made of the dataset, or take another "
        "`dataset` or `store`; then launch the refresh job"
    )
