"""Zero-shot classification: a CLIP names the class of an image by the most similar of one sentence a class."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from semdedup_assets.compute import Compute
from semdedup_assets.records import Invalid, Record
from semdedup_assets.training.metrics.image_sets import ImageTextModel, Sample, samples
from semdedup_assets.training.metrics.measured import Measured
from semdedup_assets.training.metrics.retrieval import ranks
from semdedup_assets.training_settings import ZeroShot

DEPTHS = (1, 5)


def zero_shot(model: Path, settings: ZeroShot, *, device: str, batch_size: int | None = None) -> Measured:
    """Share of images whose class is the most similar, or among the first five.

    An image's class is what `cls` holds, a position in `classes` or one of their names; else its caption, a name. Of
    equally similar ones the wrong come first.

    Args:
        model: folder of the trained model, as for `local-dir:`.
        settings: the images, names of the classes, and what is said of one.
        device: as of `compute.device`.
        batch_size: items of a batch; None: chosen for the device.

    Returns:
        `accuracy@1` in [0, 1], and `accuracy@5` where there are more than five classes; samples without image or class,
        and images that cannot be decoded, are skipped.

    Raises:
        ValueError: the folder holds no model, the device is not there, no image has a class, or one has a class that is
            not named.
        FileNotFoundError: no tar is there.
        TruncatedFile: a tar is damaged.
    """
    clip = ImageTextModel(model, Compute(device=device, batch_size=batch_size))
    names: list[str] = []

    def stream() -> Iterator[Record | Invalid]:
        for sample in samples(settings.path):
            name = "" if isinstance(sample, Invalid) else class_name(sample, settings)
            names.append(name)
            if isinstance(sample, Invalid):
                yield sample
            else:
                yield Record(sample.key, sample.image) if name else Invalid(sample.key, "no class: neither cls nor txt")

    images = clip.images(stream())
    if not len(images.rows):
        found = f", such as {images.skipped[0][0]!r} ({images.skipped[0][1]})" if images.skipped else ""
        message = (
            f"evaluation.zero_shot: {settings.path}: none of its {len(names):,} samples has image and class{found}"
        )
        raise ValueError(message)
    of_images = [names[row] for row in images.rows]
    classes: Sequence[str] = settings.classes or sorted(set(of_images))
    texts = clip.texts([settings.template.replace("{}", name) for name in classes])
    positions = {name: position for position, name in enumerate(classes)}
    labels = np.array([positions[name] for name in of_images])
    rank = ranks(images.vectors, texts, lambda first, last: labels[first:last, None] == np.arange(len(classes)))
    values = {f"accuracy@{depth}": float(np.mean(rank < depth)) for depth in DEPTHS if depth < max(len(classes), 2)}
    return Measured(values, len(rank), images.skipped)


def class_name(sample: Sample, settings: ZeroShot) -> str:
    """The name of an image's class; empty where it has none.

    Args:
        sample: which.
        settings: the classes.

    Raises:
        ValueError: it is not among the classes; names the sample and the setting.
    """
    found, classes = sample.label or sample.caption, settings.classes
    if not classes:
        if sample.label and not sample.caption:
            message = (
                f"evaluation.zero_shot: {settings.path}: sample {sample.key!r} has the class {sample.label} and no txt; "
                "name the classes in `classes`"
            )
            raise ValueError(message)
        return sample.caption
    if found not in classes and sample.label.isdecimal() and int(sample.label) < len(classes):
        return classes[int(sample.label)]
    if found and found not in classes:
        message = (
            f"evaluation.zero_shot: {settings.path}: sample {sample.key!r} has the class {found!r}, which is not among the "
            f"{len(classes):,} of `classes`; add it, or remove the sample"
        )
        raise ValueError(message)
    return found
