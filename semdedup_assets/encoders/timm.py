"""Images by a model of timm: DINOv2, DINOv3, ConvNeXt and many more."""

import math
import pickle
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from semdedup_assets.compute import Compute
from semdedup_assets.encoders.checkpoints import PACKAGE_PREFIX, content_hash, local_path, short_name, weight_problems
from semdedup_assets.encoders.decoding import MAX_PIXELS, MAX_PIXELS_DESCRIPTION
from semdedup_assets.encoders.image_tower import ImageTower, output_dimension
from semdedup_assets.encoders.own_code import EMBED_YOURSELF, why_not_loaded
from semdedup_assets.encoders.precision import PRECISION_DESCRIPTION, Precision, resolve_dtype
from semdedup_assets.records import Content

if TYPE_CHECKING:
    import torch

_LOCAL_DIR, _HUB = "local-dir:", "hf-hub:"
# What timm raises on a hub out of reach, a damaged file, or weights of another model.
_LOADING_ERRORS = (
    RuntimeError, OSError, ValueError, LookupError, EOFError, AssertionError, TypeError, pickle.UnpicklingError,
)  # fmt: skip


class Timm(BaseModel, frozen=True, extra="forbid"):
    """Images by a model of timm without its classifier, such as DINOv2.

    Images are resized as the model's own configuration says; `pretrained` weights come from the hub, once.
    """

    kind: Literal["timm"] = "timm"
    model: str = Field(
        "vit_small_patch14_dinov2.lvd142m",
        min_length=1,
        description="timm's name of model and weights; or a local folder (`path`, `local-dir:path` or `package:<import "
        "name>/<path>`) with config.json and weights; or `hf-hub:<id>`.",
    )
    checkpoint: str | None = Field(
        None,
        description="A local file of weights (.pt, .pth, .safetensors) for a model that `model` names. Empty: the "
        "weights of that name, or of the folder.",
    )
    image_size: int | None = Field(
        None,
        ge=1,
        description="Pixels of the square that the model sees; DINOv2 computes 518 x 518 in six times the time of 224 "
        "x 224. Empty: the model's own.",
    )
    precision: Precision = Field("auto", description=PRECISION_DESCRIPTION)
    max_pixels: int = Field(MAX_PIXELS, ge=1, description=MAX_PIXELS_DESCRIPTION)

    @property
    def accepts(self) -> Content:
        """What its records carry."""
        return "image"

    @property
    def name(self) -> str:
        """Short, path-safe name of model, weights and size."""
        model = short_name(self.model.removeprefix(_HUB).removeprefix(_LOCAL_DIR))
        parts = [model, short_name(self.checkpoint) if self.checkpoint else None, self.image_size]
        return "-".join(str(part) for part in parts if part)

    @property
    def folder(self) -> Path | None:
        """The local folder that holds model and weights, where it is one.

        Raises:
            ValueError: the model names a folder that is not there, or that holds no model.
        """
        if self.model.startswith(_HUB):
            return None
        name = self.model.removeprefix(_LOCAL_DIR)
        path = local_path(name)
        if path is not None and (path / "config.json").is_file():
            return path
        if path is not None or name != self.model or self.model.startswith(PACKAGE_PREFIX) or "/" in name:
            message = f"{self.model}: no folder with config.json and weights; a hub's id begins with {_HUB}"
            raise ValueError(message)
        return None

    def identity(self) -> dict[str, Any]:
        """What can change the vectors; local weights by their content, wherever they are stored.

        Raises:
            ValueError: a local folder or file is not there.
        """
        folder, checkpoint = self.folder, self._checkpoint
        return self.model_dump() | {
            "model": {"content": content_hash(folder)} if folder else self.model,
            "checkpoint": {"content": content_hash(checkpoint)} if checkpoint else None,
        }

    @property
    def _checkpoint(self) -> Path | None:
        if self.checkpoint is None:
            return None
        path = local_path(self.checkpoint)
        if path is None or not path.is_file():
            message = f"{self.checkpoint}: no such file"
            raise ValueError(message)
        return path

    def problems(self) -> list[str]:
        """What is wrong with model and weights, seen without loading them, timm, or asking a hub.

        Returns:
            Sentences that begin with the setting's name. Whether timm has a model of this name shows when it is loaded.
        """
        found = []
        for setting in ("folder", "_checkpoint"):
            try:
                getattr(self, setting)
            except ValueError as error:
                found.append(f"{'model' if setting == 'folder' else 'checkpoint'}: {error}")
        return found

    def configuration_problems(self) -> list[str]:
        """What timm, which this imports, or the model's folder have against the settings; begins with the setting's name."""
        if self.problems():
            return []
        if self.folder is not None:
            return weight_problems(self.folder) if self.checkpoint is None else []
        try:
            if not self.model.startswith(_HUB):
                _check_name(self.model)
        except ValueError as error:
            return [str(error)]
        return []

    def load(self, compute: Compute) -> ImageTower:
        """Load the model.

        Raises:
            ValueError: model, weights or device does not exist, cannot be reached or does not fit; names the remedy.
        """
        import timm.data

        data: Any = timm.data  # without types
        device = compute.torch_device
        visual = self._create()
        config = data.resolve_model_data_config(visual, args={"img_size": self.image_size})
        _, height, width = config["input_size"]
        try:
            dimension = output_dimension(visual, height, width)
        except ValueError as error:
            message = f"model: {self.model} cannot be used: {error}"
            raise ValueError(message) from error
        whole = config["crop_mode"] in ("squash", "border")
        return ImageTower(
            visual=visual.requires_grad_(requires_grad=False).to(device),
            preprocess=data.create_transform(**config, is_training=False),
            cropped_side=None if whole else math.floor(min(height, width) / config["crop_pct"]),
            max_pixels=self.max_pixels,
            dimension=dimension,
            dtype=resolve_dtype(self.precision, device),
            compute=compute,
        )

    def _create(self) -> "torch.nn.Module":
        from safetensors import SafetensorError

        folder, checkpoint = self.folder, self._checkpoint
        if not folder and not self.model.startswith(_HUB):
            _check_name(self.model)
        name = f"{_LOCAL_DIR}{folder}" if folder else self.model
        settings: dict[str, Any] = {"pretrained_cfg_overlay": {"file": str(checkpoint)}} if checkpoint else {}
        try:
            return _without_classifier(name, self.image_size, settings)
        except (*_LOADING_ERRORS, SafetensorError) as error:
            remedy = (
                "without access to their hub, name a local folder with config.json and weights, or set `checkpoint` to a "
                "file that fits the model"
            )
            message = f"model: {self.model}: the weights {why_not_loaded(error, remedy, instead=EMBED_YOURSELF)}"
            raise ValueError(message) from error


def _without_classifier(name: str, image_size: int | None, settings: dict[str, Any]) -> "torch.nn.Module":
    import timm

    sized: dict[str, Any] = {"img_size": image_size} if image_size else {}
    try:
        model: torch.nn.Module = timm.create_model(name, pretrained=True, num_classes=0, **sized, **settings)
    except TypeError:
        if not sized:
            raise
        # Convolutions take any size, and know no such argument.
        model = timm.create_model(name, pretrained=True, num_classes=0, **settings)
    return model.eval()


def _check_name(name: str) -> None:
    """See that timm has a model, and the weights that its tag names.

    Raises:
        ValueError: it has not; gives near names.
    """
    import timm
    from timm.models import get_pretrained_cfg

    known = timm.is_model(name.split(".")[0])
    if known:
        try:
            get_pretrained_cfg(name)
        except RuntimeError:  # No weights of such a tag.
            known = False
    if known:
        return
    near = get_close_matches(name, timm.list_models(pretrained=True), n=6, cutoff=0.4)
    message = f"model: timm has no {name!r}; near names: {', '.join(near) or 'none'}"
    raise ValueError(message)
