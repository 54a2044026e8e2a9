"""Where the tasks of a stage run, by `compute`: here, or on the workers of a cluster."""

import hashlib
import os
import pickle
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from semdedup_assets.compute import WorkerResources
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.engines.local import map_tasks
from semdedup_assets.execution.engines.outcomes import Engine
from semdedup_assets.execution.engines.ray import RayEngine, Resources, connect, room_for, share_of_cpus
from semdedup_assets.execution.stage import Stage, Worker
from semdedup_assets.storage.files import adopt_access, store_access

_PACKAGE = Path(__file__).parent.parent


class OtherVersionError(RuntimeError):
    """A worker would make something else than the run asks for; says what differs and what to do."""


@dataclass(frozen=True)
class Placement:
    """Where tasks run.

    Attributes:
        engine: maps them.
        parallelism: over how many workers.
        threads: that each worker may keep busy; None: this process runs them, as it is.
    """

    engine: Engine = map_tasks
    parallelism: int = 1
    threads: int | None = None

    def context_of(self, context: StageContext) -> StageContext:
        """What the workers of a stage are given."""
        return context if self.threads is None else context.of_worker(self.threads, parallelism=self.parallelism)


def placement_of(context: StageContext, stage: Stage) -> Placement:
    """Where a stage's tasks run.

    Raises:
        ClusterError: the cluster cannot be joined.
        ValueError: `compute.device` does not exist here, where the stage is to be made.
    """
    compute = context.compute
    wanted = compute.workers_of(stage.name, stage.workers_of)
    if compute.engine == "local" or (wanted is None and not stage.has_many_tasks):
        if compute.device not in ("auto", "cpu"):
            # Else a shard's first result would find it missing, and each shard be tried again for it.
            _ = compute.torch_device
        return Placement()
    connect(compute.address)
    wanted = wanted or WorkerResources()
    resources = _resources(wanted)
    count = wanted.count or room_for(resources)
    tries = context.pipeline.refresh.attempts
    engine = RayEngine(stage.name, resources, count, tries=tries, patience_seconds=compute.patience_seconds)
    return Placement(engine, count, resources.threads)


def _resources(wanted: WorkerResources) -> Resources:
    cpus = wanted.num_cpus or (share_of_cpus(wanted.num_gpus) if wanted.num_gpus else 1.0)
    return Resources(cpus, wanted.num_gpus, int((wanted.memory_gib or 0) * (1 << 30)), wanted.resources)


@dataclass(frozen=True, slots=True)
class TaskWorker:
    """Makes the contents of a stage's tasks, which name the partition too."""

    worker: Worker

    def __call__(self, task: Any) -> Any:
        """Make one."""
        return self.worker(task.content)


@dataclass(frozen=True)
class WorkerSetup:
    """Sets up a stage's worker wherever it runs; on another machine, once that is seen to be like the driver's.

    Attributes:
        context: of the pipeline and the selection.
        stage: its name.
    """

    context: StageContext
    stage: str

    def __call__(self) -> TaskWorker:
        """Load what the tasks need."""
        return TaskWorker(self.context.graph[self.stage].worker(self.context))

    def __reduce__(self) -> tuple[Any, ...]:
        # The shards that the work was planned with, and what a worker's own hash of the settings is held against.
        _ = self.context.shard_index, self.context.code_version(self.stage)
        # The package is compared before anything of it is unpickled.
        content = pickle.dumps((self.context, self.stage))
        return _RemoteSetup, (content, package_version(), os.getcwd(), store_access())  # noqa: PTH109  # a string


@dataclass(frozen=True)
class _RemoteSetup:
    """The same on a worker.

    Attributes:
        content: context and stage, pickled.
        version: of the driver's package.
        folder: from which the driver's relative paths start.
        access: how the driver reaches its stores.
    """

    content: bytes = field(repr=False)
    version: str
    folder: str
    access: dict[str, Any] = field(repr=False)

    def __call__(self) -> TaskWorker:
        """Load what the tasks need.

        Raises:
            OtherVersionError: package or checkpoint of this machine are not the driver's.
        """
        if package_version() != self.version:
            message = (
                f"this worker has semdedup-assets {package_version()} in {_PACKAGE}, and the run {self.version}; install the "
                "same on every machine of the cluster, and start Ray again there"
            )
            raise OtherVersionError(message)
        if Path(self.folder).is_dir():
            os.chdir(self.folder)
        adopt_access(self.access)
        context, stage = pickle.loads(self.content)  # of our own driver
        _require_same_settings(context, stage)
        return WorkerSetup(context, stage)()


def _require_same_settings(context: StageContext, stage: str) -> None:
    """See that settings determine the same result here: a local checkpoint may be missing, or be another.

    Raises:
        OtherVersionError: they do not.
    """
    expected = context.code_version(stage)
    try:
        found = replace(context, _code_versions={}).code_version(stage)
    except (ValueError, OSError) as error:
        message = f"{error}; copy it to every machine of the cluster, or name a path that all of them share"
        raise OtherVersionError(message) from error
    if found != expected:
        message = (
            f"{context.asset(stage)}: what the settings name on this machine, such as a local checkpoint, differs from what "
            "the run found; copy the same to every machine of the cluster"
        )
        raise OtherVersionError(message)


@lru_cache(maxsize=1)
def package_version() -> str:
    """The package's version, and a hash of its source: two machines with equal ones make equal results."""
    found = hashlib.blake2b(digest_size=6)
    for path in sorted(_PACKAGE.rglob("*.py")):
        found.update(path.relative_to(_PACKAGE).as_posix().encode() + path.read_bytes())
    return f"{version('semdedup-assets')}+{found.hexdigest()}"
