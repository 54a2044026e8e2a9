"""Images and captions of a manifest as OpenCLIP trains on them: in even passes, each in an order that the seed decides."""

import csv
import hashlib
import io
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from semdedup_assets.encoders.decoding import UndecodableImageError, rgb_image
from semdedup_assets.sources.reading import IMAGE_SUFFIXES, InvalidValue, opened, whole_content
from semdedup_assets.sources.tar_members import Tar
from semdedup_assets.storage.files import exists, is_local, join, list_below

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader

_HEADER = 512  # bytes before a member's content
_HELD_BYTES = 512 << 20
_MAX_IMAGE_MIB = 256
_COPY_BUFFER = 16 << 20


class Samples(Protocol):
    """Encoded images, each with its caption, by their position."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[bytes, str]: ...

    def name(self, index: int) -> str:
        """Where an image lies, for a message."""


@dataclass(frozen=True)
class TarSamples:
    """The samples of plain local tars that have an image and a caption, read by their offsets.

    Attributes:
        paths: of the tars.
        spans: (n, 5) int64; of each sample the tar's position in `paths`, then offset and bytes of image and caption.
    """

    paths: tuple[str, ...]
    spans: np.ndarray

    @classmethod
    def of(cls, paths: Sequence[str]) -> "TarSamples":
        """Read the headers of tars.

        Args:
            paths: local tars that are not compressed, as a manifest has them.

        Raises:
            DamagedTarError: one is cut off, or no tar.
            OSError: one cannot be read.
        """
        spans = [(number, *span) for number, path in enumerate(paths) for span in _spans(path)]
        return cls(tuple(paths), np.array(spans, np.int64).reshape(-1, 5))

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> tuple[bytes, str]:
        number, offset, size, text_offset, text_size = self.spans[index].tolist()
        caption = os.pread(self._files[number], text_size, text_offset)
        return os.pread(self._files[number], size, offset), caption.decode("utf-8", "replace")

    def name(self, index: int) -> str:
        """The tar, and the image's name in its header."""
        number, offset = self.spans[index, :2].tolist()
        member = os.pread(self._files[number], 100, offset - _HEADER).partition(b"\0")[0]
        return f"{self.paths[number]}: {member.decode('utf-8', 'backslashreplace')}"

    @cached_property
    def _files(self) -> list[int]:
        # Positional reads of one descriptor do not disturb each other, also in the processes that inherit it.
        return [os.open(path, os.O_RDONLY) for path in self.paths]


def _spans(path: str) -> Iterator[tuple[int, int, int, int]]:
    """Offset and bytes of image and of caption, of each sample of a tar that has both."""
    key, image, text = "", None, None
    with opened(path, seekable=True) as stream:
        for member in Tar(stream):
            folder, slash, base = member.name.rpartition("/")
            stem, _, suffix = base.partition(".")
            if member.kind != "file" or not stem:
                continue
            if f"{folder}{slash}{stem}" != key:
                if image and text:
                    yield (*image, *text)
                key, image, text = f"{folder}{slash}{stem}", None, None
            if f".{suffix.lower()}" in IMAGE_SUFFIXES:
                image = image or (member.offset, member.size)
            elif suffix.lower() == "txt" and member.size:
                text = (member.offset, member.size)
    if image and text:
        yield (*image, *text)


@dataclass(frozen=True)
class CsvSamples:
    """The images that an `open_clip.csv` names with a caption.

    Attributes:
        rows: path or URL, and caption, of each.
    """

    rows: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, path: str) -> "CsvSamples":
        """Read a table of the columns `filepath` and `title`, with a tab between them.

        Args:
            path: of the table, also a URL.

        Raises:
            OSError: it cannot be read.
        """
        with opened(path) as stream, io.TextIOWrapper(stream, encoding="utf-8", newline="") as text:
            rows = csv.DictReader(text, delimiter="\t")
            return cls(tuple((row["filepath"], row["title"]) for row in rows if row["title"].strip()))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[bytes, str]:
        path, caption = self.rows[index]
        return whole_content(path, _MAX_IMAGE_MIB), caption

    def name(self, index: int) -> str:
        """The path."""
        return self.rows[index][0]


