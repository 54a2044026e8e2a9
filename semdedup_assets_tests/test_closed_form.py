"""The closed form of the experiment, against scikit-learn's regression and on the shipped drawings."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def closed_form() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("closed_form", EXAMPLES / "proof" / "closed_form.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["closed_form"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["closed_form"]


def test_recalls_are_those_of_ridge_regression_by_scikit_learn(closed_form: ModuleType) -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(0)
    vocabulary = np.array([f"word{number}" for number in range(12)])
    topics = rng.normal(size=(12, 20))
    texts = [" ".join(rng.choice(vocabulary, 3, replace=False)) for _ in range(90)]
    features = np.stack([topics[[int(word[4:]) for word in text.split()]].sum(axis=0) for text in texts])
    features += rng.normal(size=features.shape)
    train, test, ridge = np.arange(60), np.arange(60, 90), 0.2
    words = tuple(frozenset(text.split()) for text in texts)
    model = closed_form.ClosedForm(
        features[train] @ features[train].T, features[test] @ features[train].T, words[:60], words[60:], ridge=ridge
    )
    chosen = rng.permutation(60)[:40]
    counts = CountVectorizer(binary=True).fit([texts[row] for row in chosen])
    wanted, asked = (counts.transform([texts[row] for row in rows]).toarray() for rows in (chosen, test))
    alpha = ridge * (features[chosen] ** 2).sum() / len(chosen)
    regression = Ridge(alpha=alpha, fit_intercept=False).fit(features[chosen], wanted - wanted.mean(axis=0))
    rarity = np.log(1 + len(chosen) / wanted.sum(axis=0))
    predicted, asked = regression.predict(features[test]) * rarity, asked * rarity
    scores = predicted @ (asked / np.linalg.norm(asked, axis=1, keepdims=True)).T
    ranks = (scores > np.diag(scores)[:, None]).sum(axis=1)
    found = model.recalls(chosen)
    assert found.at_1 == pytest.approx((ranks < 1).mean(), abs=1 / 30)
    assert found.at_5 == pytest.approx((ranks < 5).mean(), abs=1 / 30)
    assert found.at_5 > 0.5


@given(order=st.permutations(range(8)), seed=st.integers(0, 99))
def test_recalls_depend_on_what_is_chosen_and_not_on_the_order(
    closed_form: ModuleType, order: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    features, words = rng.normal(size=(16, 5)), [frozenset({"emoji", f"w{number % 5}"}) for number in range(16)]
    pool, test = features[:8], features[8:]
    model = closed_form.ClosedForm(pool @ pool.T, test @ pool.T, tuple(words[:8]), tuple(words[8:]))
    found, other = model.recalls(np.arange(8)), model.recalls(np.array(order))
    assert found.at_1 == pytest.approx(other.at_1)
    assert found.at_5 == pytest.approx(other.at_5)
    assert 0 <= found.at_1 <= found.at_5 <= 1


def test_the_third_vendors_icons_are_found_by_what_drawings_of_two_vendors_show(closed_form: ModuleType) -> None:
    """One of the four tars: recall is well above chance, and a tenth of the drawings is worse than all."""
    pool = closed_form.read_drawings([EXAMPLES / "emoji" / "shards" / "00000.tar"])
    test = closed_form.read_drawings([EXAMPLES / "proof" / "fluent.tar"])
    model = closed_form.ClosedForm.of(pool, test)
    everything = model.recalls(np.ones(len(pool), bool))
    tenths = [model.recalls(np.random.default_rng(seed).permutation(len(pool))[: len(pool) // 10]) for seed in range(3)]
    assert everything.at_5 > 10 * 5 / len(test)
    assert max(each.at_5 for each in tenths) < everything.at_5 / 2


def test_the_curve_has_every_choice_of_each_share(closed_form: ModuleType) -> None:
    rng = np.random.default_rng(1)
    vectors = np.repeat(rng.normal(size=(20, 64)), 3, axis=0).astype(np.float32)
    words = tuple(frozenset({f"w{number // 3}"}) for number in range(60))
    model = closed_form.ClosedForm(vectors @ vectors.T, vectors[::3] @ vectors.T, words, words[::3])
    images = [Image.new("RGB", (2, 2), (number // 3, 0, 0)) for number in range(60)]
    pool = [closed_form.Drawing(image, "") for image in images]
    points = list(closed_form.curve(model, pool, vectors, shares=(1 / 3,), seeds=2))
    assert [point.choice for point in points] == [
        "full", "exact", "random", "semdedup, hard", "semdedup, middle", "semdedup, easy", "semdedup, random"
    ]  # fmt: skip
    full, exact, random, *semdedup = ([each.at_1 for each in point.recalls] for point in points)
    # A third of the items is one of each three equal ones: SemDeDup loses nothing by it, and a random choice does.
    assert full == exact == [1.0]
    assert points[1].share == 1 / 3
    assert all(recalls == [1.0, 1.0] for recalls in semdedup)
    assert max(random) < 1
