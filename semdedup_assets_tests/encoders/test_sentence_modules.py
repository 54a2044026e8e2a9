"""`kind: transformers` on folders and hub ids of sentence-transformers."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from semdedup_assets.compute import Compute
from semdedup_assets.encoders import Transformers
from semdedup_assets.records import Record
from semdedup_assets_tests.encoders.tiny_text_models import (
    MINILM_FOLDER,
    TEXTS,
    model2vec_folder,
    sentence_folder,
    static_folder,
    tiny_bert,
    unit,
)

CPU = Compute(device="cpu")
OTHER_KIND = "use `kind: sentence_transformers`"


def encoder(folder: Path, **settings: Any) -> Transformers:
    return Transformers(model=str(folder), precision="float32", **settings)


def embed(settings: Transformers, texts: list[str] = TEXTS) -> np.ndarray:
    (batch,) = settings.load(CPU).embed([Record(str(at), text) for at, text in enumerate(texts)])
    return batch.vectors


def as_the_library(folder: Path) -> np.ndarray:
    return unit(SentenceTransformer(str(folder), device="cpu").encode(TEXTS))


def test_minilm_gives_what_sentence_transformers_gives() -> None:
    settings = encoder(MINILM_FOLDER)
    np.testing.assert_allclose(embed(settings), as_the_library(MINILM_FOLDER), atol=1e-5)
    assert settings.load(CPU).max_tokens == 256
    assert settings.name == "model-mean"
    assert settings.identity()["pooling"] == "mean"


@pytest.mark.parametrize(
    ("mode", "pooling"),
    [("mean", "mean"), ("cls", "cls"), ("lasttoken", "last_token"), ("mean_sqrt_len_tokens", "mean")],
)
@pytest.mark.parametrize("old", [False, True], ids=["", "as before version 6"])
def test_the_models_own_pooling_is_the_default(tmp_path: Path, mode: str, pooling: str, old: bool) -> None:
    folder = sentence_folder(tmp_path, pooling=mode)
    if old:
        keys = {"cls_token": "cls", "max_tokens": "max", "mean_tokens": "mean", "lasttoken": "lasttoken"}
        keys |= {name: name for name in ("mean_sqrt_len_tokens", "weightedmean_tokens")}
        config = {f"pooling_mode_{key}": mode == name for key, name in keys.items()}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(config | {"word_embedding_dimension": 32}))
    np.testing.assert_allclose(embed(encoder(folder)), as_the_library(folder), atol=1e-5)
    assert encoder(folder).name == f"whole-{pooling}"
    assert encoder(folder).identity()["pooling"] == pooling
    assert encoder(folder).problems() == []


def test_a_pooling_that_is_set_wins(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path)
    plain = encoder(tmp_path / "plain", pooling="cls", max_tokens=48)
    np.testing.assert_allclose(embed(encoder(folder, pooling="cls")), embed(plain), atol=1e-6)
    assert encoder(folder, pooling="cls").name == "whole-cls"
    assert encoder(folder, pooling="cls").identity() != encoder(folder).identity()
    assert encoder(tmp_path / "plain").load(CPU).pooling == "last_token"
    assert encoder(tmp_path / "plain").name == "plain-last_token"


@pytest.mark.parametrize("pooling", [None, "mean"])
def test_a_dense_layer_is_refused_not_dropped(tmp_path: Path, pooling: str | None) -> None:
    settings = encoder(sentence_folder(tmp_path, dense=True), pooling=pooling)
    (problem,) = settings.problems()
    assert "Dense" in problem
    assert problem.endswith(OTHER_KIND)
    with pytest.raises(ValueError, match=f"Dense.*{OTHER_KIND}"):
        settings.load(CPU)


def test_what_else_would_give_other_vectors_is_refused(tmp_path: Path) -> None:
    static, bare = static_folder(tmp_path / "static"), model2vec_folder(tmp_path / "bare")
    folder = sentence_folder(tmp_path, pooling="max")
    assert "pooling" in encoder(folder).problems()[0]
    assert encoder(folder, pooling="mean").problems() == []
    for refused, what in ((static, "StaticEmbedding"), (bare, "model2vec")):
        (problem,) = encoder(refused).problems()
        assert what in problem
        assert problem.endswith(OTHER_KIND)
    for file, change, what in (
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case"),
        ("sentence_bert_config.json", {"model_args": {"attn_implementation": "eager"}}, "model_args"),
        ("modules.json", [{"path": "", "type": "custom_st.Transformer"}], "custom_st.Transformer"),
    ):
        changed = shutil.copytree(folder, tmp_path / what)
        before = json.loads((changed / file).read_text())
        (changed / file).write_text(json.dumps(before | change if isinstance(change, dict) else change))
        (problem,) = encoder(changed, pooling="mean").problems()
        assert what in problem
        assert problem.endswith(OTHER_KIND)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path)
    for content, what in (("{", "modules.json is no JSON"), ("[{}]", "modules.json or a file that it names is not as")):
        (folder / "modules.json").write_text(content)
        (problem,) = encoder(folder).problems()
        assert what in problem
        with pytest.raises(ValueError, match=what):
            encoder(folder).load(CPU)
        assert encoder(folder).name == "whole"
        assert encoder(folder).identity()["pooling"] is None


def test_a_transformer_in_a_subfolder_is_found(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path, pooling="cls")
    (folder / "0_Transformer").mkdir()
    for file in list(folder.iterdir()):
        if file.is_file() and "modules" not in file.name and "config_sentence" not in file.name:
            file.rename(folder / "0_Transformer" / file.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert encoder(folder).problems() == []
    np.testing.assert_allclose(embed(encoder(folder)), as_the_library(folder), atol=1e-5)
    before = encoder(folder).identity()
    (folder / "0_Transformer" / "vocab.txt").write_text("other")
    assert encoder(folder).identity() != before


def test_the_models_default_prompt_is_the_default(tmp_path: Path) -> None:
    prompts = {"prompts": {"passage": "a passage of text: "}, "default_prompt_name": "passage"}
    folder = sentence_folder(tmp_path, **prompts)
    np.testing.assert_allclose(embed(encoder(folder)), as_the_library(folder), atol=1e-5)
    np.testing.assert_allclose(
        embed(encoder(folder, prompt="")),
        unit(SentenceTransformer(str(folder), device="cpu").encode(TEXTS, prompt="")),
        atol=1e-5,
    )
    assert encoder(folder, prompt="").identity() != encoder(folder).identity()
    apart = sentence_folder(tmp_path / "apart", pooling={"pooling_mode": "mean", "include_prompt": False}, **prompts)
    assert "a prompt that does not count in the mean" in encoder(apart).problems()[0]
    assert encoder(apart, prompt="").problems() == []


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only cache there is, without a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put_into(cache: Path, name: str, folder: Path, *, missing: tuple[str, ...] = ()) -> None:
    """Keep a folder as the hub's client does; of missing files it knows that the hub has none."""
    repository = cache / f"models--org--{name}"
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for file in missing:
        absent = repository / ".no_exist" / ("0" * 40) / file
        absent.parent.mkdir(parents=True, exist_ok=True)
        absent.touch()


def test_a_hub_id_follows_the_modules_in_the_cache(cache: Path, tmp_path: Path) -> None:
    settings = Transformers(model="org/name", precision="float32")
    before = (settings.name, settings.identity())
    folder = sentence_folder(tmp_path / "model")
    put_into(cache, "name", folder)
    assert settings.load(CPU).pooling == "mean"
    np.testing.assert_allclose(embed(settings), embed(encoder(folder)), atol=1e-6)
    # Neither may change when the cache is filled.
    assert (settings.name, settings.identity()) == before == ("name", settings.model_dump())


def test_a_hub_id_without_modules_is_pooled_as_set_or_by_the_default(cache: Path, tmp_path: Path) -> None:
    plain = tiny_bert(tmp_path / "plain")
    put_into(cache, "known", plain, missing=("modules.json",))
    put_into(cache, "unknown", plain)
    assert Transformers(model="org/known").load(CPU).pooling == "last_token"
    with pytest.raises(ValueError, match=r"cannot be seen, for the hub is out of reach.*set `pooling`"):
        Transformers(model="org/unknown").load(CPU)
    assert Transformers(model="org/unknown", pooling="mean").load(CPU).pooling == "mean"
