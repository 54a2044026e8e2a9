"""Trains one CLIP by OpenCLIP's own training program, as a process of its own.

    python -m semdedup_assets.training.trainers.openclip

OpenCLIP's program makes the model, the optimizer, the schedule, the loop and the checkpoints. Three of its functions are
replaced, in this process alone: the model starts at random; the data come in even passes, in an order that the seed
decides, where OpenCLIP's own loaders draw from the clock (WebDataset) or know no number of samples (CSV); and the loop
reports its loss, and stops where that is not finite.
"""

import hashlib
import json
import math
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semdedup_assets.compute import Compute
from semdedup_assets.encoders.own_code import refusing_own_code
from semdedup_assets.training.trainers.image_text import (
    Batches,
    ImageText,
    Passes,
    Preparation,
    Samples,
    TrainingData,
    manifest_samples,
    remove_damaged,
)
from semdedup_assets.training.trainers.spec import MODEL, STATE, DivergedError, Report, TrainerSpec
from semdedup_assets.training_settings import OpenClipTraining

if TYPE_CHECKING:
    import argparse

_CONFIG = "open_clip_config.json"
_LOCAL_DIR = "local-dir:"
_SETTINGS = "training.openclip"
# Of a training, so many losses are reported, or one in so many steps.
_REPORTS, _MOST_STEPS_APART = 200, 100
# Arguments that would begin with weights.
_WEIGHTS = ("pretrained", "pretrained_image")
_HOW_OFTEN = "log_every_n_steps"