def manifest_samples(manifest: str, cache: Path) -> Samples:
    """What a manifest holds for OpenCLIP: its tars, else its table of paths.

    Args:
        manifest: folder of a version, also a URL.
        cache: where tars of another machine are copied to, for each pass reads them again.

    Raises:
        ValueError: it has neither; names the setting.
        OSError: it cannot be read.
    """
    tars = sorted(file.path for file in list_below(join(manifest, "webdataset"), (".tar",)).files)
    if tars:
        return TarSamples.of([path if is_local(path) else _copied(path, cache) for path in tars])
    table = join(manifest, "open_clip.csv")
    if exists(table):
        return CsvSamples.of(table)
    message = (
        f"{manifest}: neither webdataset/*.tar nor open_clip.csv; put `webdataset` (a source of tars or a folder) or "
        "`csv` (a folder) into the setting `manifests`, and make the manifest again"
    )
    raise ValueError(message)


def _copied(url: str, cache: Path) -> str:
    """A local copy; it is whole from the moment it is there."""
    cache.mkdir(parents=True, exist_ok=True)
    copy = cache / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.tar"
    if not copy.exists():
        partial = copy.with_suffix(".partial")
        with opened(url) as stream, partial.open("wb") as file:
            shutil.copyfileobj(stream, file, _COPY_BUFFER)
        partial.replace(copy)
    return str(copy)


