"""Training reads every token of every text once a pass, whatever a sequence's length."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from semdedup_assets.training.trainers.language_model_steps import TrainingPlan
from semdedup_assets.training.trainers.packed_tokens import PackedTokens, packed_tokens
from semdedup_assets.training_settings import CausalLmTraining
from semdedup_assets_tests.training.language_models import docstrings

END = 0
TEXTS = st.lists(st.lists(st.integers(1, 9), max_size=5), min_size=1, max_size=6)


def packed(texts: list[list[int]], seed: int = 0) -> PackedTokens:
    parts = [[END, *text] for text in texts]
    starts = np.cumsum([0, *map(len, parts)])
    return PackedTokens(np.array([each for part in parts for each in part], np.uint16), starts, seed)


def parted(tokens: np.ndarray) -> list[list[int]]:
    """The texts that some tokens hold, each after its end-of-text token."""
    found: list[list[int]] = []
    for token in tokens.tolist():
        if token == END:
            found.append([])
        else:
            found[-1].append(token)
    return found


@given(TEXTS, st.integers(0, 3))
def test_each_pass_holds_every_text_once(texts: list[list[int]], number: int) -> None:
    tokens = packed(texts)
    size = len(tokens.ids)
    assert sorted(parted(tokens.read(number * size, size))) == sorted(texts)


@given(TEXTS, st.integers(0, 30), st.integers(1, 40))
def test_parts_of_the_stream_are_parts_of_its_passes(texts: list[list[int]], first: int, count: int) -> None:
    tokens = packed(texts)
    size = len(tokens.ids)
    passes = math.ceil((first + count) / size)
    stream = np.concatenate([packed(texts).read(number * size, size) for number in range(passes)])
    np.testing.assert_array_equal(tokens.read(first, count), stream[first : first + count])
    assert tokens.texts_within(first) == int((stream[:first] == END).sum())


def test_orders_differ_between_passes_and_seeds() -> None:
    texts = [[each] * 2 for each in range(1, 30)]
    first, second = np.split(packed(texts).read(0, 2 * 87), 2)
    assert parted(first) != parted(second)
    assert parted(first) != parted(packed(texts, seed=1).read(0, 87))


@given(TEXTS, st.integers(1, 3), st.integers(1, 4))
def test_every_token_is_predicted_once(texts: list[list[int]], size: int, steps: int) -> None:
    texts = [*texts, [1] * 8]
    settings = CausalLmTraining(context_tokens=8, batch_size=size)
    plan = TrainingPlan.of(packed(texts), settings, steps)
    batches = [plan.batch(step) for step in range(steps)]
    assert all(batch.shape == (size, 9) for batch in batches)
    predicted = np.concatenate([batch[:, 1:].ravel() for batch in batches])
    np.testing.assert_array_equal(predicted, packed(texts).read(1, steps * size * 8))
    seen = np.concatenate([batch[:, :-1].ravel() for batch in batches])
    assert plan.totals() == {"steps": steps, "items": int((seen == END).sum()), "tokens": len(predicted)}


@pytest.mark.parametrize(("epochs", "steps"), [(1, 6), (2.5, 16), (0.01, 1)])
def test_steps_are_what_the_passes_take(epochs: float, steps: int) -> None:
    tokens = packed([[1] * 199])  # 200 with the end of text
    settings = CausalLmTraining(context_tokens=16, batch_size=2, epochs=epochs)
    assert TrainingPlan.of(tokens, settings, None).steps == steps


def test_fewer_tokens_than_a_sequence_name_the_setting() -> None:
    with pytest.raises(ValueError, match=r"training\.causal_lm\.context_tokens: the 2 kept texts have 5 tokens, fewer"):
        TrainingPlan.of(packed([[1], [2, 3]]), CausalLmTraining(context_tokens=8), None)


@given(st.integers(1, 60), st.floats(0, 0.9))
def test_the_learning_rate_rises_to_the_greatest_and_falls_to_nothing(steps: int, warmup: float) -> None:
    settings = CausalLmTraining(context_tokens=8, batch_size=1, learning_rate=0.5, warmup=warmup)
    plan = TrainingPlan.of(packed([[1] * 9]), settings, steps)
    rates = [plan.learning_rate(step) for step in range(steps)]
    top = rates.index(max(rates))
    assert max(rates) == 0.5
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert min(rates) > 0
    rising = math.ceil(warmup * steps)
    assert rates[-1] == pytest.approx(0.5 / (steps - rising) if rising < steps else 0.5)


def test_texts_are_tokenised_once_and_come_back_whole(language_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(language_model)
    texts = [*docstrings(50), "It ends with </s> and goes on.", "naïve ☃"]
    found = packed_tokens(texts, tokenizer, tmp_path / "state", seed=0)
    assert found.ids.dtype == np.uint16
    parts = np.split(np.asarray(found.ids), found.starts[1:-1])
    assert [part[0] for part in parts] == [tokenizer.eos_token_id] * len(texts)
    assert [tokenizer.decode(part[1:].tolist()) for part in parts] == texts

    again = packed_tokens([], tokenizer, tmp_path / "state", seed=0)
    np.testing.assert_array_equal(again.ids, found.ids)


def test_what_ended_in_the_middle_is_tokenised_anew(language_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(language_model)

    def cut_short() -> Iterator[str]:
        yield from docstrings(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packed_tokens(cut_short(), tokenizer, tmp_path, seed=0)
    assert packed_tokens(docstrings(5), tokenizer, tmp_path, seed=0).texts == 5
