"""Which files a source has, in the shard index of the store."""

import errno
from typing import Any

from semdedup_assets.execution.context import StageContext
from semdedup_assets.settings import Pipeline
from semdedup_assets.sources.shard_index import ShardIndex
from semdedup_assets.storage.files import Listing, read_many, write_bytes

_ATTEMPTS = 5


def update_shard_index(context: StageContext) -> ShardIndex:
    """List the source's files and remember which shard each belongs to.

    Known files stay where they are, new ones form new shards, vanished ones leave theirs.

    Raises:
        FileNotFoundError: the source has no file.
        VanishedFilesError: more files are missing than `refresh.max_vanished` allows.
        PermissionError: the store cannot be written.
        OSError: others changed the index each time while the source was listed.
        ValueError: the index is damaged; names it.
    """
    return index_and_listing(context)[0]


def index_and_listing(context: StageContext) -> tuple[ShardIndex, Listing]:
    """The same, with the listing."""
    path = context.layout.shard_index
    for _ in range(_ATTEMPTS):
        content = read_many([path])[0]
        known = ShardIndex.stored(content, path)
        listing = context.pipeline.source.listing()
        updated = index_of(context.with_shard_index(known), listing)
        # Whoever listed later may be done already: this listing would take out again what it lacks.
        if read_many([path])[0] == content:
            if updated != known:
                write_bytes(path, updated.to_json())
            return updated, listing
    message = f"{path}: others changed it each time while the source was listed; run again"
    raise OSError(errno.EBUSY, message)


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
