"""Measure a trained model by all metrics; what was measured of the same model and data before is not measured again."""

import json
import math
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import xxhash
from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError

from semdedup_assets.execution import progress
from semdedup_assets.execution.context import StageContext
from semdedup_assets.storage.files import is_local, join, read_many, write_bytes
from semdedup_assets.storage.results import ResultRecord, StoredFile, copy_verified, fingerprint
from semdedup_assets.training.evaluation_data import EvaluationSets
from semdedup_assets.training.held_out_sets import set_files, texts_version
from semdedup_assets.training.metrics.measured import Measured
from semdedup_assets.training.trainer_process import TrainerProcess, TrainingFailedError, first_problem
from semdedup_assets.training.training_runs import CHECKPOINT, named_files, required_training, run_name, work_root
from semdedup_assets.training_settings import filled, placeholders

METRICS_FILE = "metrics.json"
_FORMAT = 1
_CONFIGURATIONS = {"image": "open_clip_config.json", "text": "config.json"}


class EvaluationFailedError(RuntimeError):
    """A model cannot be measured; says which, by what, and what to do."""


@dataclass(frozen=True, slots=True)
class Score:
    """One number of one model.

    Attributes:
        metric: its name, such as `bits_per_byte` or `image_to_text_recall@5`.
        set: name of the data set; empty of a command's.
        value: finite.
        higher_is_better: of the metric.
        items: of the data set that were measured; 0 where a command did not say.
        skipped: that could not be.
    """

    metric: str
    set: str
    value: float
    higher_is_better: bool
    items: int
    skipped: int


@dataclass(frozen=True)
class StoredModel:
    """One trained model, as it lies in the store.

    Attributes:
        record: of the stage that trained it.
        result: what the record says of its run.
    """

    record: ResultRecord
    result: Mapping[str, Any]

    @cached_property
    def files(self) -> dict[str, StoredFile]:
        """Its checkpoint, by the files' own names."""
        prefix = f"{run_name(self.result['budget'], self.result['seed'])}/{CHECKPOINT}/"
        names = [name for name in self.record.files if name.startswith(prefix)]
        return {name.removeprefix(prefix): self.record.file(name) for name in names}

    @property
    def version(self) -> str:
        """Of its content."""
        return fingerprint({name: file.entry.checksum for name, file in self.files.items()})

    @property
    def title(self) -> str:
        """For logs and errors."""
        return f"{self.record.location}, {run_name(self.result['budget'], self.result['seed'])}"

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A local folder with the checkpoint, each file held against the record.

        Raises:
            DamagedResultError: one is missing, or holds other bytes than were written.
        """
        name, file = next(iter(self.files.items()))
        root = file.path.removesuffix(f"/{name}")
        if is_local(root):
            for each in self.files.values():
                copy_verified(each, to=_Nowhere())
            yield Path(root)
            return
        with tempfile.TemporaryDirectory(prefix="semdedup-model-") as scratch:
            for name, each in self.files.items():
                path = Path(scratch, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as copy:
                    copy_verified(each, to=copy)
            yield Path(scratch)


class _Nowhere:
    """Takes bytes that are only looked at."""

    def write(self, data: bytes) -> int:
        """Take some."""
        return len(data)


Loaded = dict[str, Any]
"""What was loaded of a model's folder, so that each metric need not."""


@dataclass(frozen=True)
class Metric:
    """A way to measure a model.

    Attributes:
        name: of the data set; empty of a command.
        kind: `bits_per_byte`, `retrieval`, `zero_shot` or `command`.
        identity: hash of the data and the settings.
        measure: measures the model in a folder.
    """

    name: str
    kind: str
    identity: str
    measure: Callable[[StoredModel, Path, Loaded], list[Score]]

    @property
    def version(self) -> str:
        """What all models must be measured by to be held against each other."""
        return fingerprint([self.kind, self.identity])


