"""Train models on each kept set: a checkpoint, a log and a result for each budget and seed (SemDeDup, sections 4.4 and 5)."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semdedup_assets.checks.manifests import MANIFESTS
from semdedup_assets.checks.trained_models import training_checks
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import PartOfResult, StageContext, used_for
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import EVALUATE, Picture, Rows, Shown, Stage, Worker
from semdedup_assets.kept_sets import Selection
from semdedup_assets.rendering.training_curves import TrainingCurve, training_curves
from semdedup_assets.settings import Pipeline
from semdedup_assets.stages import manifests
from semdedup_assets.storage.results import FolderWriter, ResultRecord, ResultWriter, attempting, require_written
from semdedup_assets.training.evaluation_data import require_evaluation_data
from semdedup_assets.training.training_runs import (
    CHECKPOINT,
    CURVE,
    LOG,
    RESULT,
    FinishedRun,
    TrainingRun,
    TrainingStage,
    budgets_of,
    planned_runs,
    random_draws,
    required_training,
    run_folder,
    run_name,
    trained,
    trainer_identity,
)

TRAINED_MODELS = TrainingStage("trained_models", MANIFESTS, "semdedup")
EVERYTHING = "everything_trained_models"

_BLOCK = 8 << 20
_COLUMNS = ("budget", "seed", "steps", "items", "tokens", "loss", "seconds")


@dataclass(frozen=True, slots=True)
class _TrainingTask:
    """Some models of a partition, which one worker trains.

    Attributes:
        attempt: name of the folder of the result, which all its tasks share.
    """

    partition: Partition
    runs: tuple[TrainingRun, ...]
    attempt: str
    inputs: dict[str, str]


def trains(role: str, manifests: Callable[[Pipeline, Selection], bool]) -> Callable[[Pipeline, Selection], bool]:
    """Which pipelines train models of a role.

    Args:
        role: of the kept sets: `semdedup`, or a baseline.
        manifests: which pipelines have the manifests.
    """

    def applies(pipeline: Pipeline, selection: Selection) -> bool:
        training = pipeline.training
        if training is None or not manifests(pipeline, selection):
            return False
        return role in ("semdedup", *training.against) or (role == "everything" and goes_by_steps(pipeline))

    return applies


def goes_by_steps(pipeline: Pipeline) -> bool:
    """Whether the trainer must be told how many steps everything takes; others go by samples, which are known."""
    training = pipeline.training
    return training is not None and "steps" in training.budget and training.causal_lm is not None


def _tasks(context: StageContext, stage: TrainingStage, partition: Partition) -> Sequence[_TrainingTask]:
    """The models that are to be trained."""
    require_evaluation_data(context)
    inputs = context.index.input_versions(stage.name, partition)
    runs = planned_runs(context, stage, partition, steps=_steps(context, stage))
    known = _reusable(context, stage, partition)
    missing = [run for run in runs if known.get(run.name, {}).get("identity") != run.identity]
    attempt = FolderWriter("").attempt
    # Of several workers each trains one at a time.
    groups = [(run,) for run in missing] if context.parallelism > 1 else [tuple(missing)] * bool(missing)
    return [_TrainingTask(partition, group, attempt, inputs) for group in groups]


def _reusable(context: StageContext, stage: TrainingStage, partition: Partition) -> dict[str, dict[str, Any]]:
    """The results of the runs that are there, by name: another seed trains itself alone.

    Whoever asks for a partition that is up to date wants all of it again.
    """
    record = context.index.record(stage.name, partition)
    if record is None or context.index.is_current(stage.name, partition):
        return {}
    return _by_name(record.details["runs"])


def _by_name(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What records or tasks say of runs, by the folders of their files."""
    return {run_name(result["budget"], result["seed"]): result for result in results}


def _steps(context: StageContext, stage: TrainingStage) -> int | None:
    """The steps of everything, where the trainer goes by them."""
    if stage.name == EVERYTHING or not goes_by_steps(context.pipeline):
        return None
    return _most_steps(context.index.require_consistent(EVERYTHING)[Partition()])


def _most_steps(record: ResultRecord) -> int | None:
    return max((run["steps"] for run in record.details["runs"] if run["steps"]), default=None)


def training_worker(context: StageContext, stage: TrainingStage) -> Worker:
    """What trains the models of a stage.

    Args:
        context: of the pipeline and the selection.
        stage: which.
    """
    return lambda task: _train(context, stage, task)


def _train(context: StageContext, stage: TrainingStage, task: _TrainingTask) -> PartOfResult:
    context.index.require_inputs(stage.name, task.partition, task.inputs)
    with usage.phase("train"):
        finished = trained(context, stage, task.runs)
    with attempting(FolderWriter(context.location(stage.name, task.partition), task.attempt)) as writer:
        for run, found in zip(task.runs, finished, strict=True):
            with usage.phase("store"):
                _store(writer, run, found)
    details = {"runs": [each.result for each in finished], "attempt": task.attempt, "usage": used_for(None)}
    return PartOfResult(task.inputs, writer.files, details)


def _store(writer: ResultWriter, run: TrainingRun, found: FinishedRun) -> None:
    """Store the files of a run: the checkpoint, and beside it what does not count for the version."""
    for name, path in found.files.items():
        _copy(writer, f"{run.name}/{CHECKPOINT}/{name}", path)
    _copy(writer, f"{run.name}/{LOG}", found.folder / LOG)
    for name, content in ((RESULT, found.result), (CURVE, found.curve)):
        with writer.open(f"{run.name}/{name}") as stream:
            stream.write(json.dumps(content, indent=1).encode())


