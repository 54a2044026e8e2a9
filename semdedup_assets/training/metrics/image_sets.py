"""Images with texts that a CLIP is measured on: tars as of a WebDataset, and both embedded by the model."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semdedup_assets.compute import Compute
from semdedup_assets.encoders.openclip import OpenClip
from semdedup_assets.records import Invalid, Record
from semdedup_assets.sources import WebDataset
from semdedup_assets.sources.columns import item_image, sidecar_fields
from semdedup_assets.sources.reading import IMAGE_SUFFIXES, InvalidValue, printable

_IMAGES = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample of a tar.

    Attributes:
        key: its name.
        image: encoded.
        caption: of `txt`, else of `json`; empty where there is none.
        label: what `cls` holds; empty where there is none.
    """

    key: str
    image: bytes
    caption: str
    label: str


@dataclass(frozen=True, slots=True)
class EmbeddedImages:
    """The images of a set that could be embedded.

    Attributes:
        vectors: (n, d) float32 unit rows.
        rows: (n,) int64, positions in the stream.
        skipped: name and reason of the others.
    """

    vectors: np.ndarray
    rows: np.ndarray
    skipped: list[tuple[str, str]]


def samples(path: str) -> Iterator[Sample | Invalid]:
    """The samples of tars.

    Args:
        path: a tar, a folder, a glob or a URL, as a source of kind `webdataset` takes it.

    Yields:
        Each sample, or why it has no image.

    Raises:
        FileNotFoundError: no tar is there; names the path.
        TruncatedFile: a tar is damaged; names it.
        OSError: one cannot be read.
    """
    source = WebDataset(path=path)
    for file in source.files():
        for key, members in source.samples(file.path):
            name = printable(key)
            suffix = next((suffix for suffix in _IMAGES if suffix in members), None)
            fields, _ = sidecar_fields(txt=members.get("txt"), json=members.get("json"))
            caption, label = fields.get("caption"), members.get("cls", b"").decode("utf-8", "replace").strip()
            try:
                image = item_image(members[suffix] if suffix else None)
            except InvalidValue as error:
                yield Invalid(name, str(error))
            else:
                yield Sample(name, image, " ".join(str(caption).split()) if caption is not None else "", label)


@dataclass(frozen=True)
class ImageTextModel:
    """A CLIP in a folder for OpenCLIP's `local-dir:`, of which a tower at a time is loaded.

    Attributes:
        folder: that holds `open_clip_config.json` and weights.
        compute: device and batch size.
    """

    folder: Path
    compute: Compute

    @property
    def _encoder(self) -> OpenClip:
        return OpenClip(model=f"local-dir:{self.folder}", precision="float32")

    def images(self, stream: Iterable[Record | Invalid]) -> EmbeddedImages:
        """Embed encoded images, prepared as for embedding a dataset.

        Raises:
            ValueError: the folder holds no model, or the device is not there.
        """
        tower = self._encoder.load(self.compute)
        batches = list(tower.embed(stream))
        return EmbeddedImages(
            np.concatenate([np.zeros((0, tower.dimension), np.float32), *(batch.vectors for batch in batches)]),
            np.concatenate([np.zeros(0, np.int64), *(batch.rows for batch in batches)]),
            [(item.key, item.reason) for batch in batches for item in batch.skipped],
        )

    def texts(self, texts: list[str]) -> np.ndarray:
        """(n, d) float32 unit rows of n texts.

        Raises:
            ValueError: the folder holds no model; or a text's vector is zero or not finite, as of a model that diverged.
        """
        tower = self._encoder.load_text(self.compute)
        batches = list(tower.embed(Record(text, text) for text in texts))
        bad = [f"{item.key!r}: {item.reason}" for batch in batches for item in batch.skipped]
        if bad:
            message = f"{self.folder}: {len(bad):,} of {len(texts):,} texts have no vector, such as {bad[0]}"
            raise ValueError(message)
        return np.concatenate([batch.vectors for batch in batches])
