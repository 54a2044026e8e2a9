"""Images by the image tower of an OpenCLIP model."""

import json
import pickle
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, model_validator

from semdedup_assets.compute import Compute
from semdedup_assets.encoders.checkpoints import PACKAGE_PREFIX, content_hash, local_path, short_name, weight_problems
from semdedup_assets.encoders.decoding import MAX_PIXELS, MAX_PIXELS_DESCRIPTION
from semdedup_assets.encoders.image_tower import ImageTower
from semdedup_assets.encoders.own_code import (
    EMBED_YOURSELF,
    needs_own_code,
    refusing_own_code,
    why_not_loaded,
)
from semdedup_assets.encoders.precision import PRECISION_DESCRIPTION, Precision, resolve_dtype
from semdedup_assets.encoders.text_tower import TextTower
from semdedup_assets.records import Content

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from PIL import Image

_LOCAL_DIR, _HUB = "local-dir:", "hf-hub:"
_CONFIG = "open_clip_config.json"
# What OpenCLIP raises on a hub out of reach, a damaged file, or weights of another model.
_LOADING_ERRORS = (
    RuntimeError,
    OSError,
    ValueError,
    LookupError,
    EOFError,
    AssertionError,
    TypeError,
    pickle.UnpicklingError,
)


class OpenClip(BaseModel, frozen=True, extra="forbid"):
    """Images by the image tower of an OpenCLIP model (paper: ViT-B-16 with LAION or OpenAI weights).

    Images are decoded and resized as OpenCLIP does for evaluation; transparent ones are put on white, or on
    black where they would not be seen.
    """

    kind: Literal["openclip"] = "openclip"
    model: str = Field(
        "ViT-B-16",
        min_length=1,
        description="OpenCLIP's name of the model; or a local folder (`path`, `local-dir:path` or "
        "`package:<import name>/<path>`) with open_clip_config.json and weights; or `hf-hub:<id>`.",
    )
    pretrained: str | None = Field(
        None,
        description="OpenCLIP's tag of the weights (`laion2b_s34b_b88k`, `openai`), or a local checkpoint file (.pt, "
        ".safetensors). Empty where `model` is a folder or a hub id, which holds its own weights.",
    )
    precision: Precision = Field("auto", description=PRECISION_DESCRIPTION)
    max_pixels: int = Field(MAX_PIXELS, ge=1, description=MAX_PIXELS_DESCRIPTION)

    @model_validator(mode="after")
    def _weights_are_named_once(self) -> "OpenClip":
        if "{{" in self.model:
            # A template of `defs.yaml` is checked once it is filled in.
            return self
        prefixed = self.model.startswith((_HUB, _LOCAL_DIR, PACKAGE_PREFIX))
        own_weights = prefixed or Path(self.model).expanduser().is_dir()
        if own_weights and self.pretrained is not None:
            message = f"pretrained: {self.model} holds its own weights; remove `pretrained`"
            raise ValueError(message)
        if not own_weights and self.pretrained is None:
            unknown = _unknown_model(self.model)
            if unknown:
                message = f"model: {unknown}"
                raise ValueError(message)
            message = f"pretrained: missing for {self.model}; give a tag (laion2b_s34b_b88k, …) or a checkpoint file"
            raise ValueError(message)
        return self

    @property
    def accepts(self) -> Content:
        """What its records carry."""
        return "image"

    @property
    def name(self) -> str:
        """Short, path-safe name of model and weights."""
        model = self.model.removeprefix(_HUB).removeprefix(_LOCAL_DIR)
        return "-".join(short_name(part) for part in (model, self.pretrained) if part)

    @property
    def folder(self) -> Path | None:
        """The local folder that holds model and weights, where it is one.

        Raises:
            ValueError: the model names a folder that is not there.
        """
        if self.model.startswith(_HUB):
            return None
        name = self.model.removeprefix(_LOCAL_DIR)
        path = local_path(name)
        if path is not None and (path / _CONFIG).is_file():
            return path
        if path is not None or name != self.model:
            message = f"{self.model}: no folder with {_CONFIG} and weights"
            raise ValueError(message)
        return None

    def identity(self) -> dict[str, Any]:
        """What can change the vectors; a local checkpoint by its content, wherever it is stored.

        `precision: auto` is one identity, though bfloat16 and float32 differ by about 1e-4 in cosine.

        Raises:
            ValueError: a local folder or file is not there.
        """
        folder, checkpoint = self.folder, local_path(self.pretrained) if self.pretrained else None
        return {
            "kind": self.kind,
            "model": {"content": content_hash(folder)} if folder else self.model,
            "pretrained": {"content": content_hash(checkpoint)} if checkpoint else self.pretrained,
            "precision": self.precision,
            "max_pixels": self.max_pixels,
        }

    def problems(self) -> list[str]:
        """What is wrong with model and weights, seen without loading them or asking a hub.

        Returns:
            Sentences that begin with the setting's name. A tag of weights is not looked up.
        """
        found = []
        try:
            unknown = None if self.folder else _unknown_model(self.model)
        except ValueError as error:
            unknown = str(error)
        if unknown:
            found.append(f"model: {unknown}")
        try:
            local_path(self.pretrained or "")
        except ValueError as error:
            found.append(f"pretrained: {error}")
        return found

    def configuration_problems(self) -> list[str]:
        """What OpenCLIP, which this imports, or the model's folder have against the settings; begins with the setting's name.

        Returns:
            A tag of weights is compared with those that OpenCLIP knows: no hub is asked.
        """
        if self.problems():
            return []
        if self.folder is not None:
            return [*_damaged_configuration(self.folder / _CONFIG), *weight_problems(self.folder)]
        try:
            _check_names(self.model, None if local_path(self.pretrained or "") else self.pretrained)
        except ValueError as error:
            return [str(error)]
        return []

    def text_identity(self) -> dict[str, Any]:
        """What can change the vectors of texts.

        Raises:
            ValueError: a local folder or file is not there.
        """
        return {name: value for name, value in self.identity().items() if name != "max_pixels"}

    def load(self, compute: Compute) -> "ImageTower":
        """Load the image tower.

        Raises:
            ValueError: model, tag, file or device does not exist, cannot be reached or does not fit; names the remedy.
        """
        import open_clip

        name, model, preprocess = self._created()
        device = compute.torch_device
        dtype = resolve_dtype(self.precision, device)
        return ImageTower(
            visual=_arranged(model.visual, dtype).eval().requires_grad_(requires_grad=False).to(device),
            preprocess=preprocess,
            cropped_side=_cropped_side(model.visual.preprocess_cfg),
            max_pixels=self.max_pixels,
            dimension=int(open_clip.get_model_config(name)["embed_dim"]),
            dtype=dtype,
            compute=compute,
        )

    def load_text(self, compute: Compute) -> TextTower:
        """Load the text tower: its vectors of captions are comparable with each other.

        Raises:
            ValueError: model, tag, file or device does not exist, cannot be reached or does not fit; or the model has no
                text tower, or no tokenizer that fits it; names the remedy.
        """
        import open_clip
        import torch

        name, model, _ = self._created()
        # Only the text tower is kept.
        model.visual = torch.nn.Identity()
        device = compute.torch_device
        return TextTower(
            model=model.eval().requires_grad_(requires_grad=False).to(device),
            tokenizer=_tokenizer(name, model),
            dimension=int(open_clip.get_model_config(name)["embed_dim"]),
            dtype=resolve_dtype(self.precision, device),
            compute=compute,
        )

    def _created(self) -> tuple[str, Any, "Callable[[Image.Image], torch.Tensor]"]:
        """OpenCLIP's name of the model, the whole model on the CPU, and what prepares an image for it."""
        name = f"{_LOCAL_DIR}{self.folder}" if self.folder else self.model
        checkpoint = local_path(self.pretrained) if self.pretrained else None
        _check_names(name, None if checkpoint else self.pretrained)
        return name, *_create(name, str(checkpoint or self.pretrained or ""))


