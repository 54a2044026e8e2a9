"""When a sensor looks at a pipeline's store: where something has left a trace, and for a small share of the time.

A look reads the store's records, thousands of them perhaps, and sensors are evaluated every minute.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import dagster as dg

from semdedup_assets.assets.builder import AssetBuilder
from semdedup_assets.storage.files import folder_stamp
from semdedup_assets.storage.results import fingerprint

# A look that took a second is followed by at least so many without one.
_SHARE = 20
# While a run makes partition after partition, and reports the checks itself.
_SECONDS_IN_RUNS = 600.0
# A little less than Dagster waits for the evaluation of a sensor.
_DAGSTER_WAITS_SECONDS = 50.0
# What another program does to an object store leaves no trace that is cheap to see.
_SECONDS_WITHOUT_TRACES = 3600.0


@dataclass(frozen=True, slots=True)
class Look:
    """When all was last looked at, as a sensor's cursor keeps it.

    Attributes:
        settings: hash of all that a code location can change.
        traces: hash of what changes when results or shards do.
        at: seconds since 1970.
        seconds: that it took.
        found: what it found, in words.
    """

    settings: str
    traces: str
    at: float
    seconds: float
    found: str

    @classmethod
    def parse(cls, cursor: str | None) -> "Look | None":
        """The look of a cursor; None where there was none, or another version of this software wrote it."""
        try:
            return cls(**json.loads(cursor)) if cursor else None
        except (TypeError, ValueError):
            return None

    @property
    def cursor(self) -> str:
        """What a sensor keeps of it."""
        return json.dumps(asdict(self))

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


@dataclass(frozen=True, slots=True)
class BegunLook:
    """A look that has been begun.

    Attributes:
        since: seconds since 1970, when the sensor's evaluation began.
        at: seconds since 1970.
        traces: what leaves them, as it was before the look.
        stamps: of the folders that were known then.
    """

    since: float
    at: float
    traces: Sequence[Any]
    stamps: dict[str, str]


class Looks:
    """The looks of one sensor at one pipeline."""

    def __init__(self, builder: AssetBuilder) -> None:
        self._builder = builder
        self._folders: Set[str] = frozenset()
        # An evaluation that takes longer than Dagster waits for goes on, and its answer is lost: this one is kept.
        self._looking = threading.Lock()
        self._unheard: tuple[Look, dg.SensorResult] | None = None

    @cached_property
    def _settings(self) -> str:
        """Of the settings, and of the code versions that follow from them; a code location loads both anew."""
        context = self._builder.context(self._builder.assets[0])
        versions = [
            context.with_selection(asset.selection).code_version(asset.stage.name) for asset in self._builder.assets
        ]
        return fingerprint([self._builder.pipeline.model_dump(mode="json"), versions])

    def unheard(self, last: Look | None) -> dg.SensorResult | None:
        """What the last look of this process answered, where Dagster did not wait for it; None where it did.

        Args:
            last: the last look that Dagster knows of.
        """
        if self._unheard is None:
            return None
        look, answer = self._unheard
        return answer if last is None or last.at < look.at else None

    @contextmanager
    def begin(
        self,
        instance: dg.DagsterInstance,
        last: Look | None,
        since: float,
        *,
        busy: bool = False,
        further: Sequence[Any] = (),
    ) -> Iterator[BegunLook | None]:
        """Begin a look, which ends with the block; None where it is not time for one, or another is still under way.

        Args:
            instance: knows the events.
            last: the last look.
            since: seconds since 1970, when the sensor's evaluation began.
            busy: whether a run of the pipeline is under way.
            further: what else leaves traces, as JSON has it.
        """
        if not self._looking.acquire(blocking=False):
            yield None
            return
        try:
            begun = BegunLook(since, time.time(), [self._events(instance), *further], self._stamps())
            traces = _traces(begun.traces, begun.stamps)
            yield begun if last is None or last.is_due(self._settings, traces, busy=busy) else None
        finally:
            self._looking.release()

    def end(
        self, begun: BegunLook, folders: Set[str], found: str, answer: Callable[[str], dg.SensorResult]
    ) -> dg.SensorResult:
        """End a look.

        Args:
            begun: it.
            folders: in which it found results.
            found: what it found, in words.
            answer: makes of a cursor what the sensor answers.

        Returns:
            What the sensor answers.
        """
        self._folders = frozenset(folders)
        # Of folders that were not known before, as they are now: another process would see them for the first time.
        now = self._stamps()
        stamps = begun.stamps if begun.stamps.keys() == now.keys() else now
        look = Look(self._settings, _traces(begun.traces, stamps), begun.at, time.time() - begun.at, found)
        answered, is_late = answer(look.cursor), time.time() - begun.since > _DAGSTER_WAITS_SECONDS
        self._unheard = (look, answered) if is_late else None
        return answered

    def _events(self, instance: dg.DagsterInstance) -> dict[str, int | None]:
        """Ids of the last events of all assets and of the source."""
        keys = [self._builder.key(asset) for asset in self._builder.assets]
        made = instance.event_log_storage.get_latest_materialization_storage_ids(keys)
        found = {key.to_user_string(): made.get(key) for key in keys}
        for name in ("shards", "shard_index"):
            records = instance.fetch_observations(self._builder.source_key(name), limit=1).records
            found[name] = records[0].storage_id if records else None
        return found

    def _stamps(self) -> dict[str, str]:
        """Of the folders that the last look of this process found results in; none of an object store."""
        return {folder: folder_stamp(folder) for folder in sorted(self._folders)}


def _traces(traces: Sequence[Any], stamps: dict[str, str]) -> str:
    return fingerprint([*traces, stamps])
