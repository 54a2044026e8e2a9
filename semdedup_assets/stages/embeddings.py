"""Embed the items of a shard."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from semdedup_assets.algorithm.sampling import CHECKSUM_MODULUS, id_checksum
from semdedup_assets.records import Skipped, VectorBatch, item_ids
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


class FailedShardsError(RuntimeError):
    """Shards could not be embedded, and are too many, or too telling, to be left out."""


def embed_shards(work: Work, shards: Sequence[Shard], *, model: Any) -> Iterator[tuple[Shard, Recipe]]:
    """Embed shards, each yielded as it is done; one that fails holds back none of the others.

    A shard that fails is tried again after the others (`refresh.attempts`, `refresh.retry_seconds`). One that fails
    every time is left out: it is recorded without items and with the reason, so that what follows goes on without it.

    Args:
        work: the pipeline at work.
        shards: which.
        model: what the pipeline's encoder loaded.

    Raises:
        FailedShardsError: no shard at all can be embedded, or more fail than `refresh.max_left_out` allows.
    """
    setting, errors = work.pipeline.refresh, dict[str, str]()
    for attempt in range(1, setting.attempts + 1):
        waiting = [shard for shard in shards if attempt == 1 or shard.name in errors]
        errors.clear()
        for shard in waiting:
            try:
                recipe = _embed_shard(work, shard, model)
            except Exception as error:  # whatever a file, a store or a library may raise: it is one shard's failure
                errors[shard.name] = f"{type(error).__name__}: {error}"
                work.log(f"{shard.name}: attempt {attempt} of {setting.attempts} failed: {errors[shard.name]}")
            else:
                yield shard, recipe
        if not errors:
            return
        _refuse_unless_some_are_good(work, errors)
        if attempt < setting.attempts:
            work.log(f"{len(errors)} shards failed; the next attempt is in {setting.retry_seconds:g} s")
            time.sleep(setting.retry_seconds)
    _refuse_too_many(work, errors)
    for shard in shards:
        if shard.name in errors:
            yield shard, _leave_out(work, shard, model, errors[shard.name])


def _refuse_unless_some_are_good(work: Work, errors: dict[str, str]) -> None:
    """Where nothing ever worked the settings are wrong, not the files."""
    if not any(_is_good(work, shard) for shard in work.shards()):
        message = f"{work.pipeline.dataset}: no shard can be embedded; {_first(errors)}"
        raise FailedShardsError(message)


def _is_good(work: Work, shard: Shard) -> bool:
    try:
        recipe = work.embeddings(shard.name)
    except MissingResultError:
        return False
    return recipe.code_version == work.code_version("embeddings") and "left_out" not in recipe.details


def _refuse_too_many(work: Work, errors: dict[str, str]) -> None:
    shards = work.shards()
    allowed = max(1, int(work.pipeline.refresh.max_left_out * len(shards)))
    failing = {*errors, *left_out_shards(work)}
    if len(failing) > allowed:
        message = (
            f"{work.pipeline.dataset}: {len(failing)} of {len(shards)} shards cannot be embedded, and {allowed} may be "
            f"left out; mend them, or raise `refresh.max_left_out`; {_first(errors)}"
        )
        raise FailedShardsError(message)


def _first(errors: dict[str, str], most: int = 3) -> str:
    return "; ".join(f"{shard}: {reason}" for shard, reason in list(errors.items())[:most])


def left_out_shards(work: Work) -> dict[str, str]:
    """The shards that failed every attempt when they were last tried, each with the reason."""
    found = {}
    for shard in work.shards():
        try:
            details = work.embeddings(shard.name).details
        except MissingResultError:
            continue
        if "left_out" in details:
            found[shard.name] = str(details["left_out"])
    return found


def _embed_shard(work: Work, shard: Shard, model: Any) -> Recipe:
    """Embed a shard: ids, keys, unit vectors and carried columns, with the skipped items beside them."""
    work.measures.restart()
    path, made_from = work.layout.embeddings(shard.name), {"shards": shard.fingerprint}
    with work.writing("embeddings", path, made_from=made_from) as result:
        result.details = _write(work, shard, model, result)
    return result.recipe()


def _leave_out(work: Work, shard: Shard, model: Any, reason: str) -> Recipe:
    """Record a shard as one without items, and why."""
    work.measures.restart()
    path, made_from = work.layout.embeddings(shard.name), {"shards": shard.fingerprint}
    with work.writing("embeddings", path, made_from=made_from) as result:
        no_files = Shard(shard.index, ())
        result.details = {**_write(work, no_files, model, result), "left_out": reason}
    return result.recipe()


def _write(work: Work, shard: Shard, model: Any, result: ResultWriter) -> dict[str, Any]:
    reader, skipped, keys = _ShardReader(work, shard), list[Skipped](), Counter[str]()
    checksum = 0
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
            checksum = (checksum + id_checksum(item_ids(shard.index, batch.rows))) % CHECKSUM_MODULUS
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
        "id_checksum": checksum,
        "files": reader.by_file(),
    }
