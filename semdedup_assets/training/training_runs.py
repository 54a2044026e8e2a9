"""Which models a partition consists of, and how one of them is trained: a run for each budget and seed."""

import contextlib
import itertools
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import IO, Any, cast

from semdedup_assets.baselines.random_draws import RandomManifests, write_random_manifest
from semdedup_assets.checks.manifests import ManifestStage
from semdedup_assets.encoders.checkpoints import content_hash
from semdedup_assets.execution import progress
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.storage.files import is_local, join, list_folder
from semdedup_assets.storage.results import fingerprint
from semdedup_assets.training.trainer_process import (
    KilledError,
    Reported,
    TrainerProcess,
    TrainingFailedError,
    held_folder,
)
from semdedup_assets.training.trainers.spec import MODEL, STATE, TrainerSpec
from semdedup_assets.training_settings import Budget, Training, filled, placeholders

RESULT, CURVE, LOG = "result.json", "curve.json", "trainer.log"
"""The files of a run beside its checkpoint."""

CHECKPOINT = "checkpoint"
"""The folder of a run in which the checkpoint lies."""

_POLL_SECONDS = 0.5
_PRESETS = {
    "openclip": "semdedup_assets.training.trainers.openclip",
    "causal_lm": "semdedup_assets.training.trainers.causal_lm",
}


@dataclass(frozen=True, slots=True)
class TrainingStage:
    """A stage that trains on manifests, and the stage that writes these.

    Attributes:
        name: of the stage.
        manifests: whose manifests it trains on.
        role: what the kept set is held against as; `semdedup` of the method's own.
    """

    name: str
    manifests: ManifestStage
    role: str


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One model.

    Attributes:
        partition: of the stage.
        budget: how long it is trained.
        seed: of the weights and the order of the data.
        draw: of a random kept set, the seed of the choice; None of the others.
        manifest: folder of the manifest's version.
        version: what it is trained on, by content.
        kept: items of the manifest.
        items: samples of a pass.
        steps: of everything, where the trainer goes by them.
        identity: hash of all that can change the model.
    """

    partition: Partition
    budget: Budget
    seed: int
    draw: int | None
    manifest: str
    version: str
    kept: int
    items: int
    steps: int | None

    identity: str

    @property
    def name(self) -> str:
        """Folder of its files below the result's."""
        return run_name(self.budget, self.seed)


def run_name(budget: str, seed: int) -> str:
    """Folder of a run's files below the result's."""
    return f"{budget}-seed{seed}"


def required_training(context: StageContext) -> Training:
    """The pipeline's training.

    Raises:
        ValueError: it has none.
    """
    training = context.pipeline.training
    if training is None:
        message = "the pipeline has no `training`; say what is to be trained"
        raise ValueError(message)
    return training


def planned_runs(
    context: StageContext, stage: TrainingStage, partition: Partition, *, steps: int | None
) -> list[TrainingRun]:
    """The models of a partition.

    Args:
        context: of the pipeline and the selection.
        stage: which.
        partition: which kept set.
        steps: that training on everything takes, where that is known.

    Raises:
        MissingResultError: the manifest is missing, or made from other inputs than there are now.
    """
    training, random = required_training(context), stage.role in ("random", "sized_random")
    manifest = context.index.require_consistent(stage.manifests.name, partition)[partition]
    everything = int(manifest.details["kept"]) + int(manifest.details["removed"])
    kept = int(manifest.details["kept"])
    draws = random_draws(context)
    trainer, runs = [context.graph[stage.name].version, trainer_identity(training)], []
    for budget in budgets_of(stage, training):
        items, own_steps = (kept, None) if budget == "epochs" else (everything, steps)
        for index, seed in enumerate(training.seeds):
            draw = draws[index] if random else None
            # Another draw holds items that the manifest lacks: it changes with the manifest, and with all that this is made from.
            other = draw not in (None, draws[0])
            version = fingerprint([manifest.version, manifest.inputs, draw]) if other else manifest.version
            runs.append(
                TrainingRun(
                    partition=partition,
                    budget=budget,
                    seed=seed,
                    draw=draw,
                    manifest=join(manifest.location, manifest.details["manifest"]),
                    version=version,
                    kept=kept,
                    items=items,
                    steps=own_steps,
                    identity=fingerprint([version, items, own_steps, seed, trainer])[:16],
                )
            )
    return runs


def random_draws(context: StageContext) -> tuple[int, ...]:
    """Seeds of the random choices, one for each model: those of the settings, then the next numbers.

    Two models of one choice would count as two in the spread of a random baseline, and make it too small.

    Args:
        context: of the pipeline.
    """
    named = context.pipeline.analyses.random_pruning.seeds
    further = (draw for draw in itertools.count() if draw not in named)
    models = len(required_training(context).seeds)
    return (*named, *itertools.islice(further, max(0, models - len(named))))


def budgets_of(stage: TrainingStage, training: Training) -> tuple[Budget, ...]:
    """How long the models of a stage are trained; on everything equal steps are equal passes."""
    return ("epochs",) if stage.role == "everything" else training.budget


