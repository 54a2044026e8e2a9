"""Real manifests of some of the shipped emoji, and a tiny CLIP with the shipped encoder's tokenizer."""

import json
import shutil
from pathlib import Path
from typing import Any

from semdedup_assets.sources import WebDataset
from semdedup_assets_tests.stage_runs import StageRuns
from semdedup_assets_tests.toy_source import vectors_settings

EMOJI = Path(__file__).parents[2] / "examples" / "emoji"
KEPT = "0.000001|1"


def emoji(count: int) -> list[dict[str, bytes]]:
    """The files of the first drawings of the shipped shards, by suffix."""
    source = WebDataset(path=str(EMOJI / "shards"))
    samples = (members for file in source.files() for _, members in source.samples(file.path))
    return [members for members, _ in zip(samples, range(count), strict=False)]


def tiny_clip(folder: Path) -> Path:
    """The configuration of a CLIP that trains in milliseconds a step, with a tokenizer and no weights."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMOJI / "encoder" / name, folder)
    config = json.loads((EMOJI / "encoder" / "open_clip_config.json").read_text())
    config["model_cfg"]["embed_dim"] = 32
    config["model_cfg"]["vision_cfg"] |= {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32}
    config["model_cfg"]["text_cfg"] |= {"width": 32, "heads": 2, "layers": 1}
    config["preprocess_cfg"]["size"] = 32
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def emoji_manifest(folder: Path, count: int) -> tuple[Path, dict[str, Any]]:
    """A manifest of emoji as files with captions, in the formats `webdataset` and `csv`; and what it says of itself."""
    (folder / "source").mkdir(parents=True)
    for number, members in enumerate(emoji(count)):
        (folder / "source" / f"{number:04d}.png").write_bytes(members["png"])
        (folder / "source" / f"{number:04d}.txt").write_bytes(members["txt"])
    settings = vectors_settings(folder) | {
        "source": {"kind": "folder", "path": str(folder / "source")},
        "encoder": {"kind": "openclip", "model": str(EMOJI / "encoder"), "precision": "float32"},
        "model": "emoji",
        "clustering": {"k": [1], "buckets": 1, "iterations": 2},
        "shards": {"files_per_shard": -(-count // 2)},
        "epsilons": ["0.000001"],
        "manifests": ["csv", "webdataset"],
    }
    runs = StageRuns(settings)
    runs.run()
    return runs.manifest(KEPT)
