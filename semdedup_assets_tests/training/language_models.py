"""A small language model, a manifest of docstrings to train it on, and the process that does."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster_pipes

from examples.proof.models import language_model_folder
from semdedup_assets.training.trainers.spec import TrainerSpec
from semdedup_assets_tests.stage_runs import StageRuns
from semdedup_assets_tests.toy_source import STATIC_TEXTS, vectors_settings

DOCSTRINGS = Path(__file__).parents[2] / "examples" / "docstrings" / "shards"
KEPT = "0.000001|1"


def docstrings(count: int, *, first: int = 0) -> list[str]:
    """Some of the docstrings that the demo ships."""
    with gzip.open(DOCSTRINGS / "00000.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines][first : first + count]


def small_model(folder: Path) -> Path:
    """Two layers of width 64, and 512 tokens."""
    return language_model_folder(docstrings(300), folder, vocabulary=512, layers=2, width=64)


def write_lines(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def manifest_of(folder: Path, texts: list[str], formats: tuple[str, ...] = ("parquet",)) -> tuple[Path, int]:
    """A real manifest of texts in two files, and how many of them it kept."""
    for number in range(2):
        write_lines(folder / "source" / f"{number}.jsonl", texts[number::2])
    settings = vectors_settings(folder) | {
        "source": {"kind": "jsonl", "path": str(folder / "source")},
        "encoder": STATIC_TEXTS,
        "clustering": {"k": [1], "buckets": 1, "iterations": 2},
        "shards": {"files_per_shard": 1},
        "epsilons": ["0.000001"],
        "manifests": list(formats),
        "max_skipped": 1,
    }
    runs = StageRuns(settings)
    runs.run(until="manifests")
    manifest, details = runs.manifest(KEPT)
    return manifest, details["kept"]


@dataclass(frozen=True)
class Corpus:
    """What a language model is trained on, and which."""

    manifest: Path
    kept: int
    model: Path

    def spec(self, out: Path, *, steps: int | None = None, seed: int = 0, **settings: Any) -> TrainerSpec:
        """A training of a few seconds."""
        chosen = {
            "model": str(self.model),
            "context_tokens": 32,
            "batch_size": 4,
            "learning_rate": 3e-3,
            "warmup": 0.1,
            **settings,
        }
        return TrainerSpec(
            manifest=str(self.manifest),
            items=self.kept,
            kept=self.kept,
            steps=steps,
            seed=seed,
            out=str(out),
            device="cpu",
            source={},
            settings=chosen,
        )


def start(spec: TrainerSpec) -> subprocess.Popen[str]:
    """Start the trainer as Dagster Pipes does; it reports to its standard output."""
    context = {"run_id": "1", "extras": spec.model_dump(mode="json")}
    variables = {
        dagster_pipes.DAGSTER_PIPES_CONTEXT_ENV_VAR: dagster_pipes.encode_param({"data": context}),
        dagster_pipes.DAGSTER_PIPES_MESSAGES_ENV_VAR: dagster_pipes.encode_param({"stdio": "stdout"}),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "semdedup_assets.training.trainers.causal_lm"]
    return subprocess.Popen(
        command, env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def messages(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """What a trainer reports, as it does."""
    assert process.stdout is not None
    for line in process.stdout:
        message = json.loads(line)
        if message["method"] == "report_custom_message":
            yield message["params"]["payload"]
