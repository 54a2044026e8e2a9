"""Texts as one endless stream of tokens: pass after pass, each in an order of its own, an end-of-text token before each text."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENS, _STARTS = "tokens.bin", "starts.npy"
_CHARACTERS = 1 << 22  # of texts that are tokenised together
_UINT16 = 1 << 16


@dataclass
class PackedTokens:
    """Tokenised texts, and the stream in which training reads them.

    Sequences are cut from the stream wherever they end, so that they hold no padding and no token of a pass is lost.

    Attributes:
        ids: (t,) uint16 or uint32, text after text, each begun by the end-of-text token.
        starts: (n + 1,) int64, where each text begins in `ids`, and t.
        seed: of the orders.
    """

    ids: np.ndarray
    starts: np.ndarray
    seed: int
    _order: tuple[int, np.ndarray, np.ndarray] | None = field(default=None, repr=False)

    @property
    def texts(self) -> int:
        """How many there are."""
        return len(self.starts) - 1

    def read(self, first: int, count: int) -> np.ndarray:
        """(count,) int64: tokens of the stream.

        Args:
            first: how many come before.
            count: how many are read; they may span passes.
        """
        parts = list[np.ndarray]()
        while count > 0:
            number, offset = divmod(first, len(self.ids))
            wanted = min(count, len(self.ids) - offset)
            parts.append(self._read_pass(number, offset, wanted))
            first, count = first + wanted, count - wanted
        return np.concatenate(parts)

    def texts_within(self, tokens: int) -> int:
        """Texts that begin within the first tokens of the stream, each counted as often as it is read."""
        passes, rest = divmod(tokens, len(self.ids))
        _, begins = self._pass(passes)
        return passes * self.texts + int(np.searchsorted(begins, rest))

    def _read_pass(self, number: int, offset: int, count: int) -> np.ndarray:
        order, begins = self._pass(number)
        places = np.arange(offset, offset + count)
        rank = np.searchsorted(begins, places, side="right") - 1  # (count,) of the text in this pass
        return np.asarray(self.ids[self.starts[order[rank]] + places - begins[rank]], np.int64)

    def _pass(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(n,) the texts in the order of a pass, and (n,) where each begins in it; passes are read one after the other."""
        if self._order is None or self._order[0] != number:
            order = np.random.default_rng([self.seed, number]).permutation(self.texts)
            ends = np.cumsum(np.diff(self.starts)[order])
            self._order = number, order, np.concatenate([[0], ends[:-1]]) if self.texts else ends
        return self._order[1:]


def packed_tokens(
    texts: Iterable[str], tokenizer: "PreTrainedTokenizerBase", folder: Path, *, seed: int
) -> PackedTokens:
    """Tokenise texts into files of a folder, or take what was tokenised there before; only starts are held in memory.

    Args:
        texts: in the order of the source; not read where all are tokenised.
        tokenizer: what looks like a special token in a text is split like other text.
        folder: of a training's state.
        seed: of the orders.
    """
    dtype = np.dtype(np.uint16 if len(tokenizer) <= _UINT16 else np.uint32)
    tokens, starts = folder / _TOKENS, folder / _STARTS
    if not starts.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tokens.open("wb") as stream:
            lengths = [0]
            for ids in _tokenised(texts, tokenizer):
                stream.write(np.array(ids, dtype).tobytes())
                lengths.append(len(ids))
            stream.flush()
            os.fsync(stream.fileno())
        # It comes last, under its own name once it is whole: where it is there, the tokens are.
        temporary = starts.with_suffix(".tmp.npy")
        np.save(temporary, np.cumsum(lengths, dtype=np.int64))
        temporary.replace(starts)
    written = np.memmap(tokens, dtype, "r") if tokens.stat().st_size else np.zeros(0, dtype)
    return PackedTokens(written, np.load(starts), seed)


def _tokenised(texts: Iterable[str], tokenizer: "PreTrainedTokenizerBase") -> Iterator[list[int]]:
    """The token ids of each text, an end-of-text token before them."""
    for batch in _batches(texts):
        found = tokenizer(batch, add_special_tokens=False, split_special_tokens=True, verbose=False)
        for ids in found["input_ids"]:
            yield [tokenizer.eos_token_id, *ids]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch, characters = list[str](), 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
