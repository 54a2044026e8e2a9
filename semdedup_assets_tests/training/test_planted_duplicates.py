"""What the method is for: a model trained on a set full of near copies is worse than one trained on what SemDeDup keeps."""

import json
from pathlib import Path

import numpy as np
import torch

from semdedup_assets.algorithm.seed_spread import SeedSpread, compare_spreads
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets.training.metrics.bits_per_byte import bits_per_byte, load_language_model
from semdedup_assets.training.trainers.causal_lm import train
from semdedup_assets_tests.stage_runs import StageRuns
from semdedup_assets_tests.toy_source import STATIC_TEXTS, vectors_settings
from semdedup_assets_tests.training.language_models import Corpus, docstrings, write_lines

TEXTS, HELD_OUT, COPIES, STEPS = 200, 80, 9, 250


def planted(texts: list[str]) -> list[str]:
    """The texts, a tenth of them ten times: copies differ in a word, in case or in white space."""
    rng, found = np.random.default_rng(0), list(texts)
    for text in texts[:: len(texts) // (len(texts) // 10)][: len(texts) // 10]:
        for copy in range(COPIES):
            words = text.split()
            words[int(rng.integers(len(words)))] = words[int(rng.integers(len(words)))]
            found.append((" ".join(words), "  ".join(words), " ".join(words).lower())[copy % 3])
    return [found[at] for at in rng.permutation(len(found)).tolist()]


def manifests(folder: Path, texts: list[str]) -> tuple[Path, Path, int]:
    """Of everything, and of what SemDeDup keeps where it keeps as many as were there before the copies; and how many."""
    write_lines(folder / "source" / "0.jsonl", texts)
    settings = vectors_settings(folder) | {
        "source": {"kind": "jsonl", "path": str(folder / "source")},
        "encoder": STATIC_TEXTS,
        "clustering": {"k": [4], "buckets": 1, "iterations": 5},
        "epsilons": [f"keep={100 * TEXTS / len(texts):.2f}%"],
        "manifests": ["parquet"],
    }
    runs = StageRuns(settings, GRAPH)
    StageRuns(settings).run()
    runs.make("everything_masks")
    (everything,) = runs.make("everything_manifests")
    kept, details = runs.manifest(f"{settings['epsilons'][0]}|4")
    return Path(everything.location, everything.details["manifest"]), kept, details["kept"]


def test_planted_duplicates_cost_more_than_the_spread(tmp_path: Path, language_model: Path) -> None:
    texts, test = docstrings(TEXTS), docstrings(HELD_OUT, first=TEXTS)
    pool = planted(texts)
    everything, kept, count = manifests(tmp_path, pool)
    assert abs(count - TEXTS) < 0.02 * len(pool)
    write_lines(tmp_path / "test.jsonl", [text for text in test if text not in set(texts)])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        spreads = {}
        for name, manifest, items in (("everything", everything, len(pool)), ("kept", kept, count)):
            values = []
            for seed in range(3):
                out = tmp_path / f"{name}-{seed}"
                out.mkdir()
                spec = Corpus(manifest, items, language_model).spec(out, steps=STEPS, seed=seed)
                train(spec, lambda message: None)
                model = load_language_model(out / "model", "cpu")
                values.append(bits_per_byte(model, str(tmp_path / "test.jsonl")).values["bits_per_byte"])
            spreads[name] = SeedSpread.of(values)
    finally:
        torch.set_num_threads(threads)
    compared = compare_spreads(spreads["kept"], spreads["everything"], higher_is_better=False)
    assert compared.verdict == "better", json.dumps({name: str(each) for name, each in spreads.items()})
