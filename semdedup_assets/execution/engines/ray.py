"""Run tasks on the workers of a Ray cluster: actors that are set up once and make task after task.

The process that maps the tasks is Ray's driver. Where it ends, its actors end; where an actor ends, another takes its
place. No task is lost, and none is given to two workers at a time.
"""

import logging
import os
import pickle
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from semdedup_assets.execution import progress
from semdedup_assets.execution.engines.outcomes import Outcome, Worker, WorkerDiedError, outcome_of
from semdedup_assets.execution.openmp import waiting_environment

_WAIT_SECONDS, _CONNECT_SECONDS = 1.0, 15.0
_FEWEST_STARTS = 2
# Of what Ray says of a death, the sentence that says how; the rest are numbers and advice.
_LONGEST_CAUSE = 300
_CAUSES = ("The actor is dead because", "The actor died because", "Worker exit detail:")
# What the libraries read when they are loaded: as many threads as CPUs were assigned.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS")
# Variables that say how stores and hubs are reached: a worker gets the driver's of a kind of which it has none.
_ACCESS = ("FSSPEC_", "AWS_", "GOOGLE_", "GCS_", "AZURE_", "HF_", "TRANSFORMERS_")
# Built-in errors that a message alone makes.
_PLAIN = (ValueError, TypeError, LookupError, IndexError, KeyError, ArithmeticError, EOFError, MemoryError)


class ClusterError(RuntimeError):
    """The cluster cannot run what it is asked to; says what is missing and what to do."""


class _RemoteTraceback(Exception):
    """Where on a worker something was raised."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


@dataclass(frozen=True)
class Resources:
    """What each worker is given.

    Attributes:
        num_cpus: CPUs.
        num_gpus: GPUs.
        memory: bytes that are reserved; 0: none are.
        custom: further resources by name.
    """

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    memory: int = 0
    custom: Mapping[str, float] = field(default_factory=dict)

    @property
    def threads(self) -> int:
        """How many a worker may keep busy."""
        return max(1, int(self.num_cpus))

    def as_needed(self) -> dict[str, float]:
        """By the names that Ray has for them; only what is needed."""
        found = {"CPU": self.num_cpus, "GPU": self.num_gpus, "memory": float(self.memory), **self.custom}
        return {name: value for name, value in found.items() if value}

    def options(self) -> dict[str, Any]:
        """As an actor's options have them."""
        return {
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            **({"memory": self.memory} if self.memory else {}),
            **({"resources": dict(self.custom)} if self.custom else {}),
        }


@dataclass(frozen=True)
class RayEngine:
    """Maps tasks over actors.

    Attributes:
        name: of what is made, for messages.
        resources: of each actor.
        count: actors at most.
        tries: how often a task is given to a worker before it is held to be what kills them.
        patience_seconds: how long nothing may be able to start.
    """

    name: str
    resources: Resources
    count: int
    tries: int = 3
    patience_seconds: float = 600.0

    @property
    def starts(self) -> int:
        """How often in a row an actor may die before it is ready."""
        return max(_FEWEST_STARTS, self.tries)

    def __call__(self, make_worker: Callable[[], Worker], tasks: Iterable[Any]) -> Iterator[Outcome]:
        """Map tasks.

        Args:
            make_worker: pickled, sets an actor up; what it raises is raised here.
            tasks: pickled one by one; taken as actors become free.

        Yields:
            An outcome for each task as it ends; one that ended its worker each time has a `WorkerDiedError`.

        Raises:
            ClusterError: nothing can start.
            Exception: what setting an actor up raised, or the iterator of tasks, once the tasks before it are made.
        """
        waiting = _Waiting(tasks, ahead=self.count)
        if not len(waiting):
            waiting.raise_error()
            return
        pool = _Pool(self, pickle.dumps(make_worker), min(self.count, len(waiting)))
        try:
            yield from pool.run(waiting)
        except BaseException:
            pool.end()
            raise
        pool.rest()
        waiting.raise_error()


@dataclass(slots=True, eq=False)
class _Try:
    """A task, and how many actors have died while they made it."""

    task: Any
    deaths: int = 0


class _Waiting:
    """Tasks that are to be made: new ones in their order, then those whose workers died.

    Args:
        tasks: an iterator that may end by raising.
        ahead: tasks that are looked at before the first is made.
    """

    def __init__(self, tasks: Iterable[Any], *, ahead: int) -> None:
        self._tasks = iter(tasks)
        self._error: Exception | None = None
        self._new, self._again = deque[_Try](), deque[_Try]()
        self._fill(ahead)

    def _fill(self, count: int) -> None:
        try:
            self._new.extend(map(_Try, islice(self._tasks, count)))
        except Exception as error:  # it is raised once what came before it is made
            self._error, self._tasks = error, iter(())

    def __len__(self) -> int:
        """At least so many."""
        return len(self._new) + len(self._again)

    def next(self) -> _Try:
        """The next one; only while there is one."""
        found = self._new.popleft() if self._new else self._again.popleft()
        if not self._new:
            self._fill(1)
        return found

    def put_back(self, tried: _Try) -> None:
        """Try one again, after all others: what killed one worker may kill the next."""
        self._again.append(tried)

    def raise_error(self) -> None:
        """Raise what the iterator of tasks ended with, if it did."""
        if self._error is not None:
            raise self._error


