"""Vectors that the tests of the algorithm share: random, near-duplicate, in a chain, of real texts."""

import ast
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

from semdedup_assets_tests.oracle import unit

# The same examples on every machine and in every run, so that a failure is never a matter of luck.
repeatable = settings(deadline=None, max_examples=40, derandomize=True, database=None)


def random_vectors(n: int, d: int = 32, *, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    """(n, d) unit rows in all directions."""
    return unit(np.random.default_rng(seed).normal(size=(n, d))).astype(dtype)


def near_duplicates(n: int, d: int = 32, *, epsilon: float, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    """(n, d) unit rows in groups of about four, whose pairs lie on both sides of 1 - epsilon."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(max(1, n // 4), d)))[rng.integers(max(1, n // 4), size=n)]
    away = unit(rng.normal(size=(n, d))) * np.sqrt(epsilon) * rng.uniform(0.4, 1.6, size=(n, 1))
    return unit(centres + away).astype(dtype)


def repeated(
    n: int, d: int = 32, *, groups: int, seed: int = 0, dtype: type = np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) unit rows of which only `groups` are distinct and well apart, and the group of each, (n,)."""
    rng = np.random.default_rng(seed)
    group = rng.integers(groups, size=n)
    distinct = unit(np.eye(groups, d) + 0.1 * rng.normal(size=(groups, d)))
    return distinct.astype(dtype)[group], group


def arc(n: int, *, step: float) -> np.ndarray:
    """(n, 2) float32 unit rows on a circle, `step` radians from one to the next: a chain of near duplicates."""
    angle = step * np.arange(n)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def tensor(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rows)


def docstrings(package: str, *, most: int) -> list[str]:
    """The docstrings of an installed package's modules, in the order of their paths."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    texts: list[str] = []
    for path in sorted(Path(spec.origin).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and (text := ast.get_docstring(node)):
                texts.append(text)
        if len(texts) >= most:
            break
    return texts[:most]


@st.composite
def vector_arrays(draw: st.DrawFn) -> np.ndarray:
    """(n, d) float32 unit rows: random ones, near duplicates and exact duplicates of one another, mixed."""
    n, d, seed = draw(st.integers(1, 60)), draw(st.integers(2, 24)), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    rows = unit(rng.normal(size=(n, d)))
    copied = rng.random(n) < draw(st.floats(0, 0.8))
    rows[copied] = rows[rng.integers(n, size=copied.sum())]
    moved = rng.random(n) < draw(st.floats(0, 0.5))
    rows[moved] += draw(st.sampled_from([1e-3, 1e-2, 0.1])) * rng.normal(size=(moved.sum(), d))
    return unit(rows).astype(np.float32)
