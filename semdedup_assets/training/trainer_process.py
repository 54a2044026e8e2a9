"""Run a trainer as a process of its own, and follow it: by Dagster Pipes, and by what it prints.

The process is told what to do as Dagster's own client for subprocesses would tell it, so that a program that calls
`open_dagster_pipes()` works, wherever the stage runs. What it reports, and what it prints, lies in files of its folder: they
outlive whoever follows it.
"""

import contextlib
import fcntl
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import IO, Any

from pydantic import BaseModel, ValidationError

from semdedup_assets.execution import progress
from semdedup_assets.execution.processes import has_ended, this_process

_LAUNCH = Path(__file__).with_name("launch.py")
_POLL_SECONDS, _REPORT_SECONDS, _GRACE_SECONDS = 0.2, 15.0, 30.0
_TAIL_LINES = 15
_LAST_WORDS = 4000
# A longer line is no report; it is passed over.
_LONGEST_LINE = 4 << 20
# What a shell says of a program that a signal ended: 128, and the signal's number.
_SHELL = 128
# A scaler of losses may find one or two that are not finite on its way.
_MOST_NOT_FINITE = 3
_NUMBER = r"['\"]?(nan|[-+]?inf(?:inity)?|[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)"
# Another loss than that of the step, such as `val loss: 9.0`.
_OF_TRAINING = "".join(
    rf"(?<!\b{kind}\s)" for kind in ("val", "valid", "validation", "eval", "evaluation", "dev", "test")
)
_PRINTED = {
    "loss": re.compile(rf"{_OF_TRAINING}(?<![\w-])['\"]?loss['\"]?\s*[:=]\s*{_NUMBER}", re.IGNORECASE),
    "learning_rate": re.compile(rf"(?<![\w-])['\"]?(?:lr|learning[_ ]rate)['\"]?\s*[:=]\s*{_NUMBER}", re.IGNORECASE),
    "step": re.compile(
        r"(?<![\w-])['\"]?(?:step|iteration|iter)['\"]?\s*[:=]?\s*['\"]?(\d{1,3}(?:,\d{3})+|\d{1,18})", re.IGNORECASE
    ),
}


class TrainingFailedError(RuntimeError):
    """A trainer ended with an error, or left nothing; says what it printed last, and what to do."""


class DivergedError(TrainingFailedError):
    """The loss of a training is not a finite number any more."""


class KilledError(TrainingFailedError):
    """A signal ended a trainer; what it had saved is there, and it can go on."""


def first_problem(error: ValidationError) -> str:
    """What is wrong with what a program said: where, what was found, and why that is refused.

    Args:
        error: of its validation.
    """
    wrong = error.errors()[0]
    place = ".".join(map(str, wrong["loc"])) or "all of it"
    return f"{place} is {str(wrong['input'])[:80]!r}: {wrong['msg']}"


class _Said(BaseModel, extra="allow"):
    """What a message may say of a step, or of the whole; whatever else it has is kept."""

    loss: float | None = None
    learning_rate: float | None = None
    step: int | None = None
    steps: int | None = None
    items: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """What a trainer reported at a step; the learning rate is None where it did not say."""

    step: int
    loss: float
    learning_rate: float | None = None


