"""What shows without a run whether a pipeline's assets are up to date: a sensor that evaluates that check of each.

Dagster marks no partitioned asset as a whole as stale, whichever of its partitions are. A look reads the store's records,
thousands of them perhaps: so there is one only where something has left a trace, and it takes a small share of the time.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from functools import cached_property

import dagster as dg

from semdedup_assets.assets.builder import AssetBuilder
from semdedup_assets.assets.checks import freshness
from semdedup_assets.assets.lost_runs import end_lost_runs
from semdedup_assets.assets.under_way import unfinished_run
from semdedup_assets.checks.up_to_date import NAME
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.pipeline_stages import StageAsset
from semdedup_assets.storage.files import folder_stamp
from semdedup_assets.storage.results import MissingResultError, fingerprint

# A look that took a second is followed by at least so many without one.
_SHARE = 20
# While a run makes partition after partition, and reports the checks itself.
_SECONDS_IN_RUNS = 600.0
# What another program does to an object store leaves no trace that is cheap to see.
_SECONDS_WITHOUT_TRACES = 3600.0


@dataclass(frozen=True, slots=True)
class _Look:
    """When all was last looked at, as the sensor's cursor keeps it.

    Attributes:
        settings: hash of all that a code location can change.
        traces: hash of what changes when results or shards do.
        at: seconds since 1970.
        seconds: that it took.
    """

    settings: str
    traces: str
    at: float
    seconds: float

    @classmethod
    def parse(cls, cursor: str | None) -> "_Look | None":
        """The look of a cursor; None where there was none, or another version of this software wrote it."""
        try:
            return cls(**json.loads(cursor)) if cursor else None
        except (TypeError, ValueError):
            return None

    def is_due(self, settings: str, traces: str, *, busy: bool) -> bool:
        """Whether it is time for another.

        Args:
            settings: as they are now.
            traces: as they are now.
            busy: whether a run of the pipeline is under way.
        """
        if settings != self.settings:
            return True
        least = _SECONDS_WITHOUT_TRACES if traces == self.traces else _SECONDS_IN_RUNS * busy
        return time.time() - self.at >= max(least, _SHARE * self.seconds)


class _Freshness:
    """The looks at one pipeline."""

    def __init__(self, builder: AssetBuilder) -> None:
        self._builder = builder
        self._folders: Set[str] = frozenset()

    @cached_property
    def settings(self) -> str:
        """Of the settings, and of the code versions that follow from them; a code location loads both anew."""
        context = self._builder.context(self._builder.assets[0])
        versions = [
            context.with_selection(asset.selection).code_version(asset.stage.name) for asset in self._builder.assets
        ]
        return fingerprint([self._builder.pipeline.model_dump(mode="json"), versions])

    def events(self, instance: dg.DagsterInstance) -> dict[str, int | None]:
        """Ids of the last events of all assets and of the source."""
        keys = [self._builder.key(asset) for asset in self._builder.assets]
        made = instance.event_log_storage.get_latest_materialization_storage_ids(keys)
        found = {key.to_user_string(): made.get(key) for key in keys}
        for name in ("shards", "shard_index"):
            records = instance.fetch_observations(self._builder.source_key(name), limit=1).records
            found[name] = records[0].storage_id if records else None
        return found

    def stamps(self) -> dict[str, str]:
        """Of the folders that the last look of this process found results in; none of an object store."""
        return {folder: folder_stamp(folder) for folder in sorted(self._folders)}

    def evaluate(self, instance: dg.DagsterInstance) -> list[dg.AssetCheckEvaluation]:
        """The checks whose results are not the last ones that Dagster knows.

        Raises:
            MissingResultError: the source has not been observed yet.
        """
        builder = self._builder
        first = builder.context(builder.assets[0])
        _ = first.shards
        known = _known(instance, [builder.key(asset) for asset in builder.assets])
        found = list(_changed(builder, first, known))
        self._folders = frozenset(first.index.cache.folders)
        return found


def _known(
    instance: dg.DagsterInstance, assets: Sequence[dg.AssetKey]
) -> Mapping[dg.AssetKey, dg.AssetCheckEvaluation]:
    """The last evaluation of each asset's check that has one."""
    keys = [dg.AssetCheckKey(asset, NAME) for asset in assets]
    records = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    events = {key.asset_key: record.event for key, record in records.items()}
    return {
        key: event.dagster_event.asset_check_evaluation_data
        for key, event in events.items()
        if event is not None
        and event.dagster_event is not None
        and event.dagster_event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION
    }


def _changed(
    builder: AssetBuilder, first: StageContext, known: Mapping[dg.AssetKey, dg.AssetCheckEvaluation]
) -> Iterator[dg.AssetCheckEvaluation]:
    for asset in builder.assets:
        last, found = known.get(builder.key(asset)), _evaluated(builder, asset, first)
        # Of what nobody asked for there is nothing to say.
        is_new = last is not None or found.metadata["partitions"] != dg.MetadataValue.int(0)
        if is_new and (last is None or _answer(last) != _answer(found)):
            yield found


def _evaluated(builder: AssetBuilder, asset: StageAsset, first: StageContext) -> dg.AssetCheckEvaluation:
    return freshness(builder, asset, first.with_selection(asset.selection))


def _answer(evaluation: dg.AssetCheckEvaluation) -> tuple[object, ...]:
    return evaluation.passed, evaluation.description, dict(evaluation.metadata)


def _summary(changed: Sequence[dg.AssetCheckEvaluation]) -> str:
    """What a look has found, as the list of the sensor's ticks shows it."""
    if not changed:
        return "all is as it was when it was last looked at"
    stale = sum(not each.passed for each in changed)
    return f"of {len(changed)} assets it has changed whether they are up to date: {stale} are not"


def freshness_sensor(builder: AssetBuilder) -> dg.SensorDefinition:
    """The sensor that shows what is stale or missing; it starts nothing."""
    looks = _Freshness(builder)

    @dg.sensor(
        name=f"{builder.group}__{NAME}",
        minimum_interval_seconds=builder.pipeline.refresh.interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Evaluates the check `{NAME}` of each asset when settings, files or results have changed; starts no "
        f"run. What it reports as stale or missing, the job `{builder.refresh_job}` makes. Marks runs as failed whose "
        "process is gone.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        for run_id in end_lost_runs(context.instance, builder.is_run_of_pipeline):
            context.log.info(f"run {run_id} was lost, and is marked as ended")
        last, begun = _Look.parse(context.cursor), time.time()
        events, stamps = looks.events(context.instance), looks.stamps()
        busy = unfinished_run(context.instance, builder.refresh_job, {builder.key(asset) for asset in builder.assets})
        if last is not None and not last.is_due(looks.settings, fingerprint([events, stamps]), busy=busy is not None):
            return dg.SkipReason("nothing has changed since all was last looked at, or it is too soon to look again")
        try:
            changed = looks.evaluate(context.instance)
        except MissingResultError as error:
            return dg.SkipReason(str(error))
        # Of folders that were not known before, as they are now: another process would see them for the first time.
        stamps = stamps if stamps.keys() == looks.stamps().keys() else looks.stamps()
        look = _Look(looks.settings, fingerprint([events, stamps]), begun, time.time() - begun)
        return dg.SensorResult(
            asset_events=changed,
            cursor=json.dumps(asdict(look)),
            skip_reason=_summary(changed),
        )

    return sensor
