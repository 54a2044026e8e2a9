"""What training on less of the emoji costs, by a model that is solved for in place of being trained.

    python examples/proof/closed_form.py

Features are those of Coates, Lee and Ng (2011): correlations with patches of the images themselves, whitened, and averaged
over a grid. Ridge regression maps them to the words of the captions. A caption is ranked for an image by the cosine of its
words, weighted by how rare they are, with the predicted ones. There are no steps, and no learning rate: what differs between
two training sets is the data, and the whole curve from 100 to 20 % takes 20 seconds of one core.
"""

import argparse
import io
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from semdedup_assets.algorithm.deduplication import Deduplication, semdedup
from semdedup_assets.algorithm.seed_spread import SeedSpread
from semdedup_assets.kept_sets import KeepStrategy

FOLDER = Path(__file__).parent
EMOJI = FOLDER.parent / "emoji"
SIZE = 32  # pixels a side
SHARES = (0.8, 0.63, 0.5, 0.4, 0.2)
"""Those of the paper's Figure 4."""

Choose = Callable[[float, int], np.ndarray]
"""What is kept of the pool, (n,) bool, by share and seed."""


@dataclass(frozen=True)
class Drawing:
    """An image on white, in RGB, and its caption."""

    image: Image.Image
    caption: str


def read_drawings(paths: Sequence[Path]) -> list[Drawing]:
    """The samples of WebDataset tars, in their order."""
    drawings = []
    for path in paths:
        with tarfile.open(path) as archive:
            files = {member.name: _content(archive, member) for member in archive}
        for name in (name for name in files if name.endswith(".png")):
            layer = Image.open(io.BytesIO(files[name])).convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
            drawings.append(Drawing(image, files[name.replace(".png", ".txt")].decode()))
    return drawings


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    return b"" if stream is None else stream.read()


def pixels(drawings: Sequence[Drawing]) -> np.ndarray:
    """(n, SIZE, SIZE, 3) float32 in [0, 1]."""
    resized = (each.image.resize((SIZE, SIZE), Image.Resampling.BICUBIC) for each in drawings)
    return np.stack([np.asarray(image, np.float32) / 255 for image in resized])


@dataclass(frozen=True)
class PatchFeatures:
    """Correlations of an image with patches.

    Attributes:
        projection: (108, m) float32, from a normalised patch to its correlations.
        offset: (m,) float32, those of the mean patch.
        grid: cells a side over which they are averaged.
        threshold: below which a correlation counts as none.
    """

    projection: np.ndarray
    offset: np.ndarray
    grid: int = 4
    threshold: float = 0.25

    @classmethod
    def of(cls, images: np.ndarray, *, patches: int = 256, sample: int = 40_000, seed: int = 0) -> "PatchFeatures":
        """Take patches of some images at random, whitened (ZCA)."""
        windows, rng = _windows(images), np.random.default_rng(seed)
        chosen = tuple(rng.integers(length, size=sample) for length in windows.shape[:3])
        rows = _normalised(windows[chosen].reshape(sample, -1))
        values, axes = np.linalg.eigh(np.cov(rows.T))
        whitening = (axes / np.sqrt(np.maximum(values, 0) + 0.1)) @ axes.T
        varied = np.linalg.norm(rows, axis=1) > 1e-3  # patches of one colour say nothing
        mean = rows.mean(axis=0)
        words = ((rows[varied] - mean) @ whitening)[:patches]
        projection = whitening @ (words / np.linalg.norm(words, axis=1, keepdims=True)).T
        return cls(projection.astype(np.float32), (mean @ projection).astype(np.float32))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """(n, grid² · 2m) float32, of (n, SIZE, SIZE, 3) images."""
        return np.concatenate([self._of_some(images[start : start + 64]) for start in range(0, len(images), 64)])

    def _of_some(self, images: np.ndarray) -> np.ndarray:
        windows = _windows(images)
        count, height, width = windows.shape[:3]
        found = _normalised(windows.reshape(count * height * width, -1)) @ self.projection - self.offset
        signs = np.maximum(np.concatenate([found, -found], axis=1) - self.threshold, 0)
        maps = signs.reshape(count, height, width, -1)
        edges = np.linspace(0, height, self.grid + 1).astype(int)
        cells = [slice(start, stop) for start, stop in pairwise(edges)]
        pooled: np.ndarray = np.concatenate([maps[:, row, col].mean(axis=(1, 2)) for row in cells for col in cells], 1)
        return pooled