@dataclass
class Reported:
    """What a trainer reported, over all its attempts.

    Attributes:
        curve: by step; what a later attempt says of a step counts.
        totals: what it said of the whole: `steps`, `items`, `tokens`, and whatever else is no step of the curve.
        numbered: whether it said at which steps; else the curve counts what it reported.
        not_finite: losses in a row that were not finite.
        refused: what was wrong with the first message that is not what one should be; such are passed over.
    """

    curve: dict[int, CurvePoint] = field(default_factory=dict)
    totals: dict[str, Any] = field(default_factory=dict)
    numbered: bool = True
    not_finite: int = 0
    refused: str = ""

    def take(self, message: Mapping[str, Any]) -> None:
        """Take what it says of a step, or of the whole."""
        try:
            said = _Said.model_validate(message)
        except ValidationError as error:
            self.refused = self.refused or first_problem(error)
            return
        if said.loss is None:
            self.totals.update(said.model_dump(exclude_unset=True))
            return
        self.numbered = self.numbered and said.step is not None
        step = max(self.curve, default=0) + 1 if said.step is None else said.step
        self.curve[step] = CurvePoint(step, said.loss, said.learning_rate)
        self.not_finite = 0 if math.isfinite(said.loss) else self.not_finite + 1

    @property
    def last(self) -> CurvePoint | None:
        """The point of the greatest step."""
        return self.curve[max(self.curve)] if self.curve else None

    def words(self, seconds: float) -> str:
        """How far it is, for a log."""
        last, total = self.last, self.totals.get("steps")
        if last is None:
            return f"running for {seconds:,.0f} s"
        of = f" of {total:,}" if total else ""
        rate = "" if last.learning_rate is None else f", learning rate {last.learning_rate:.3g}"
        at = f"step {last.step:,}{of}" if self.numbered else f"report {last.step:,}"
        return f"{at}, loss {last.loss:.4g}{rate}, {seconds:,.0f} s"


