"""Lloyd's iterations of spherical k-means on one or several devices, such as the GPUs of a machine.

Each device works on rows of its own, and holds all centroids and sums of them. Sums are of integers, which add up to the
same in any order: centroids do not depend on how many devices of a kind there are.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from semdedup_assets.algorithm.budget import TileShape
from semdedup_assets.algorithm.lloyd import split_for_empty
from semdedup_assets.algorithm.parallel import even_parts, on_devices
from semdedup_assets.algorithm.unit_rows import full_float32, unit_rows

# Rows that are read together, and the tile of similarities that stays in a GPU's second-level cache. Fixed: which of two
# centroids that are as good as equally near is chosen would otherwise depend on the room there is.
_BLOCK = 1 << 14
_CPU_TILE, _GPU_TILE = TileShape(256, 2048), TileShape(4096, 4096)
# Numbers of a unit row are summed as multiples of 2^-32: the sum of 2^31 rows fits 64 bits.
_UNITS = float(1 << 32)
# Centroids that are moved together, in float64.
_MOVED = 1 << 12


def fit_on_devices(
    rows: Tensor, first: Tensor, *, iterations: int, devices: Sequence[torch.device], budget: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fit k centroids: only the choice of the nearest centroid uses half precision, and that on GPUs.

    Beside a block of rows and its products, each GPU holds 2.5 times what the centroids take as float32 (copies in half
    precision, and sums of 64 bits), the first one 3.5 times; the CPU 4 times.

    Args:
        rows: (n, d) floats on the CPU, neither zero nor infinite, of any length; read once in each iteration, so that
            they need not be in memory.
        first: (k,) int64, the rows that are the first centroids.
        iterations: at most; ends as soon as no row changes its cluster.
        devices: at least one; the work is divided among them. Of several of one kind the number changes no result.
        budget: bytes of rows that each GPU may keep, so that they are copied there once and not in each iteration.

    Returns:
        (k, d) float32 unit rows, and (i,) float64, the mean cosine similarity of the rows to their centroids in each
        iteration.
    """
    blocks = [slice(start, min(start + _BLOCK, len(rows))) for start in range(0, len(rows), _BLOCK)]
    # Consecutive blocks lie together on a disk.
    parts = even_parts(len(blocks), len(devices))
    shape = len(first), rows.shape[1]
    shares = [
        _Share(rows, blocks[part], budget, torch.empty(shape, dtype=torch.int64, device=device))
        for device, part in zip(devices, parts, strict=True)
    ]
    centroids = unit_rows(rows[first].to(devices[0]))
    # What all rows share decides nothing, and would take the digits that half precision has.
    centre, objective = centroids.mean(0), []
    for _ in range(iterations):
        candidates = [Candidates.of(centroids, centre, device, products_on(device)) for device in devices]
        with full_float32():
            on_devices([partial(share.sum_up, own) for share, own in zip(shares, candidates, strict=True)])
        del candidates
        similarity = _move(centroids, shares)
        objective.append(similarity / len(rows))
        if not any(share.changed for share in shares):
            break
        split_for_empty(centroids, torch.stack([share.sizes.cpu() for share in shares]).sum(0))
    return centroids.cpu().numpy(), np.asarray(objective)


