"""Captions through the text tower of an image-text model."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from semdedup_assets.compute import Compute
from semdedup_assets.encoders.batching import embedded_window, split_window, windows
from semdedup_assets.encoders.precision import autocast
from semdedup_assets.records import Embedded, Invalid, Record

if TYPE_CHECKING:
    import torch

_WINDOW_CHARACTERS = 16 << 20


@dataclass(frozen=True)
class TextTower:
    """A loaded image-text model, of which only the text tower is left.

    Attributes:
        model: of OpenCLIP; `encode_text` makes (b, dimension) of (b, context) token ids.
        tokenizer: n texts to (n, context) token ids; what is longer than the context is cut.
        dimension: length of a vector.
        dtype: number format of the matrix products.
        compute: device and batch size.
    """

    model: Any
    tokenizer: "Callable[[list[str]], torch.Tensor]"
    dimension: int
    dtype: "torch.dtype"
    compute: Compute

    def embed(self, records: Iterable[Record | Invalid]) -> Iterator[Embedded]:
        """Embed texts in the source's order.

        Args:
            records: texts, and invalid items.

        Yields:
            A batch per window of the stream.
        """
        import torch

        device = self.compute.torch_device
        size = self.compute.batch_size or (64 if device.type == "cpu" else 1024)
        for window in windows(records, size=size, payload=_WINDOW_CHARACTERS):
            texts = [item.record.payload for item in window.items]
            reasons = [None if isinstance(text, str) else f"{type(text).__name__}, not a text" for text in texts]
            good = split_window(window, reasons)
            tokens = [text for text in texts if isinstance(text, str)]
            outputs = torch.zeros((0, self.dimension))
            if tokens:
                with torch.inference_mode(), autocast(self.dtype, device):
                    outputs = self.model.encode_text(self.tokenizer(tokens).to(device))
            yield embedded_window(good, outputs.float().cpu().numpy())
