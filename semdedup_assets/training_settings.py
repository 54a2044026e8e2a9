"""The settings of training and evaluation: what is trained on each kept set, for how long, and what it is measured by."""

import re
import shlex
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from semdedup_assets.kept_sets import distinct

Baseline = Literal["everything", "exact", "random", "sized_random"]
"""What a kept set's models are held against; `sized_random` keeps as many words of texts, or bytes of images, at random."""

Budget = Literal["epochs", "steps"]
"""How long each model is trained: as many passes as the others, or as many steps as those on everything."""

TRAINING_NAMES = ("manifest", "tars", "items", "kept", "seed", "out")
"""What a training command may name in braces."""

EVALUATION_NAMES = ("checkpoint", "held_out", "seed", "out")
"""What an evaluation command may name in braces."""

HELD_OUT_SETS = ("random", "dedup", "novel", "unseen")
"""The evaluation sets that are derived from held-out items; `unseen` of whole groups, the others of a share of the items."""

_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")
_SET_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def placeholders(command: str) -> list[str]:
    """The names in braces of a command; `{000000..000099}`, which is none, is left to the trainer.

    Args:
        command: as it stands in the settings.
    """
    return _PLACEHOLDER.findall(command)


def filled(part: str, values: dict[str, Any]) -> str:
    """A part of a command with the names in braces replaced.

    Args:
        part: of a command.
        values: by name.

    Raises:
        KeyError: a name that is not there.
    """
    return _PLACEHOLDER.sub(lambda found: str(values[found[1]]), part)


def _unknown_names(command: str, known: tuple[str, ...]) -> str:
    try:
        parts = shlex.split(command)
    except ValueError as error:
        message = f"{command!r} cannot be divided into program and arguments ({error}); check its quotes"
        raise ValueError(message) from error
    if not parts:
        message = "names no program; give one, or remove the command"
        raise ValueError(message)
    unknown = sorted(set(placeholders(command)) - set(known))
    if unknown:
        names = ", ".join(f"{{{name}}}" for name in known)
        message = f"{', '.join(f'{{{name}}}' for name in unknown)} is no name that is filled in; there are {names}"
        raise ValueError(message)
    return command


def _training_command(command: str) -> str:
    named = placeholders(command)
    if "out" not in named or not {"manifest", "tars"} & set(named):
        message = (
            "{out} and one of {manifest} and {tars} must be in it: the folder that the model is written to, and what it is "
            "trained on; name them, also for a program that asks Dagster Pipes for them"
        )
        raise ValueError(message)
    return _unknown_names(command, TRAINING_NAMES)


def _evaluation_command(command: str) -> str:
    lacks = [f"{{{name}}}" for name in ("checkpoint", "out") if name not in placeholders(command)]
    if lacks:
        message = (
            f"{' and '.join(lacks)} is not in it: {{checkpoint}} is the folder of the model to measure, {{out}} where "
            "`metrics.json` is written; name both"
        )
        raise ValueError(message)
    return _unknown_names(command, EVALUATION_NAMES)


