"""A causal language model is trained on real manifests, ends the same after a kill, and says what does not fit."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from semdedup_assets.training.metrics.bits_per_byte import bits_per_byte, load_language_model
from semdedup_assets.training.trainers.causal_lm import train
from semdedup_assets.training.trainers.language_model_steps import Learner
from semdedup_assets.training.trainers.manifest_texts import kept_texts
from semdedup_assets.training.trainers.spec import DivergedError
from semdedup_assets.training_settings import CausalLmTraining
from semdedup_assets_tests.stage_runs import small_pipeline
from semdedup_assets_tests.training.language_models import Corpus, docstrings, manifest_of, messages, start, write_lines

Messages = list[dict[str, Any]]


def trained(spec: Any) -> Messages:
    found: Messages = []
    train(spec, found.append)
    return found


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def test_training_learns_and_reports_what_it_takes(corpus: Corpus, tmp_path: Path) -> None:
    totals, *steps = trained(corpus.spec(tmp_path / "long"))
    first, *_ = trained(corpus.spec(tmp_path / "short", steps=1))
    tokenizer = AutoTokenizer.from_pretrained(corpus.model)
    texts = list(kept_texts(str(corpus.manifest), kept=corpus.kept))
    tokens = sum(len(tokenizer.encode(text)) + 1 for text in texts)
    assert totals == {"steps": round(tokens / 128), "items": totals["items"], "tokens": totals["steps"] * 128}
    assert abs(totals["items"] - corpus.kept) <= 3
    assert first == {"steps": 1, "items": first["items"], "tokens": 128}
    assert [message["step"] for message in steps] == sorted({message["step"] for message in steps})
    assert steps[-1]["step"] == totals["steps"]
    assert 0 < steps[-1]["learning_rate"] < 3e-3 / 50
    write_lines(tmp_path / "unseen.jsonl", docstrings(60, first=200))
    bits = {
        name: bits_per_byte(load_language_model(tmp_path / name / "model", "cpu"), str(tmp_path / "unseen.jsonl"))
        for name in ("long", "short")
    }
    assert bits["long"].values["bits_per_byte"] < 0.9 * bits["short"].values["bits_per_byte"]


def test_the_trained_model_is_whole_for_those_who_read_it(corpus: Corpus, tmp_path: Path) -> None:
    trained(corpus.spec(tmp_path, steps=2))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    # No position beyond the sequences that were trained on would mean anything.
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 32
    assert tokenizer.bos_token_id == tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer.encode("naïve ☃")) == "naïve ☃"


def test_seeds_give_other_models_and_the_same_seed_the_same(corpus: Corpus, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trained(corpus.spec(tmp_path / name, steps=5, seed=seed))
    first, again, other = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_killed_training_goes_on_and_ends_with_the_same_weights(corpus: Corpus, tmp_path: Path) -> None:
    with_dropout = tmp_path / "with dropout"
    shutil.copytree(corpus.model, with_dropout)
    config = AutoConfig.from_pretrained(with_dropout)
    config.dropout = 0.1
    config.save_pretrained(with_dropout)

    def spec(name: str) -> Any:
        return corpus.spec(tmp_path / name, steps=400, batch_size=1, model=str(with_dropout))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    *_, last = trained(spec("whole"))
    torch.set_num_threads(threads)

    with start(spec("killed")) as killed:
        reported = messages(killed)
        next(message for message in reported if message.get("step") and (tmp_path / "killed/state/state.pt").exists())
        killed.kill()
    state = torch.load(tmp_path / "killed" / "state" / "state.pt", weights_only=True)
    assert 0 < state["step"] < 400
    assert not (tmp_path / "killed" / "model").exists()

    with start(spec("killed")) as resumed:
        _, *steps = messages(resumed)
    assert min(message["step"] for message in steps) > state["step"]
    assert resumed.returncode == 0
    assert steps[-1] == last
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_finished_training_is_not_trained_again_but_one_of_other_settings_is(corpus: Corpus, tmp_path: Path) -> None:
    finished = trained(corpus.spec(tmp_path, steps=5))
    before = weights(tmp_path)
    again = trained(corpus.spec(tmp_path, steps=5))
    assert again == [finished[0], finished[-1]]
    assert all(torch.equal(before[name], each) for name, each in weights(tmp_path).items())
    trained(corpus.spec(tmp_path, steps=5, learning_rate=1e-3))
    assert any(not torch.equal(before[name], each) for name, each in weights(tmp_path).items())


def test_a_damaged_state_is_named(corpus: Corpus, tmp_path: Path) -> None:
    trained(corpus.spec(tmp_path, steps=2))
    state = tmp_path / "state" / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"state\.pt: cannot be read \(.*remove it, and the training begins anew"):
        trained(corpus.spec(tmp_path, steps=2))


# A step


class Small(torch.nn.Module):
    """A model on a device whose memory holds two sequences."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner, self.config = model, model.config

    def forward(self, input_ids: torch.Tensor, **settings: Any) -> Any:
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError
        return self.inner(input_ids, **settings)


