"""What the process that trains one model is told, and how it reports: Dagster Pipes, with the specification as its extras."""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, Field

MODEL = "model"
"""The folder below `out` in which a preset leaves the trained model, whole from the moment it is there."""

STATE = "state"
"""The folder below `out` in which a preset keeps what it resumes from; it is not stored."""


Report = Callable[[dict[str, Any]], None]
"""Takes a message for whoever started the training."""


class DivergedError(Exception):
    """The loss, or its gradient, is no finite number; the message names step, learning rate and remedy."""


class TrainerSpec(BaseModel, frozen=True):
    """One training.

    While it runs, the trainer reports custom messages through Pipes: `{"step": 10, "loss": 3.2, "learning_rate": 1e-4}`, and
    once it knows them `{"steps": 426, "items": 27280, "tokens": null}`, what the whole training takes.
    """

    manifest: str = Field(description="Folder of a version of a manifest: local path or URL.")
    items: int = Field(description="Samples of a pass: those of the manifest, or of everything for equal steps.")
    kept: int = Field(description="Items of the manifest.")
    steps: int | None = Field(description="To be trained, those of everything; None: as many as the passes take.")
    seed: int = Field(description="Of the weights and the order.")
    out: str = Field(description="Local folder to write to; an attempt that ended may have left its state there.")
    device: str = Field(description="Such as `cpu` or `cuda`.")
    source: dict[str, Any] = Field(description="The pipeline's source, as in the settings.")
    settings: dict[str, Any] = Field(description="Of the preset.")
