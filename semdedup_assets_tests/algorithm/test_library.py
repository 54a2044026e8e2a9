"""The library as it is called: what each wrong argument is answered with, what is shown, and what is loaded."""

import dataclasses
import inspect
import pydoc
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import semdedup_assets
from semdedup_assets import Deduplication, semdedup
from semdedup_assets_tests.algorithm.vectors import near_duplicates, random_vectors

VECTORS = random_vectors(10)


class Sparse:
    """As SciPy's matrices: not an array, but can be one."""

    def toarray(self) -> np.ndarray:
        return VECTORS


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"k": 2.5}, TypeError, r"k: 2\.5 \(float\) is not a whole number; 'auto' chooses a number of clusters"),
    ({"k": 2.0}, TypeError, r"k: 2\.0 \(float\) is not a whole number"),
    ({"k": True}, TypeError, r"k: True \(bool\) is not a whole number"),
    ({"k": np.True_}, TypeError, r"k: bool is not a whole number|k: bool_ is not a whole number|k: np\.True_|k: True"),
    ({"k": "ten"}, TypeError, r"k: 'ten' \(str\) is not a whole number; 'auto' chooses"),
    ({"k": "10"}, TypeError, r"k: '10' \(str\) is not a whole number"),
    ({"k": [2]}, TypeError, "k: list is not a whole number"),
    ({"k": np.array([2, 3])}, TypeError, "k: ndarray is not a whole number"),
    ({"k": np.nan}, TypeError, r"k: nan \(float\) is not a whole number"),
    ({"k": 0}, ValueError, "k: 0 is not a positive number"),
    ({"seed": None}, TypeError, r"seed: None \(NoneType\) is not a whole number"),
    ({"seed": 0.5}, TypeError, r"seed: 0\.5 \(float\) is not a whole number"),
    ({"seed": -1}, ValueError, "seed: -1 is negative"),
    ({"keep": 3}, TypeError, r"keep: 3 \(int\) orders no items; give 'hard', 'middle', 'easy', 'random', or an array"),
    ({"keep": None}, TypeError, r"keep: None \(NoneType\) orders no items"),
    ({"keep": True}, TypeError, r"keep: True \(bool\) orders no items"),
    ({"keep": {"column": "stars"}}, TypeError, "keep: dict orders no items"),
    ({"keep": "Hard"}, ValueError, "keep: 'Hard' is not one of 'hard', 'middle', 'easy', 'random'"),
    ({"keep": []}, ValueError, "keep: nothing orders the items"),
    ({"keep": [3, 1]}, TypeError, r"keep\[0\]: int is no NumPy array"),
    ({"keep": pd.Series(range(10))}, TypeError, "keep: Series is no NumPy array; give np.asarray"),
    ({"protect": [True] * 10}, TypeError, "protect: list is no NumPy array; give np.asarray"),
    ({"ids": "abc"}, ValueError, "ids: expected 10 distinct non-negative integers"),
    ({"progress": "yes"}, TypeError, r"progress: 'yes' \(str\) is neither True, False nor a function"),
    ({"progress": 1}, TypeError, r"progress: 1 \(int\) is neither"),
    ({"epsilon": 0.05}, TypeError, "unexpected keyword argument 'epsilon'"),
    ({"vectors": None}, TypeError, r"vectors: None \(NoneType\) is neither a NumPy array nor a torch tensor"),
    ({"vectors": "vectors.npy"}, TypeError, r"vectors: 'vectors.npy' \(str\) is neither"),
    ({"vectors": {1: 2}}, TypeError, "vectors: dict is neither"),
    ({"vectors": 0.5}, TypeError, r"vectors: 0\.5 \(float\) is neither"),
    ({"vectors": Sparse()}, TypeError, r"vectors: Sparse is sparse; give vectors\.toarray\(\)"),
    ({"vectors": [[1.0, 2.0], [3.0]]}, ValueError, "vectors: list gives no array"),
    ({"vectors": np.array([[1.0], [2.0, 3.0]], dtype=object)}, TypeError, "vectors: ndarray of Python objects"),
    ({"vectors": VECTORS.astype(object)}, TypeError, r"vectors: ndarray of Python objects.*\.astype\(np\.float32\)"),
    ({"vectors": pd.DataFrame({"v": list(VECTORS)})}, TypeError, "vectors: DataFrame of Python objects"),
    (
        {"vectors": VECTORS.astype(np.int8)},
        ValueError,
        r"got int8 of shape \(10, \d+\); convert them, such as to float32",
    ),
    ({"vectors": VECTORS.astype(complex)}, ValueError, "vectors: .* got complex128"),
    ({"vectors": VECTORS.astype(np.longdouble)}, ValueError, "vectors: .* got float128|longdouble"),
    ({"vectors": VECTORS > 0}, ValueError, "vectors: .* got bool"),
    ({"vectors": np.array([["a", "b"]])}, ValueError, "vectors: .* got <U1"),
    ({"vectors": VECTORS[0]}, ValueError, r"vectors: .* got shape \(\d+,\); one vector is vectors\[None\]"),
    ({"vectors": VECTORS[None]}, ValueError, r"vectors: expected an \(n, d\) array of floats, got shape \(1, 10"),
    ({"vectors": np.float32(1)}, ValueError, r"vectors: .* got shape \(\)"),
    ({"vectors": VECTORS[:0]}, ValueError, "vectors: there are no rows to deduplicate"),
    ({"vectors": []}, ValueError, r"vectors: .* got shape \(0,\)"),
    ({"vectors": VECTORS[:, :0]}, ValueError, "vectors: there are no numbers in the rows"),
    ({"vectors": np.ma.masked_less(VECTORS, 0)}, ValueError, "vectors: a masked array with masked numbers"),
    ({"vectors": torch.ones(3, 4, dtype=torch.int32)}, ValueError, "vectors: .* got torch.int32 of shape"),
    ({"vectors": torch.eye(3).to_sparse()}, TypeError, r"vectors: a tensor of layout torch\.sparse_coo.*to_dense\(\)"),
    ({"vectors": torch.ones(3, 4, device="meta")}, TypeError, "vectors: a tensor of layout torch.strided on meta"),
    ({"vectors": np.full((10, 4), 1e300)}, ValueError, "vectors: row 0 is not finite"),
]