@dataclass
class _Progress:
    """What OpenCLIP's loop reports: each step's number and learning rate, its loss where it is logged.

    It stands in for the writer of TensorBoard's files, to which it passes on what it is told.
    """

    report: Report
    writer: Any = None
    step: int = 0
    learning_rate: float = 0.0

    def scheduled(self, adjust: Callable[[int], float]) -> Callable[[int], float]:
        """A schedule that is followed."""

        def adjusted(step: int) -> float:
            self.step, self.learning_rate = step + 1, adjust(step)
            return self.learning_rate

        return adjusted

    def checked(self, loss: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        """A loss that must be finite, in each step.

        Raises:
            DivergedError: it is not.
        """

        def finite(**outputs: Any) -> dict[str, Any]:
            losses = loss(**outputs)
            total = sum(each.item() for each in losses.values())
            if not math.isfinite(total):
                message = (
                    f"the training diverged: the loss of step {self.step} is {total}, at the learning rate "
                    f"{self.learning_rate:.3g}; lower `{_SETTINGS}.learning_rate`, or raise `{_SETTINGS}.warmup_steps`"
                )
                raise DivergedError(message)
            return losses

        return finite

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Take a number of a logged step, which OpenCLIP counts from 0."""
        if name == "train/loss":
            self.report({"step": step + 1, "loss": value, "learning_rate": self.learning_rate})
        if self.writer is not None:
            self.writer.add_scalar(name, value, step)


@dataclass
class _Training:
    """One training: its specification, and what OpenCLIP made for it.

    Attributes:
        spec: what is trained.
        settings: of the preset.
        samples: of the manifest.
        report: takes the messages.
        args: OpenCLIP's, once its program has completed them.
        model: once the program has made it.
    """

    spec: TrainerSpec
    settings: OpenClipTraining
    samples: Samples
    report: Report
    args: "argparse.Namespace | None" = None
    model: Any = None

    @property
    def name(self) -> str:
        """Of the state: that of another specification is never resumed."""
        determining = self.spec.model_dump(mode="json", exclude={"out", "device"})
        return hashlib.sha256(json.dumps(determining, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def state(self) -> Path:
        """Where OpenCLIP's program writes its log and checkpoints."""
        return Path(self.spec.out) / STATE / self.name

    @property
    def folder(self) -> Path:
        """Where the trained model is left."""
        return Path(self.spec.out) / MODEL

    def arguments(self, device: str) -> list[str]:
        """OpenCLIP's arguments.

        Raises:
            ValueError: the setting `arguments` has one that OpenCLIP lacks, or that another setting decides.
        """
        own = self._own_arguments(device)
        given = [*own, *shlex.split(self.settings.arguments)]
        fixed, found = _parsed(own), _parsed(given)
        names = [name[2:].replace("-", "_") for name in own[::2]]
        changed = [name for name in (*names, *_WEIGHTS) if name != _HOW_OFTEN and found[name] != fixed[name]]
        if changed:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in changed)
            message = (
                f"{_SETTINGS}.arguments: {options} cannot be given here: another setting decides it, or the model would "
                "not start at random; use that setting, or train by `training.command`"
            )
            raise ValueError(message)
        return given

    def _own_arguments(self, device: str) -> list[str]:
        """Names and values in turn."""
        settings, precision = self.settings, self.settings.precision
        if precision == "auto":
            precision = "amp" if device.startswith("cuda") else "fp32"
        steps = settings.epochs * math.ceil(self.spec.items / settings.batch_size)
        given: dict[str, Any] = {
            "model": settings.model, "train-data": self.spec.manifest, "train-num-samples": self.spec.items,
            "epochs": settings.epochs, "batch-size": settings.batch_size, "lr": settings.learning_rate,
            "warmup": settings.warmup_steps, "wd": settings.weight_decay, "precision": precision,
            "workers": settings.workers, "seed": self.spec.seed, "device": device,
            "logs": self.state.parent, "name": self.name, "resume": "latest", "save-frequency": 1,
            "log-every-n-steps": max(1, min(_MOST_STEPS_APART, steps // _REPORTS)),
        }  # fmt: skip
        return [part for name, value in given.items() for part in (f"--{name}", str(value))]

    def batches(self, args: Mapping[str, Any]) -> Batches:
        """The batches of each epoch, as many as OpenCLIP's WebDataset loader has: the last one is filled up.

        Args:
            args: OpenCLIP's.

        Raises:
            ValueError: there are too few samples for a batch, or not as many steps as were asked for.
        """
        size, together, epochs = args["batch_size"], args["accum_freq"], args["epochs"]
        if len(self.samples) < size:
            message = (
                f"{self.spec.manifest}: of {self.spec.kept:,} kept items {len(self.samples):,} have image and caption, fewer "
                f"than a batch of {size:,}; lower `{_SETTINGS}.batch_size`, or give the source captions"
            )
            raise ValueError(message)
        steps = math.ceil(self.spec.items / (size * together))
        if self.spec.steps not in (None, steps * epochs):
            message = (
                f"{epochs} passes over {self.spec.items:,} items take {steps * epochs:,} steps, not {self.spec.steps:,}"
            )
            raise ValueError(message)
        return Batches(Passes(len(self.samples), self.spec.seed), size, steps * together)

    @contextmanager
    def followed(self, program: Any, batches: Batches) -> Iterator[None]:
        """Replace functions of OpenCLIP's program for a while.

        Args:
            program: its module `open_clip_train.main`.
            batches: what it trains on.
        """
        create, read, train = program.create_model_and_transforms, program.get_data, program.train_one_epoch

        def created(name: str, weights: str, **options: Any) -> Any:
            import torch

            if self.model is not None:
                # One that is learnt from (`--distill-model`).
                return create(name, weights, **options)
            made = create(name, None, load_weights=False, **{**options, "pretrained_text": False})
            # Convolutions are 1.4 times as fast on a CPU; other weights have no such layout.
            self.model = made[0].to(memory_format=torch.channels_last)
            return made

        def data(args: Any, transforms: Any, epoch: int = 0, tokenizer: Any = None) -> dict[str, Any]:
            self.args = args
            for_validation = read(
                type(args)(**{**vars(args), "train_data": None}), transforms, epoch=epoch, tokenizer=tokenizer
            )
            tokenize = _Tokenize(tokenizer, _vocabulary(self.model))
            dataset = ImageText(self.samples, Preparation.of(transforms[0]), tokenize)
            return {**for_validation, "train": TrainingData.of(dataset, batches, workers=args.workers)}

        def epoch_of(model: Any, data: Any, loss: Any, *rest: Any, tb_writer: Any = None) -> None:
            epoch, optimizer, scaler, schedule, *others = rest
            progress = _Progress(self.report, tb_writer)
            loss, schedule = progress.checked(loss), progress.scheduled(schedule)
            train(model, data, loss, epoch, optimizer, scaler, schedule, *others, tb_writer=progress)

        replaced = {"create_model_and_transforms": created, "get_data": data, "train_one_epoch": epoch_of}
        originals = {name: getattr(program, name) for name in replaced}
        vars(program).update(replaced)
        try:
            yield
        finally:
            vars(program).update(originals)

    def save(self) -> None:
        """Write the trained model as a folder for `local-dir:`; it is whole from the moment it is there."""
        import open_clip
        from safetensors.torch import save_file

        partial = self.folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        config = _model_config(self.args)
        preprocess = open_clip.get_model_preprocess_cfg(self.model)
        description = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2)
        (partial / _CONFIG).write_text(description + "\n", encoding="utf-8")
        weights = {name: each.detach().cpu().contiguous().clone() for name, each in self.model.state_dict().items()}
        save_file(weights, str(partial / "open_clip_model.safetensors"))
        if config["text_cfg"].get("hf_tokenizer_name"):
            open_clip.get_tokenizer(self.settings.model).save_pretrained(partial)
        partial.replace(self.folder)


@dataclass(frozen=True)
class _Tokenize:
    """A tokenizer of OpenCLIP's, each token held against the model's vocabulary.

    Attributes:
        tokenizer: of the model.
        vocabulary: token ids of the model; None where it does not say.
    """

    tokenizer: Any
    vocabulary: int | None

    def __call__(self, texts: list[str]) -> Any:
        """(n, context) int64 token ids.

        Raises:
            ValueError: one is beyond the vocabulary; names the setting.
        """
        tokens = self.tokenizer(texts)
        greatest = int(tokens.max())
        if self.vocabulary is not None and greatest >= self.vocabulary:
            message = (
                f"{_SETTINGS}.model: its tokenizer gives the token {greatest:,}, and the model knows {self.vocabulary:,} "
                "(`text_cfg.vocab_size`); make that as large as the tokenizer"
            )
            raise ValueError(message)
        return tokens


def _vocabulary(model: Any) -> int | None:
    """Token ids of a CLIP, whose text tower may be a module of its own."""
    embedding = getattr(getattr(model, "text", model), "token_embedding", None)
    return getattr(embedding, "num_embeddings", None)


def _parsed(arguments: list[str]) -> dict[str, Any]:
    from open_clip_train.params import parse_args

    try:
        found: dict[str, Any] = vars(parse_args(arguments))
    except SystemExit as error:
        message = f"{_SETTINGS}.arguments: OpenCLIP does not take them; its message stands above"
        raise ValueError(message) from error
    return found


def _model_config(args: Any) -> dict[str, Any]:
    """The configuration of the model that was trained, with what arguments changed."""
    import open_clip

    local = args.model.startswith(_LOCAL_DIR)
    path = Path(args.model.removeprefix(_LOCAL_DIR)) / _CONFIG
    found: dict[str, Any] = (
        json.loads(path.read_text())["model_cfg"] if local else open_clip.get_model_config(args.model)
    )
    found["vision_cfg"]["image_size"] = args.force_image_size or found["vision_cfg"]["image_size"]
    if args.force_context_length:
        found["text_cfg"]["context_length"] = args.force_context_length
    if args.force_quick_gelu:
        found["quick_gelu"] = True
    if args.force_custom_text:
        found["custom_text"] = True
    if args.siglip:
        # Its weights have a bias, whatever its start was.
        found["init_logit_bias"] = -10
    return found


def _check_model(name: str) -> None:
    """Check that OpenCLIP can make a model.

    Raises:
        ValueError: it cannot; names the setting.
    """
    import open_clip

    if name.startswith(_LOCAL_DIR):
        path = Path(name.removeprefix(_LOCAL_DIR)) / _CONFIG
        if path.is_file():
            return
        message = f"{_SETTINGS}.model: {path.resolve()} is not there; name a folder that has one"
        raise ValueError(message)
    if open_clip.get_model_config(name) is None:
        message = (
            f"{_SETTINGS}.model: OpenCLIP has no {name!r}; give one of open_clip.list_models(), or `local-dir:<folder>`"
        )
        raise ValueError(message)


def _training_program() -> Any:
    try:
        from open_clip_train import main as program
    except ImportError as error:
        message = f"OpenCLIP's training program needs {error.name}: `pip install 'semdedup-assets[training]'`"
        raise ValueError(message) from error
    return program


def _cautions(training: _Training, steps: int) -> Iterator[str]:
    """What whoever reads the log should know. Damaged checkpoints are removed."""
    settings, kept, found = training.settings, training.spec.kept, len(training.samples)
    if settings.warmup_steps >= steps:
        yield f"{_SETTINGS}.warmup_steps: {settings.warmup_steps:,} of {steps:,} steps: the learning rate only rises"
    if kept > found:
        yield f"{kept - found:,} of {kept:,} kept items have no caption: they are passed over"
    for name in remove_damaged(training.state / "checkpoints"):
        yield f"{training.state}: {name} was cut off while it was written; the one before it, if any, is resumed from"


def train(spec: TrainerSpec, report: Report, warn: Callable[[str], None]) -> None:
    """Train a model, or go on with what an ended attempt left, and leave it in the folder `model`.

    Args:
        spec: what is trained.
        report: takes the messages that `TrainerSpec` lists.
        warn: takes sentences for the log.

    Raises:
        ValueError: a setting, the manifest or the device does not allow it; names the remedy.
        DivergedError: the loss is no longer finite.
    """
    settings = OpenClipTraining.model_validate(spec.settings)
    device = str(Compute(device=spec.device).torch_device)
    _check_model(settings.model)
    program = _training_program()
    training = _Training(spec, settings, manifest_samples(spec.manifest, Path(spec.out) / STATE / "tars"), report)
    arguments = training.arguments(device)
    args = _parsed(arguments)
    batches = training.batches(args)
    steps = batches.count // args["accum_freq"] * settings.epochs
    report({"steps": steps, "items": batches.count * batches.size * settings.epochs, "tokens": None})
    if (training.folder / _CONFIG).exists() and training.state.exists():
        return
    for sentence in _cautions(training, steps):
        warn(sentence)
    shutil.rmtree(training.folder, ignore_errors=True)
    with refusing_own_code():
        with training.followed(program, batches):
            ended = program.main([*arguments, "--delete-previous-checkpoint"])
        if ended == -1:
            message = f"OpenCLIP's training program gave up; its message stands above, or in {training.state}/out.log"
            raise ValueError(message)
        training.save()


def main() -> None:
    """Train what Dagster Pipes describes."""
    from dagster_pipes import open_dagster_pipes

    with open_dagster_pipes() as pipes:
        train(TrainerSpec.model_validate(pipes.extras), pipes.report_custom_message, pipes.log.warning)


if __name__ == "__main__":
    main()