def fresh_model(folder: Path) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


@pytest.mark.parametrize("at_once", [1, 3, 8, "out of memory"])
def test_a_step_is_that_of_plain_adamw(language_model: Path, at_once: int | str) -> None:
    settings = CausalLmTraining(context_tokens=16, batch_size=5, learning_rate=1e-2, weight_decay=0.5)
    batch = np.random.default_rng(0).integers(0, 512, (5, 17))
    model = fresh_model(language_model)
    learner = Learner.of(Small(model) if at_once == "out of memory" else model, settings, torch.device("cpu"))
    learner.sequences_at_once = 8 if isinstance(at_once, str) else at_once
    losses = [learner.step(batch, learning_rate=rate) for rate in (1e-2, 5e-3)]
    if at_once == "out of memory":
        assert learner.sequences_at_once == 2

    plain = fresh_model(language_model).double()
    others = [each for name, each in plain.named_parameters() if "norm" in name or "bias" in name]
    decaying = [each for name, each in plain.named_parameters() if not ("norm" in name or "bias" in name)]
    groups = [{"params": decaying}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.5, fused=False, foreach=False)
    for rate, loss in zip((1e-2, 5e-3), losses, strict=True):
        tokens = torch.from_numpy(batch)
        expected = plain(tokens, labels=tokens).loss
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        expected.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        for group in adamw.param_groups:
            group["lr"] = rate
        adamw.step()
        adamw.zero_grad()
    for name, each in model.named_parameters():
        # Adam's first steps divide a gradient by itself: where that is nothing but rounding, so is the step.
        close = torch.isclose(each.double(), plain.get_parameter(name), atol=1e-4)
        assert close.float().mean() > 0.99, name