def _windows(images: np.ndarray) -> np.ndarray:
    """(n, h, w, 3, 6, 6): each patch of 6 x 6 pixels."""
    return np.lib.stride_tricks.sliding_window_view(images, (6, 6), axis=(1, 2))


def _normalised(patches: np.ndarray) -> np.ndarray:
    """(m, d): each patch less its mean, by its contrast."""
    centred = patches - patches.mean(axis=1, keepdims=True)
    scaled: np.ndarray = centred / np.sqrt(centred.var(axis=1, keepdims=True) + 0.01)
    return scaled


@dataclass(frozen=True)
class Recalls:
    """Share of the test images whose caption is the first, and among the first five."""

    at_1: float
    at_5: float


@dataclass(frozen=True)
class ClosedForm:
    """Ridge regression of captions on images, for any training set within a pool.

    Attributes:
        within: (n, n) float64, inner products of the pool's features.
        across: (t, n) float64, of the test images' with the pool's.
        words: (n,) words of each of the pool's captions.
        asked: (t,) words of each test caption.
        ridge: in units of a mean squared length of features.
    """

    within: np.ndarray
    across: np.ndarray
    words: tuple[frozenset[str], ...]
    asked: tuple[frozenset[str], ...]
    ridge: float = 0.1

    @classmethod
    def of(cls, pool: Sequence[Drawing], test: Sequence[Drawing]) -> "ClosedForm":
        """Take the features' patches and scales from the pool, whatever is trained on."""
        images = pixels(pool)
        features = PatchFeatures.of(images)
        trained, tested = features(images), features(pixels(test))
        mean, spread = trained.mean(axis=0), trained.std(axis=0)
        spread = spread + 0.01 * trained.std()  # rare features would count for too much
        trained, tested = ((each - mean) / spread / np.sqrt(trained.shape[1]) for each in (trained, tested))
        trained, tested = trained.astype(np.float64), tested.astype(np.float64)
        words = (tuple(_words(each.caption) for each in drawings) for drawings in (pool, test))
        return cls(trained @ trained.T, tested @ trained.T, *words)

    def recalls(self, chosen: np.ndarray) -> Recalls:
        """Train on some items of the pool, and find the test images' captions.

        Args:
            chosen: (n,) bool, or positions.
        """
        rows = np.arange(len(self.words))[chosen]
        column = {word: number for number, word in enumerate(sorted(set().union(*(self.words[row] for row in rows))))}
        wanted = _has([self.words[row] for row in rows], column)
        rarity = np.log1p(len(rows) / wanted.sum(axis=0))
        within = self.within[np.ix_(rows, rows)]
        regular = within + self.ridge * np.trace(within) / len(rows) * np.eye(len(rows))
        predicted = self.across[:, rows] @ np.linalg.solve(regular, wanted - wanted.mean(axis=0))
        asked = _has(self.asked, column) * rarity
        asked /= np.maximum(np.linalg.norm(asked, axis=1, keepdims=True), 1e-9)
        return _recalls((predicted * rarity) @ asked.T)


