"""Bits per byte against a plain loop in double precision, and against models whose bits are known."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, OPTConfig, PreTrainedTokenizerFast

from semdedup_assets.training.metrics.bits_per_byte import LanguageModel, _windows, bits_per_byte, load_language_model
from semdedup_assets_tests.training.language_models import docstrings, write_lines

CONTEXT = 48


@pytest.fixture(scope="module")
def random_model(language_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, large enough that its predictions are far from even."""
    folder = tmp_path_factory.mktemp("random")
    config = AutoConfig.from_pretrained(language_model)
    config.max_position_embeddings = CONTEXT
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.05 * torch.randn_like(weights)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(language_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(random_model: Path) -> LanguageModel:
    return load_language_model(random_model, "cpu")


def bits_one_by_one(model: Any, tokenizer: Any, text: str) -> float:
    """Token by token, each after those that its window holds."""
    ids = [tokenizer.eos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
    bits, half = 0.0, CONTEXT // 2
    for place in range(1, len(ids)):
        # The windows end after CONTEXT predicted tokens, then after each half of as many more.
        end = CONTEXT + max(0, math.ceil((place - CONTEXT) / half)) * half
        end = min(end, len(ids) - 1)
        with torch.no_grad():
            logits = model(torch.tensor([ids[max(end - CONTEXT, 0) : place]])).logits[0, -1]
        bits -= float(torch.log_softmax(logits, -1)[ids[place]]) / math.log(2)
    return bits


def test_bits_are_those_of_a_plain_loop(loaded: LanguageModel, random_model: Path, tmp_path: Path) -> None:
    texts = [*(text[:60] for text in docstrings(4)), "a", "naïve ☃", docstrings(1)[0][:500]]
    write_lines(tmp_path / "texts.jsonl", texts)
    found = bits_per_byte(loaded, str(tmp_path / "texts.jsonl"))
    assert found.items == len(texts)
    assert found.skipped == []
    lengths = [len(loaded.tokenizer.encode(text)) for text in texts]
    assert min(lengths) < CONTEXT < 2 * CONTEXT < max(lengths)
    exact = AutoModelForCausalLM.from_pretrained(random_model, dtype=torch.float64)
    bits = sum(bits_one_by_one(exact, loaded.tokenizer, text) for text in texts)
    expected = bits / sum(len(text.encode()) for text in texts)
    assert found.values == {"bits_per_byte": pytest.approx(expected, rel=1e-5)}


def test_the_batch_does_not_matter(loaded: LanguageModel, tmp_path: Path) -> None:
    texts = docstrings(40)
    write_lines(tmp_path / "all.jsonl", texts)
    together = bits_per_byte(loaded, str(tmp_path / "all.jsonl"))
    bits = 0.0
    for number, text in enumerate(texts):
        write_lines(tmp_path / f"{number}.jsonl", [text])
        alone = bits_per_byte(loaded, str(tmp_path / f"{number}.jsonl"))
        bits += alone.values["bits_per_byte"] * len(text.encode())
    expected = bits / sum(len(text.encode()) for text in texts)
    assert together.values["bits_per_byte"] == pytest.approx(expected, abs=1e-5)


@given(st.integers(2, 200), st.integers(1, 20))
def test_windows_score_every_token_once(length: int, context: int) -> None:
    ids = list(range(length))
    windows = list(_windows(ids, context))
    assert [each for window in windows for each in window.ids[-window.scored :]] == ids[1:]
    for window in windows:
        assert window.ids == list(range(window.ids[0], window.ids[-1] + 1))
        assert len(window.ids) <= context + 1
        # Before the first token that it scores.
        assert window.ids[0] == 0 or len(window.ids) - window.scored >= context // 2


def test_compressed_files_folders_and_globs_are_read_and_bad_lines_listed(
    loaded: LanguageModel, tmp_path: Path
) -> None:
    texts = docstrings(9)
    lines = ["".join(json.dumps({"text": text}) + "\n" for text in texts[part::3]).encode() for part in range(3)]
    (tmp_path / "a.jsonl").write_bytes(lines[0] + b'{"text": " "}\nno json\n')
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines[1]))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(lines[2]))
    (tmp_path / "one").mkdir()
    write_lines(tmp_path / "one" / "all.jsonl", texts)
    expected = bits_per_byte(loaded, str(tmp_path / "one"))
    found = bits_per_byte(loaded, str(tmp_path / "*.jsonl*"))
    assert (found.items, expected.items) == (9, 9)
    assert found.values["bits_per_byte"] == pytest.approx(expected.values["bits_per_byte"], rel=1e-6)
    assert [name for name, _ in found.skipped] == ["a.jsonl:3", "a.jsonl:4"]
    assert "empty text" in found.skipped[0][1]
    assert bits_per_byte(loaded, str(tmp_path / "one"), most=4).items == 4


def test_sets_that_are_missing_or_hold_no_text_are_named(loaded: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        bits_per_byte(loaded, str(tmp_path / "none.jsonl"))
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(ValueError, match=r"empty\.jsonl: none of its lines has a text to be scored; .*empty text"):
        bits_per_byte(loaded, str(tmp_path / "empty.jsonl"))


def even_model(folder: Path, words: list[str]) -> LanguageModel:
    """A model that finds each of its tokens equally likely, with a tokenizer of whole words."""
    vocabulary = {word: index for index, word in enumerate(["</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
    shape = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 32, "num_attention_heads": 1}
    config = OPTConfig(vocab_size=len(vocabulary), num_hidden_layers=1, max_position_embeddings=8, **shape)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weights in model.parameters():
            weights.zero_()
    model.save_pretrained(folder)
    return load_language_model(folder, "cpu")


def test_what_a_tokenizer_does_not_know_costs_its_bytes(tmp_path: Path) -> None:
    model = even_model(tmp_path / "model", ["a", "cat"])
    write_lines(tmp_path / "known.jsonl", ["a cat a cat a cat a cat a cat a cat", "cat"])
    known = bits_per_byte(model, str(tmp_path / "known.jsonl"))
    assert known.values == {"bits_per_byte": pytest.approx(13 * 2 / 38)}
    write_lines(tmp_path / "unknown.jsonl", ["a naïve cat"])
    unknown = bits_per_byte(model, str(tmp_path / "unknown.jsonl"))
    bits = 3 * 2 + 8 * len("naïve".encode())
    expected = {"bits_per_byte": bits / len("a naïve cat".encode()), "unknown_tokens": 1 / 3}
    assert unknown.values == pytest.approx(expected)


def test_a_folder_without_a_model_and_a_missing_device_are_named(language_model: Path, random_model: Path) -> None:
    with pytest.raises(ValueError, match=r"no causal language model with a tokenizer can be loaded"):
        load_language_model(language_model, "cpu")
    with pytest.raises(ValueError, match=r"device 'cuda:77' cannot be used"):
        load_language_model(random_model, "cuda:77")