@dataclass(slots=True, eq=False)
class _Slot:
    """A place for one actor.

    Attributes:
        actor: Ray's handle.
        step: what it is doing: `start`, `set up`, `make`, `wait`, or nothing any more (`given up`).
        trying: the task that it makes, while it makes one.
        failed_starts: how many actors in a row died here before they were ready.
        node: where it runs, for messages.
    """

    actor: Any = None
    step: str = "start"
    trying: _Try | None = None
    failed_starts: int = 0
    node: str = ""


class _Pool:
    """Actors, and what each of them is doing."""

    def __init__(self, engine: RayEngine, make_worker: bytes, count: int) -> None:
        import ray

        self._ray, self._engine = ray, engine
        # One copy for each machine.
        self._make_worker = ray.put(make_worker)
        self._class = ray.remote(_Actor).options(max_restarts=0, max_task_retries=0, **engine.resources.options())
        self._environment = _environment(engine.resources.threads)
        self._pending: dict[Any, _Slot] = {}
        self._slots = [_Slot() for _ in range(count)]
        end_resting(unlike=engine.resources)
        for slot in self._slots:
            if _resting:
                rested = _resting.pop()
                # One that died while it rested says nothing of how workers start.
                slot.actor, slot.node, slot.failed_starts = rested.actor, rested.node, -1
                self._set_up(slot)
            else:
                self._start(slot)
        end_resting()
        self._last = time.monotonic()

    def run(self, waiting: _Waiting) -> Iterator[Outcome]:
        """Make tasks until none is left."""
        while len(waiting) or any(slot.step == "make" for slot in self._slots):
            self._feed(waiting)
            done, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=_WAIT_SECONDS)
            for future in done:
                self._last = time.monotonic()
                outcome = self._handled(future, self._pending.pop(future), waiting)
                if outcome is not None:
                    self._feed(waiting)
                    yield outcome
            self._require_a_start()

    def end(self) -> None:
        """End all actors, whatever they are doing."""
        for slot in self._slots:
            self._ray.kill(slot.actor)

    def rest(self) -> None:
        """Keep the actors that are ready for what is made next; what was loaded for this is dropped."""
        for slot in self._slots:
            if slot.step == "wait":
                slot.actor.rest.remote()
                _resting.append(_Resting(slot.actor, slot.node, _cluster(), self._engine.resources))
            else:
                self._ray.kill(slot.actor)

    def _feed(self, waiting: _Waiting) -> None:
        for slot in self._slots:
            if slot.step == "wait" and len(waiting):
                slot.step, slot.trying = "make", waiting.next()
                self._pending[slot.actor.make.remote(slot.trying.task)] = slot

    def _start(self, slot: _Slot) -> None:
        slot.actor = self._class.remote(self._environment)
        slot.step, slot.trying, slot.node = "start", None, ""
        self._pending[slot.actor.node.remote()] = slot

    def _set_up(self, slot: _Slot) -> None:
        slot.step = "set up"
        self._pending[slot.actor.set_up.remote(self._make_worker)] = slot

    def _handled(self, future: Any, slot: _Slot, waiting: _Waiting) -> Outcome | None:
        lost = self._ray.exceptions
        try:
            reply = self._ray.get(future)
        except (lost.RayActorError, lost.NodeDiedError, lost.OutOfMemoryError, lost.ObjectLostError) as error:
            return self._replaced(slot, error, waiting)
        if slot.step == "start":
            slot.node = reply
            self._set_up(slot)
            return None
        for line in reply.lines:
            progress.log(f"{slot.node}: {line}")
        raised = reply.error_on(slot.node)
        tried, slot.trying, slot.step = slot.trying, None, "wait"
        if tried is not None:
            return Outcome(tried.task, reply.value, raised)
        if raised is not None:
            raise raised
        slot.failed_starts = 0
        return None

    def _replaced(self, slot: _Slot, error: Exception, waiting: _Waiting) -> Outcome | None:
        """Start an actor in place of one that died, or cannot be reached; the outcome of its task if that was its last try."""
        cause, outcome, tried = _cause(error), None, slot.trying
        # One that only cannot be reached may still be writing.
        self._ray.kill(slot.actor)
        if tried is not None:
            tried.deaths += 1
            progress.log(
                f"{self._engine.name}: a worker on {slot.node} died ({cause}); try {tried.deaths} of {self._engine.tries} "
                "of its task"
            )
            if tried.deaths < self._engine.tries:
                waiting.put_back(tried)
            else:
                message = f"the worker that made it died, {tried.deaths} times; the last one on {slot.node}: {cause}"
                outcome = Outcome(tried.task, error=WorkerDiedError(message))
        else:
            slot.failed_starts += 1
            where = f" on {slot.node}" if slot.node else ""
            progress.log(f"{self._engine.name}: a worker{where} died before it was ready ({cause})")
            if slot.failed_starts >= self._engine.starts:
                slot.step = "given up"
                self._require_a_slot(f"workers{where}", cause)
                return None
        self._start(slot)
        return outcome

    def _require_a_slot(self, workers: str, cause: str) -> None:
        """See that not every place was given up.

        Raises:
            ClusterError: it was.
        """
        if any(slot.step != "given up" for slot in self._slots):
            return
        message = (
            f"{self._engine.name}: {workers} die before they are ready, {self._engine.starts} times in a row: {cause}; "
            "see Ray's logs there, and whether their memory suffices"
        )
        raise ClusterError(message)

    def _require_a_start(self) -> None:
        """See that something is going on.

        Raises:
            ClusterError: no worker could start for as long as the engine is patient.
        """
        idle = time.monotonic() - self._last
        if idle < self._engine.patience_seconds or any(slot.step in ("set up", "make", "wait") for slot in self._slots):
            return
        needed, total, free = (
            _readable(each)
            for each in (
                self._engine.resources.as_needed(),
                self._ray.cluster_resources(),
                self._ray.available_resources(),
            )
        )
        message = (
            f"{self._engine.name}: no worker could start within {self._engine.patience_seconds:g} s: each of "
            f"{len(self._slots)} needs {needed}; the cluster has {total} in all, and free {free}; start nodes that have it, "
            f"ask for less in `compute.workers.{self._engine.name}`, or raise `compute.patience_seconds`"
        )
        raise ClusterError(message)