def trainer_identity(training: Training) -> dict[str, Any]:
    """What determines a model beside its data, budget and seed; of a preset's local folder what it holds."""
    model = "" if training.preset is None else training.preset.model.removeprefix("local-dir:")
    folder = Path(model).expanduser()
    held: dict[str, Any] = {"model_files": content_hash(folder)} if model and folder.is_dir() else {}
    if training.command is not None:
        held["command_files"] = named_files(training.command)
    return {**training.identity(), **held}


def named_files(command: str) -> dict[str, str]:
    """Hashes of the files that a command names, such as its script: another content is another command.

    What a shell is told to run is not looked into: it may write files that it names.

    Args:
        command: as it stands in the settings; a file counts as `--config=train.yaml` too.
    """
    paths = []
    parts = shlex.split(command)
    for name in (*parts, *(part.partition("=")[2] for part in parts)):
        # A name may be too long for a file, or begin with `~` and no user.
        with contextlib.suppress(OSError, RuntimeError):
            path = Path(name).expanduser()
            paths += [path] * path.is_file()
    return {str(path): content_hash(path) for path in paths}


def trained(context: StageContext, stage: TrainingStage, runs: Sequence[TrainingRun]) -> list["FinishedRun"]:
    """Train some models, as many side by side as the settings say; those that an earlier attempt finished are taken up.

    Raises:
        TrainingFailedError: one of them failed; the others are trained to their end, and are not trained again.
        ValueError: the device that was asked for is not there.
    """
    device = _device(context)
    at_once = min(len(runs), required_training(context).at_once)
    threads, stop = None if at_once == 1 else max(1, (os.cpu_count() or 1) // at_once), Event()
    with ThreadPoolExecutor(at_once) as pool:
        trainings = [_Training(context, stage, run, device, threads, stop) for run in runs]
        # Whoever listens to this thread hears those too.
        running = [pool.submit(copy_context().run, each.finished) for each in trainings]
        unfinished = set(running)
        try:
            # Now and then, for a signal that another thread receives does not end a wait.
            while unfinished:
                unfinished = wait(unfinished, _POLL_SECONDS).not_done
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    errors = [error for each in running if (error := each.exception()) is not None]
    for error in errors[1:]:
        progress.log(f"failed too: {error}")
    return [each.result() for each in running]


def _device(context: StageContext) -> str:
    """The device to train on.

    Raises:
        ValueError: a GPU is asked for, and the machine has none.
    """
    device = str(context.compute.torch_device)
    # A worker of a cluster takes what it was given: a GPU, where the settings ask for one.
    if context.pipeline.compute.device.startswith("cuda") and context.compute.device == "auto" and device == "cpu":
        message = (
            "compute.device: a GPU is asked for, and this worker has none; set `compute.workers.<stage>.num_gpus: 1`"
        )
        raise ValueError(message)
    return device


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A trained model, where its files lie until they are stored.

    Attributes:
        folder: of the run: checkpoint and log.
        files: paths below `folder/out` that are stored, by their names in the checkpoint.
        result: what the record says of it.
        curve: step, loss and learning rate of each point that was reported.
    """

    folder: Path
    files: dict[str, Path]
    result: dict[str, Any]
    curve: list[dict[str, Any]]


def work_root(context: StageContext) -> Path:
    """The local folder of a pipeline in which programs run: below the store, where that is a folder."""
    training, layout = required_training(context), context.layout
    root = training.work_folder or ("" if is_local(layout.root) else ".semdedup-training")
    # Two stores may share a work folder.
    store = fingerprint(layout.root)[:8]
    base = Path(root, layout.dataset, layout.model, store) if root else Path(layout.training)
    return base.absolute()


def work_folder(context: StageContext, stage: TrainingStage, partition: Partition) -> Path:
    """Where the models of a partition are trained: local, and the same for each attempt."""
    location = context.location(stage.name, partition).removeprefix(context.layout.folder).strip("/")
    return work_root(context) / location


def run_folder(context: StageContext, stage: TrainingStage, run: TrainingRun) -> Path:
    """Where a model is trained; its name has all that can change it: what other settings left is never gone on with."""
    return work_folder(context, stage, run.partition) / f"{run.name}-{run.identity}"


@dataclass(frozen=True)
class _Training:
    """Trains one model, or goes on with it."""

    context: StageContext
    stage: TrainingStage
    run: TrainingRun
    device: str
    threads: int | None
    stop: Event

    @property
    def _title(self) -> str:
        return f"{self.stage.name} {self.run.partition} {self.run.name}".replace("  ", " ")

    @property
    def _folder(self) -> Path:
        return run_folder(self.context, self.stage, self.run)

    def finished(self) -> FinishedRun:
        """The trained model."""
        done = self._folder / "done.json"
        with held_folder(self._folder, self._title, self.stop) as lock:
            if done.exists():
                progress.log(f"{self._title}: was trained by an earlier attempt")
            else:
                self._train(done, lock)
        known = json.loads(done.read_text())
        files = self._checkpoint_files()
        return FinishedRun(self._folder, files, known["result"], known["curve"])

    def _train(self, done: Path, lock: IO[str]) -> None:
        out = self._folder / "out"
        out.mkdir(parents=True, exist_ok=True)
        manifest, kept = self._manifest()
        spec = self._spec(manifest, kept, out)
        process = TrainerProcess(
            self._title, self._command(spec), self._folder, spec.model_dump(), self.threads, self.stop
        )
        reported = self._run(process, lock)
        seconds = self._spent()
        if not self._checkpoint_files():
            message = (
                f"{self._title}: the trainer ended without an error, and left no file in {out}; {process.last_words()}"
            )
            raise TrainingFailedError(message)
        result = {**self._result(reported, seconds), "kept": kept}
        _replace(done, {"result": result, "curve": _curve(reported)})
        progress.log(f"{self._title}: trained in {seconds:,.0f} s")

    def _run(self, process: TrainerProcess, lock: IO[str]) -> Reported:
        """Run the trainer; one that a signal ended goes on where it saved last, as often as a shard is tried."""
        attempts = self.context.pipeline.refresh.attempts
        for attempt in range(1, attempts + 1):
            started = time.monotonic()
            try:
                return process.run(lock)
            except KilledError as error:
                if attempt == attempts:
                    raise
                progress.log(f"{error} (attempt {attempt} of {attempts})")
            finally:
                _replace(self._seconds, self._spent() + time.monotonic() - started)
        raise AssertionError

    @property
    def _seconds(self) -> Path:
        return self._folder / "seconds.json"

    def _spent(self) -> float:
        """Seconds of all attempts, but for those whose run was killed with them."""
        return float(json.loads(self._seconds.read_text())) if self._seconds.exists() else 0.0

    def _manifest(self) -> tuple[str, int]:
        """The folder to train on, and how many items it lists: a random kept set is chosen anew for each of its seeds."""
        run, (first, *_) = self.run, random_draws(self.context)
        if run.draw in (None, first):
            return run.manifest, run.kept
        folder = self._folder / "manifest"
        shutil.rmtree(folder, ignore_errors=True)
        stage = cast("RandomManifests", self.stage.manifests.name)
        kept = write_random_manifest(self.context, run.partition, stage=stage, seed=run.draw, folder=str(folder))
        return str(folder), kept

    def _spec(self, manifest: str, kept: int, out: Path) -> TrainerSpec:
        training, run = required_training(self.context), self.run
        return TrainerSpec(
            manifest=manifest,
            items=kept if run.budget == "epochs" else run.items,
            kept=kept,
            steps=run.steps,
            seed=run.seed,
            out=str(out),
            device=self.device,
            settings={} if training.preset is None else training.preset.model_dump(mode="json"),
        )

    def _command(self, spec: TrainerSpec) -> list[str]:
        """Program and arguments."""
        training = required_training(self.context)
        if training.command is None:
            module = next(module for name, module in _PRESETS.items() if getattr(training, name) is not None)
            return [sys.executable, "-m", module]
        named = set(placeholders(training.command))
        values: dict[str, Any] = {name: getattr(spec, name) for name in named - {"tars"}}
        if "tars" in named:
            values["tars"] = "::".join(manifest_tars(spec.manifest))
        return [filled(part, values) for part in shlex.split(training.command)]

    def _checkpoint_files(self) -> dict[str, Path]:
        """What is stored: of a preset the model, of a command all that it wrote."""
        out = self._folder / "out"
        root = out if required_training(self.context).command else out / MODEL
        found = {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}
        return {name: path for name, path in found.items() if not name.startswith(f"{STATE}{os.sep}")}

    def _result(self, reported: Reported, seconds: float) -> dict[str, Any]:
        last, totals = reported.last, dict(reported.totals)
        return {
            "budget": self.run.budget,
            "seed": self.run.seed,
            "draw": self.run.draw,
            "identity": self.run.identity,
            "manifest": self.run.version,
            "steps": totals.pop("steps", None) or (last.step if last is not None and reported.numbered else None),
            "items": totals.pop("items", None),
            "tokens": totals.pop("tokens", None),
            "loss": None if last is None else last.loss,
            "seconds": seconds,
            "device": self.device,
            **({"reported": totals} if totals else {}),
        }


def _replace(path: Path, content: object) -> None:
    """Write JSON whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    partial.replace(path)


def _curve(reported: Reported) -> list[dict[str, Any]]:
    return [asdict(reported.curve[step]) for step in sorted(reported.curve)]


def manifest_tars(manifest: str) -> list[str]:
    """The tars of a manifest, in order.

    Raises:
        TrainingFailedError: it has none.
    """
    found = sorted(path for path in list_folder(join(manifest, "webdataset")) if path.endswith(".tar"))
    if not found:
        message = f"{manifest}: holds no webdataset/*.tar; add `webdataset` to `manifests`, and materialise it again"
        raise TrainingFailedError(message)
    return found