@dataclass(frozen=True, slots=True)
class TrainerProcess:
    """A program to run in a folder.

    Attributes:
        title: of what it makes, for logs and errors.
        command: program and arguments.
        folder: where its log and what it reports are kept; one attempt at a time works in it.
        extras: what the program can ask Pipes for.
        threads: that it may keep busy; None: as many as the environment says.
        stop: ends it when it is set.
        trains: whether what it says of losses and steps is of a training, which goes on when it is run again.
    """

    title: str
    command: Sequence[str]
    folder: Path
    extras: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    stop: Event = field(default_factory=Event)
    trains: bool = True

    @property
    def _again(self) -> str:
        return "run again, and it goes on where it saved last" if self.trains else "run again"

    @property
    def log(self) -> Path:
        """What it printed, over all attempts."""
        return self.folder / "trainer.log"

    def run(self, lock: IO[str] | None = None) -> Reported:
        """Run it to its end.

        Args:
            lock: of the folder, where the caller holds it already.

        Returns:
            What it reported, in this attempt and the earlier ones of this folder.

        Raises:
            TrainingFailedError: it ended with an error, or an earlier attempt still runs.
            DivergedError: its loss is not finite.
            KilledError: a signal ended it.
        """
        if lock is None:
            with held_folder(self.folder, self.title, self.stop) as own:
                return self.run(own)
        reported, attempt = self._earlier()
        messages = self.folder / f"messages-{attempt}.jsonl"
        messages.touch()
        log_start = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            process = self._start(log, messages, attempt, lock)
        try:
            self._follow(process, reported, _Tail(messages), _Tail(self.log, log_start))
        finally:
            _end(process)
        self._require_success(process.returncode, reported)
        return reported

    def _earlier(self) -> tuple[Reported, int]:
        """What earlier attempts reported, or printed, and the number of the next."""
        reported, attempt = Reported(), 0
        while (path := self.folder / f"messages-{attempt}.jsonl").exists():
            for message in _custom_messages(_parsed(path.read_text(errors="replace").splitlines())):
                reported.take(message)
            attempt += 1
        if self.log.exists() and not reported.curve:
            with self.log.open(errors="replace") as printed:
                for message in _printed_messages(printed):
                    reported.take(message)
        reported.not_finite = 0
        return reported, attempt

    def _start(self, log: IO[bytes], messages: Path, attempt: int, lock: IO[str]) -> "subprocess.Popen[bytes]":
        from dagster_pipes import DAGSTER_PIPES_CONTEXT_ENV_VAR, DAGSTER_PIPES_MESSAGES_ENV_VAR, encode_param

        context = self.folder / "pipes-context.json"
        context.write_text(json.dumps(self._context(attempt)))
        environment = {
            **os.environ,
            # `python`, `torchrun` and their like are those beside the interpreter that runs this.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "PYTHONUNBUFFERED": "1",
            **self._thread_limits(),
            DAGSTER_PIPES_CONTEXT_ENV_VAR: encode_param({"path": str(context)}),
            DAGSTER_PIPES_MESSAGES_ENV_VAR: encode_param({"path": str(messages)}),
        }
        launcher = [sys.executable, "-I", "-S", str(_LAUNCH), str(os.getpid())]
        process = subprocess.Popen(
            [*launcher, *self.command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            # So that all its children can be ended together.
            start_new_session=True,
            pass_fds=(lock.fileno(),),
        )
        lock.truncate(0)
        lock.write(json.dumps({"follower": this_process(), "group": process.pid}))
        lock.flush()
        return process

    def _thread_limits(self) -> dict[str, str]:
        """What somebody set already, holds."""
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        return {} if self.threads is None else {name: os.environ.get(name, str(self.threads)) for name in names}

    def _context(self, attempt: int) -> dict[str, Any]:
        return {
            "asset_keys": None,
            "code_version_by_asset_key": None,
            "provenance_by_asset_key": None,
            "partition_key": None,
            "partition_key_range": None,
            "partition_time_window": None,
            "run_id": self.folder.name,
            "job_name": self.title,
            "retry_number": attempt,
            "extras": dict(self.extras),
        }

    def _follow(
        self, process: "subprocess.Popen[bytes]", reported: Reported, messages: "_Tail", printed: "_Tail"
    ) -> None:
        """Take what it reports until it ends; of a program that reports nothing, what it prints."""
        started = said = time.monotonic()
        by_pipes = complained = False
        running = True
        while running:
            try:
                process.wait(_POLL_SECONDS)
                running = False
            except subprocess.TimeoutExpired:
                pass
            new = list(_parsed(messages.lines()))
            for line in _logged(new):
                progress.log(f"{self.title}: {line}")
            found = list(_custom_messages(new))
            by_pipes = by_pipes or any("loss" in heard for heard in found)
            # What a signal cut off may be the beginning of a number.
            shown = list(_printed_messages(printed.lines(whole=process.returncode == 0)))
            for heard in (found if by_pipes else [*found, *shown]) if self.trains else ():
                reported.take(heard)
            if reported.refused and not complained:
                complained = True
                progress.log(f"{self.title}: what it reports is passed over where it is no number: {reported.refused}")
            if reported.not_finite >= _MOST_NOT_FINITE:
                raise self._diverged(reported)
            if self.stop.is_set():
                message = f"{self.title}: the run was ended; {self._again}"
                raise TrainingFailedError(message)
            if running and time.monotonic() - said >= _REPORT_SECONDS:
                said = time.monotonic()
                progress.log(f"{self.title}: {reported.words(said - started)}")

    def _require_success(self, code: int, reported: Reported) -> None:
        last = reported.last
        if last is not None and not math.isfinite(last.loss):
            raise self._diverged(reported)
        if code == 0:
            return
        ended_by = -code if code < 0 else code - _SHELL
        if code < 0 or ended_by in (signal.SIGKILL, signal.SIGTERM):
            name = signal.Signals(ended_by).name if ended_by in set(signal.Signals) else f"signal {ended_by}"
            hint = "; out of memory?" if ended_by == signal.SIGKILL else ""
            message = f"{self.title}: the program was ended by {name}{hint}; {self._again}"
            raise KilledError(message)
        message = f"{self.title}: the program ended with exit code {code}; {self.last_words()}"
        raise TrainingFailedError(message)

    def _diverged(self, reported: Reported) -> DivergedError:
        last = reported.last
        step, rate = (0, None) if last is None else (last.step, last.learning_rate)
        at = "" if rate is None else f" at learning rate {rate:.3g}"
        message = (
            f"{self.title}: the loss is not finite since step {step:,}{at}: the training diverged; lower the learning rate, or "
            f"look at {self.log}"
        )
        return DivergedError(message)

    def last_words(self) -> str:
        """The last lines that it printed, and where all of them lie."""
        with self.log.open("rb") as stream:
            stream.seek(max(0, self.log.stat().st_size - _LAST_WORDS))
            lines = stream.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
        return f"all it printed is in {self.log}, the end of it:\n" + "\n".join(lines)


class _Tail:
    """The lines that a file gains."""

    def __init__(self, path: Path, start: int = 0) -> None:
        self._path, self._at = path, start

    def lines(self, *, whole: bool = False) -> Iterator[str]:
        """Those that were completed since the last call; a bar, which returns to its line's start, completes lines too.

        Args:
            whole: whether the end of the file ends a line.
        """
        with self._path.open("rb") as stream:
            stream.seek(self._at)
            while content := stream.read(_LONGEST_LINE):
                end = max(content.rfind(b"\n"), content.rfind(b"\r")) + 1
                if not end and len(content) < _LONGEST_LINE:
                    if not whole:
                        return
                    end = len(content)
                self._at = stream.seek(self._at + (end or len(content)))
                yield from content[:end].decode(errors="replace").splitlines()


def _parsed(lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    """The messages in some lines; what a killed process left of a line is none."""
    for line in lines:
        try:
            message = json.loads(line)
        except ValueError:
            continue
        if isinstance(message, dict) and isinstance(message.get("params"), dict):
            yield message


def _custom_messages(messages: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """What a program reported by `report_custom_message`, or as metadata of a materialisation."""
    for message in messages:
        params = message["params"]
        if message.get("method") == "report_custom_message" and isinstance(params.get("payload"), dict):
            yield params["payload"]
        elif message.get("method") == "report_asset_materialization":
            metadata = params.get("metadata") or {}
            yield {name: value.get("raw_value") for name, value in metadata.items() if isinstance(value, dict)}


def _logged(messages: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """What a program logged by Pipes."""
    for message in messages:
        if message.get("method") == "log":
            yield str(message["params"].get("message"))


def _printed_messages(lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    """What printed lines say of loss, learning rate and step, in the words that trainers use."""
    for line in lines:
        found = {name: pattern.search(line) for name, pattern in _PRINTED.items()}
        loss, rate, step = found["loss"], found["learning_rate"], found["step"]
        if loss is not None:
            yield {
                "loss": float(loss[1]),
                "learning_rate": None if rate is None else float(rate[1]),
                "step": None if step is None else int(step[1].replace(",", "")),
            }


@contextmanager
def held_folder(folder: Path, title: str, stop: Event) -> Iterator[IO[str]]:
    """Hold a folder for one attempt; its program holds it too, and goes on doing so where this process is killed.

    Args:
        folder: in which trainers work; it is made.
        title: of what is made in it, for errors.
        stop: ends the wait for a folder.

    Yields:
        The lock.

    Raises:
        TrainingFailedError: an earlier attempt still works in it.
        OSError: nothing can be written there; names the setting.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / "lock").open("a+")
    except OSError as error:
        message = f"{title}: nothing can be written ({error.strerror}); name another folder in `training.work_folder`"
        raise OSError(error.errno, message, str(folder)) from error
    with opened as lock:
        # What a killed run left is ended, and needs a moment to go.
        deadline = time.monotonic() + _GRACE_SECONDS
        while not _take(lock):
            if not _end_orphans(lock) or stop.is_set() or time.monotonic() > deadline:
                message = (
                    f"{title}: an earlier attempt still runs in {folder}; end it (`fuser {lock.name}` names its processes), or "
                    "wait for it, then run again"
                )
                raise TrainingFailedError(message)
            time.sleep(_POLL_SECONDS)
        yield lock


def _take(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _end_orphans(lock: IO[str]) -> bool:
    """End what a trainer left running whose follower was killed on this machine; False where that is not seen to be so.

    Args:
        lock: of the folder, which one of them holds.
    """
    lock.seek(0)
    try:
        holder = json.loads(lock.read())
        if not has_ended(holder["follower"]):
            return False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(holder["group"], signal.SIGKILL)
    except (ValueError, KeyError, TypeError, AttributeError, PermissionError):
        return False
    return True


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a program where it still runs, and all its children: those that outlive it would go on writing to its folder.

    A launcher such as torchrun has workers in sessions of their own: it is asked first, so that it ends them.
    """
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
