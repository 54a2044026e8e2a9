"""Images through a loaded model: decoding in threads ahead of it, batches, what cannot be embedded."""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from semdedup_assets.compute import Compute
from semdedup_assets.encoders.batching import Numbered, Window, embedded_window, prefetch, split_window, windows
from semdedup_assets.encoders.decoding import UndecodableImageError, rgb_image
from semdedup_assets.encoders.precision import autocast
from semdedup_assets.records import Embedded, Invalid, Record

if TYPE_CHECKING:
    import torch
    from PIL import Image

_WINDOW_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class _Submitted:
    """A window whose images are being decoded."""

    window: Window
    images: "list[Future[torch.Tensor | str]]"


@dataclass(frozen=True, slots=True)
class _Decoded:
    """A window ready for the model.

    Attributes:
        window: n items.
        pixels: batches of (b, 3, height, width) float32, one for each height and width.
        positions: of each batch's items in the window.
    """

    window: Window
    pixels: "list[torch.Tensor]"
    positions: list[list[int]]


@dataclass(frozen=True)
class ImageTower:
    """A loaded image model.

    Attributes:
        visual: the model, (b, 3, height, width) to (b, dimension).
        preprocess: an RGB image to (3, height, width) float32; may raise UndecodableImageError.
        cropped_side: pixels to which the shortest side is resized; None where the whole image is squeezed or padded.
        max_pixels: of a picture that is decoded.
        dimension: length of a vector.
        dtype: number format of the matrix products.
        compute: device, batch size and decoding threads.
    """

    visual: "torch.nn.Module"
    preprocess: "Callable[[Image.Image], torch.Tensor]"
    cropped_side: int | None
    max_pixels: int
    dimension: int
    dtype: "torch.dtype"
    compute: Compute

    def embed(self, records: Iterable[Record | Invalid]) -> Iterator[Embedded]:
        """Embed images in the source's order; decoding runs ahead of the model in threads.

        Args:
            records: encoded images, and invalid items.

        Yields:
            A batch per window of the stream; undecodable images are in its `skipped`.
        """
        with ThreadPoolExecutor(self.compute.worker_count) as pool:
            # Two stages ahead: one keeps the threads busy, one has the next batch ready in one tensor.
            submitted = prefetch(self._submitted(records, pool), depth=2)
            for batch in prefetch((self._decoded(window) for window in submitted), depth=1):
                yield embedded_window(batch.window, self._outputs(batch))

    def _submitted(
        self, records: Iterable[Record | Invalid], pool: ThreadPoolExecutor
    ) -> Generator[_Submitted, None, None]:
        batch_size = self.compute.batch_size or (32 if self.compute.torch_device.type == "cpu" else 256)
        for window in windows(records, size=batch_size, payload=_WINDOW_BYTES):
            yield _Submitted(window, [pool.submit(self._pixels, item) for item in window.items])

    def _pixels(self, item: Numbered) -> "torch.Tensor | str":
        if not isinstance(item.record.payload, bytes):
            return f"{type(item.record.payload).__name__}, not an encoded image"
        try:
            image = rgb_image(item.record.payload, shortest_side=self.cropped_side, max_pixels=self.max_pixels)
            return self.preprocess(image)
        except UndecodableImageError as error:
            return str(error)

    def _decoded(self, submitted: _Submitted) -> _Decoded:
        import torch

        images = [image.result() for image in submitted.images]
        window = split_window(submitted.window, [image if isinstance(image, str) else None for image in images])
        good = [image for image in images if not isinstance(image, str)]
        by_shape: dict[torch.Size, list[int]] = {}
        for at, image in enumerate(good):
            by_shape.setdefault(image.shape, []).append(at)
        pinned = self.compute.torch_device.type == "cuda"
        batches = []
        for shape, positions in by_shape.items():
            pixels = torch.empty(len(positions), *shape, pin_memory=pinned)
            batches.append(torch.stack([good[at] for at in positions], out=pixels))
        return _Decoded(window, batches, list(by_shape.values()))

    def _outputs(self, decoded: _Decoded) -> np.ndarray:
        import torch

        device = self.compute.torch_device
        outputs = np.empty((len(decoded.window.items), self.dimension), np.float32)
        for pixels, positions in zip(decoded.pixels, decoded.positions, strict=True):
            with torch.inference_mode(), autocast(self.dtype, device):
                output = self.visual(pixels.to(device, non_blocking=True))
            pooled: torch.Tensor = output[0] if isinstance(output, tuple) else output  # CoCa also gives its tokens
            outputs[positions] = pooled.float().cpu().numpy()  # (b, dimension)
        return outputs


def output_dimension(visual: "torch.nn.Module", height: int, width: int) -> int:
    """Length of the vectors that an image model gives.

    Args:
        visual: on the CPU, in float32.
        height: of its input.
        width: of its input.

    Raises:
        ValueError: it does not take RGB, or gives something else than one vector for each image.
    """
    import torch

    try:
        with torch.inference_mode():
            output = visual(torch.zeros(1, 3, height, width))
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        message = f"it takes no batch of RGB images of {height} x {width} ({str(error).strip().splitlines()[-1]})"
        raise ValueError(message) from error
    if not isinstance(output, torch.Tensor) or output.ndim != 2 or len(output) != 1:
        found = f"shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
        message = f"it gives {found} for one image, not one vector"
        raise ValueError(message)
    return int(output.shape[1])