def _copy(writer: ResultWriter, name: str, path: Path) -> None:
    with writer.open(name) as stream, path.open("rb") as source:
        shutil.copyfileobj(source, stream, _BLOCK)


def _finish(
    context: StageContext, stage: TrainingStage, partition: Partition, parts: list[PartOfResult]
) -> ResultRecord:
    attempt = parts[0].details["attempt"] if parts else FolderWriter("").attempt
    writer = FolderWriter(context.location(stage.name, partition), attempt)
    planned = planned_runs(context, stage, partition, steps=_steps(context, stage))
    known = {name: (each, part.files) for part in parts for name, each in _by_name(part.details["runs"]).items()}
    if any(run.name not in known for run in planned):
        earlier = context.index.require(stage.name, partition)
        known = {name: (each, earlier.files) for name, each in _by_name(earlier.details["runs"]).items()} | known
    results = []
    for run in planned:
        result, files = known[run.name]
        results.append(result)
        writer.files |= {name: entry for name, entry in files.items() if name.startswith(f"{run.name}/")}
    writer.unversioned = {name for name in writer.files if name.count("/") == 1}
    manifest, training = context.index.require(stage.manifests.name, partition), required_training(context)
    writer.details = {
        "role": stage.role,
        "models": len(results),
        "kept": manifest.details["kept"],
        "everything": manifest.details["kept"] + manifest.details["removed"],
        "runs": results,
        "trainer": trainer_identity(training),
        "made_with": {"manifest": manifest.details["manifest"], **manifest.details["made_with"]},
        **usage.added(part.details["usage"] for part in parts),
    }
    require_written(writer)
    inputs = parts[0].inputs if parts else context.index.input_versions(stage.name, partition)
    record = context.commit(stage.name, writer, inputs=inputs)
    for run in planned:
        # What other settings left may be gone on with, and what another run trains is its own.
        shutil.rmtree(run_folder(context, stage, run), ignore_errors=True)
    return record


def _shown(_: StageContext, __: Partition, record: ResultRecord) -> dict[str, Shown]:
    curves = []
    for name, run in _by_name(record.details["runs"]).items():
        points = json.loads(record.file(f"{name}/{CURVE}").content())
        curves.append(TrainingCurve.of(run["budget"], run["seed"], points))
    shown: dict[str, Shown] = {}
    if any(len(curve.steps) for curve in curves):
        title = "Loss and learning rate"
        shown["training"] = Picture(training_curves(curves, title=title, note=_note(record)), title)
    runs = record.details["runs"]
    columns = [name for name in _COLUMNS if any(run[name] is not None for run in runs)]
    shown["runs"] = Rows([{name: run[name] for name in columns} for run in runs])
    return shown


def _note(record: ResultRecord) -> str:
    details = record.details
    share = details["kept"] / max(1, details["everything"])
    return f"{details['kept']:,} of {details['everything']:,} items ({share:.0%}), {details['models']} models"


def training_stage(
    stage: TrainingStage,
    worker: Callable[[StageContext], Worker],
    manifests: Stage,
) -> Stage:
    """A stage that trains models on the manifests of another stage.

    Args:
        stage: its name, and whose manifests it reads.
        worker: calls `training_worker`; a function of the module whose `STAGE` this becomes.
        manifests: the stage that writes them, whose dimensions it shares.
    """
    clustered = bool(manifests.dimensions)
    baseline = "" if stage.role == "semdedup" else f"Of the baseline `{stage.role}`. "
    return Stage(
        name=stage.name,
        step=EVALUATE,
        description=f"{baseline}Models that were trained on the manifest, one for each budget and seed: checkpoint, log, and "
        "what it took (SemDeDup, sections 4.4 and 5). The trainer is a process of its own; one that was ended goes on "
        "where it saved last.",
        dimensions=manifests.dimensions,
        inputs=(stage.manifests.name,),
        optional_inputs=lambda pipeline, _: (
            (EVERYTHING,) if goes_by_steps(pipeline) and stage.name != EVERYTHING else ()
        ),
        input_version=lambda _, name, record: str(_most_steps(record)) if name == EVERYTHING else record.version,
        settings=lambda context: _settings(context, stage),
        location=lambda layout, partition, selection: (
            layout.of_kept_set(partition.kept_set(selection), "trained_models", stage.role)
            if clustered
            else layout.of_baseline(stage.role, "trained_models")
        ),
        worker=worker,
        tasks=lambda context, partition: _tasks(context, stage, partition),
        finish=lambda context, partition, parts: _finish(context, stage, partition, parts),
        kinds=frozenset({"torch"}),
        checks=training_checks(stage.name),
        # Models that are held against each other are trained on one kind of device.
        workers_of=TRAINED_MODELS.name,
        shown=_shown,
        selected=clustered,
        on_demand=True,
        applies=trains(stage.role, manifests.applies),
        unit="kept sets",
    )


def _settings(context: StageContext, stage: TrainingStage) -> dict[str, Any]:
    training = context.pipeline.training
    if training is None:
        return {}
    random = {"draws": random_draws(context)} if "random" in stage.role else {}
    budgets = sorted(budgets_of(stage, training))
    return {**trainer_identity(training), "budgets": budgets, "seeds": list(training.seeds), **random}


def _worker(context: StageContext) -> Worker:
    return training_worker(context, TRAINED_MODELS)


STAGE = training_stage(TRAINED_MODELS, _worker, manifests.STAGE)
