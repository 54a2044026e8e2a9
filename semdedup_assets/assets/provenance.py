"""Record each partition of a run as it is done, with all that its staleness is judged by.

A `MaterializeResult` describes every partition of a run alike, and a failure halfway would keep none of them: so
each partition is logged as an event of its own, with the provenance tags that Dagster would have set.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg

from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.assets.description import place
from semdedup_assets.assets.metadata import as_metadata
from semdedup_assets.settings import Pipeline

if TYPE_CHECKING:
    from semdedup_assets.storage.results import Recipe

ALL = None
"""In place of a partition: all partitions of an upstream asset, or its only one."""

_MOST_GROUPS = 8

Inputs = Mapping[dg.AssetKey, str | None]


@dataclass
class PartitionRecorder:
    """The partitions of one asset in one run.

    Attributes:
        context: of the run.
        declaration: the pipeline.
        asset: name of the asset.
    """

    context: dg.AssetExecutionContext
    declaration: Declaration
    asset: str
    _events: list[dg.AssetMaterialization] = field(default_factory=list)

    @property
    def partitions(self) -> list[str]:
        """The partitions to make.

        Raises:
            dagster.Failure: a reversed range, which holds none.
        """
        keys = [str(key) for key in self.context.partition_keys]
        if not keys:
            message = "the range of partitions holds none: its end comes before its start"
            raise dg.Failure(message, allow_retries=False)
        return keys

    def inputs(self, upstream: Inputs) -> dict[str, str]:
        """Provenance tags of what a partition is made from; ask before it is read.

        Args:
            upstream: for each upstream asset its partition, or `ALL`.
        """
        tags: dict[str, str] = {}
        for key, partition in upstream.items():
            found = self._latest(key, partition)
            if found:
                pointer, version = found
                tags[f"dagster/input_data_version/{key.to_user_string()}"] = version
                tags[f"dagster/input_event_pointer/{key.to_user_string()}"] = str(pointer)
        return tags

    def _latest(self, key: dg.AssetKey, partition: str | None) -> tuple[int, str] | None:
        records_filter = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition] if partition else None)
        instance = self.context.instance
        fetch = instance.fetch_observations if key in self.declaration.observed else instance.fetch_materializations
        records = fetch(records_filter, limit=1).records
        if not records:
            return None
        entry = records[0].event_log_entry
        event = entry.asset_materialization or entry.asset_observation
        tags = event.tags if event else None
        return records[0].storage_id, (tags or {}).get("dagster/data_version", "")

    def record(
        self, partition: str, recipe: "Recipe", *, inputs: dict[str, str], pictures: Mapping[str, Any] | None = None
    ) -> None:
        """Log that a partition is done.

        Args:
            partition: its key.
            recipe: of its result.
            inputs: as `inputs` gave them.
            pictures: further metadata, which stands first, and in place of the recipe's of the same name.
        """
        shown_first, pipeline = dict(pictures or {}), self.declaration.pipeline
        tags = {
            "dagster/code_version": self.declaration.code_version(self.asset),
            "dagster/data_version": recipe.version,
            "dagster/data_version_is_user_provided": "true",
            **inputs,
        }
        where = place(pipeline, self.asset, partition, manifest=recipe.details.get("manifest", "*"))
        details = with_named_groups(pipeline, recipe.details)
        shown = as_metadata({name: value for name, value in details.items() if name not in shown_first})
        metadata = {**shown_first, **shown, "dagster/uri": where}
        event = dg.AssetMaterialization(self.context.asset_key, partition=partition, metadata=metadata, tags=tags)
        self._events.append(event)
        self.context.log_event(event)

    def finish(self, *checks: dg.AssetCheckResult) -> Iterator[dg.MaterializeResult[None]]:
        """End the run's step.

        The result, without which the steps that follow would be skipped, is itself recorded for every partition;
        the last event wins, so each partition's own is logged once more.
        """
        yield dg.MaterializeResult(check_results=checks)
        for event in self._events:
            self.context.log_event(event)


def with_named_groups(pipeline: Pipeline, details: Mapping[str, Any]) -> dict[str, Any]:
    """Details in which the largest groups of duplicates bear the keys of their kept items, in place of numbers."""
    if not details.get("largest_groups"):
        return dict(details)
    from semdedup_assets.stages.gallery_items import item_keys
    from semdedup_assets.stages.work import Work

    groups = details["largest_groups"][:_MOST_GROUPS]
    keys = item_keys(Work(pipeline), [group["kept"] for group in groups])
    named = [{"kept item": keys[group["kept"]], "removed for it": group["removed"]} for group in groups]
    return {**details, "largest_groups": named}