@dataclass(frozen=True)
class Candidates:
    """Centroids as they are compared: less a centre, and what the centre adds to each product."""

    codes: Tensor  # (k, d)
    bias: Tensor  # (k,)
    centre: Tensor  # (d,)

    @classmethod
    def of(cls, centroids: Tensor, centre: Tensor, device: torch.device, precision: torch.dtype) -> "Candidates":
        """Centroids for products of some precision on a device."""
        codes = torch.empty(centroids.shape, dtype=precision, device=device)
        for start in range(0, len(centroids), _MOVED):
            codes[start : start + _MOVED] = (centroids[start : start + _MOVED] - centre).to(precision)
        bias = centroids @ centre
        return cls(codes, (bias - bias.mean()).to(device, precision), centre.to(device))

    def nearest(self, unit: Tensor) -> Tensor:
        """(b,) int64: of each unit row, the centroid of the greatest product, the first of equals."""
        height, width = _CPU_TILE if unit.device.type == "cpu" else _GPU_TILE
        return torch.cat([self._nearest(unit[top : top + height], width) for top in range(0, len(unit), height)])

    def _nearest(self, unit: Tensor, width: int) -> Tensor:
        queries = (unit - self.centre).to(self.codes.dtype)
        best = torch.full((len(queries),), -torch.inf, dtype=self.codes.dtype, device=unit.device)
        nearest = torch.zeros(len(queries), dtype=torch.int64, device=unit.device)
        for left in range(0, len(self.codes), width):
            part = slice(left, left + width)
            greatest, index = torch.addmm(self.bias[part], queries, self.codes[part].T).max(1)  # of (b, m)
            nearest = torch.where(greatest > best, left + index, nearest)
            best = torch.maximum(best, greatest)
        return nearest


def products_on(device: torch.device) -> torch.dtype:
    """In what precision the nearest centroid is searched: half where that is several times as fast."""
    return torch.float16 if device.type == "cuda" else torch.float32


@dataclass
class _Share:
    """The rows of one device, and what it found in an iteration: sums and sizes of clusters, rows that changed theirs."""

    rows: Tensor
    blocks: list[slice]
    budget: int
    sums: Tensor  # (k, d) int64, on the device
    sizes: Tensor = field(init=False)  # (k,) int64
    changed: int = field(init=False)
    _labels: dict[int, Tensor] = field(default_factory=dict)
    _kept: dict[int, Tensor] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.sums.device

    def sum_up(self, candidates: Candidates) -> None:
        """Find the nearest centroid of each row, and sum up the rows of each cluster."""
        self.sums.zero_()
        self.sizes = torch.zeros(len(self.sums), dtype=torch.int64, device=self.device)
        changed = torch.zeros((), dtype=torch.int64, device=self.device)
        for start, block in self._read():
            unit = unit_rows(block)
            nearest = candidates.nearest(unit)
            self.sums.index_add_(0, nearest, unit.mul_(_UNITS).long())
            self.sizes += torch.bincount(nearest, minlength=len(self.sums))
            labels, before = nearest.int(), self._labels.get(start)
            changed += len(labels) if before is None else (before != labels).sum()
            self._labels[start] = labels
        self.changed = int(changed)

    def _read(self) -> Iterator[tuple[int, Tensor]]:
        """Blocks on the device; the next one is read while one is worked on."""
        with ThreadPoolExecutor(1) as reader:
            following = [reader.submit(self._block, part) for part in self.blocks[:1]]
            for index, part in enumerate(self.blocks):
                here = following.pop()
                following += [reader.submit(self._block, each) for each in self.blocks[index + 1 : index + 2]]
                block = here.result().to(self.device, non_blocking=True)
                if self.device.type != "cpu" and (len(self._kept) + 1) * block.nbytes <= self.budget:
                    self._kept[part.start] = block
                yield part.start, block

    def _block(self, part: slice) -> Tensor:
        kept = self._kept.get(part.start)
        if kept is not None:
            return kept
        return self.rows[part].pin_memory() if self.device.type == "cuda" else self.rows[part]


def _move(centroids: Tensor, shares: Sequence[_Share]) -> float:
    """Move each centroid to the direction of its rows' sum; one that is empty, or cancels out, stays where it is.

    Returns:
        The sum of the rows' similarities to the centroids as they were.
    """
    similarity = 0.0
    for start in range(0, len(centroids), _MOVED):
        part = slice(start, start + _MOVED)
        whole = torch.stack([share.sums[part].to(centroids.device) for share in shares]).sum(0)
        sums, before = whole.double() / _UNITS, centroids[part].double()
        similarity += float((sums * before).sum())
        norms = torch.linalg.vector_norm(sums, dim=1, keepdim=True)
        centroids[part] = torch.where(norms > 1e-6, sums / norms.clamp_min(1e-6), before).float()
    return similarity
