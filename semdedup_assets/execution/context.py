"""What every stage is given: settings, where results lie and which there are. It can be sent to another process."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from semdedup_assets.compute import Compute
from semdedup_assets.execution import progress, usage
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import StageGraph
from semdedup_assets.kept_sets import Selection
from semdedup_assets.settings import Pipeline
from semdedup_assets.sources.shard_index import Shard, ShardIndex
from semdedup_assets.storage.files import join, read_many, remove_all
from semdedup_assets.storage.layout import Layout
from semdedup_assets.storage.results import (
    FileEntry,
    MissingResultError,
    ResultRecord,
    ResultWriter,
    attempting,
    commit,
    fingerprint,
    require_written,
)

if TYPE_CHECKING:
    from semdedup_assets.execution.result_index import ResultIndex

SETTINGS = "settings"
"""Under which a record's details hold the settings that determined it."""


@dataclass(frozen=True)
class PartOfResult:
    """What one task of several wrote for a partition.

    Attributes:
        inputs: versions of what the partition is made from, as they were before any task read them.
        files: by name.
        details: what `finish` adds up.
    """

    inputs: dict[str, str]
    files: dict[str, FileEntry]
    details: dict[str, Any]


@dataclass(frozen=True)
class StageContext:
    """One pipeline and one of its selections.

    Attributes:
        pipeline: its settings.
        graph: its stages.
        selection: the one in question; stages that all selections share do not look at it.
        compute: where and how fast; changes no result.
        together: the selections whose results a refresh makes, so that what they share is read once for all of them;
            none where one is made by hand.
        parallelism: over how many workers a stage's tasks are spread; it decides how tasks are cut, never a result.
    """

    pipeline: Pipeline
    graph: StageGraph
    selection: Selection
    compute: Compute = field(default_factory=Compute)
    together: tuple[Selection, ...] = ()
    parallelism: int = 1
    # Hashing a local checkpoint takes a moment, too long for each of thousands of shards.
    _code_versions: dict[tuple[str, str], tuple[str, dict[str, Any]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @cached_property
    def layout(self) -> Layout:
        """Where results lie."""
        return Layout(self.pipeline.store, self.pipeline.dataset, self.pipeline.model_name)

    @cached_property
    def index(self) -> "ResultIndex":
        """Which results there are; each record is read once."""
        from semdedup_assets.execution.result_index import ResultIndex

        return ResultIndex(self)

    def __getstate__(self) -> dict[str, Any]:
        # What the store holds, each process sees for itself; but which shards there are stays as it was when the work was
        # planned, though the source is observed meanwhile.
        return {name: value for name, value in self.__dict__.items() if name not in ("index", "_shards_by_name")}

    def with_selection(self, selection: Selection) -> "StageContext":
        """The same pipeline with another selection; both share what is known of the store."""
        return self if selection == self.selection else self._sharing(replace(self, selection=selection))

    def with_shard_index(self, shard_index: ShardIndex) -> "StageContext":
        """The same with shards of which the store does not know yet."""
        other = replace(self)
        other.__dict__["shard_index"] = shard_index
        return other

    def of_worker(self, threads: int, *, parallelism: int) -> "StageContext":
        """The same as each of several workers is given it; shares what is known of the store.

        Args:
            threads: that each may keep busy.
            parallelism: how many workers there are.
        """
        return self._sharing(replace(self, compute=self.compute.of_worker(threads), parallelism=parallelism))

    def _sharing(self, other: "StageContext") -> "StageContext":
        other.__dict__["index"] = self.index.of(other)
        if "shard_index" in self.__dict__:
            other.__dict__["shard_index"] = self.shard_index
        return other

    def code_version(self, stage: str) -> str:
        """Hash of the settings that determine a stage's result."""
        return self._determined(stage)[0]

    def determining(self, stage: str) -> dict[str, Any]:
        """The settings that determine a stage's result: its code's `version`, the pipeline's, and the selection's."""
        return self._determined(stage)[1]

    def _determined(self, stage: str) -> tuple[str, dict[str, Any]]:
        found = self.graph[stage]
        identity = dict(found.selection_settings(self.selection)) if found.selected else {}
        key = stage, repr(identity)
        if key not in self._code_versions:
            settings = {"version": found.version, "settings": dict(found.settings(self)), "selection": identity}
            self._code_versions[key] = fingerprint(settings)[:16], settings
        return self._code_versions[key]

    @cached_property
    def shard_index(self) -> ShardIndex:
        """Which files the shards hold; empty before the source was first observed.

        Raises:
            ValueError: it is damaged; names it.
        """
        # A store that does not answer has an index all the same: with an empty one, every file would get a new shard.
        path = self.layout.shard_index
        return ShardIndex.stored(read_many([path])[0], path)

    @property
    def shards(self) -> tuple[Shard, ...]:
        """All shards.

        Raises:
            MissingResultError: the source has not been observed yet.
        """
        shards = self.shard_index.shards
        if not shards:
            message = f"{self.layout.shard_index}: no shard is known; observe {self.pipeline.dataset}/shards first"
            raise MissingResultError(message)
        return shards

    def shard(self, name: str) -> Shard:
        """A shard by its name.

        Raises:
            MissingResultError: its files are missing, or were never seen.
        """
        if name in self._shards_by_name:
            return self._shards_by_name[name]
        message = f"{name}: its files are missing; observe {self.pipeline.dataset}/shards again"
        raise MissingResultError(message)

    @cached_property
    def _shards_by_name(self) -> dict[str, Shard]:
        return {shard.name: shard for shard in self.shards}

    def location(self, stage: str, partition: Partition) -> str:
        """Where a partition's result lies, without a suffix."""
        return self.graph[stage].location(self.layout, partition, self.selection)

    def asset(self, stage: str) -> str:
        """A stage's asset, as a person reads it."""
        name = next((name for name, each in self.pipeline.named_selections.items() if each == self.selection), None)
        below = f"{name}/" if name and stage in self.graph and self.graph[stage].selected else ""
        return f"{self.pipeline.dataset}/{self.pipeline.model_name}/{below}{stage}"

    def remedy(self, stage: str, partition: Partition | str = "") -> str:
        """What to do when a stage's result is missing."""
        key = str(partition)
        return f"materialise {self.asset(stage)}{f', partition {key}' if key else ''}"

    @contextmanager
    def writing(
        self, stage: str, partition: Partition, *, inputs: Mapping[str, str] | None = None
    ) -> Iterator[ResultWriter]:
        """Write a result of a stage; its record is committed when the block ends, with what making it used.

        Args:
            stage: whose settings determine the result.
            partition: which.
            inputs: versions of what it is made from; None: those that the store has now.
        """
        found = self.index.input_versions(stage, partition) if inputs is None else inputs
        with attempting(ResultWriter(self.location(stage, partition))) as writer:
            yield writer
            self.commit(stage, writer, inputs=found)

    def commit(
        self,
        stage: str,
        writer: ResultWriter,
        *,
        inputs: Mapping[str, str],
        keep_earlier: bool = False,
    ) -> ResultRecord:
        """Put the record of what was written, with what making it used."""
        used = used_for(writer.details.get("items"))
        size = sum(entry.size for entry in writer.files.values())
        writer.details = {**used, "device": str(self.compute.torch_device), **writer.details, "bytes": size}
        # So that what is stale can be told with the setting that changed.
        writer.details[SETTINGS] = self.determining(stage)
        # Of an object store each look for an earlier result is a wait. One of another writer, which was put since, is
        # replaced all the same, and its files are removed as leftovers are.
        keep_earlier = keep_earlier or self.index.cache.lacks(writer.location)
        version = self.code_version(stage)
        record = commit(writer, code_version=version, inputs=inputs, keep_earlier=keep_earlier, log=progress.log)
        self.index.put(stage, record)
        return record

    @contextmanager
    def writing_part(self, stage: str, partition: Partition) -> Iterator[ResultWriter]:
        """Write files of one task of a partition that has several; `finish_parts` commits them."""
        with attempting(ResultWriter(self.location(stage, partition))) as writer:
            yield writer
            device = str(self.compute.torch_device)
            writer.details = {**writer.details, "usage": used_for(None), "device": device}

    def discard_parts(self, stage: str, partition: Partition, parts: Iterable[PartOfResult]) -> None:
        """Remove what tasks of a partition wrote that is not committed."""
        folder = self.location(stage, partition).rpartition("/")[0]
        remove_all([join(folder, entry.path) for part in parts for entry in part.files.values()])

    def finish_parts(
        self, stage: str, partition: Partition, parts: Sequence[PartOfResult], details: Mapping[str, Any]
    ) -> ResultRecord:
        """Commit what several tasks wrote as one result.

        Args:
            stage: the stage.
            partition: which.
            parts: what the tasks gave, at least one.
            details: of the whole.
        """
        writer = ResultWriter(self.location(stage, partition))
        for part in parts:
            writer.files |= part.files
        used = usage.added(part.details.get("usage", {}) for part in parts)
        writer.details = {**details, **used, "device": parts[0].details.get("device", "")}
        require_written(writer)
        return self.commit(stage, writer, inputs=parts[0].inputs)


def used_for(items: int | None) -> dict[str, Any]:
    """What the task at hand used until now, and items a second where it has items."""
    current = usage.current()
    used = {} if current is None else current.details()
    if used and items is not None:
        used["items_per_second"] = items / max(used["seconds"], 1e-9)
    return used
