"""Which files a source has, in the shard index of the store."""

from typing import Any

from semdedup_assets.execution.context import StageContext
from semdedup_assets.settings import Pipeline
from semdedup_assets.sources.shard_index import ShardIndex
from semdedup_assets.storage.files import Listing, write_bytes


def update_shard_index(context: StageContext) -> ShardIndex:
    """List the source's files and remember which shard each belongs to.

    Known files stay where they are, new ones form new shards, vanished ones leave theirs.

    Raises:
        FileNotFoundError: the source has no file.
        VanishedFilesError: more files are missing than `refresh.max_vanished` allows.
        PermissionError: the store cannot be written.
    """
    return updated_index(context, context.pipeline.source.listing())


def updated_index(context: StageContext, listing: Listing) -> ShardIndex:
    """The same of a listing that was made."""
    updated = index_of(context, listing)
    if updated != context.shard_index:
        write_bytes(context.layout.shard_index, updated.to_json())
    return updated


def index_of(context: StageContext, listing: Listing) -> ShardIndex:
    """The shard index after a listing; nothing is written."""
    known = context.shard_index
    known.require_present(listing.files, max_vanished=context.pipeline.refresh.max_vanished)
    return known.updated(
        listing.files,
        group=context.pipeline.new_shards,
        files_per_shard=context.pipeline.shards.files_per_shard or "automatic",
    )


def files_of(pipeline: Pipeline) -> dict[str, Any]:
    """Which files a source has."""
    return pipeline.source.model_dump(mode="json", include={"kind", "path", "metadata"}, exclude_none=True)
