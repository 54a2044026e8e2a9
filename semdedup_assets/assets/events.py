"""Events of partitions, with all that Dagster judges staleness by, and what of the store Dagster does not know yet.

A `MaterializeResult` describes every partition of a run alike, and a failure halfway would keep none of them: so
each partition is an event of its own, with the provenance tags that Dagster would have set.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import dagster as dg

from semdedup_assets.assets.builder import AssetBuilder
from semdedup_assets.assets.metadata import as_metadata, shown_metadata
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.pipeline_stages import StageAsset
from semdedup_assets.execution.stage import Rows
from semdedup_assets.storage.results import ResultRecord

EventSink = Callable[[Any], None]
"""Takes an event: `log_event` of a run's context, or `report_runless_asset_event` of an instance."""

_VERSION, _CODE = "dagster/data_version", "dagster/code_version"
# What Dagster itself notes where an input had no event yet.
_UNREAD = "NULL"
_PAGE = 1000
_MADE = dg.DagsterEventType.ASSET_MATERIALIZATION


@dataclass
class PartitionEvents:
    """The events of one asset's partitions.

    Attributes:
        builder: of the pipeline.
        asset: which.
        context: of its stage.
        instance: what knows the events of its inputs.
    """

    builder: AssetBuilder
    asset: StageAsset
    context: StageContext
    instance: dg.DagsterInstance
    _inputs: dict[str, tuple[str, str] | None] = field(default_factory=dict)

    def event(self, partition: Partition, record: ResultRecord, *, reused: bool = False) -> dg.AssetMaterialization:
        """The event that a partition is there.

        Args:
            partition: which.
            record: of its result.
            reused: whether it was there already.
        """
        seen = self.asset.stage.shown(self.context, partition, record)
        shown = shown_metadata(seen)
        numbers = as_metadata({name: value for name, value in record.details.items() if name not in shown})
        # Pictures and sentences stand first; a table alone comes after what a person looks for in it.
        tables_only = all(isinstance(value, Rows) for value in seen.values())
        tags = {
            _CODE: self._code_version,
            _VERSION: record.version,
            "dagster/data_version_is_user_provided": "true",
            **self._input_tags(partition, record),
        }
        return dg.AssetMaterialization(
            self.builder.key(self.asset),
            partition=str(partition) or None,
            metadata={
                **(numbers | shown if tables_only else shown | numbers),
                **({"reused": True} if reused else {}),
                "dagster/uri": record.location,
            },
            tags=tags,
        )

    @cached_property
    def _code_version(self) -> str:
        return self.builder.code_version(self.asset, self.context)

    def _input_tags(self, partition: Partition, record: ResultRecord) -> dict[str, str]:
        """Which event of each input a partition was made from.

        The record holds the version that was read; the last event may be of a newer one.
        """
        tags: dict[str, str] = {}
        for name in self.builder.inputs(self.asset):
            found = self._latest(name, partition)
            key = self.builder.input_key(self.asset, name).to_user_string()
            if found:
                tags[f"dagster/input_event_pointer/{key}"], version = found
                read = record.inputs.get(name) if self.builder.is_one_to_one(self.asset, name) else None
                tags[f"dagster/input_data_version/{key}"] = read or version
        return tags | self._unread_tags

    @cached_property
    def _unread_tags(self) -> dict[str, str]:
        """That no event was read of what an asset only follows: other embeddings make no centroids stale."""
        keys = [self.builder.input_key(self.asset, name) for name in self.builder.selected_through(self.asset)]
        return {
            f"dagster/{tag}/{key.to_user_string()}": _UNREAD
            for key in keys
            for tag in ("input_event_pointer", "input_data_version")
        }

    def _latest(self, name: str, partition: Partition) -> tuple[str, str] | None:
        """Storage id and version of an input's last event; of one partition where the mapping is one to one."""
        within = str(partition.only(self.builder.depends_on_same(self.asset, name)))
        if (key := f"{name}:{within}") not in self._inputs:
            self._inputs[key] = self._fetch(name, within or None)
        return self._inputs[key]

    def _fetch(self, name: str, partition: str | None) -> tuple[str, str] | None:
        asked = dg.AssetRecordsFilter(
            asset_key=self.builder.input_key(self.asset, name), asset_partitions=[partition] if partition else None
        )
        observed = name in ("shards", "shard_index")
        fetch = self.instance.fetch_observations if observed else self.instance.fetch_materializations
        records = fetch(asked, limit=1).records
        if not records:
            return None
        entry = records[0].event_log_entry
        event = entry.asset_materialization or entry.asset_observation
        return str(records[0].storage_id), ((event.tags if event else None) or {}).get(_VERSION, "")

    def unknown(self, partitions: Mapping[Partition, ResultRecord]) -> dict[Partition, ResultRecord]:
        """The partitions whose last event, if there is one, is not of the result that is there.

        Args:
            partitions: with their records.
        """
        if not partitions:
            return {}
        stale_events = self._of_other_code(partitions) | self._older_than_inputs(partitions)
        known = self._known_versions()
        return {
            partition: record
            for partition, record in partitions.items()
            if known.get(str(partition)) != record.version or str(partition) in stale_events
        }

    def _older_than_inputs(self, partitions: Mapping[Partition, ResultRecord]) -> set[str]:
        """Partitions whose last event is older than that of an input whose version they do not depend on as a whole.

        Other buckets group the same scores, another column leaves the others as they are, a frozen sample stays: what was
        made from them is up to date, and would be stale for Dagster.
        """
        graph, stage = self.builder.graph, self.asset.stage
        any_version = stage.reads_part_of_inputs or stage.frozen
        names = [
            name for name in self.builder.inputs(self.asset) if name in graph and (any_version or graph[name].by_range)
        ]
        if not names or not (stage.dimensions or stage.frozen):
            return set()
        known = self._last_ids()
        return {
            str(partition)
            for partition in partitions
            for name in names
            if (latest := self._latest(name, partition)) and known.get(str(partition), 0) < int(latest[0])
        }

    def _last_ids(self) -> Mapping[str, int]:
        """Storage id of each partition's last event, "" standing for the only one of an unpartitioned asset."""
        key = self.builder.key(self.asset)
        if self.asset.stage.dimensions:
            return self.instance.event_log_storage.get_latest_storage_id_by_partition(key, _MADE)
        records = self.instance.fetch_materializations(key, limit=1).records
        return {"": records[0].storage_id} if records else {}

    def _known_versions(self) -> dict[str, str]:
        """Data version of each partition's last event, "" standing for the only one of an unpartitioned asset."""
        if not self.asset.stage.dimensions:
            found = self._last_tags(None)
            return {} if found is None else {"": found.get(_VERSION, "")}
        key = self.builder.key(self.asset)
        tags = self.instance.event_log_storage.get_latest_tags_by_partition(key, _MADE, [_VERSION])
        return {partition: each.get(_VERSION, "") for partition, each in tags.items()}

    def _last_tags(self, partition: Partition | None) -> Mapping[str, str] | None:
        chosen = [str(partition)] if partition is not None and str(partition) else None
        asked = dg.AssetRecordsFilter(asset_key=self.builder.key(self.asset), asset_partitions=chosen)
        records = self.instance.fetch_materializations(asked, limit=1).records
        event = records[0].event_log_entry.asset_materialization if records else None
        return None if event is None else event.tags or {}

    def _of_other_code(self, partitions: Mapping[Partition, ResultRecord]) -> set[str]:
        """Partitions whose last event has another code version, or other dependencies, than the asset has now.

        Dagster can be asked for the data versions of all partitions together, but not for code versions. They change
        together, and are reported in the partitions' order: the last event, and the last partition's, show whether all
        events need to be read.
        """
        expected = {_CODE: self._code_version} | self._unread_tags

        def is_of_this_code(tags: Mapping[str, str]) -> bool:
            return expected.items() <= tags.items()

        last = (self._last_tags(None), self._last_tags(list(partitions)[-1]))
        if all(tags is None or is_of_this_code(tags) for tags in last):
            return set()
        found: dict[str, bool] = {}
        wanted, cursor = {str(partition) for partition in partitions}, None
        while True:
            page = self.instance.fetch_materializations(self.builder.key(self.asset), limit=_PAGE, cursor=cursor)
            for record in page.records:
                event = record.event_log_entry.asset_materialization
                found.setdefault(record.partition_key or "", is_of_this_code((event.tags if event else None) or {}))
            if not page.has_more or wanted <= found.keys():
                return {partition for partition, same in found.items() if not same}
            cursor = page.cursor


def adopt(events: PartitionEvents, sink: EventSink, partitions: Mapping[Partition, ResultRecord]) -> int:
    """Report what is up to date in the store and not known to Dagster: a lost event log costs nothing.

    Args:
        events: of the asset.
        sink: takes the events.
        partitions: that are up to date, with their records.

    Returns:
        How many partitions were reported.
    """
    unknown = events.unknown(partitions)
    for partition, record in unknown.items():
        sink(events.event(partition, record, reused=True))
    return len(unknown)
