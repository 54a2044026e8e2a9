"""What the first items of a source, and the configuration of a model, show to be wrong, before anything runs."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain, islice
from queue import Empty, Queue
from threading import Thread
from typing import TypeVar

import numpy as np

from semdedup_assets.defs_yaml.problems import Problem, near_names
from semdedup_assets.defs_yaml.schema import SettingPath
from semdedup_assets.encoders import OpenClip, Precomputed, Timm, TorchScript
from semdedup_assets.encoders.decoding import UndecodableImageError, rgb_image
from semdedup_assets.encoders.unit_norm import check_unit_rows
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.shard_setting import unfollowed_shard_setting
from semdedup_assets.records import Invalid, Item, Record, VectorBatch
from semdedup_assets.settings import Pipeline
from semdedup_assets.sources import Folder, Parquet, Source, TruncatedFile, Vectors
from semdedup_assets.sources.parquet import PARQUET
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets.storage.files import FileStat, is_local

_SECONDS = 30.0  # after which a source that does not answer is passed over with a warning
_ITEMS = 16  # that are looked at: one that is invalid says nothing of the others
_ROWS, _MORE_ROWS = 200, 10_000  # in which a field without a schema is looked for

T = TypeVar("T")


def checked_source(pipeline: Pipeline, *, seconds: float = _SECONDS) -> list[Problem]:
    """What is wrong between settings, data and model, seen by reading the first items of each source.

    No network is asked for a model: what its folder, the cache of the hub and the installed library say is compared.

    Args:
        pipeline: its settings, which are valid.
        seconds: that each source may take to answer.

    Returns:
        Problems, and warnings where only the data on this machine are in doubt: no files, a store out of reach, first
        items that cannot be used.
    """
    sources: dict[SettingPath, Source] = {("source",): pipeline.source}
    sources |= {("references", name, "source"): each.source for name, each in pipeline.references.items()}
    problems = [*_model_problems(pipeline), *_shard_problems(pipeline, seconds)]
    for path, source in sources.items():
        found = _within(seconds, lambda source=source: list(_source_problems(pipeline, source)))  # type: ignore[misc]
        if found is None:
            message = f"{source.path} does not answer within {seconds:g} s; its items were not looked at"
            found = [_Finding(("path",), message, warning=True)]
        # What is wrong with the encoder was found by the pipeline's own source.
        problems += [Problem((*path, *each.path), each.message, each.warning) for each in found if not each.of_encoder]
        if path == ("source",):
            problems += [
                Problem(("encoder", *each.path), each.message, each.warning) for each in found if each.of_encoder
            ]
    return problems


@dataclass(frozen=True, slots=True)
class _Finding:
    """What is wrong with a setting.

    Attributes:
        path: below the source, or below the encoder.
        message: without the setting's name.
        warning: whether a run may go well all the same.
        of_encoder: whether the setting is the encoder's.
    """

    path: SettingPath
    message: str
    warning: bool = False
    of_encoder: bool = False


def _within(seconds: float, work: Callable[[], T]) -> T | None:
    """What some work gives; None where it takes longer. It then goes on beside, and ends with the process at the latest."""
    results: Queue[T | BaseException] = Queue()

    def worker() -> None:
        try:
            results.put(work())
        except BaseException as error:
            results.put(error)

    Thread(target=worker, daemon=True, name="source check").start()
    try:
        result = results.get(timeout=seconds)
    except Empty:
        return None
    if isinstance(result, BaseException):
        raise result
    return result


def _model_problems(pipeline: Pipeline) -> Iterator[Problem]:
    """What the model's configuration contradicts."""
    try:
        messages = pipeline.encoder.configuration_problems()
    except ValueError as error:
        messages = [f"model: {error}"]
    for message in messages:
        setting, _, text = message.partition(": ")
        yield Problem(("encoder", setting), text)


def _shard_problems(pipeline: Pipeline, seconds: float) -> Iterator[Problem]:
    """A changed setting that counts for new files only."""
    context = StageContext(pipeline, GRAPH, pipeline.selection)
    try:
        index = _within(seconds, lambda: context.shard_index)
    except Exception:
        # A store out of reach, or a damaged index: observing reports it.
        return
    unfollowed = unfollowed_shard_setting(pipeline, index) if index is not None else None
    if unfollowed:
        yield Problem(("shards", "files_per_shard"), unfollowed, warning=True)


def _source_problems(pipeline: Pipeline, source: Source) -> Iterator[_Finding]:
    """What the first items of a source show."""
    try:
        files = source.listing().files[:_ITEMS]
        file, names = _field_names(source, files)
        wrong = list(_unknown_fields(source, file, names))
        yield from wrong
        if not any(not each.warning for each in wrong):
            yield from _item_problems(source, list(islice(_items(source, files), _ITEMS)))
            yield from _payload_problems(pipeline, list(_payloads(source, files)))
    except (TruncatedFile, FileNotFoundError) as error:
        yield _Finding(("path",), _without_setting(error), warning=True)
    except OSError as error:
        yield _Finding(("path",), f"{source.path} cannot be read from here: {error}", warning=True)
    except ValueError as error:
        yield _Finding(("path",), _without_setting(error))
    except ImportError as error:
        yield _Finding(("path",), f"{source.path}: {error}; install what it names")
    except Exception as error:
        if is_local(source.path):
            raise
        # Each store's library has its own exceptions for a server that does not answer and for missing rights.
        yield _Finding(
            ("path",), f"{source.path} cannot be read from here: {type(error).__name__}: {error}", warning=True
        )


def _without_setting(error: Exception) -> str:
    return str(error).removeprefix("path: ")


