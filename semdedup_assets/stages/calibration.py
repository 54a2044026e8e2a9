"""How fast this machine is: the pipeline's own code on a little of its own data, timed."""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from semdedup_assets.algorithm.assignment import assign
from semdedup_assets.algorithm.kmeans import Centroids, Engine, spherical_kmeans
from semdedup_assets.algorithm.sampling import UniformSample
from semdedup_assets.algorithm.unit_rows import as_tensor
from semdedup_assets.records import Embedded, Record
from semdedup_assets.stages.item_counts import Item, SourceFile, count_rows
from semdedup_assets.stages.work import Work
from semdedup_assets.storage.files import is_local, join, read_bytes, remove, write_bytes
from semdedup_assets.storage.layout import recipe_path
from semdedup_assets.storage.results import writing

# Time for a batch that is large enough to be like the pipeline's own, after a few items that warm the model up.
_EMBED_SECONDS = 6.0
_PROBE = 32
# A call that takes less is timed twice.
_SHORT = 1.0
# Operations of a timed fit, and of a timed product: half a second to two on two slow cores.
_FIT_FLOPS, _PRODUCT_FLOPS = 6e10, 1e10
_CLUSTERS = 1024
_BATCH = 1 << 14


@dataclass(frozen=True, slots=True)
class EncoderRate:
    """What the pipeline's model was seen to do.

    Attributes:
        load: seconds to load it.
        read: seconds to read an item.
        embed: seconds to embed one.
        items: how many that was measured on.
        embedded: what the model made of them.
        peak_mib: greatest memory of the process until then.
    """

    load: float
    read: float
    embed: float
    items: int
    embedded: list[Embedded]
    peak_mib: float

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return int(self.embedded[0].vectors.shape[1])


@dataclass(frozen=True, slots=True)
class StoreRate:
    """What the store was seen to do.

    Attributes:
        result: seconds to write an almost empty result.
        write: bytes a second.
        read: bytes a second; of what was just written.
        transfer: seconds a byte that is added where the store is not on this machine's disk; else 0.
    """

    result: float
    write: float
    read: float
    transfer: float


@dataclass(frozen=True, slots=True)
class ArithmeticRate:
    """What the arithmetic was seen to take, for vectors of the pipeline's length.

    Attributes:
        fit: seconds for a floating-point operation of k-means.
        product: seconds for one of the products of an assignment.
        pass_id: seconds for an id that is considered for the sample.
        choose: seconds for a number among which the smallest hashes are chosen.
    """

    fit: float
    product: float
    pass_id: float
    choose: float


