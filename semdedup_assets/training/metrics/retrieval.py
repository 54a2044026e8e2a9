"""Zero-shot retrieval: how often a CLIP finds an image's caption among all captions, and a caption's image."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from semdedup_assets.compute import Compute
from semdedup_assets.records import Invalid, Record
from semdedup_assets.training.metrics.image_sets import ImageTextModel, samples
from semdedup_assets.training.metrics.measured import Measured

DEPTHS = (1, 5, 10)
_BLOCK = 1024  # queries that are ranked together


def retrieval(model: Path, path: str, *, device: str, batch_size: int | None = None) -> Measured:
    """Recall at 1, 5 and 10, in both directions.

    Captions that are equal, but for the white space between words, are one text. An image is found if its text is among
    the first k of all distinct texts; a text, if any of its images is among the first k of all images, and each distinct
    text is one query. Of equally similar ones the wrong come first: a model that gives everything one vector finds
    nothing.

    Args:
        model: folder of the trained model, as for `local-dir:`.
        path: tars of images with captions: a file, folder, glob or URL.
        device: as of `compute.device`.
        batch_size: items of a batch; None: chosen for the device.

    Returns:
        `image_to_text_recall@1` to `text_to_image_recall@10`, in [0, 1]; samples without image or caption, and images
        that cannot be decoded, are skipped.

    Raises:
        ValueError: the folder holds no model, the device is not there, or no image has a caption.
        FileNotFoundError: no tar is there.
        TruncatedFile: a tar is damaged.
    """
    clip = ImageTextModel(model, Compute(device=device, batch_size=batch_size))
    captions: list[str] = []

    def stream() -> Iterator[Record | Invalid]:
        for sample in samples(path):
            captions.append("" if isinstance(sample, Invalid) else sample.caption)
            if isinstance(sample, Invalid):
                yield sample
            elif sample.caption:
                yield Record(sample.key, sample.image)
            else:
                yield Invalid(sample.key, "no caption")

    images = clip.images(stream())
    if not len(images.rows):
        found = f", such as {images.skipped[0][0]!r} ({images.skipped[0][1]})" if images.skipped else ""
        message = f"evaluation.retrieval: {path}: none of its {len(captions):,} samples has image and caption{found}"
        raise ValueError(message)
    texts, caption_of = np.unique([captions[row] for row in images.rows], return_inverse=True)
    values = recalls(images.vectors, clip.texts(texts.tolist()), caption_of)
    return Measured(values, len(images.rows), images.skipped)


def recalls(images: np.ndarray, texts: np.ndarray, text_of: np.ndarray) -> dict[str, float]:
    """Recall at each depth, in both directions.

    Args:
        images: (n, d) unit rows.
        texts: (m, d) unit rows of distinct texts.
        text_of: (n,) position of each image's text.
    """
    directions = {
        "image_to_text": ranks(images, texts, lambda first, last: text_of[first:last, None] == np.arange(len(texts))),
        "text_to_image": ranks(texts, images, lambda first, last: np.arange(first, last)[:, None] == text_of),
    }
    return {
        f"{direction}_recall@{depth}": float(np.mean(found < depth))
        for direction, found in directions.items()
        for depth in DEPTHS
    }


def ranks(queries: np.ndarray, others: np.ndarray, right: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """How many wrong ones are at least as similar as the most similar right one.

    Args:
        queries: (n, d) unit rows.
        others: (m, d) unit rows.
        right: (b, m), which of the others are right for the queries from a first to a last one.

    Returns:
        (n,) int64
    """
    found = []
    for first in range(0, len(queries), _BLOCK):
        block = queries[first : first + _BLOCK]
        similarity = block @ others.T  # (b, m)
        is_right = right(first, first + len(block))
        best = np.where(is_right, similarity, -np.inf).max(axis=1, keepdims=True)
        found.append(((similarity >= best) & ~is_right).sum(axis=1))
    return np.concatenate(found)