@dataclass(frozen=True, slots=True)
class _Resting:
    """An actor that has nothing to do, on a cluster that this process has joined.

    Attributes:
        actor: Ray's handle.
        node: where it runs, for messages.
        cluster: by this process' job there.
        resources: that it holds.
    """

    actor: Any
    node: str
    cluster: str
    resources: Resources


# To start a process and load the libraries again takes seconds.
_resting: list[_Resting] = []


def _cluster() -> str:
    import ray

    return str(ray.get_runtime_context().get_job_id())


def end_resting(*, unlike: Resources | None = None) -> None:
    """End actors that have nothing to do: others may need what they hold.

    Args:
        unlike: those of such resources stay; None: none does.
    """
    if not _resting:
        return
    import ray

    # Those of a cluster that was left have ended with it.
    cluster = _cluster() if ray.is_initialized() else None
    here = [each for each in _resting if each.cluster == cluster]
    _resting[:] = [each for each in here if each.resources == unlike]
    for each in here:
        if each.resources != unlike:
            ray.kill(each.actor)


@dataclass(frozen=True, slots=True)
class _Reply:
    """What an actor answers.

    Attributes:
        value: what was made.
        error: what was raised instead.
        traceback: where.
        lines: that were reported meanwhile.
    """

    value: Any = None
    error: Exception | None = None
    traceback: str = ""
    lines: tuple[str, ...] = ()

    def error_on(self, node: str) -> Exception | None:
        """The error, with where it was raised as its cause."""
        if self.error is not None:
            self.error.__cause__ = _RemoteTraceback(f"on {node}:\n{self.traceback}")
        return self.error


