"""Images by a TorchScript file, such as SSCD's."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from semdedup_assets.compute import Compute
from semdedup_assets.encoders.checkpoints import content_hash, local_path, short_name
from semdedup_assets.encoders.decoding import MAX_PIXELS, MAX_PIXELS_DESCRIPTION, UndecodableImageError
from semdedup_assets.encoders.image_tower import ImageTower, output_dimension
from semdedup_assets.encoders.precision import PRECISION_DESCRIPTION, Precision, resolve_dtype
from semdedup_assets.records import Content

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from PIL import Image

Resize = Literal["squash", "shortest", "crop"]
# Of a picture that is resized whole: what it costs the model grows with it.
_MAX_ELONGATION = 8


class TorchScript(BaseModel, frozen=True, extra="forbid"):
    """Images by a TorchScript file that gives one vector for each image.

    The defaults are those published for SSCD (`skew_320`); its `small_288` is `resize: shortest, image_size: 288`.
    """

    kind: Literal["torchscript"] = "torchscript"
    path: str = Field(
        min_length=1, description="The file (`path` or `package:<import name>/<path>`), saved by `torch.jit.save`."
    )
    image_size: int = Field(320, ge=1, description="Pixels of a side, see `resize`.")
    resize: Resize = Field(
        "squash",
        description="`squash`: both sides to `image_size`; `shortest`: the shortest side, in proportion, so that "
        "pictures of other proportions are other batches; `crop`: so too, then the square in its middle.",
    )
    interpolation: Literal["bilinear", "bicubic"] = Field("bilinear", description="How pictures are resized.")
    mean: tuple[float, float, float] = Field(
        (0.485, 0.456, 0.406), description="Subtracted from red, green and blue, which are 0 to 1."
    )
    std: tuple[float, float, float] = Field((0.229, 0.224, 0.225), description="By which they are then divided.")
    precision: Precision = Field("float32", description=PRECISION_DESCRIPTION)
    max_pixels: int = Field(MAX_PIXELS, ge=1, description=MAX_PIXELS_DESCRIPTION)

    @property
    def accepts(self) -> Content:
        """What its records carry."""
        return "image"

    @property
    def name(self) -> str:
        """Short, path-safe name of file and size."""
        return f"{short_name(self.path)}-{self.resize}{self.image_size}"

    @property
    def _file(self) -> Path:
        path = local_path(self.path)
        if path is None or not path.is_file():
            message = f"{self.path}: no such file; relative paths start at the current directory, {Path.cwd()}"
            raise ValueError(message)
        return path

    def identity(self) -> dict[str, Any]:
        """What can change the vectors; the file by its content, wherever it is stored.

        Raises:
            ValueError: the file is not there.
        """
        return self.model_dump(mode="json") | {"path": {"content": content_hash(self._file)}}

    def problems(self) -> list[str]:
        """What is wrong with the file, seen without loading it; begins with the setting's name."""
        try:
            _ = self._file
        except ValueError as error:
            return [f"path: {error}"]
        return []

    def configuration_problems(self) -> list[str]:
        """Nothing is known of the model before it is loaded."""
        return []

    def load(self, compute: Compute) -> ImageTower:
        """Load the file.

        Raises:
            ValueError: file or device does not exist, or the file is none of TorchScript or does not give one vector for
                each image; names the remedy.
        """
        import torch

        jit: Any = torch.jit  # without types
        device = compute.torch_device
        try:
            with warnings.catch_warnings():
                # torch would rather have other files; SSCD's are these.
                warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
                visual: torch.nn.Module = jit.load(str(self._file), map_location="cpu").eval()
            dimension = output_dimension(visual, self.image_size, self.image_size)
        except (RuntimeError, ValueError, OSError) as error:
            message = (
                f"path: {self.path} cannot be used ({str(error).strip().splitlines()[0]}); name a file that "
                "`torch.jit.save` wrote of a model from RGB images to vectors; for a file of weights use `kind: timm` "
                "or `kind: openclip`"
            )
            raise ValueError(message) from error
        return ImageTower(
            visual=visual.to(device),
            preprocess=self._preprocess(),
            cropped_side=None if self.resize == "squash" else self.image_size,
            max_pixels=self.max_pixels,
            dimension=dimension,
            dtype=resolve_dtype(self.precision, device),
            compute=compute,
        )

    def _preprocess(self) -> "Callable[[Image.Image], torch.Tensor]":
        from torchvision import transforms
        from torchvision.transforms import InterpolationMode

        side: int | list[int] = [self.image_size] * 2 if self.resize == "squash" else self.image_size
        steps = [transforms.Resize(side, InterpolationMode(self.interpolation))]
        if self.resize == "crop":
            steps.append(transforms.CenterCrop(self.image_size))
        steps += [transforms.ToTensor(), transforms.Normalize(self.mean, self.std)]
        composed: Callable[[Image.Image], torch.Tensor] = transforms.Compose(steps)
        return _refusing_elongated(composed) if self.resize == "shortest" else composed


def _refusing_elongated(
    preprocess: "Callable[[Image.Image], torch.Tensor]",
) -> "Callable[[Image.Image], torch.Tensor]":
    def checked(image: "Image.Image") -> "torch.Tensor":
        if max(image.size) > _MAX_ELONGATION * min(image.size):
            message = (
                f"{image.width} x {image.height} pixels is too elongated for `resize: shortest`, more than "
                f"{_MAX_ELONGATION} to 1"
            )
            raise UndecodableImageError(message)
        return preprocess(image)

    return checked