class ModelScores:
    """Measures models by all metrics of a pipeline.

    Args:
        context: of the pipeline and the selection.
        held_out: record of the sets that were derived from held-out items; None where there are none.
    """

    def __init__(self, context: StageContext, held_out: ResultRecord | None) -> None:
        self._context, self._held_out = context, held_out
        self._training = required_training(context)
        self._settings = context.pipeline.evaluation
        self._sets = EvaluationSets(self._settings)
        # By metric, what was found of the first model: where it is kept, and its names with their directions.
        self._first: dict[str, tuple[str, dict[str, bool]]] = {}

    @cached_property
    def metrics(self) -> list[Metric]:
        """Every metric.

        Raises:
            EvaluationFailedError: there is none.
            MissingEvaluationDataError: a data set is not there.
        """
        found = [*self._language_metrics(), *self._image_metrics(), *self._command_metrics()]
        if not found:
            message = (
                "evaluation: nothing to measure the models by; name a set (`bits_per_byte`, `retrieval`, `zero_shot`), give a "
                "`command`, or hold items out (`held_out`)"
            )
            raise EvaluationFailedError(message)
        return found

    def of(self, model: StoredModel) -> list[tuple[Metric, list[Score]]]:
        """All scores of a model by what measured them; those of the same content are read.

        Raises:
            EvaluationFailedError: it cannot be measured, or has not the numbers that the models before it have.
        """
        places = [self._place(model, metric) for metric in self.metrics]
        known = [_read(content) for content in read_many(places)]
        if None in known:
            with model.folder() as folder:
                loaded: Loaded = {}
                for index, metric in enumerate(self.metrics):
                    if known[index] is None:
                        known[index] = self._measured(model, metric, folder, loaded)
                        write_bytes(places[index], _written(known[index] or []))
        found = [(metric, scores or []) for metric, scores in zip(self.metrics, known, strict=True)]
        for (metric, scores), place in zip(found, places, strict=True):
            self._require_same_numbers(model, metric, scores, place)
        return found

    def _require_same_numbers(self, model: StoredModel, metric: Metric, scores: Sequence[Score], place: str) -> None:
        """See that a model has the numbers of the first one: the spreads of some would be held against those of others."""
        own = {score.metric: score.higher_is_better for score in scores}
        first_place, first = self._first.setdefault(metric.version, (place, own))
        differing = sorted(name for name in own.keys() | first.keys() if own.get(name) != first.get(name))
        if differing:
            message = (
                f"{model.title}: {' '.join(filter(None, (metric.kind, metric.name)))}: {', '.join(differing)}: only some of the models have it, or not "
                f"all in one direction; see that all models are measured alike, and remove {first_place} and {place} to measure "
                "again"
            )
            raise EvaluationFailedError(message)

    def _place(self, model: StoredModel, metric: Metric) -> str:
        name = fingerprint([model.version, metric.kind, metric.name, metric.identity])
        return join(self._context.layout.folder, "evaluation_scores", f"{name}.json")

    def _measured(self, model: StoredModel, metric: Metric, folder: Path, loaded: Loaded) -> list[Score]:
        scores = metric.measure(model, folder, loaded)
        wrong = [score.metric for score in scores if not math.isfinite(score.value)]
        if wrong or not scores:
            found = f"{', '.join(wrong)} is not a finite number" if wrong else "no number came of it"
            message = f"{model.title}: {metric.kind} {metric.name}: {found}; look at the model and at the data"
            raise EvaluationFailedError(message)
        progress.log(f"{model.title}: {metric.name} {', '.join(f'{s.metric} {s.value:.4g}' for s in scores[:2])}")
        return scores

    def _language_metrics(self) -> Iterator[Metric]:
        named = {
            name: (path, self._sets.version(f"evaluation.bits_per_byte.{name}"))
            for name, path in self._settings.bits_per_byte.items()
        }
        # A command's model may have any form: that it is a language model is seen by a set that is named for such.
        derived = self._held_out if self._training.causal_lm is not None or named else None
        for name, file in set_files(derived).items() if derived is not None else ():
            named[name] = (file.path, texts_version(file))
        for name, (path, version) in named.items():

            def measure(
                _: StoredModel, folder: Path, loaded: Loaded, *, path: str = path, name: str = name
            ) -> list[Score]:
                from semdedup_assets.training.metrics.bits_per_byte import bits_per_byte, load_language_model

                if "language" not in loaded:
                    loaded["language"] = load_language_model(self._model_folder(folder, "text"), self._device)
                found = bits_per_byte(loaded["language"], path)
                return _scores(found, name, higher_is_better=False)

            yield Metric(name, "bits_per_byte", version, measure)

    def _image_metrics(self) -> Iterator[Metric]:
        for name, path in self._settings.retrieval.items():

            def measure(_: StoredModel, folder: Path, __: Loaded, *, path: str = path, name: str = name) -> list[Score]:
                from semdedup_assets.training.metrics.retrieval import retrieval

                model = self._model_folder(folder, "image")
                return _scores(retrieval(model, path, device=self._device, batch_size=self._batch_size), name)

            yield Metric(name, "retrieval", self._sets.version(f"evaluation.retrieval.{name}"), measure)
        for name, settings in self._settings.zero_shot.items():

            def classify(
                _: StoredModel, folder: Path, __: Loaded, *, settings: Any = settings, name: str = name
            ) -> list[Score]:
                from semdedup_assets.training.metrics.zero_shot import zero_shot

                model = self._model_folder(folder, "image")
                return _scores(zero_shot(model, settings, device=self._device, batch_size=self._batch_size), name)

            version = fingerprint([self._sets.version(f"evaluation.zero_shot.{name}.path"), settings.model_dump()])
            yield Metric(name, "zero_shot", version, classify)

    def _command_metrics(self) -> Iterator[Metric]:
        command = self._settings.command
        if command is not None:
            held_out = (
                set_files(self._held_out) if self._held_out is not None and "held_out" in placeholders(command) else {}
            )
            contents = {name: texts_version(file) for name, file in held_out.items()}
            identity = fingerprint([command, named_files(command), contents])
            yield Metric(
                "", "command", identity, lambda model, folder, _: self._by_command(command, model, folder, held_out)
            )

    def _by_command(
        self, command: str, model: StoredModel, folder: Path, held_out: Mapping[str, StoredFile]
    ) -> list[Score]:
        title, logs = f"{model.title}: evaluation.command", work_root(self._context) / "evaluations"
        logs.mkdir(parents=True, exist_ok=True)
        # What it printed stays where it fails.
        process_folder = Path(tempfile.mkdtemp(dir=logs))
        with tempfile.TemporaryDirectory(prefix="semdedup-evaluation-") as scratch:
            sets = Path(scratch, ".held-out")
            sets.mkdir()
            for name, file in held_out.items():
                (sets / f"{name}.jsonl").write_bytes(file.content())
            values = {"checkpoint": folder, "out": scratch, "seed": model.result["seed"], "held_out": sets}
            parts = [filled(part, values) for part in shlex.split(command)]
            process = TrainerProcess(title, parts, process_folder, trains=False)
            try:
                process.run()
            except TrainingFailedError as error:
                raise EvaluationFailedError(str(error)) from error
            path = Path(scratch, METRICS_FILE)
            if not path.is_file():
                message = (
                    f"{title}: it ended without an error and wrote no {{out}}/{METRICS_FILE}; {process.last_words()}"
                )
                raise EvaluationFailedError(message)
            found = command_scores(path.read_bytes(), title)
        shutil.rmtree(process_folder)
        return found

    @property
    def _device(self) -> str:
        return str(self._context.compute.torch_device)

    @property
    def _batch_size(self) -> int | None:
        return self._context.compute.batch_size

    def _model_folder(self, folder: Path, content: str) -> Path:
        """Where the model lies in a checkpoint: of a command's own layout, wherever its configuration is."""
        name = _CONFIGURATIONS[content]
        found = sorted(path.parent for path in folder.rglob(name))
        if len(found) != 1:
            there = "none" if not found else ", ".join(str(path.relative_to(folder)) for path in found)
            message = (
                f"{folder}: one folder with a {name} is needed to measure the model, and there is {there}; let the trainer "
                "write the model in that form, or measure it by `evaluation.command`"
            )
            raise EvaluationFailedError(message)
        return found[0]