class _Actor:
    """One worker on the cluster."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        # Before torch, faiss or fsspec are loaded, which read it once.
        _adopt(environment)
        self._worker: Worker | None = None

    def node(self) -> str:
        """The name of the machine."""
        import ray

        return f"{os.uname().nodename} ({ray.util.get_node_ip_address()}, process {os.getpid()})"

    def set_up(self, make_worker: bytes) -> _Reply:
        """Prepare for tasks."""

        def prepare(_: None) -> None:
            try:
                make = pickle.loads(make_worker)  # of our own driver
            except (ImportError, AttributeError) as error:
                message = f"this worker has another version of the package than the run ({error}); install the same on every machine"
                raise ClusterError(message) from error
            self._worker = make()

        return _reply(prepare, None)

    def make(self, task: Any) -> _Reply:
        """Make one task."""
        if self._worker is None:
            message = "a task came before the worker was set up"
            raise RuntimeError(message)
        return _reply(self._worker, task)

    def rest(self) -> None:
        """Drop what was prepared."""
        self._worker = None
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _reply(worker: Worker, task: Any) -> _Reply:
    import traceback

    with progress.gathered() as lines:
        outcome = outcome_of(worker, task)
    if outcome.error is None:
        return _Reply(outcome.value, lines=tuple(lines))
    text = "".join(traceback.format_exception(outcome.error))
    return _Reply(error=_portable(outcome.error), traceback=text, lines=tuple(lines))


def _portable(error: Exception) -> Exception:
    """The same error, or one that says the same where that cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a library's exception does when it is pickled
        # As a built-in one it still says whether the data or the machine is at fault.
        kind = next(each for each in type(error).__mro__ if each.__module__ == "builtins")
        message = f"{type(error).__name__}: {error}"
        if issubclass(kind, OSError):
            return OSError(getattr(error, "errno", None), message)
        return kind(message) if kind in _PLAIN else RuntimeError(message)
    return error


def _environment(threads: int) -> dict[str, str]:
    """What a worker's libraries read: of this process, but for the threads."""
    access = {name: value for name, value in os.environ.items() if name.startswith(_ACCESS)}
    return access | dict.fromkeys(_THREADS, str(threads)) | waiting_environment()


def _adopt(environment: Mapping[str, str]) -> None:
    own = {prefix for prefix in _ACCESS if any(name.startswith(prefix) for name in os.environ)}
    for name, value in environment.items():
        prefix = next((each for each in _ACCESS if name.startswith(each)), None)
        if prefix not in own:
            os.environ[name] = value


def _cause(error: Exception) -> str:
    """What Ray says of a death, in a sentence."""
    text = " ".join(str(error).split())
    for head in _CAUSES:
        if head in text:
            text = text.rpartition(head)[2].strip()
    text = text.partition("Some common causes")[0].partition("There are some potential")[0].strip()
    return text[:_LONGEST_CAUSE].strip(" .") or type(error).__name__


def _readable(resources: Mapping[str, float]) -> str:
    shown = {name: value for name, value in resources.items() if not name.startswith(("node:", "object_store"))}
    parts = [
        f"{value / (1 << 30):.1f} GiB memory" if name == "memory" else f"{value:g} {name}"
        for name, value in shown.items()
    ]
    return ", ".join(sorted(parts)) or "nothing"


# The address of the cluster that this process has joined.
_joined: list[str] = []


def connect(address: str) -> None:
    """Make this process a driver of a cluster, unless it is one already.

    Args:
        address: `auto` for the cluster of this machine, `local` to start one here, or where its head listens.

    Raises:
        ClusterError: Ray is not installed, or there is no such cluster; says what to do.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        message = (
            "compute.engine: `ray` is not installed here; `pip install semdedup-assets[ray]`, or use engine `local`"
        )
        raise ClusterError(message) from error
    if ray.is_initialized():
        _require_same(address)
        return
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        _require_listening(address)
        ray.init(address, log_to_driver=False, logging_level=logging.WARNING, namespace="semdedup", **options)
        _joined[:] = [address]
    except (OSError, RuntimeError, ValueError) as error:
        message = (
            f"compute.address: no Ray cluster at {address!r} can be joined ({' '.join(str(error).split())[:_LONGEST_CAUSE]}); "
            "start one (`ray start --head`, on other machines `ray start --address=…`), or use `local`"
        )
        raise ClusterError(message) from error


def _require_same(address: str) -> None:
    """See that this process does not drive another cluster already: it can drive one.

    Raises:
        ClusterError: it does.
    """
    if _joined and _joined[-1] != address:
        message = (
            f"compute.address: this process has joined the Ray cluster at {_joined[-1]!r}, and cannot join {address!r} too; "
            "use one address, or runs of their own"
        )
        raise ClusterError(message)


def _require_listening(address: str) -> None:
    """See that somebody listens: Ray itself tries for minutes, and then ends the process.

    Raises:
        OSError: nobody does.
        ValueError: it is no address.
    """
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS):
        return


def room_for(resources: Resources) -> int:
    """How many workers the nodes that there are have room for, when nothing else runs; at least 1."""
    import ray

    needed = resources.as_needed()
    rooms = [
        min(int(node["Resources"].get(name, 0) / value + 1e-9) for name, value in needed.items())
        for node in ray.nodes()
        if node["Alive"]
    ]
    return max(1, sum(rooms))


def share_of_cpus(num_gpus: float) -> float:
    """CPUs that come with some GPUs: their share of the CPUs of the machine that has fewest for each of them; at least 1."""
    import ray

    found = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    shares = [int(each.get("CPU", 0) / each["GPU"] * num_gpus) for each in found]
    return float(max(1, min(shares, default=1)))