def _damaged_configuration(file: Path) -> list[str]:
    """Why a configuration describes no model; begins with the setting's name."""
    try:
        _ = json.loads(file.read_text(encoding="utf-8"))["model_cfg"]["embed_dim"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        return [
            f"model: {file.absolute()} is no configuration of OpenCLIP's ({error!r}); name a folder with a whole model"
        ]
    return []


def _unknown_model(name: str) -> str | None:
    """Why OpenCLIP has no model of this name, None where it has. Looks at its files only, for its import takes seconds."""
    spec = None if name.startswith(_HUB) else find_spec("open_clip")
    if spec is None or spec.origin is None:
        return None
    if name.startswith((".", "/", "~")):
        return f"{Path(name).expanduser().absolute()}: no such folder; name one with {_CONFIG} and weights, or a model of OpenCLIP's"
    known = sorted(file.stem for file in (Path(spec.origin).parent / "model_configs").glob("*.json"))
    config = name.replace("/", "-")
    if config in known or not known:
        return None
    folder = f"; nor is there a folder {Path.cwd() / Path(name).expanduser()}" if "/" in name else ""
    return f"OpenCLIP has no {name!r}{folder}; near names: {_near(config, known)}"


def _check_names(model: str, tag: str | None) -> None:
    import open_clip

    if model.startswith((_LOCAL_DIR, _HUB)):
        return
    config = model.replace("/", "-")
    if config not in open_clip.list_models():
        message = f"model: OpenCLIP has no {model!r}; near names: {_near(config, open_clip.list_models())}"
        raise ValueError(message)
    tags = open_clip.list_pretrained_tags_by_model(config)
    if tag is not None and not open_clip.get_pretrained_cfg(config, tag):
        message = f"pretrained: {model} has no tag {tag!r}, and no file has this name; near tags: {_near(tag, tags)}"
        raise ValueError(message)


def _near(name: str, names: list[str]) -> str:
    by_lower = {known.lower(): known for known in names}
    near = get_close_matches(name.lower(), list(by_lower), n=6, cutoff=0.4)
    return ", ".join(by_lower[match] for match in near) or ", ".join(names) or "none"


def _create(name: str, pretrained: str) -> tuple[Any, "Callable[[Image.Image], torch.Tensor]"]:
    import open_clip
    from safetensors import SafetensorError

    # OpenCLIP only warns when a tag's weights need QuickGELU and the model's name does not end in -quickgelu.
    quick_gelu = bool(open_clip.get_pretrained_cfg(name.replace("/", "-"), pretrained).get("quick_gelu"))
    try:
        with refusing_own_code():
            model, preprocess = open_clip.create_model_from_pretrained(
                name, pretrained or None, force_quick_gelu=quick_gelu, device="cpu"
            )
    except (*_LOADING_ERRORS, SafetensorError) as error:
        remedy = "without access to their hub, set `pretrained` to a local checkpoint file that fits the model"
        remedy = f"name a folder with weights that fit its {_CONFIG}" if name.startswith(_LOCAL_DIR) else remedy
        why = why_not_loaded(error, remedy, instead=EMBED_YOURSELF)
        part = "the model" if needs_own_code(error) else "the weights"
        message = f"{'pretrained' if pretrained else 'model'}: {name}, {pretrained or 'its own weights'}: {part} {why}"
        raise ValueError(message) from error
    return model, preprocess


def _tokenizer(name: str, model: Any) -> "Callable[[list[str]], torch.Tensor]":
    """What makes (n, context) token ids of n texts, of which the model has every one."""
    import open_clip

    remedy = "put the tokenizer's files beside the weights and name it in text_cfg, or take a model that has both"
    text = getattr(model, "text", model)
    tokens = getattr(getattr(text, "token_embedding", None), "num_embeddings", None)
    try:
        with refusing_own_code():
            tokenizer: Callable[[list[str]], torch.Tensor] = open_clip.get_tokenizer(name)
        # The token that ends a text is among the last ones.
        greatest = int(tokenizer(["a caption"]).max())
    except _LOADING_ERRORS as error:
        message = f"model {name}: its tokenizer {why_not_loaded(error, remedy, instead=EMBED_YOURSELF)}"
        raise ValueError(message) from error
    if tokens is not None and greatest >= tokens:
        message = f"model {name}: its tokenizer gives token {greatest}, its text tower knows {tokens} tokens; {remedy}"
        raise ValueError(message)
    return tokenizer


def _arranged(visual: "torch.nn.Module", dtype: "torch.dtype") -> "torch.nn.Module":
    """The tower in its fastest memory layout; the results are the same."""
    import torch
    from open_clip.transformer import Transformer

    transformer = getattr(visual, "transformer", None)
    if transformer is None:
        # Convolutions: 1.4 times the rate in float32 and 1.7 times in bfloat16 (RN50 on a CPU).
        return visual.to(memory_format=torch.channels_last)
    blocks = list(transformer.resblocks) if isinstance(transformer, Transformer) else []
    if (
        blocks
        and dtype != torch.float32
        and all(isinstance(block.attn, torch.nn.MultiheadAttention) for block in blocks)
    ):
        # Under autocast, batch-first attention copies its weights for each item: twice as slow as float32.
        transformer.batch_first = False
        for block in blocks:
            block.attn.batch_first = False
    return visual


def _cropped_side(preprocess: dict[str, Any]) -> int | None:
    size = preprocess["size"]
    return None if preprocess["resize_mode"] != "shortest" else size if isinstance(size, int) else min(size)