def timed(call: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def timed_again(call: Callable[[], Any]) -> float:
    """The lesser of the seconds that a short call takes twice: what it loads at first, it loads once."""
    first = timed(call)
    return min(first, timed(call)) if first < _SHORT else first


def time_encoder(work: Work, files: Sequence[SourceFile]) -> EncoderRate:
    """Load the pipeline's model and embed some of the source's items.

    Args:
        work: the pipeline at work.
        files: files that were looked into.

    Raises:
        ValueError: none of the items can be embedded; names the dataset and the cure.
    """
    items = [item for file in files for item in file.begin]
    started = time.perf_counter()
    model: Any = work.pipeline.encoder.load(work.compute)
    load = time.perf_counter() - started
    list(model.embed(items[: max(1, min(8, len(items) // 4))]))
    rate, embedded = _time_embedding(model, items)
    count = sum(len(batch.rows) for batch in embedded)
    if count == 0:
        message = (
            f"{work.pipeline.dataset}: no item of {', '.join(file.path for file in files[:3])} can be embedded; "
            "check `source` in the settings"
        )
        raise ValueError(message)
    whole = [batch for batch in embedded if len(batch.rows)]
    peak = float(work.measures.taken(items=None)["peak_memory_mib"])
    return EncoderRate(load, _time_reading(work, files), rate, count, whole, peak)


def _like_all(items: list[Item], count: int) -> list[Item]:
    """Some items that are short and long in the share in which all are: time hangs on the length of texts."""
    by_length = sorted(items, key=lambda item: len(item.payload if isinstance(item, Record) else item.keys))
    return [by_length[int((place + 0.5) * len(items) / count)] for place in range(min(count, len(items)))]


def _time_embedding(model: Any, items: list[Item]) -> tuple[float, list[Embedded]]:
    """Seconds an item, and what was embedded."""
    probe = _like_all(items, min(_PROBE, len(items)))
    embedded: list[Embedded] = []
    seconds = timed(lambda: embedded.extend(model.embed(probe)))
    rate = seconds / max(1, count_rows(probe))
    wanted = min(len(items), max(2 * _PROBE, int(_EMBED_SECONDS / max(seconds, 1e-6) * _PROBE)))
    if wanted < 2 * len(probe):
        return rate, embedded
    many, embedded = _like_all(items, wanted), []
    return timed(lambda: embedded.extend(model.embed(many))) / count_rows(many), embedded


def _time_reading(work: Work, files: Sequence[SourceFile]) -> float:
    """Seconds to read an item of the source."""
    count, started = 0, time.perf_counter()
    for file in files:
        if not file.begin:
            continue
        for number, _ in enumerate(work.pipeline.source.read(file.path), 1):
            if number == len(file.begin):
                break
        count += count_rows(file.begin)
        if time.perf_counter() - started > 1:
            break
    return (time.perf_counter() - started) / max(1, count)


def time_store(work: Work) -> StoreRate:
    """Write, read back and remove files in the store."""
    folder = join(work.layout.estimate.rpartition("/")[0], f"rehearsal-{uuid.uuid4().hex}")
    local = is_local(folder)
    path, result = f"{folder}.bytes", f"{folder}.result"
    content = np.random.default_rng(0).bytes((64 if local else 16) << 20)
    try:
        write = len(content) / timed(lambda: write_bytes(path, content))
        read = len(content) / timed(lambda: read_bytes(path))
        small = min(timed(lambda: _write_result(result)) for _ in range(3))
    finally:
        for name in (path, result, recipe_path(result)):
            remove(name)
    return StoreRate(small, write, read, 0.0 if local else (1 / write + 1 / read) / 2)


def _write_result(path: str) -> None:
    with writing(path, code_version="", made_from={}) as result, result.open(path) as stream:
        stream.write(b"0")


def time_arithmetic(work: Work, vectors: np.ndarray, *, k: int, sample: int) -> ArithmeticRate:
    """Time fitting, assigning and sampling.

    Args:
        work: the pipeline at work.
        vectors: (n, d) rows as they are stored.
        k: clusters that the pipeline will make; more than a thousand cost as much each as a thousand do.
        sample: vectors that it will draw.
    """
    n, d = vectors.shape
    ids = np.arange(_BATCH, dtype=np.uint64)
    whole = UniformSample(None, 0)
    pass_id = (timed(lambda: whole.add(ids)) + timed(lambda: np.searchsorted(whole.ids, ids))) / _BATCH
    many = np.arange(2 * min(sample, 1 << 18) + 1, dtype=np.uint64)
    choose = min(timed(lambda: UniformSample(len(many) // 2, 0).add(many)) for _ in range(2)) / len(many)
    clusters = max(1, min(k, _CLUSTERS, n // 4))
    few = vectors[: max(4 * clusters, min(n, int(_FIT_FLOPS / (16 * clusters * d))))]
    fit = _time_fit(few, clusters, work.pipeline.clustering.engine)
    return ArithmeticRate(fit, _time_product(work, vectors, k), pass_id, choose)


def _time_fit(vectors: np.ndarray, k: int, engine: Engine) -> float:
    """Seconds for an operation of k-means: the difference of a long and a short fit, which have all else in common."""
    flops = 2.0 * vectors.size * k
    most = int(min(40, max(6, _FIT_FLOPS / 20 / flops)))
    seconds, iterations = [], []
    for wanted in (1, 2, most):
        fits = list[Centroids]()
        fit = partial(spherical_kmeans, vectors, k=k, iterations=wanted, seed=0, engine=engine)
        seconds.append(timed_again(lambda: fits.append(fit())))  # noqa: B023  # called at once
        iterations.append(len(fits[0].objective))
    if iterations[2] > iterations[1] and seconds[2] > seconds[1]:
        return (seconds[2] - seconds[1]) / (iterations[2] - iterations[1]) / flops
    return min(seconds[1:]) / (iterations[1] + 1) / flops


def _time_product(work: Work, vectors: np.ndarray, k: int) -> float:
    """Seconds for an operation of an assignment's products: many centroids against one."""
    device, d = work.compute.torch_device, int(vectors.shape[1])
    count = max(256, min(k, 2 * _CLUSTERS))
    rows = as_tensor(vectors[: max(256, min(len(vectors), int(_PRODUCT_FLOPS / (2 * count * d))))])
    # Like centroids of these vectors: of random ones a screen would leave over far more.
    near = as_tensor(vectors[np.arange(count) % len(vectors)]).float()
    away = torch.randn(count, d, generator=torch.Generator().manual_seed(0)) * (0.5 / d**0.5)
    many = torch.nn.functional.normalize(near + away).to(device)
    seconds = {size: _least(rows, many[:size], work.compute.budget) for size in (1, count)}
    flops = 2.0 * len(rows) * (count - 1) * d
    return max(seconds[count] - seconds[1], seconds[count] / 10) / flops


def _least(rows: torch.Tensor, centroids: torch.Tensor, budget: int) -> float:
    return min(timed(lambda: assign(rows, centroids, budget=budget)) for _ in range(3))


def synthetic_vectors(count: int, *, dimension: int, seed: int = 0) -> np.ndarray:
    """(count, dimension) float32 unit rows, three in ten of them near copies (cosine about 0.98) of another."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, dimension)).astype(np.float32)
    copies = np.flatnonzero(rng.random(count) < 0.3)
    rows[copies] = rows[rng.integers(0, count, len(copies))] + 0.2 * rows[copies]
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def as_embedded(vectors: np.ndarray, columns: dict[str, Any]) -> Iterator[Embedded]:
    """Vectors as a model would hand them over, with a value for each column."""
    keys = [f"{row:08d}" for row in range(len(vectors))]
    filled = {name: [value] * len(vectors) for name, value in columns.items()}
    yield Embedded(np.arange(len(vectors)), keys, vectors, filled, [])