@dataclass(frozen=True)
class Passes:
    """An endless sequence of passes over items: each holds every item once, in an order of its own.

    Any stretch of it holds two items equally often, or one of them once more where a pass is cut.

    Attributes:
        items: how many there are.
        seed: of the orders.
    """

    items: int
    seed: int

    def positions(self, first: int, count: int) -> np.ndarray:
        """(count,) int64, the items from a place of the sequence on.

        Args:
            first: how many come before.
            count: how many are wanted.
        """
        passes = range(first // self.items, -(-(first + count) // self.items))
        orders = [np.random.default_rng([self.seed, number]).permutation(self.items) for number in passes]
        start = first - passes.start * self.items
        return np.concatenate(orders)[start : start + count]


@dataclass
class Batches:
    """The batches of an epoch, which OpenCLIP numbers; the next epoch goes on where one ends, also within a pass."""

    passes: Passes
    size: int
    count: int
    epoch: int = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        first = self.epoch * self.count * self.size
        for batch in self.passes.positions(first, self.count * self.size).reshape(self.count, self.size):
            yield batch.tolist()


@dataclass(frozen=True)
class Preparation:
    """OpenCLIP's transform for training, in two parts with the same result as one image after the other.

    Attributes:
        each: an image to what is stacked, such as a random crop of it.
        normalize: (b, 3, side, side) pixels in [0, 1] to the model's input; None where `each` gives that.
    """

    each: "Callable[[Image.Image], Image.Image | torch.Tensor]"
    normalize: "Callable[[torch.Tensor], torch.Tensor] | None"

    @classmethod
    def of(cls, transform: Any) -> "Preparation":
        """Take a transform apart: to make tensors of 64 crops of 32 pixels, and to scale them, takes a fifth together.

        Args:
            transform: of OpenCLIP.
        """
        from torchvision.transforms import Compose, Normalize, ToTensor

        *first, last, normalize = getattr(transform, "transforms", [None, None])
        if isinstance(last, ToTensor) and isinstance(normalize, Normalize):
            return cls(Compose(first), normalize)
        return cls(transform, None)

    def stacked(self, images: "list[Image.Image | torch.Tensor]") -> "torch.Tensor":
        """(b, 3, side, side) float32, the model's input of what `each` gave."""
        import torch

        if self.normalize is None:
            return torch.stack(images)  # type: ignore[arg-type]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))  # (b, side, side, 3) uint8
        return self.normalize(pixels.permute(0, 3, 1, 2).float().div_(255))


@dataclass
class ImageText:
    """Images and captions prepared for a model: a map-style dataset of torch.

    Images are decoded as for embedding: transparent ones are put on white. The decoded ones are held in memory up to a
    bound: decoding takes as long as the rest of the preparation.

    Attributes:
        samples: what is read.
        preparation: of images.
        tokenize: texts to their tokens.
        unreadable: by name of an image, why it was passed over.
    """

    samples: Samples
    preparation: Preparation
    tokenize: Any
    unreadable: dict[str, str] = field(default_factory=dict)
    _held: "dict[int, tuple[Image.Image, torch.Tensor]]" = field(default_factory=dict)
    _held_bytes: int = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> "tuple[Image.Image | torch.Tensor, torch.Tensor] | None":
        try:
            image, tokens = self._held.get(index) or self._read(index)
        except (UndecodableImageError, InvalidValue) as error:
            name = self.samples.name(index)
            if name not in self.unreadable:
                self.unreadable[name] = str(error)
                logging.warning("passed over: %s: %s", name, error)
            return None
        return self.preparation.each(image), tokens

    def _read(self, index: int) -> "tuple[Image.Image, torch.Tensor]":
        encoded, caption = self.samples[index]
        found = rgb_image(encoded, shortest_side=None), self.tokenize([caption])[0]
        size = found[0].width * found[0].height * 4
        if self._held_bytes + size <= _HELD_BYTES:
            self._held[index] = found
            self._held_bytes += size
        return found

    def batch(
        self, found: "list[tuple[Image.Image | torch.Tensor, torch.Tensor] | None]"
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """The images (b, 3, side, side) and tokens (b, context) of those samples that could be read.

        Args:
            found: prepared image and tokens, or None.

        Raises:
            ValueError: there are fewer than two, of which nothing can be learnt.
        """
        import torch

        read = [sample for sample in found if sample is not None]
        if len(read) < 2:
            message = f"only {len(read)} of the {len(found)} images of a batch can be decoded; the log names the others"
            raise ValueError(message)
        return self.preparation.stacked([image for image, _ in read]), torch.stack([tokens for _, tokens in read])


@dataclass
class TrainingData:
    """What OpenCLIP's loop trains on, in place of its own `DataInfo`.

    Attributes:
        dataloader: of batches; its `num_batches` and `num_samples` are those of an epoch.
        batches: which they are.
    """

    dataloader: "DataLoader[Any]"
    batches: Batches

    @classmethod
    def of(cls, dataset: ImageText, batches: Batches, *, workers: int) -> "TrainingData":
        """Data whose order, and whose random crops, follow from the seed and the epoch alone.

        Args:
            dataset: what is read.
            batches: in which order.
            workers: processes that decode; 0: this one.
        """
        from torch.utils.data import DataLoader

        loader: Any = DataLoader(
            dataset,  # type: ignore[arg-type]  # torch asks for its own class, and uses length and items
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=dataset.batch,
        )
        loader.num_batches, loader.num_samples = batches.count, batches.count * batches.size
        return cls(loader, batches)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch, which draws the same random numbers whether or not the training was resumed before it."""
        from open_clip_train.main import random_seed

        random_seed(int(np.random.SeedSequence([self.batches.passes.seed, epoch]).generate_state(1)[0]))
        self.batches.epoch = epoch


def remove_damaged(checkpoints: Path) -> list[str]:
    """Remove checkpoints that were cut off while they were written, so that the one before is resumed from.

    Args:
        checkpoints: folder of `*.pt`, which are zip files; may be missing.

    Returns:
        Their names.
    """
    damaged = []
    for path in sorted(checkpoints.glob("*.pt")):
        if not _is_whole(path):
            damaged.append(path.name)
            path.unlink()
    return damaged


def _is_whole(path: Path) -> bool:
    import zipfile

    with suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(path) as content:
        return content.testzip() is None
    return False
