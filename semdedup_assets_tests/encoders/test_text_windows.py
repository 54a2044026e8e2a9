"""Texts are cut before they are tokenised, and keep their tokens."""

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from semdedup_assets.encoders.text_windows import cut_for, cut_texts, limit_of
from semdedup_assets_tests.encoders.tiny_text_models import MINILM_FOLDER

SHARD = Path(__file__).parents[2] / "examples" / "docstrings" / "shards" / "00000.jsonl.gz"
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"
HOSTILE = {
    "one word": "x" * 80_000,
    "base64": base64.b64encode(np.random.default_rng(0).bytes(60_000)).decode(),
    "no spaces": JAPANESE * 1500,
    "white space": "a" + " " * 10_000 + "b " * 10_000,
    "line ends": "\n".join(str(number) for number in range(15_000)),
    "combining marks": "e\u0301a\u0300 " * 15_000,
    "long words": " ".join("y" * 400 for _ in range(200)),
    "emoji": "👩‍👩‍👧‍👦" * 5_000,
}


def documentation() -> str:
    """Docstrings of the demo, one after the other: code, English, lists, formulas."""
    lines = gzip.decompress(SHARD.read_bytes()).decode().splitlines()
    return "\n\n".join(json.loads(line)["text"] for line in lines)[:1_000_000]


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    book = documentation()
    quarters = {f"quarter {part}": book[part * 250_000 :][:40_000] for part in range(4)}
    return {**quarters, **HOSTILE}


def trained(model: Any, pre_tokenizer: Any, trainer: Any, normalizer: Any = None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.normalizer = normalizer or normalizers.Sequence([])
    tokenizer.train_from_iterator([documentation()[:100_000], JAPANESE], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    special = ["<s>", "</s>", "<unk>"]
    byte_level = trainers.BpeTrainer(vocab_size=2000, special_tokens=special, show_progress=False)
    plain = trainers.BpeTrainer(vocab_size=2000, special_tokens=special, show_progress=False, max_token_length=12)
    unigram = trainers.UnigramTrainer(vocab_size=1500, special_tokens=special, unk_token="<unk>", show_progress=False)
    return {
        "WordPiece": AutoTokenizer.from_pretrained(MINILM_FOLDER),
        "byte-level BPE": trained(models.BPE(unk_token="<unk>"), pre_tokenizers.ByteLevel(), byte_level),
        "Unigram": trained(models.Unigram(), pre_tokenizers.Metaspace(), unigram, normalizers.NFKC()),
        "BPE by spaces": trained(models.BPE(unk_token="<unk>"), pre_tokenizers.WhitespaceSplit(), plain),
    }


@pytest.mark.parametrize("name", ["WordPiece", "byte-level BPE", "Unigram", "BPE by spaces"])
@pytest.mark.parametrize("max_tokens", [8, 512])
def test_a_head_has_the_tokens_of_the_whole(
    tokenizers: dict[str, Any], texts: dict[str, str], name: str, max_tokens: int
) -> None:
    tokenizer = tokenizers[name]
    heads = cut_for(tokenizer, list(texts.values()), max_tokens)
    for (kind, text), head in zip(texts.items(), heads, strict=True):
        whole = tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"]
        found = tokenizer(head, truncation=True, max_length=max_tokens)["input_ids"]
        assert text.startswith(head)
        assert found == whole or (len(head) == limit_of(max_tokens) and kind in ("one word", "long words", "base64"))
        if kind.startswith("quarter"):
            assert len(head) < 20 * max_tokens + 1100


def test_short_texts_are_not_even_looked_at() -> None:
    def tokenize(texts: list[str]) -> list[tuple[list[int], int | None]]:
        raise AssertionError(texts)

    texts = ["", "a", "word " * 200]
    assert cut_texts(texts, tokenize, 16) == texts


def test_ten_million_characters_cost_what_the_limit_costs(tokenizers: dict[str, Any]) -> None:
    tokenizer, seen = tokenizers["WordPiece"], [0]

    def tokenize(texts: list[str]) -> list[tuple[list[int], int | None]]:
        seen[0] += sum(map(len, texts))
        encoded = tokenizer(texts, truncation=True, max_length=256, return_offsets_mapping=True)
        ends = [max(end for _, end in offsets) for offsets in encoded["offset_mapping"]]
        return list(zip(encoded["input_ids"], ends, strict=True))

    (head,) = cut_texts(["z" * 10_000_000], tokenize, 256)
    assert len(head) == limit_of(256) == 65_536
    assert seen[0] <= 65_536
    seen[0] = 0
    (head,) = cut_texts(["a few words " * 800_000], tokenize, 256)
    assert seen[0] == len(head) < 4000


def test_without_offsets_two_heads_must_agree(tokenizers: dict[str, Any], texts: dict[str, str]) -> None:
    tokenizer = tokenizers["byte-level BPE"]

    def tokenize(some: list[str]) -> list[tuple[list[int], int | None]]:
        return [(ids, None) for ids in tokenizer(some, truncation=True, max_length=64)["input_ids"]]

    for text in texts.values():
        (head,) = cut_texts([text], tokenize, 64)
        assert tokenize([head]) == tokenize([text])


def test_a_tokenizer_that_keeps_the_end_gets_the_end(texts: dict[str, str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MINILM_FOLDER, truncation_side="left")
    text = texts["quarter 1"] * 3
    (tail,) = cut_for(tokenizer, [text], 64)
    assert (
        tokenizer(tail, truncation=True, max_length=64)["input_ids"]
        == tokenizer(text, truncation=True, max_length=64)["input_ids"]
    )
    assert len(tail) == limit_of(64)