def _counted(value: Any) -> Any:
    """A number of seeds means the first ones."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            message = f"{value} is no number of seeds; at least 1, and 3 for a spread"
            raise ValueError(message)
        return tuple(range(value))
    return value


def _one_or_several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class OpenClipTraining(BaseModel, frozen=True, extra="forbid"):
    """CLIP by OpenCLIP's own training program (SemDeDup, section 4.4); the defaults are those of the paper's Table A3."""

    model: str = Field(
        "ViT-B-16",
        description="OpenCLIP's name of a model, or `local-dir:` with a folder that holds its `open_clip_config.json`; it "
        "starts at random, whatever weights lie there.",
    )
    epochs: int = Field(32, ge=1, description="Passes over everything.")
    batch_size: int = Field(33_792, ge=2, description="Pairs of a step.")
    learning_rate: float = Field(5e-4, gt=0, description="The greatest; it falls along a cosine.")
    warmup_steps: int = Field(2000, ge=0, description="In which the learning rate rises.")
    weight_decay: float = Field(0.2, ge=0, description="Of AdamW.")
    precision: Literal["auto", "fp32", "amp", "amp_bf16", "bf16"] = Field(
        "auto", description="OpenCLIP's `--precision`; `auto` is `amp` on a GPU, else `fp32`."
    )
    workers: int = Field(0, ge=0, description="Processes that decode images; 0: the trainer itself.")
    arguments: str = Field("", description="Further arguments of OpenCLIP's training program.")


class CausalLmTraining(BaseModel, frozen=True, extra="forbid"):
    """A causal language model by transformers (SemDeDup, section 5: OPT), the learning rate 0 at the end of each run."""

    model: str = Field(
        "facebook/opt-125m",
        description="Hub id or folder of a configuration and a tokenizer; the model starts at random, whatever weights lie "
        "there.",
    )
    epochs: float = Field(1, gt=0, description="Passes over everything; the paper's is one.")
    context_tokens: int = Field(2048, ge=8, description="Tokens of a packed sequence.")
    batch_size: int = Field(256, ge=1, description="Sequences of a step; the paper's steps have half a million tokens.")
    learning_rate: float = Field(6e-4, gt=0, description="The greatest; it falls to 0.")
    warmup: float = Field(0.01, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    weight_decay: float = Field(0.1, ge=0, description="Of AdamW.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Of activations; `auto` is `bfloat16` on a GPU, else `float32`."
    )


class Training(BaseModel, frozen=True, extra="forbid"):
    """What is trained on each kept set: a command, or one of two presets."""

    command: Annotated[str, Field(min_length=1), AfterValidator(_training_command)] | None = Field(
        None,
        description="A program that trains one model, without a shell. Filled in are `{manifest}`, the folder of a version; "
        "`{tars}`, its WebDataset; `{items}`, samples of a pass; `{kept}`, items of the manifest; `{seed}`; and `{out}`, where it "
        "writes, and finds what an ended attempt wrote.",
    )
    openclip: OpenClipTraining | None = Field(None, description="CLIP by OpenCLIP, in place of a command.")
    causal_lm: CausalLmTraining | None = Field(
        None, description="A causal language model by transformers, in place of a command."
    )
    budget: Annotated[
        tuple[Budget, ...], BeforeValidator(_one_or_several), AfterValidator(distinct), Field(min_length=1)
    ] = Field(
        ("epochs",),
        description="`epochs`: each model sees its items as often as the others (fewer steps on fewer items); `steps`: each "
        "is trained for as many steps as those on everything; or both.",
    )
    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        BeforeValidator(_counted),
        AfterValidator(distinct),
        Field(min_length=1),
    ] = Field(
        (0, 1, 2), description="A number of seeds, or a list: a model each. Of fewer than three there is no spread."
    )
    against: Annotated[tuple[Baseline, ...], AfterValidator(distinct)] = Field(
        ("everything", "random", "exact"),
        description="What each kept set is held against: `everything`, `random` at equal count, `sized_random` at equal words "
        "or bytes, `exact` deduplication.",
    )
    at_once: int = Field(1, ge=1, description="Models that are trained side by side, each with its share of the cores.")
    work_folder: str | None = Field(
        None,
        description="Local folder in which trainings run, and are resumed; empty: below the store, or below "
        "`.semdedup-training` where that is no folder.",
    )

    @model_validator(mode="after")
    def _one_trainer(self) -> "Training":
        given = [name for name in ("command", "openclip", "causal_lm") if getattr(self, name) is not None]
        if len(given) != 1:
            found = f"{' and '.join(given)} are given" if given else "none is given"
            message = f"give one of `command`, `openclip` (such as `openclip: {{}}`) and `causal_lm`; {found}"
            raise ValueError(message)
        named = None if self.command is None else set(placeholders(self.command))
        if named is not None and len(self.seeds) > 1 and "seed" not in named:
            message = (
                f"command: {{seed}} is not in it, and {len(self.seeds)} seeds are to be trained: their models would be equal; "
                "name it, or set `seeds: 1`"
            )
            raise ValueError(message)
        if named is not None and "steps" in self.budget and "items" not in named:
            message = (
                "command: {items} is not in it, so that equal steps and equal passes would be the same training; name it, or "
                "set `budget: epochs`"
            )
            raise ValueError(message)
        return self

    @property
    def preset(self) -> OpenClipTraining | CausalLmTraining | None:
        """The preset; None where a command trains."""
        return self.openclip or self.causal_lm

    def identity(self) -> dict[str, Any]:
        """What can change a model beside its kept set, budget and seed."""
        return self.model_dump(mode="json", include={"command", "openclip", "causal_lm"}, exclude_none=True)


def _template(text: str) -> str:
    if "{}" not in text or placeholders(text):
        message = (
            f"{text!r}: the name of a class is put where `{{}}` stands, which must be in it, with no name in braces beside it; "
            "such as 'a photo of {}'"
        )
        raise ValueError(message)
    return text


class ZeroShot(BaseModel, frozen=True, extra="forbid"):
    """Images with a class each, which a CLIP names without having been trained to."""

    path: str = Field(description="Tars, as of a WebDataset: each sample has an image and a `cls` or `txt`.")
    classes: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], AfterValidator(distinct)] = Field(
        (),
        description="Names of the classes; `cls` holds one of them, or its place in this list, from 0. Empty: `txt` holds each image's "
        "class by name.",
    )
    template: Annotated[str, AfterValidator(_template)] = Field(
        "a photo of {}", description="What is said of a class, `{}` being its name."
    )


class Evaluation(BaseModel, frozen=True, extra="forbid"):
    """What the trained models are measured by."""

    bits_per_byte: dict[Annotated[str, Field(pattern=_SET_NAME)], str] = Field(
        {}, description="Sets of JSON lines with a field `text`, by name: files, globs or folders."
    )
    retrieval: dict[Annotated[str, Field(pattern=_SET_NAME)], str] = Field(
        {}, description="Sets of images with captions, by name: tars, as of a WebDataset."
    )
    zero_shot: dict[Annotated[str, Field(pattern=_SET_NAME)], ZeroShot] = Field(
        {}, description="Sets of images with a class each, by name."
    )
    command: Annotated[str, Field(min_length=1), AfterValidator(_evaluation_command)] | None = Field(
        None,
        description="A program that measures one model and writes `{out}/metrics.json`: numbers by name, or `{value: …, "
        "higher_is_better: false}`. Filled in are `{checkpoint}`, the folder of the model, `{held_out}`, that of the held-out "
        "sets, `{seed}` and `{out}`.",
    )

    @property
    def paths(self) -> Iterator[tuple[str, str]]:
        """Each data set that is read, with its setting."""
        yield from ((f"evaluation.bits_per_byte.{name}", path) for name, path in self.bits_per_byte.items())
        yield from ((f"evaluation.retrieval.{name}", path) for name, path in self.retrieval.items())
        yield from ((f"evaluation.zero_shot.{name}.path", each.path) for name, each in self.zero_shot.items())


class HeldOutGroups(BaseModel, frozen=True, extra="forbid"):
    """Whole groups of items that are held out."""

    column: str = Field(description="A carried column: items that share its value are held out together.")
    share: float = Field(0.1, gt=0, lt=1, description="Of its values.")


class HeldOut(BaseModel, frozen=True, extra="forbid"):
    """Items of the source that are never embedded, so in no manifest, for evaluation."""

    share: float = Field(0.05, ge=0, lt=1, description="Of the items, by a hash of their key.")
    groups: HeldOutGroups | None = Field(
        None, description="Whole groups too, such as `{column: package, share: 0.1}`; empty: none."
    )
    epsilon: float = Field(
        0.1,
        ge=0,
        le=2,
        description="Held-out items that are not more similar than 1 - epsilon to others count as novel.",
    )
    evaluated: int = Field(2000, ge=1, description="Held-out items of each kind that are evaluated at most.")
    seed: int = Field(0, ge=0, description="Of the choice.")

    @model_validator(mode="after")
    def _holds_something_out(self) -> "HeldOut":
        if self.share == 0 and self.groups is None:
            message = "share: 0 of the items and no `groups` are held out; raise it, name groups, or remove `held_out`"
            raise ValueError(message)
        return self
