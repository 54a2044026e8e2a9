import json

import numpy as np
import pytest

from semdedup_assets.compute import Compute
from semdedup_assets.encoders import Precomputed
from semdedup_assets.encoders.precomputed import VectorCheck
from semdedup_assets.records import Embedded, Invalid, VectorBatch


def check(**settings: object) -> VectorCheck:
    return Precomputed(**settings).load(Compute(device="cpu"))


def batch(vectors: np.ndarray, first: int = 0) -> VectorBatch:
    rows = range(first, first + len(vectors))
    return VectorBatch([f"row {row}" for row in rows], vectors)


def normal(count: int, dimension: int = 8) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, dimension)).astype(np.float32)


def reasons(embedded: list[Embedded]) -> dict[int, str]:
    return {item.row: item.reason for part in embedded for item in part.skipped}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_vectors_are_divided_by_their_norm(dtype: type) -> None:
    vectors = (3 * normal(10)).astype(dtype)
    before = vectors.copy()
    (part,) = check().embed([batch(vectors)])
    exact = vectors.astype(np.float64)
    np.testing.assert_allclose(part.vectors, exact / np.linalg.norm(exact, axis=1, keepdims=True), atol=1e-6)
    assert part.vectors.dtype == np.float32
    assert part.rows.tolist() == list(range(10))
    np.testing.assert_array_equal(vectors, before)


def test_rows_without_a_direction_are_skipped_and_the_others_keep_their_row() -> None:
    vectors = normal(6)
    vectors[1, 3], vectors[3, 0], vectors[4] = np.nan, -np.inf, 0
    parts = list(
        check().embed([Invalid("x", "lost"), batch(vectors[:2]), Invalid("y", "missing"), batch(vectors[2:], 2)])
    )
    assert [row for part in parts for row in part.rows] == [1, 4, 7]
    assert [key for part in parts for key in part.keys] == ["row 0", "row 2", "row 5"]
    assert reasons(parts) == {0: "lost", 2: "not finite", 3: "missing", 5: "not finite", 6: "zero vector"}
    np.testing.assert_allclose(
        np.concatenate([part.vectors for part in parts]),
        [vectors[at] / np.linalg.norm(vectors[at]) for at in (0, 2, 5)],
        atol=1e-6,
    )


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_a_norm_that_float32_cannot_hold_still_gives_a_unit_vector(scale: float) -> None:
    vectors = normal(3).astype(np.float64)
    (part,) = check().embed([batch(vectors * scale)])
    np.testing.assert_allclose(part.vectors, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), atol=1e-6)
    assert not part.skipped


def test_the_first_batch_sets_the_dimension_where_no_setting_does() -> None:
    loaded = check()
    assert loaded.dimension is None
    parts = list(loaded.embed([batch(normal(2)), batch(normal(1, 3)), batch(normal(1))]))
    assert loaded.dimension == 8
    assert reasons(parts) == {2: "3 numbers, expected 8"}
    assert [row for part in parts for row in part.rows] == [0, 1, 3]
    assert all(part.vectors.shape[1] == 8 for part in parts)


def test_the_setting_decides_the_dimension() -> None:
    loaded = check(dimension=512)
    assert loaded.dimension == 512
    assert reasons(list(loaded.embed([batch(normal(1, 3))]))) == {0: "3 numbers, expected 512"}


def test_without_normalising_another_norm_is_an_error_of_the_row() -> None:
    vectors = normal(4)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[1] *= 3.2
    vectors[2] *= 1.005
    vectors[3] = np.nan
    (part,) = check(normalise=False).embed([batch(vectors)])
    unit = vectors[[0, 2]] / np.linalg.norm(vectors[[0, 2]], axis=1, keepdims=True)
    np.testing.assert_allclose(part.vectors, unit, rtol=1e-6)
    assert reasons([part]) == {1: "norm 3.2, not 1; set `normalise: true`", 3: "not finite"}


def test_a_stream_of_invalid_items_only_is_reported() -> None:
    (part,) = check().embed([Invalid("a", "lost"), Invalid("b", "missing")])
    assert (part.rows.size, reasons([part])) == (0, {0: "lost", 1: "missing"})
    assert list(check().embed([])) == []
    assert list(check().embed([batch(normal(0))])) == []


def test_a_large_batch_is_cut_without_a_change() -> None:
    vectors = normal(40_000, 16)
    parts = list(check().embed([batch(vectors)]))
    assert len(parts) > 1
    np.testing.assert_array_equal(np.concatenate([part.rows for part in parts]), np.arange(40_000))
    whole = np.concatenate([part.vectors for part in parts])
    np.testing.assert_allclose(whole, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), atol=1e-6)


def test_identity_and_name() -> None:
    identities = [
        Precomputed().identity(),
        Precomputed(normalise=False).identity(),
        Precomputed(dimension=4).identity(),
    ]
    assert len({json.dumps(each) for each in identities}) == 3
    assert Precomputed().name == "precomputed"
    assert Precomputed().accepts == "vector"