@pytest.mark.parametrize(("change", "kind", "message"), REFUSED)
def test_each_wrong_argument_is_named_with_what_to_give(
    change: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        semdedup(**{"vectors": VECTORS, "k": 2, **change})


CALLS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("keep_mask", {"epsilon": "0.05"}, TypeError, r"epsilon: '0\.05' \(str\) is not a number; give one in \[0, 2\]"),
    ("keep_mask", {"epsilon": None}, TypeError, r"epsilon: None \(NoneType\) is not a number"),
    ("keep_mask", {"epsilon": True}, TypeError, r"epsilon: True \(bool\) is not a number"),
    ("keep_mask", {"epsilon": np.array([0.1])}, TypeError, "epsilon: ndarray is not a number"),
    ("keep_mask", {"epsilon": 5}, ValueError, r"epsilon: 5 is outside \[0, 2\]"),
    ("keep_mask", {"epsilon": 0.1, "rule": 3}, ValueError, "rule: 3 is not one of 'chain', 'greedy'"),
    ("nearest_kept", {"epsilon": "5%"}, TypeError, "epsilon: '5%'"),
    ("removed", {"epsilon": -1}, ValueError, "epsilon: -1 is outside"),
    ("removed", {"epsilon": 1j}, TypeError, r"epsilon: 1j \(complex\) is not a number"),
    ("groups", {"epsilon": [0.1]}, TypeError, "epsilon: list is not a number"),
    ("orphans", {"epsilon": "x"}, TypeError, "epsilon: 'x'"),
    ("kept_fraction", {"epsilons": 0.05}, TypeError, r"epsilons: 0\.05 is no sequence of numbers; give several"),
    ("kept_fraction", {"epsilons": ["0.05"]}, TypeError, r"epsilon: '0\.05' \(str\) is not a number"),
    ("epsilon_for", {"keep": "50%"}, TypeError, r"keep: '50%' \(str\) is not a number; give a share in \(0, 1\]"),
    ("epsilon_for", {"keep": 50}, ValueError, "keep: 50 is not a share"),
    ("repaired", {"clusters": 2.5}, TypeError, r"clusters: 2\.5 \(float\) is not a whole number; None searches all"),
    ("repaired", {"clusters": 0}, ValueError, "clusters: 0 is not a positive number; None searches all"),
    ("repaired", {"epsilon": "0.1"}, TypeError, "epsilon: '0.1'"),
    ("detection_efficiency", {"epsilon": "0.1"}, TypeError, "epsilon: '0.1'"),
    (
        "detection_efficiency",
        {"epsilon": 0.1, "neighbours": -1},
        ValueError,
        "neighbours: -1 is negative; None compares",
    ),
    (
        "detection_efficiency",
        {"epsilon": 0.1, "clusters": 1.5},
        TypeError,
        r"clusters: 1\.5 \(float\).*None samples all",
    ),
    ("compare", {"other": VECTORS, "keep": 0.5}, TypeError, "other: ndarray is not what semdedup returns"),
]


