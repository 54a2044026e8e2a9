import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from semdedup_assets.compute import Compute
from semdedup_assets.encoders.openclip import OpenClip
from semdedup_assets.encoders.own_code import refusing_own_code
from semdedup_assets.encoders.sentence_transformers import SentenceTransformers
from semdedup_assets.encoders.text import Transformers
from semdedup_assets.encoders.timm import Timm
from semdedup_assets.encoders.torchscript import TorchScript
from semdedup_assets.training.metrics.bits_per_byte import load_language_model
from semdedup_assets.training.trainers.new_language_model import new_language_model
from semdedup_assets.training_settings import CausalLmTraining
from semdedup_assets_tests.encoders.tiny_text_models import sentence_folder, tiny_bert

CPU = Compute(device="cpu")
CLASSES = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.Own", "AutoModelForCausalLM": "own.Own"}


def changed(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.fixture
def executed(tmp_path: Path) -> Path:
    """The file that code of a model leaves when it is run."""
    return tmp_path / "executed"


def with_own_code(folder: Path, executed: Path, **settings: Any) -> Path:
    """Give a model's folder an architecture that is a Python file of its own."""
    lines = [
        f"open({str(executed)!r}, 'w').close()", "from transformers import BertConfig, BertModel",
        "class OwnConfig(BertConfig):", "    model_type = 'own'",
        "class Own(BertModel):", "    config_class = OwnConfig",
    ]  # fmt: skip
    (folder / "own.py").write_text("\n".join(lines))
    changed(folder / "config.json", **{"model_type": "own", "auto_map": CLASSES, **settings})
    return folder


def clip_folder(folder: Path, text: Path) -> Path:
    """A CLIP whose text tower is a model of transformers."""
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    texts = {"hf_model_name": str(text), "hf_tokenizer_name": str(text), "hf_model_pretrained": False}
    model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": texts | {"hf_pooler_type": "mean_pooler"}}
    folder.mkdir()
    description = {"model_cfg": model, "preprocess_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1]}}
    (folder / "open_clip_config.json").write_text(json.dumps(description))
    return folder


def code_in_modules(folder: Path, executed: Path) -> Path:
    whole = with_own_code(sentence_folder(folder), executed, model_type="bert")
    modules = json.loads((whole / "modules.json").read_text())
    modules[0]["type"] = "own.Own"
    (whole / "modules.json").write_text(json.dumps(modules))
    return whole


LOADERS: dict[str, Callable[[Path, Path], Any]] = {
    "transformers": lambda folder, executed: Transformers(
        model=str(with_own_code(tiny_bert(folder), executed)), pooling="mean"
    ).load(CPU),
    "sentence_transformers": lambda folder, executed: SentenceTransformers(
        model=str(with_own_code(sentence_folder(folder), executed))
    ).load(CPU),
    "sentence_transformers, modules": lambda folder, executed: SentenceTransformers(
        model=str(code_in_modules(folder, executed))
    ).load(CPU),
    "openclip": lambda folder, executed: OpenClip(
        model=str(clip_folder(folder / "clip", with_own_code(tiny_bert(folder), executed)))
    ).load(CPU),
    "causal_lm": lambda folder, executed: new_language_model(
        CausalLmTraining(model=str(with_own_code(tiny_bert(folder), executed)), context_tokens=8),
        tokenizer_size=9,
        seed=0,
    ),
    "bits_per_byte": lambda folder, executed: load_language_model(with_own_code(tiny_bert(folder), executed), "cpu"),
}


@pytest.fixture
def eager_person(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A standard input that says yes to whatever is asked."""
    reader, writer = os.pipe()
    os.write(writer, b"y\n" * 100)
    with os.fdopen(reader) as stdin, os.fdopen(writer, "wb"):
        monkeypatch.setattr(sys, "stdin", stdin)
        yield stdin


@pytest.mark.usefixtures("eager_person")
@pytest.mark.parametrize("library", LOADERS)
def test_a_model_s_own_code_is_neither_run_nor_asked_for(
    library: str, tmp_path: Path, executed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"needs Python code of its own, which is never run, and no setting allows it"):
        LOADERS[library](tmp_path / "model", executed)
    assert not executed.exists()
    assert "[y/N]" not in "".join(capfd.readouterr())


@pytest.mark.usefixtures("eager_person")
def test_transformers_itself_asks_and_runs_it_and_a_yes_of_the_model_s_configuration_is_refused(
    tmp_path: Path, executed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    folder = with_own_code(tiny_bert(tmp_path / "model"), executed)
    with refusing_own_code(), pytest.raises(ValueError, match="custom code"):
        AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert not executed.exists()
    assert type(AutoConfig.from_pretrained(folder)).__name__ == "OwnConfig"
    assert executed.exists()


def test_a_model_without_all_its_weights_is_refused(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path)
    weights = load_file(folder / "model.safetensors")
    without = {name: each for name, each in weights.items() if not name.startswith("pooler.")}
    save_file(without, folder / "model.safetensors", metadata={"format": "pt"})
    Transformers(model=str(folder), pooling="mean").load(CPU)
    one = {name: each for name, each in without.items() if "layer.1." not in name}
    save_file(one, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"holds no weights for 16 of its parts \(encoder\.layer\.1\..*would be random"
    ):
        Transformers(model=str(folder), pooling="mean").load(CPU)


class Harmful:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def pickled_bert(folder: Path, weights: Path) -> str:
    (tiny_bert(folder) / "model.safetensors").unlink()
    weights.rename(folder / "pytorch_model.bin")
    return str(folder)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(
    "load",
    [
        lambda folder, weights: Transformers(model=pickled_bert(folder, weights), pooling="mean").load(CPU),
        lambda folder, weights: OpenClip(model="RN50", pretrained=str(weights)).load(CPU),
        lambda folder, weights: Timm(model="resnet18", checkpoint=str(weights)).load(CPU),
        lambda folder, weights: TorchScript(path=str(weights)).load(CPU),
    ],
    ids=["transformers", "openclip", "timm", "torchscript"],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_weights_that_run_code_when_they_are_unpickled_are_refused(
    load: Callable[[Path, Path], Any], raw: bool, tmp_path: Path, executed: Path
) -> None:
    weights = tmp_path / "weights.pt"
    if raw:
        weights.write_bytes(pickle.dumps({"weight": Harmful(executed)}))
    else:
        torch.save({"weight": Harmful(executed)}, weights)
    with pytest.raises(ValueError, match=r"pickle of more than tensors, which could run code|torch\.jit\.save"):
        load(tmp_path / "model", weights)
    assert not executed.exists()
