"""Measure the saved encoder on the shipped drawings, none of whose figures it was trained on.

    python measure_encoder.py

For each drawing, the most similar one by the other vendor is looked up: how often is it the same concept, skin tone
included (recall at 1), and how often the same figure? Pixels and the same model with random weights stand beside it.
"""

import argparse
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from drawings import on_white, open_png
from PIL import Image

Vectors = np.ndarray[Any, np.dtype[np.float32]]
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Sample:
    """One drawing as a shard holds it; the image is on white, in RGB."""

    key: str
    caption: str
    metadata: dict[str, str]
    image: Image.Image


def read_shards(folder: Path) -> list[Sample]:
    """All drawings of a folder of tars, in their order."""
    samples = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            files = {member.name: _content(archive, member) for member in archive}
        for key in [name.removesuffix(".png") for name in files if name.endswith(".png")]:
            image = on_white(open_png(files[f"{key}.png"]))
            metadata = json.loads(files[f"{key}.json"])
            samples.append(Sample(key, files[f"{key}.txt"].decode(), metadata, image))
    return samples


def encoder_vectors(samples: Sequence[Sample], folder: Path) -> Vectors:
    """(n, 128) unit rows of the checkpoint in the folder, loaded by OpenCLIP itself."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return _embed(model, transform, samples)


def random_vectors(samples: Sequence[Sample], folder: Path) -> Vectors:
    """(n, 128) unit rows of the same architecture before any training."""
    torch.manual_seed(0)
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    config = json.loads((folder / "open_clip_config.json").read_text())
    return _embed(open_clip.CLIP(**config["model_cfg"]), transform, samples)


def pixel_vectors(samples: Sequence[Sample]) -> Vectors:
    """(n, 12288) unit rows of the pixels themselves, less the mean picture."""
    pixels = np.stack([np.asarray(sample.image, dtype=np.float32).ravel() for sample in samples])
    return _unit(pixels - pixels.mean(axis=0))


def cross_vendor_recall(vectors: Vectors, samples: Sequence[Sample], *, same: str) -> float:
    """Share of drawings whose most similar drawing by the other vendor has the same `concept` or `base`."""
    vendor, label = (np.array([sample.metadata[name] for sample in samples]) for name in ("vendor", same))
    similarity = vectors @ vectors.T  # (n, n)
    similarity[vendor[:, None] == vendor[None, :]] = -np.inf
    return float((label[similarity.argmax(axis=1)] == label).mean())


def wrong_pairs(vectors: Vectors, samples: Sequence[Sample], *, count: int) -> list[tuple[float, Sample, Sample]]:
    """The most similar pairs of different figures whose pictures are not byte for byte the same."""
    bases = np.array([sample.metadata["base"] for sample in samples])
    pictures = np.array([sample.image.tobytes() for sample in samples], dtype=object)
    similarity = np.triu(vectors @ vectors.T, k=1)
    similarity[bases[:, None] == bases[None, :]] = 0
    pairs = []
    for position in similarity.argsort(axis=None)[::-1]:
        left, right = divmod(int(position), len(samples))
        if pictures[left] != pictures[right]:
            pairs.append((float(similarity[left, right]), samples[left], samples[right]))
        if len(pairs) == count:
            break
    return pairs


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member) or io.BytesIO()
    return stream.read()


@torch.inference_mode()
def _embed(
    model: open_clip.CLIP, transform: Callable[[Image.Image], torch.Tensor], samples: Sequence[Sample]
) -> Vectors:
    model.eval()
    images = torch.stack([transform(sample.image) for sample in samples])
    rows = [model.encode_image(batch, normalize=True).float() for batch in torch.split(images, 256)]
    vectors: Vectors = torch.cat(rows).numpy()
    return vectors


def _unit(rows: Vectors) -> Vectors:
    unit: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def main() -> None:
    """Print the recall figures and the most similar wrong pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, default=HERE / "encoder")
    parser.add_argument("--shards", type=Path, default=HERE / "shards")
    parser.add_argument("--pairs", type=int, default=20, help="how many of the most similar wrong pairs to print")
    options = parser.parse_args()
    samples = read_shards(options.shards)
    vectors = {
        "encoder": encoder_vectors(samples, options.encoder),
        "pixels": pixel_vectors(samples),
        "random weights": random_vectors(samples, options.encoder),
    }
    print(f"{len(samples)} drawings; recall at 1 over vendors:")
    for name, rows in vectors.items():
        concept, base = (cross_vendor_recall(rows, samples, same=label) for label in ("concept", "base"))
        print(f"  {name:15s} concept {concept:.3f}  figure {base:.3f}")
    print("most similar drawings of different figures:")
    for similarity, *pair in wrong_pairs(vectors["encoder"], samples, count=options.pairs):
        left, right = (f"{sample.caption} ({sample.metadata['vendor']})" for sample in pair)
        print(f"  {similarity:.4f}  {left}  |  {right}")


if __name__ == "__main__":
    main()
