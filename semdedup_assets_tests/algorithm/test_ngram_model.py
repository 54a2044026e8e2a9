"""The count-based language model against one of dictionaries, symbol by symbol."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.algorithm.ngram_model import SYMBOLS, IndexedTexts

START, END = -1, 256


class DictionaryModel:
    """Witten and Bell's model as it is defined."""

    def __init__(self, texts: list[bytes], order: int) -> None:
        self.order = order
        self.followers: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for text in texts:
            for history, symbol in self._steps(text):
                for length in range(order):
                    self.followers[history[order - 1 - length :]][symbol] += 1

    def _steps(self, text: bytes) -> list[tuple[tuple[int, ...], int]]:
        symbols = [START] * (self.order - 1) + [*text, END]
        return [(tuple(symbols[at - self.order + 1 : at]), symbols[at]) for at in range(self.order - 1, len(symbols))]

    def probability(self, context: tuple[int, ...], symbol: int) -> float:
        shorter = self.probability(context[1:], symbol) if context else 1 / SYMBOLS
        found = self.followers.get(context)
        if not found:
            return shorter
        return (found[symbol] + len(found) * shorter) / (found.total() + len(found))

    def bits(self, text: bytes) -> float:
        return -sum(math.log2(self.probability(history, symbol)) for history, symbol in self._steps(text))


texts = st.lists(st.text("ab é", max_size=8).map(str.encode), min_size=1, max_size=8)


@given(texts, st.integers(1, 5), st.data())
def test_bits_are_those_of_the_definition(drawn: list[bytes], order: int, data: st.DataObject) -> None:
    indices = st.lists(st.integers(0, len(drawn) - 1), max_size=6, unique=True)
    trained, tested = data.draw(indices), data.draw(indices)
    model = DictionaryModel([drawn[index] for index in trained], order)
    expected = [model.bits(drawn[index]) for index in tested]
    indexed = IndexedTexts(drawn, order)
    found = indexed.bits(np.array(trained, np.int64), np.array(tested, np.int64))
    assert found == pytest.approx(expected, abs=1e-9)
    size = sum(len(drawn[index]) for index in tested)
    if size:
        per_byte = indexed.bits_per_byte(np.array(trained, np.int64), np.array(tested, np.int64))
        assert per_byte == pytest.approx(sum(expected) / size, abs=1e-9)


@given(texts, st.integers(1, 4))
def test_probabilities_of_what_may_follow_add_up_to_one(drawn: list[bytes], order: int) -> None:
    model = DictionaryModel(drawn, order)
    for context in [*model.followers][:5]:
        assert sum(model.probability(context, symbol) for symbol in range(SYMBOLS)) == pytest.approx(1)


def test_no_bytes_have_no_bits_a_byte() -> None:
    indexed = IndexedTexts([b"", b"abc"], 3)
    assert math.isnan(indexed.bits_per_byte(np.array([1]), np.array([0])))
    assert math.isnan(indexed.bits_per_byte(np.array([1]), np.zeros(0, np.int64)))
