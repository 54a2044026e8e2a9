"""What the store holds of a pipeline, and whether it is up to date: asked by stages, checks, refreshes and the estimate.

The records alone decide what is stale. A result is up to date if its record was made with today's settings from the
versions that its inputs have now; no event log is asked.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

from semdedup_assets.algorithm.cluster_ranges import group_ranges
from semdedup_assets.execution import progress
from semdedup_assets.execution.partitions import Dimension, Partition
from semdedup_assets.execution.stage import Stage
from semdedup_assets.storage.collected_records import RecordReader, collect_written, folder_of
from semdedup_assets.storage.files import ListedFile, join, list_folders
from semdedup_assets.storage.results import (
    DAMAGED,
    RECORD,
    MissingResultError,
    ResultRecord,
    damaged,
    fingerprint,
)

if TYPE_CHECKING:
    from semdedup_assets.execution.context import StageContext
    from semdedup_assets.kept_sets import Clustering

_FIELDS: dict[Dimension, str] = {"bucket": "bucket", "epsilon": "target", "k": "clustering", "shard": "shard"}


class RecordCache:
    """The records of a store by location, each read once.

    Attributes:
        versions: of several results together, by what was asked; see `ResultIndex`.
        stale: what of a stage is not up to date and why, by its name and the path of the selection that has it.
    """

    def __init__(self) -> None:
        self._records: dict[str, ResultRecord | None] = {}
        self._folders: dict[str, dict[str, ListedFile]] = {}
        self._reader = RecordReader()
        self._put: dict[str, ResultRecord] = {}
        self.versions: dict[tuple[str, ...], str] = {}
        self.stale: dict[tuple[str, str], dict[Partition, str]] = {}

    def get(self, locations: Sequence[str]) -> list[ResultRecord | None]:
        """The records of some results; None where there is none, or where its files are not all there."""
        unknown = [location for location in locations if location not in self._records]
        if unknown:
            self._list({folder_of(location) for location in unknown})
            self._read(unknown)
        return [self._records[location] for location in locations]

    def put(self, record: ResultRecord) -> None:
        """Note a record that was just committed."""
        self._records[record.location] = record
        self._put[record.location] = record

    def forget(self, locations: Iterable[str]) -> None:
        """Look again at what the store holds of some results: another process may have committed them."""
        for location in locations:
            self._records.pop(location, None)
            self._folders.pop(folder_of(location), None)
        # The copies that it holds count for the listing that they were read with.
        self._reader = RecordReader()

    def lacks(self, location: str) -> bool:
        """Whether no record lay there when its folder was listed; False where that is not known."""
        listed = self._folders.get(folder_of(location))
        return listed is not None and f"{location}{RECORD}" not in listed and self._records.get(location) is None

    def was_set_aside(self, location: str) -> bool:
        """Whether a damaged record lay there when its folder was listed."""
        return f"{location}{RECORD}{DAMAGED}" in self._folders.get(folder_of(location), {})

    @property
    def folders(self) -> Set[str]:
        """The folders that were listed."""
        return self._folders.keys()

    def collect(self) -> None:
        """Copy what was put where others read it together; who makes a stage does so once it is made."""
        collect_written(self._put.values())
        self._put.clear()

    def _list(self, folders: set[str], *, recursive: bool = False) -> None:
        self._folders |= list_folders(folders - self._folders.keys(), recursive=recursive)

    def _read(self, locations: Sequence[str]) -> None:
        self._records |= dict.fromkeys(locations)
        paths = [
            path for location in locations if (path := f"{location}{RECORD}") in self._folders[folder_of(location)]
        ]
        # Those that were removed since the folder was listed are not among them.
        for path, read in self._reader.read(self._folders, paths).items():
            location = path.removesuffix(RECORD)
            if isinstance(read, ValueError):
                progress.log(str(damaged(location, f"{path}: {read}")))
            else:
                self._records[location] = read
        present = [record for location in locations if (record := self._records[location]) is not None]
        # A manifest's version has a folder of its own, and one below it for each format.
        self._list(
            {record.listed_in(each.path) for record in present for each in record.files.values()}, recursive=True
        )
        for record in present:
            if not self._is_complete(record):
                self._records[record.location] = None

    def _is_complete(self, record: ResultRecord) -> bool:
        parent = folder_of(record.location)
        for entry in record.files.values():
            listed = self._folders[record.listed_in(entry.path)].get(join(parent, entry.path))
            if listed is None or listed.size != entry.size:
                return False
        return True


class ResultIndex:
    """The results of one pipeline, as the store has them: of one selection where each has its own."""

    def __init__(self, context: "StageContext", cache: RecordCache | None = None) -> None:
        self._context = context
        self.cache = cache or RecordCache()

    def of(self, context: "StageContext") -> "ResultIndex":
        """The same store for another selection."""
        return ResultIndex(context, self.cache)

    def collect(self) -> None:
        """See that whoever reads the records that were just committed can read them together."""
        self.cache.collect()

    def put(self, stage: str, record: ResultRecord) -> None:
        """Note a record of a stage that was just committed."""
        self.cache.put(record)
        self._changed(stage)

    def forget(self, stage: str) -> None:
        """Look again at what the store holds of a stage: another process may have committed results."""
        self.cache.forget(self._context.location(stage, each) for each in self._known(stage, Partition()))
        self._changed(stage)

    def _changed(self, stage: str) -> None:
        """Drop what was concluded from a stage's results."""
        self.cache.stale.clear()
        self.cache.versions = {key: version for key, version in self.cache.versions.items() if key[0] != stage}

    def partitions(self, stage: str, within: Partition | None = None) -> list[Partition]:
        """The partitions that a stage has by today's settings and shards.

        Args:
            stage: its name.
            within: only those that agree with this one.

        Raises:
            MissingResultError: the source has not been observed yet.
        """
        context, within = self._context, within or Partition()
        names = sorted(context.graph[stage].dimensions)
        combined = product(*(self._values(name, within) for name in names))
        return [
            Partition(**{_FIELDS[name]: value for name, value in zip(names, parts, strict=True)})  # type: ignore[arg-type]
            for parts in combined
        ]

    def _values(self, dimension: Dimension, within: Partition) -> Sequence[object]:
        """The parts of one dimension, or the one that is given."""
        # Without shards nothing of one is known, also of the one that is asked for.
        shards = self._context.shards if dimension == "shard" else ()
        given = getattr(within, _FIELDS[dimension])
        if given is not None:
            return [given]
        match dimension:
            case "bucket":
                return range(self._context.pipeline.clustering.buckets)
            case "epsilon":
                return self._context.pipeline.targets
            case "k":
                return self._context.pipeline.clusterings
            case "shard":
                return [shard.name for shard in shards]

    def stored(self, stage: str, within: Partition | None = None) -> list[Partition]:
        """The results that a partition, or all that agree with it, are stored as.

        Raises:
            MissingResultError: the ranges of clusters are not known yet, or the source has not been observed.
        """
        within = within or Partition()
        if not self._context.graph[stage].by_range or within.cluster_range is not None:
            return [within] if within.cluster_range is not None else self.partitions(stage, within)
        clusterings = self._context.pipeline.clusterings if within.clustering is None else [within.clustering]
        found = []
        for clustering in clusterings:
            groups = group_ranges(self.range_count(clustering), groups=self._context.pipeline.clustering.buckets)
            chosen = groups if within.bucket is None else [groups[within.bucket]]
            found += [
                Partition(clustering=clustering, target=within.target).of_range(index)
                for group in chosen
                for index in group
            ]
        return found

    def range_count(self, clustering: "Clustering") -> int:
        """Into how many ranges of clusters the results of a clustering are divided.

        Raises:
            MissingResultError: the centroids are not fitted.
        """
        return int(self.require("centroids", Partition(clustering=clustering)).details["ranges"])

    def records(self, stage: str, within: Partition | None = None) -> dict[Partition, ResultRecord]:
        """The stored results that are there, whatever they were made from."""
        stored = self._known(stage, within or Partition())
        found = self.cache.get([self._context.location(stage, partition) for partition in stored])
        return {partition: record for partition, record in zip(stored, found, strict=True) if record is not None}

    def _known(self, stage: str, within: Partition) -> list[Partition]:
        """The same as `stored`, without what is not known: without shards or ranges there is nothing of a stage."""
        if not self._context.graph[stage].by_range or within.clustering is not None:
            try:
                return self.stored(stage, within)
            except MissingResultError:
                return []
        clusterings = self._context.pipeline.clusterings
        return [each for found in clusterings for each in self._known(stage, replace(within, clustering=found))]

    def record(self, stage: str, partition: Partition) -> ResultRecord | None:
        """The record of one stored result; None where there is none."""
        return self.cache.get([self._context.location(stage, partition)])[0]

    def require(self, stage: str, partition: Partition) -> ResultRecord:
        """The record of one stored result.

        Raises:
            MissingResultError: it is not there; names what to materialise.
        """
        record = self.record(stage, partition)
        if record is None:
            context = self._context
            message = f"{context.location(stage, partition)}: not there; {context.remedy(stage, partition)}"
            raise MissingResultError(message)
        return record

    def require_all(self, stage: str, within: Partition | None = None) -> dict[Partition, ResultRecord]:
        """The records of all stored results that agree with a partition.

        Raises:
            MissingResultError: one is not there; names what to materialise.
        """
        return self.require_each(stage, self.stored(stage, within))

    def require_each(self, stage: str, stored: Sequence[Partition]) -> dict[Partition, ResultRecord]:
        """The records of some stored results.

        Raises:
            MissingResultError: one is not there; names what to materialise.
        """
        # Listed and read together, then one by one from the cache.
        self.cache.get([self._context.location(stage, partition) for partition in stored])
        return {partition: self.require(stage, partition) for partition in stored}

    def require_inputs(self, stage: str, partition: Partition, inputs: Mapping[str, str]) -> None:
        """See that what a task reads is what its partition was planned from.

        Raises:
            MissingResultError: an input was made again since.
        """
        if self.input_versions(stage, partition) != dict(inputs):
            context = self._context
            message = f"{context.location(stage, partition)}: its inputs were made again meanwhile; run again"
            raise MissingResultError(message)

    def require_consistent(self, stage: str, within: Partition | None = None) -> dict[Partition, ResultRecord]:
        """The same as `require_all`, once everything that they depend on, however indirectly, is seen to fit together.

        What the source has become since is no obstacle: results of the shards as they were read fit together. Other
        settings are one.

        Raises:
            MissingResultError: one is not there, or was made from other inputs or settings; names what to materialise.
        """
        context, found = self._context, self._context.graph[stage]
        names = found.all_inputs(context.pipeline, context.selection)
        of_source = "shards" in names or found.frozen
        for name in () if of_source else names:
            self.require_consistent(name, (within or Partition()).only(context.graph[name].dimensions))
        records = self.require_all(stage, within)
        for partition, record in records.items():
            same_settings = record.code_version == context.code_version(stage)
            if not (same_settings if of_source else self._is_current(stage, partition, record)):
                message = (
                    f"{context.location(stage, partition)}: made from other inputs or settings than there are now; "
                    f"{context.remedy(stage, partition)}"
                )
                raise MissingResultError(message)
        return records

    def result(self, stage: str, partition: Partition) -> ResultRecord | None:
        """What a partition is shown as: its record, or all that it is stored as, summed up; None unless all is there."""
        found = self._context.graph[stage]
        if not found.by_range:
            return self.record(stage, partition)
        stored = self.stored(stage, partition)
        records = self.cache.get([self._context.location(stage, each) for each in stored])
        present = [record for record in records if record is not None]
        return found.finish(self._context, partition, list(present)) if len(present) == len(stored) else None

    def results(self, stage: str, partitions: Iterable[Partition]) -> dict[Partition, ResultRecord]:
        """What some partitions are shown as; of those that are there as a whole."""
        found = {partition: self.result(stage, partition) for partition in partitions}
        return {partition: record for partition, record in found.items() if record is not None}

    def excluded(self, stage: str) -> dict[Partition, str]:
        """The partitions that failed every attempt when they were last tried, each with the reason."""
        records = self.records(stage)
        return {partition: record.excluded for partition, record in records.items() if record.excluded is not None}

    def input_versions(self, stage: str, partition: Partition) -> dict[str, str]:
        """Versions of what a partition is to be made from, by the inputs' names.

        Raises:
            MissingResultError: an input is not there; names what to materialise.
        """
        found = self._context.graph[stage]
        names = found.all_inputs(self._context.pipeline, self._context.selection)
        return {name: self._input_version(found, name, partition) for name in names}

    def _input_version(self, stage: Stage, name: str, partition: Partition) -> str:
        context = self._context
        if name == "shards":
            if partition.shard is not None:
                return context.shard(partition.shard).fingerprint
            return self._once(("shards",), lambda: fingerprint([shard.fingerprint for shard in context.shards]))
        upstream = context.graph[name]
        within = partition.only(upstream.dimensions)
        if context.graph.is_one_to_one(stage, name):
            return stage.input_version(context, name, self.require(name, within))
        # Of a bucket's ranges nothing is the bucket's: ranges are grouped freely.
        within = within.only(("epsilon", "k", "shard")) if upstream.by_range else within
        return self._once(
            (name, stage.name, str(within), context.selection.path),
            lambda: fingerprint(
                {
                    str(each): stage.input_version(context, name, record)
                    for each, record in self.require_all(name, within).items()
                }
            ),
        )

    def _once(self, key: tuple[str, ...], compute: Callable[[], str]) -> str:
        """A version of several results; kept until one of them is made again."""
        versions = self.cache.versions
        if key not in versions:
            versions[key] = compute()
        return versions[key]

    def _is_current(self, stage: str, stored: Partition, record: ResultRecord | None) -> bool:
        context, found = self._context, self._context.graph[stage]
        if record is None or record.code_version != context.code_version(stage) or not found.accepts(context, record):
            return False
        return found.frozen or record.inputs == self.input_versions(stage, stored)

    def is_current(self, stage: str, partition: Partition) -> bool:
        """Whether a partition is there, made with today's settings from what its inputs are now.

        Raises:
            MissingResultError: an input is not there.
        """
        stored = self.stored(stage, partition)
        records = self.cache.get([self._context.location(stage, each) for each in stored])
        return all(self._is_current(stage, each, record) for each, record in zip(stored, records, strict=True))

    def stale(self, stage: str, partitions: Iterable[Partition] | None = None) -> list[Partition]:
        """The partitions that are missing, or not up to date.

        Raises:
            MissingResultError: an input is not there.
        """
        wanted = self.partitions(stage) if partitions is None else list(partitions)
        for name in (stage, *self._context.graph[stage].all_inputs(self._context.pipeline, self._context.selection)):
            if name != "shards":
                self.records(name)  # All are read together.
        return [partition for partition in wanted if not self.is_current(stage, partition)]