@pytest.mark.parametrize(("name", "arguments", "kind", "message"), CALLS)
def test_each_wrong_argument_of_a_method_is_named(
    name: str, arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        getattr(semdedup(VECTORS, k=2), name)(**arguments)


@pytest.mark.parametrize("k", ["auto", None, np.int32(2), np.uint64(2), torch.tensor(2)])
def test_k_is_chosen_or_any_whole_number(k: Any) -> None:
    assert len(semdedup(VECTORS, k=k).centroids) == 2


def test_vectors_of_every_kind_that_holds_floats_give_the_same(tmp_path: Path) -> None:
    array = near_duplicates(60, epsilon=0.05, dtype=np.float32)
    expected = semdedup(array, k=3)
    np.save(tmp_path / "vectors.npy", array)
    kinds = {
        "big-endian": array.astype(">f4"),
        "mapped": np.load(tmp_path / "vectors.npy", mmap_mode="r"),
        "column by column": np.asfortranarray(array),
        "every other row": np.repeat(array, 2, axis=0)[::2],
        "list of lists": array.astype(float).tolist(),
        "pandas": pd.DataFrame(array),
        "polars": pl.DataFrame(array),
        "mask without effect": np.ma.masked_array(array, mask=False),
        "learns": torch.nn.Parameter(torch.from_numpy(array.copy())),
        "of a module": (torch.nn.Linear(1, 1).weight * 0 + 1) * torch.from_numpy(array.copy()),
    }
    for name, vectors in kinds.items():
        found = semdedup(vectors, k=3)
        np.testing.assert_array_equal(found.cluster, expected.cluster, err_msg=name)
        np.testing.assert_array_equal(found.keep_mask(0.05), expected.keep_mask(0.05), err_msg=name)


def test_what_is_shown_is_short_and_says_how_it_was_made() -> None:
    order = np.arange(200)
    vectors = near_duplicates(200, epsilon=0.05)
    assert repr(semdedup(vectors, k=4, seed=7)) == "Deduplication(n=200, k=4, keep='hard', seed=7)"
    protected = np.arange(200) < 12
    found = semdedup(vectors, k=4, keep=[order, "easy"], protect=protected)
    assert repr(found) == "Deduplication(n=200, k=4, keep=[array, 'easy'], seed=0, protected=12)"
    assert repr(semdedup(vectors, k=4).repaired(epsilon=0.2)).endswith("seed=0, repaired within epsilon=0.2)")
    removed = semdedup(vectors, k=4).removed(0.05)
    assert repr(removed) == f"Removed({len(removed)} items, {removed.is_orphan.sum()} of them orphans)"


@pytest.mark.parametrize("rule", ["chain", "greedy"])
def test_removed_items_are_those_of_the_mask_each_with_its_nearest_kept_one(
    real_vectors: np.ndarray, rule: Any
) -> None:
    result = semdedup(real_vectors, k=6)
    removed, mask = result.removed(0.3, rule=rule), result.keep_mask(0.3, rule=rule)
    unit = real_vectors.astype(float) / np.linalg.norm(real_vectors.astype(float), axis=1, keepdims=True)
    assert removed.row.tolist() == np.flatnonzero(~mask).tolist()
    for row, kept, similarity, is_orphan in zip(*dataclasses.asdict(removed).values(), strict=True):
        candidates = np.flatnonzero(mask & (result.cluster == result.cluster[row]))
        products = unit[candidates] @ unit[row]
        assert kept in candidates
        assert similarity == pytest.approx(products.max(), abs=1e-5)
        assert is_orphan == (np.float64(similarity) <= 1 - 0.3)
    assert len(removed) + mask.sum() == len(real_vectors)
    assert removed.is_orphan.any() == (rule == "chain")


def test_progress_is_told_to_a_function_and_shown_as_bars_and_changes_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    vectors, told = near_duplicates(3000, epsilon=0.05), list[tuple[str, int, int]]()
    expected = semdedup(vectors, k=40)
    assert capfd.readouterr() == ("", "")
    found = semdedup(vectors, k=40, progress=lambda *report: told.append(report))
    np.testing.assert_array_equal(found.similarity, expected.similarity)
    np.testing.assert_array_equal(found.duplicate_of, expected.duplicate_of)
    steps = list(dict.fromkeys(step for step, _, _ in told))
    assert steps == ["centroids", "assignments", "duplicate scores"]
    for step in steps:
        done = [each for name, each, _ in told if name == step]
        (total,) = {total for name, _, total in told if name == step}
        assert done == sorted(done)
        assert (done[0], done[-1]) == (0, total)
    assert len([1 for step, _, _ in told if step == "duplicate scores"]) > 20
    semdedup(vectors, k=40, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert all(f"{step}: 100%" in err for step in steps)


def test_dir_help_and_version_show_the_library() -> None:
    assert {"semdedup", "Deduplication", "Removed", "read_manifest", "compare_manifests"} <= set(dir(semdedup_assets))
    assert dir(semdedup_assets) == sorted(set(dir(semdedup_assets)))
    assert all(hasattr(semdedup_assets, name) for name in dir(semdedup_assets))
    assert list(inspect.signature(semdedup).parameters) == [
        "vectors",
        "k",
        "keep",
        "seed",
        "ids",
        "protect",
        "progress",
    ]
    text = pydoc.plain(pydoc.render_doc(semdedup))
    assert (
        "k: 'int | Literal['auto'] | None' = 'auto'" in text
        or "k: Union" in text
        or "k: int | Literal['auto'] | None = 'auto'" in text
    )
    assert "Deduplicate vectors by SemDeDup" in text
    assert "object at 0x" not in text
    assert "removed(" in pydoc.plain(pydoc.render_doc(Deduplication))
    assert semdedup_assets.__version__ == "0.1.0"
    with pytest.raises(AttributeError, match="module 'semdedup_assets' has no attribute 'semdedupe'"):
        semdedup_assets.semdedupe  # noqa: B018


def test_what_dagster_looks_at_to_find_components_loads_no_torch() -> None:
    program = (
        "import sys; import semdedup_assets; "
        "from dagster.components.core.package_entry import get_package_objects_in_module as found; "
        "print(sorted(name for name, _ in found(semdedup_assets)), "
        "sorted({'torch', 'faiss', 'polars', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['ManifestComparison', 'SemDedupPipeline', 'TrainingComparison'] []"


WITHOUT_DAGSTER = """
import sys
hidden = ["dagster", "dagster_shared", "dagster_webserver", "dagster_dg_cli", "dagster_graphql"]
sys.modules.update(dict.fromkeys(hidden))
"""
"""What an installation without the extra `dagster` is like."""


def without_dagster(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DAGSTER + program], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "program",
    [
        "import semdedup_assets.component",
        "from semdedup_assets import SemDedupPipeline",
        "from semdedup_assets import load_from_defs_folder",
        "import semdedup_assets.definitions",
    ],
)
def test_without_dagster_the_pipeline_names_the_extra(program: str) -> None:
    last = without_dagster(program).splitlines()[-1]
    assert "needs Dagster, which is not installed: pip install 'semdedup-assets[dagster]'" in last


def test_without_dagster_the_library_works_and_help_shows_it() -> None:
    program = (
        "import numpy as np, pydoc, semdedup_assets; from semdedup_assets import semdedup, read_manifest; "
        "from semdedup_assets import compare_manifests; shown = pydoc.plain(pydoc.render_doc(semdedup_assets)); "
        "print(semdedup(np.eye(4), k=1).keep_mask(0.1).sum(), sys.modules['dagster'], 'semdedup(vectors' in shown, "
        "[name for name in dir(semdedup_assets) if name in ('semdedup', 'SemDedupPipeline')]); "
        "from semdedup_assets import *"
    )
    assert without_dagster(program).strip() == "4 None True ['semdedup']"