def test_a_sequence_that_does_not_fit_names_the_setting(language_model: Path) -> None:
    class Full(Small):
        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            raise torch.OutOfMemoryError

    settings = CausalLmTraining(context_tokens=16, batch_size=5)
    learner = Learner.of(Full(fresh_model(language_model)), settings, torch.device("cpu"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"one sequence of 16 tokens does not fit .* lower `training\.causal_lm"):
        learner.step(np.zeros((5, 17), np.int64), learning_rate=1e-3)


def test_a_training_that_diverges_ends_and_says_how_to_go_on(corpus: Corpus, tmp_path: Path) -> None:
    match = r"step \d+ of 50 is no finite number, with a learning rate of \de\+18; lower `training\.causal_lm\.learning_rate`"
    with pytest.raises(DivergedError, match=match):
        trained(corpus.spec(tmp_path, steps=50, learning_rate=1e19, warmup=0.1))
    assert not (tmp_path / "model").exists()


# What does not fit


def refused(corpus: Corpus, out: Path, match: str, **settings: Any) -> None:
    with pytest.raises(ValueError, match=match):
        trained(corpus.spec(out, **settings))
    assert not (out / "model").exists()


def test_models_that_cannot_be_trained_are_named(
    corpus: Corpus, tmp_path: Path, language_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    named = r"training\.causal_lm\.model: .*"
    refused(corpus, tmp_path / "out", named + "no such file or folder", model="./nowhere")
    refused(corpus, tmp_path / "out", named + "cannot be loaded .*name a folder", model="facebook/nowhere")
    tokenizer = AutoTokenizer.from_pretrained(language_model)

    def folder(name: str, config: Any, tokenizer: Any = tokenizer) -> str:
        config.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    config = AutoConfig.from_pretrained(language_model)
    config.vocab_size = 511
    refused(corpus, tmp_path / "out", named + "has 512 tokens, .* 511", model=folder("few", config))
    endless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    refused(corpus, tmp_path / "out", named + "no end-of-text token", model=folder("endless", OPTConfig(), endless))
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 32}
    bert = BertConfig(vocab_size=512, **shape)
    refused(corpus, tmp_path / "out", named + "sees the tokens that it is to predict", model=folder("bert", bert))
    config = AutoConfig.from_pretrained(language_model)
    config.max_position_embeddings = 16
    match = r"training\.causal_lm\.context_tokens: 32 are more than .* has positions \(16\)"
    refused(corpus, tmp_path / "out", match, model=folder("short", config))


def test_too_few_tokens_and_a_missing_device_are_named(corpus: Corpus, tmp_path: Path) -> None:
    manifest, kept = manifest_of(tmp_path / "few", ["Rain.", "It rains."])
    few = Corpus(manifest, kept, corpus.model)
    refused(few, tmp_path / "out", r"context_tokens: the 2 kept texts have \d+ tokens, fewer than a sequence of 32")
    spec = corpus.spec(tmp_path / "out").model_copy(update={"device": "cuda:77"})
    with pytest.raises(ValueError, match=r"device 'cuda:77' cannot be used"):
        trained(spec)


# Texts of a manifest


def test_texts_are_those_that_were_kept_whatever_became_of_the_source(tmp_path: Path) -> None:
    texts = ["One.", "Two, with\nlines.", "Thrée ☃", "One."]
    manifest, kept = manifest_of(tmp_path, texts)
    shutil.rmtree(tmp_path / "source")
    assert kept == 3
    assert sorted(kept_texts(str(manifest), kept=kept)) == sorted(set(texts))


def test_texts_are_read_from_an_object_store(corpus: Corpus, bucket: str, tmp_path: Path) -> None:
    import fsspec

    files, _ = fsspec.core.url_to_fs(bucket)
    files.put(str(corpus.manifest), f"{bucket}/manifest", recursive=True)
    local = list(kept_texts(str(corpus.manifest), kept=corpus.kept))
    assert list(kept_texts(f"{bucket}/manifest", kept=corpus.kept)) == local


def test_manifests_without_all_their_texts_are_refused(tmp_path: Path) -> None:
    manifest, kept = manifest_of(tmp_path / "texts", docstrings(20))
    first, second = sorted((manifest / "parquet").iterdir())

    def refuse(match: str, folder: Path = manifest) -> None:
        with pytest.raises(ValueError, match=match):
            list(kept_texts(str(folder), kept=kept))

    second.rename(tmp_path / "elsewhere")
    refuse(rf"hold {len(pl.read_parquet(first))} texts, 20 were kept; materialise it with `again`")
    content = bytearray(first.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 50] = bytes(50)
    first.write_bytes(content)
    refuse(r"parquet: cannot be read \(.*materialise the manifest with `again`")

    lists, _ = manifest_of(tmp_path / "lists", docstrings(5), formats=("keep_lists",))
    refuse(r"holds no Parquet files to read texts from; name `parquet` in `manifests`", lists)
    vectors = small_pipeline(tmp_path / "vectors")
    vectors.run(until="manifests")
    refuse(r"has no column 'text'; a language model is trained on a source of texts", vectors.manifest("0.05|3")[0])


def test_what_fails_is_reported_to_who_started_the_process(corpus: Corpus, tmp_path: Path) -> None:
    with start(corpus.spec(tmp_path, model="./nowhere")) as process:
        output, _ = process.communicate()
    assert process.returncode != 0
    closed = [json.loads(line) for line in output.splitlines()][-1]
    assert closed["method"] == "closed"
    assert "training.causal_lm.model: ./nowhere" in closed["params"]["exception"]["message"]
