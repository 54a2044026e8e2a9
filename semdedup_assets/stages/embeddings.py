"""Embed the items of a shard."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from semdedup_assets.records import Skipped, VectorBatch
from semdedup_assets.sources.catalogue import Shard
from semdedup_assets.stages.work import Work
from semdedup_assets.storage.results import MissingResultError, Recipe, ResultWriter
from semdedup_assets.storage.vectors import EmbeddingsWriter, write_skipped

_LISTED = 20


class _ShardReader:
    """The records of a shard's files one after the other, and how many each file had."""

    def __init__(self, work: Work, shard: Shard) -> None:
        self._source = work.pipeline.source
        self._files = [file.path for file in shard.files]
        self.rows: list[int] = []

    def __iter__(self) -> Iterator[Any]:
        for path in self._files:
            self.rows.append(0)
            for record in self._source.read(path):
                self.rows[-1] += len(record.keys) if isinstance(record, VectorBatch) else 1
                yield record

    def by_file(self) -> list[list[Any]]:
        """Path and number of records of each file, in the order of the shard's rows."""
        return [[path, rows] for path, rows in zip(self._files, self.rows, strict=True)]


def embed_shard(work: Work, shard: Shard, *, model: Any) -> Recipe:
    """Embed a shard: ids, keys, unit vectors and carried columns, with the skipped items beside them.

    Args:
        work: the pipeline at work.
        shard: which files.
        model: what the pipeline's encoder loaded.
    """
    work.measures.restart()
    path, made_from = work.layout.embeddings(shard.name), {"shards": shard.fingerprint}
    with work.writing("embeddings", path, made_from=made_from) as result:
        result.details = _write(work, shard, model, result)
    return result.recipe()


def _write(work: Work, shard: Shard, model: Any, result: ResultWriter) -> dict[str, Any]:
    reader, skipped, keys = _ShardReader(work, shard), list[Skipped](), Counter[str]()
    with (
        work.progress(f"embeddings {shard.name}", total=None, unit="items") as progress,
        result.open(work.layout.embeddings(shard.name)) as stream,
    ):
        types = work.pipeline.source.column_types
        writer = EmbeddingsWriter(stream, shard.index, work.pipeline.vectors, types, None)
        for batch in work.measures.each("embed", model.embed(reader)):
            with work.measures.phase("write"):
                writer.write(batch)
            skipped += batch.skipped
            keys.update(batch.keys)
            progress.advance(len(batch.keys))
        # Asked only now: that of ready embeddings is known once this shard's first is read.
        writer.dimension = writer.dimension or model.dimension
        writer.close()
    with result.open(work.layout.skipped(shard.name)) as stream:
        write_skipped(stream, skipped, shard=shard.index)
    repeated = [key for key, count in keys.items() if count > 1]
    return {
        "items": keys.total(),
        "records": keys.total() + len(skipped),
        "skipped": len(skipped),
        "skipped_examples": [[item.key, item.reason] for item in skipped[:_LISTED]],
        "repeated_keys": len(repeated),
        "repeated_key_examples": repeated[:_LISTED],
        "dimension": writer.dimension,
        "not_finite": writer.audit.not_finite,
        "norm_error": writer.audit.norm_error,
        "repeated_ids": writer.audit.repeated_rows,
        "files": reader.by_file(),
    }


@dataclass(frozen=True, slots=True)
class BrokenShard:
    """A shard of which too much is broken.

    Attributes:
        shard: its name.
        share: of its records that were skipped.
        examples: key and reason of the first of them.
    """

    shard: str
    share: float
    examples: list[list[str]]


def broken_shards(work: Work) -> list[BrokenShard]:
    """The embedded shards with a greater share of broken items than `max_skipped`, whenever they were embedded."""
    found = []
    for shard in work.shards():
        try:
            details = work.embeddings(shard.name).details
        except MissingResultError:
            continue
        share = details["skipped"] / max(1, details["records"])
        if share > work.pipeline.max_skipped:
            found.append(BrokenShard(shard.name, share, details["skipped_examples"][:3]))
    return found