class _Number(BaseModel, extra="forbid", strict=True):
    """A number of a command's, and the direction of its metric."""

    value: float
    higher_is_better: bool = True


def _as_number(value: object) -> object:
    return value if isinstance(value, dict) else {"value": value}


_NUMBERS = TypeAdapter(dict[Annotated[str, Field(min_length=1)], Annotated[_Number, BeforeValidator(_as_number)]])


def command_scores(content: bytes, title: str = "evaluation.command") -> list[Score]:
    """What a command measured.

    Args:
        content: of its `metrics.json`.
        title: of what was measured, for errors.

    Raises:
        EvaluationFailedError: it is not an object of numbers by name; names the first that is none.
    """
    try:
        # Of what JSON lacks, NaN and infinities are read, to be refused by the metric's name.
        found = _NUMBERS.validate_python(json.loads(content))
    except (ValueError, RecursionError) as error:
        wrong = first_problem(error) if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
        message = (
            f"{title}: {METRICS_FILE} is not what is expected ({wrong}): an object of numbers "
            'by name, or of `{"value": 1.2, "higher_is_better": false}`'
        )
        raise EvaluationFailedError(message) from error
    return [Score(name, "", each.value, each.higher_is_better, 0, 0) for name, each in found.items()]


def _scores(measured: Measured, name: str, *, higher_is_better: bool = True) -> list[Score]:
    for key, reason in measured.skipped[:3]:
        progress.log(f"{name}: {key} was skipped: {reason}")
    return [
        Score(metric, name, value, higher_is_better, measured.items, len(measured.skipped))
        for metric, value in measured.values.items()
    ]


def _written(scores: Sequence[Score]) -> bytes:
    body = json.dumps([asdict(score) for score in scores])
    return json.dumps({"format": _FORMAT, "checksum": xxhash.xxh3_64_hexdigest(body.encode()), "scores": body}).encode()


def _read(content: bytes | None) -> list[Score] | None:
    """Scores as they were stored; what is damaged, or of another version, is measured again."""
    if content is None:
        return None
    try:
        document = json.loads(content)
        body = document["scores"]
        if document["format"] != _FORMAT or document["checksum"] != xxhash.xxh3_64_hexdigest(body.encode()):
            return None
        return [Score(**each) for each in json.loads(body)]
    except (ValueError, TypeError, KeyError):
        return None


def stored_models(record: ResultRecord) -> list[StoredModel]:
    """The models of a partition."""
    return [StoredModel(record, result) for result in record.details["runs"]]