def _field_names(source: Source, files: Sequence[FileStat]) -> tuple[FileStat, list[str]]:
    """The first file whose records have fields, and the names of the fields of its first records, each once.

    Where a field that the settings name is not among them, more records are looked at: it may be rare.
    """
    if isinstance(source, Folder):
        found = chain.from_iterable(source.field_names(file.path, _ROWS) for file in files)
        return files[0], list(dict.fromkeys(found))
    for file in files:
        names = source.field_names(file.path, _ROWS)
        if names and not {*_named_fields(source, file).values()} <= {*names}:
            names = source.field_names(file.path, _MORE_ROWS)
        if names:
            return file, names
    return files[0], []


def _named_fields(source: Source, file: FileStat) -> dict[SettingPath, str]:
    """The fields that the settings name: of the payload, the key and the columns."""
    is_array = isinstance(source, Vectors) and not file.path.lower().endswith(PARQUET)
    payload = {(name,): getattr(source, name, None) for name in ("text", "image", "vector", "key")}
    if is_array:
        del payload["vector",]
    named: dict[SettingPath, str] = {path: name for path, name in payload.items() if name}
    return named | {("columns", name): name for name in source.columns}


def _unknown_fields(source: Source, file: FileStat, names: list[str]) -> Iterator[_Finding]:
    """The fields that the settings name and the records do not have."""
    if isinstance(source, Vectors) and not names and source.metadata is None:
        for path, name in _named_fields(source, file).items():
            yield _Finding(
                path, f"{file.path}: an array has no field {name!r}; set `metadata` to the tables that have it"
            )
        return
    has_schema = isinstance(source, Parquet | Vectors)
    for path, name in _named_fields(source, file).items():
        if name in names:
            continue
        # Of a folder each record is a file, of which a few are looked at.
        first = f"{_ITEMS} images" if isinstance(source, Folder) else f"{_MORE_ROWS:,} records"
        where = "" if has_schema else f" among the first {first}"
        near = f"; {near_names(name, names)}" if names else ", which have no fields"
        # A column that is rare may come later, unless it is another's name misspelt; so may all where nothing is known.
        may_come = path[0] == "columns" or not names
        is_rare = may_come and not has_schema and not get_close_matches(name, names, n=1)
        of = source.path if isinstance(source, Folder) else file.path
        yield _Finding(path, f"{of} has no {name!r}{where}{near}", warning=is_rare)


def _items(source: Source, files: Sequence[FileStat]) -> Iterator[Item]:
    for file in files:
        yield from source.read_items(file.path)


def _item_problems(source: Source, items: Sequence[Item]) -> Iterator[_Finding]:
    """The columns and the key of which no value among the first items can be used."""
    reasons = Counter(reason.partition(": ")[0] for item in items for reason in item.invalid_values)
    named: dict[SettingPath, str] = {("columns", name): f"column {name!r}" for name in source.columns}
    named["key",] = f"key {getattr(source, 'key', None)!r}"
    for path, what in named.items():
        if reasons[what] == len(items) > 0:
            reason = next(each for item in items for each in item.invalid_values if each.startswith(f"{what}: "))
            yield _Finding(path, f"no value of the first {len(items)} items can be used: {reason}", warning=True)


def _payloads(source: Source, files: Sequence[FileStat]) -> Iterator[Record | VectorBatch | Invalid]:
    """The first records, or the first batch of vectors."""
    stream = chain.from_iterable(source.read(file.path) for file in files)
    for record in islice(stream, _ITEMS):
        yield record
        if isinstance(record, VectorBatch):
            return


def _payload_problems(pipeline: Pipeline, records: Sequence[Record | VectorBatch | Invalid]) -> Iterator[_Finding]:
    """What the encoder could not embed."""
    for batch in (each for each in records if isinstance(each, VectorBatch)):
        yield from _vector_problems(pipeline.encoder, batch)
    reasons = [reason for each in records if (reason := _invalid(pipeline.encoder, each))]
    unexpected = [each for each in records if not (isinstance(each, Invalid) and each.expected)]
    if unexpected and len(reasons) == len(unexpected):
        message = f"none of the first {len(reasons)} items can be embedded: {reasons[0]}"
        yield _Finding(("path",), message, warning=True)


def _vector_problems(encoder: object, batch: VectorBatch) -> Iterator[_Finding]:
    """Vectors of another length or norm than the encoder's settings say."""
    if not isinstance(encoder, Precomputed):
        return
    width = batch.vectors.shape[1]
    if encoder.dimension not in (None, width):
        message = (
            f"vectors of the source have {width} numbers, not {encoder.dimension}; set it to {width}, or leave it empty"
        )
        yield _Finding(("dimension",), message, of_encoder=True)
    first = batch.vectors[:_ITEMS]
    if len(first) > 0 and not np.any(first):
        yield _Finding(("path",), f"the first {len(first)} vectors are zero, which have no direction", warning=True)
        return
    invalid = {} if encoder.normalise else check_unit_rows(first).invalid
    if len(invalid) == len(first) > 0:
        message = f"none of the first {len(first)} vectors is of unit norm ({invalid[0]}); set it to true"
        yield _Finding(("normalise",), message, of_encoder=True)


def _invalid(encoder: object, record: Record | VectorBatch | Invalid) -> str | None:
    """Why an item cannot be embedded; None where nothing is seen against it."""
    if isinstance(record, Invalid):
        return None if record.expected else f"{record.key}: {record.reason}"
    if not isinstance(record, Record) or not isinstance(encoder, OpenClip | Timm | TorchScript):
        return None
    if not isinstance(record.payload, bytes):
        return None
    try:
        rgb_image(record.payload, shortest_side=None, max_pixels=encoder.max_pixels)
    except UndecodableImageError as error:
        return f"{record.key}: {error}"
    return None
