"""Bits that a causal language model needs for each byte of some texts: comparable between tokenizers, unlike perplexity."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from semdedup_assets.compute import Compute
from semdedup_assets.encoders.own_code import OWN_CODE, needs_own_code
from semdedup_assets.encoders.text import TRANSFORMERS_ERRORS, quiet_transformers, token_limit
from semdedup_assets.encoders.text_windows import batches_by_length
from semdedup_assets.records import Invalid, Record
from semdedup_assets.sources import JsonLines
from semdedup_assets.training.metrics.measured import Measured

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CONTEXT = 2048  # of models that can take any
_TEXTS = 1024  # that are tokenised, and sorted by length, together
_WINDOWS = 256  # of a batch at most
# Float32 logits of a batch, in bytes; on a CPU those of a smaller one stay in its caches.
_LOGITS, _LOGITS_OF_A_GPU = 16 << 20, 1 << 30
_BITS_OF_A_BYTE = 8


@dataclass(frozen=True)
class LanguageModel:
    """A trained model that texts are scored by.

    Attributes:
        model: causal, in float32, on its device.
        tokenizer: its own.
        context: tokens that it takes at once.
        begin: id of the token that every text follows.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    context: int
    begin: int

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch, so that its logits fit into little memory."""
        logits = _LOGITS if self.model.device.type == "cpu" else _LOGITS_OF_A_GPU
        return max(logits // (4 * int(self.model.config.vocab_size)), 1)


def load_language_model(folder: Path, device: str) -> LanguageModel:
    """Load a model once, to be measured on any number of sets.

    Args:
        folder: with a causal language model and its tokenizer, as transformers saves them.
        device: `auto`, or such as `cpu` or `cuda`.

    Raises:
        ValueError: the device is not there, the model cannot be loaded, or its tokenizer has no token that begins a text or
            does not know which characters a token stands for; names the folder.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = Compute(device=device).torch_device
    try:
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (*TRANSFORMERS_ERRORS, SafetensorError) as error:
        cause = f"it {OWN_CODE}" if needs_own_code(error) else error
        message = f"{folder}: no causal language model with a tokenizer can be loaded from it ({cause})"
        raise ValueError(message) from error
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if begin is None or not tokenizer.is_fast:
        lacks = (
            "has neither a `bos_token` nor an `eos_token`" if begin is None else "is none of the library `tokenizers`"
        )
        message = f"{folder}: its tokenizer {lacks}; texts cannot be scored with it"
        raise ValueError(message)
    module: torch.nn.Module = model
    module.to(place).train(mode=False).requires_grad_(requires_grad=False)
    return LanguageModel(model, tokenizer, token_limit(model, tokenizer) or _CONTEXT, begin)


def bits_per_byte(language_model: LanguageModel, path: str, *, most: int | None = None) -> Measured:
    """Negative log2-likelihood of all tokens of some texts, divided by their UTF-8 bytes.

    Each text is scored alone, its first token after the one that begins texts. Longer texts than the model takes are scored
    in windows that overlap by half, so that each token is scored once and after at least half a context. A token that
    stands for characters unknown to the tokenizer costs 8 bits more for each of their bytes: what it would take to write
    them down. So no tokenizer gains by losing what it read.

    Args:
        language_model: whose likelihood.
        path: JSON lines with a field `text`: a file, folder, glob or URL.
        most: lines that are read at most, the first ones; None: all.

    Returns:
        `bits_per_byte`; and `unknown_tokens`, their share, where there are any.

    Raises:
        FileNotFoundError: there are no such files; names the path and the remedy.
        TruncatedFile: a file is damaged or cut off.
        ValueError: no text can be scored; names the path and the first reason.
    """
    source, score, skipped = JsonLines(path=path), _Score(), list[tuple[str, str]]()
    records = (record for file in source.files() for record in source.read(file.path))
    texts = _texts(islice(records, most), skipped)
    while batch := list(islice(texts, _TEXTS)):
        _add(score, language_model, batch, skipped)
    if not score.items:
        reason = f"; {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        message = f"{path}: none of its lines has a text to be scored{reason}"
        raise ValueError(message)
    return Measured(score.values(), score.items, skipped)


