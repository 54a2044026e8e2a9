"""A small language model to be trained: a configuration, and a tokenizer of the texts that it is trained on."""

from collections.abc import Iterable
from pathlib import Path

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
