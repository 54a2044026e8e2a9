"""Files of a small source, and the settings of a pipeline on them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

STATIC_TEXTS = {
    "kind": "sentence_transformers",
    "model": str(Path(__file__).parent.parent / "examples" / "docstrings" / "encoder"),
}
"""An encoder of texts that takes no time: a table, which this repository ships."""


def vectors_settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a small pipeline on the files of `folder/source`."""
    return {
        "dataset": "toy",
        "store": str(folder / "store"),
        "source": {"kind": "vectors", "path": str(folder / "source")},
        "encoder": {"kind": "precomputed"},
        "clustering": {"k": [3], "buckets": 2, "iterations": 10},
        "epsilons": ["0.05"],
        "refresh": {"retry_seconds": 0},
        "compute": {"device": "cpu"},
        **changes,
    }


def near_duplicates(seed: int, *, groups: int = 20, copies: int = 3, dimension: int = 16) -> np.ndarray:
    """(groups * copies, dimension) float32: every group a direction, with copies at cosines of about 0.9 to 0.999."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(groups, 1, dimension))
    noise = rng.normal(size=(groups, copies, dimension)) * rng.uniform(0.02, 0.5, size=(groups, copies, 1))
    return rng.permutation((centres + noise).reshape(-1, dimension)).astype(np.float32)


def write_shard(folder: Path, name: str, vectors: np.ndarray) -> Path:
    """Write `folder/source/<name>.npy`."""
    path = folder / "source" / f"{name}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, vectors)
    return path


def write_table(
    folder: Path, name: str, vectors: np.ndarray | Sequence[Any], columns: dict[str, Sequence[Any]] | None = None
) -> Path:
    """Write `folder/source/<name>.parquet`: a table of vectors with keys `<name>-<row>` and further columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "source" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = [f"{name}-{row}" for row in range(len(vectors))]
    embedding = pa.array([None if row is None else list(row) for row in vectors], pa.list_(pa.float32()))
    pq.write_table(pa.table({"embedding": embedding, "name": keys, **(columns or {})}), path)
    return path
