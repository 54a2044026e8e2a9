"""Which files there are, and to which shards they belong."""

from semdedup_assets.sources.catalogue import Catalogue
from semdedup_assets.stages.work import Work
from semdedup_assets.storage.files import write_bytes


def update_catalogue(work: Work) -> Catalogue:
    """List the source's files and remember which shard each belongs to.

    Known files stay where they are, new ones form new shards, vanished ones leave theirs.

    Raises:
        FileNotFoundError: the source has no file.
        PermissionError: the store cannot be written.
    """
    files = work.pipeline.source.files()
    known = work.catalogue()
    catalogue = known.updated(files, files_per_shard=work.pipeline.shards.files_per_shard)
    if catalogue != known:
        write_bytes(work.layout.catalogue, catalogue.to_json())
    return catalogue