@dataclass
class _Score:
    """What was added up so far: texts, their bytes and tokens, and what these cost."""

    items: int = 0
    bytes: int = 0
    tokens: int = 0
    unknown: int = 0
    bits: float = 0.0

    def values(self) -> dict[str, float]:
        found = {"bits_per_byte": self.bits / self.bytes}
        return {**found, "unknown_tokens": self.unknown / self.tokens} if self.unknown else found


def _texts(records: Iterator[Record | Invalid], skipped: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Key and text of each record; invalid ones are listed."""
    for record in records:
        if isinstance(record, Invalid):
            skipped.append((record.key, record.reason))
        else:
            yield record.key, str(record.payload)


def _add(
    score: _Score, language_model: LanguageModel, texts: Sequence[tuple[str, str]], skipped: list[tuple[str, str]]
) -> None:
    """Score some texts; those in which the tokenizer finds nothing are listed."""
    encoded = language_model.tokenizer(
        [text for _, text in texts],
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    windows = list[_Window]()
    for (key, text), ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if not ids:
            skipped.append((key, "the tokenizer finds no token in this text"))
            continue
        windows += _windows([language_model.begin, *ids], language_model.context)
        unknown = [
            span for each, span in zip(ids, offsets, strict=True) if each == language_model.tokenizer.unk_token_id
        ]
        score.items += 1
        score.bytes += len(text.encode())
        score.tokens += len(ids)
        score.unknown += len(unknown)
        score.bits += _BITS_OF_A_BYTE * sum(len(text[first:last].encode()) for first, last in unknown)
    score.bits += _nats(language_model, windows) / math.log(2)


@dataclass(frozen=True, slots=True)
class _Window:
    """Consecutive token ids, each predicted from those before it.

    Attributes:
        ids: one more than the model takes at once, at most.
        scored: how many, from the end, are scored in this window.
    """

    ids: list[int]
    scored: int


def _windows(ids: list[int], context: int) -> Iterator[_Window]:
    """Windows in which every token but the first is scored once, from as much context as a window has."""
    last = min(len(ids), context + 1)
    yield _Window(ids[:last], last - 1)
    while last < len(ids):
        end = min(last + max(context // 2, 1), len(ids))
        yield _Window(ids[max(end - context - 1, 0) : end], end - last)
        last = end


def _nats(language_model: LanguageModel, windows: Sequence[_Window]) -> float:
    """What the scored tokens cost, in nats."""
    lengths, total = [len(window.ids) - 1 for window in windows], 0.0
    for batch in batches_by_length(lengths, tokens=language_model.batch_tokens, size=_WINDOWS):
        total += _batch_nats(language_model.model, [windows[index] for index in batch])
    return total


def _batch_nats(model: "PreTrainedModel", windows: Sequence[_Window]) -> float:
    import torch

    # Padding comes last, where a causal model does not see it from the tokens before.
    width = max(len(window.ids) for window in windows)
    ids, scored = np.zeros((len(windows), width), np.int64), np.zeros((len(windows), width), bool)
    for row, window in enumerate(windows):
        size = len(window.ids)
        ids[row, :size] = window.ids
        scored[row, size - window.scored : size] = True
    tokens, chosen = (torch.from_numpy(array).to(model.device) for array in (ids, scored))
    with torch.inference_mode():
        logits: torch.Tensor = model(
            input_ids=tokens[:, :-1], use_cache=False
        ).logits  # (windows, width - 1, vocabulary)
        wanted = chosen[:, 1:]
        costs = torch.nn.functional.cross_entropy(logits[wanted], tokens[:, 1:][wanted], reduction="none")
    return float(costs.double().sum())
