"""A small language model to be trained: a configuration, and a tokenizer of the texts that it is trained on.

`python examples/proof/models.py` writes `examples/proof/opt`, that of the docstring demo.
"""

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

OPT, DOCSTRINGS = Path(__file__).parent / "opt", Path(__file__).parents[1] / "docstrings" / "shards"

END = "</s>"
"""The token between texts."""


def language_model_folder(
    texts: Iterable[str], folder: Path, *, vocabulary: int = 2048, layers: int = 2, width: int = 128
) -> Path:
    """Write the configuration of a small OPT and a byte-level BPE tokenizer (Radford et al. 2019), which loses nothing.

    Args:
        texts: that the tokenizer's merges are learnt from.
        folder: to write to; `model` of a training setting.
        vocabulary: tokens, at least 257: the bytes and the end of a text.
        layers: of the model.
        width: of its layers; a multiple of 32, which is a head's.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import OPTConfig, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END).save_pretrained(folder)
    _remove_white_space(folder / "tokenizer.json")
    end = tokenizer.token_to_id(END)
    OPTConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        word_embed_proj_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        ffn_dim=4 * width,
        # Nothing is seen often enough to be learnt by heart, and a short training has no steps to lose.
        dropout=0.0,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=None,
    ).save_pretrained(folder)
    return folder


def _remove_white_space(path: Path) -> None:
    """Write a JSON file on one line, which halves a tokenizer."""
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")), ensure_ascii=False, separators=(",", ":")), "utf-8")


def _docstrings() -> Iterator[str]:
    for path in sorted(DOCSTRINGS.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            yield from (json.loads(line)["text"] for line in lines)


if __name__ == "__main__":
    language_model_folder(_docstrings(), OPT, width=64)