def _words(caption: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", caption.lower()))


def _has(texts: Sequence[frozenset[str]], column: dict[str, int]) -> np.ndarray:
    """(n, words) float64: which of the known words each text has."""
    found = np.zeros((len(texts), len(column)))
    for row, words in enumerate(texts):
        found[row, [column[word] for word in words if word in column]] = 1
    return found


def _recalls(scores: np.ndarray) -> Recalls:
    """Of (t, t) scores, image by caption; of captions that tie, half come first."""
    own = np.diag(scores)[:, None]
    before = (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2
    return Recalls(float((before < 1).mean()), float((before < 5).mean()))  # the name says so


@dataclass(frozen=True)
class Point:
    """A training set of the curve, with recalls of each seed.

    Attributes:
        choice: `full`, `exact`, `random`, or `semdedup` with the strategy by which it keeps.
        share: of the pool.
    """

    choice: str
    share: float
    recalls: list[Recalls] = field(default_factory=list)

    def spread(self, name: Literal["at_1", "at_5"]) -> SeedSpread:
        """Of one of the recalls, in percent."""
        return SeedSpread.of([100 * getattr(each, name) for each in self.recalls])

    def __str__(self) -> str:
        """A row of a table."""
        cells = [str(len(self.recalls)), str(self.spread("at_1")), str(self.spread("at_5"))]
        return f"| {self.choice} | {self.share:.0%} | {' | '.join(cells)} |"


def exact_choice(drawings: Sequence[Drawing]) -> np.ndarray:
    """(n,) bool: the first of images whose pixels are equal."""
    contents = [each.image.tobytes() for each in drawings]
    _, first = np.unique(np.array([hash(content) for content in contents]), return_index=True)
    chosen = np.zeros(len(drawings), bool)
    chosen[first] = True
    return chosen


def curve(
    model: ClosedForm, pool: Sequence[Drawing], vectors: np.ndarray, *, shares: Sequence[float] = SHARES, seeds: int = 5
) -> Iterator[Point]:
    """Recalls by share kept: everything, exact deduplication, random choices and SemDeDup by each of its strategies.

    Args:
        model: of the pool.
        pool: images and captions.
        vectors: (n, d) of the encoder, in the pool's order.
        shares: of the pool, that are kept.
        seeds: of random choices, and of SemDeDup's clustering.
    """
    count = len(vectors)
    yield Point("full", 1.0, [model.recalls(np.ones(count, bool))])
    exact = exact_choice(pool)
    yield Point("exact", float(exact.mean()), [model.recalls(exact)])
    choices: dict[str, Choose] = {"random": partial(_random, count)}
    for keep in get_args(KeepStrategy):
        found = [semdedup(vectors, keep=keep, seed=seed) for seed in range(seeds)]
        choices[f"semdedup, {keep}"] = partial(_kept, found)
    for share in shares:
        for name, choose in choices.items():
            yield Point(name, share, [model.recalls(choose(share, seed)) for seed in range(seeds)])


def _kept(found: Sequence[Deduplication], share: float, seed: int) -> np.ndarray:
    """(n,) bool."""
    return found[seed].keep_mask(found[seed].epsilon_for(keep=share))


def _random(count: int, share: float, seed: int) -> np.ndarray:
    """(n,) bool."""
    chosen = np.zeros(count, bool)
    chosen[np.random.default_rng(seed).permutation(count)[: round(share * count)]] = True
    return chosen


def demo_vectors(drawings: Sequence[Drawing]) -> np.ndarray:
    """(n, 128) float32 of the emoji demo's encoder."""
    import open_clip
    import torch

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{EMOJI / 'encoder'}")
    model.eval()
    images = torch.stack([transform(each.image) for each in drawings])
    with torch.inference_mode():
        parts = [model.encode_image(part, normalize=True) for part in images.split(128)]
    return np.asarray(torch.cat(parts), np.float32)


def main() -> None:
    """Print the curve as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", type=Path, default=FOLDER / "fluent.tar", help="tar of `draw_icons.py`")
    test: Path = parser.parse_args().test
    pool = read_drawings(sorted((EMOJI / "shards").glob("*.tar")))
    model = ClosedForm.of(pool, read_drawings([test]))
    print("| training set | share | seeds | R@1 % | R@5 % |\n|-|-:|-:|-:|-:|")
    for point in curve(model, pool, demo_vectors(pool)):
        print(point, flush=True)


if __name__ == "__main__":
    main()
