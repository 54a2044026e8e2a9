"""A count-based language model of bytes: what texts teach of others, in seconds and without a step count."""

from collections.abc import Sequence

import numpy as np

SYMBOLS = 257
"""What the model predicts: 256 bytes, and the end of a text."""

_END = 256


class IndexedTexts:
    """Texts of which each n-gram has a number, so that a model of any part of them is a few counts.

    The model is the interpolated one of Witten and Bell (1991; Chen and Goodman 1999, equation 16). Each text is a
    sequence of its own: before its first byte stands as many times as needed a start marker, after the last the end,
    which is predicted too. After a context h with c(h) followers of T(h) kinds

        p(w | h) = (c(h w) + T(h) p(w | h')) / (c(h) + T(h)),

    h' being the context without its first symbol; after a context that was never seen, p(w | h'). Below the empty context
    all symbols are equally likely. N-grams are numbered exactly, without hashing: the n-gram that ends at a byte is the
    context of the next one.

    Memory holds 4 bytes for each byte of the texts and each order, and some for each different n-gram.

    Args:
        texts: t of them.
        order: bytes of an n-gram, at least 1: contexts have one fewer.
    """

    def __init__(self, texts: Sequence[bytes], order: int) -> None:
        self.lengths = np.array([len(text) for text in texts], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self.lengths + 1)])
        symbols = np.full(self._starts[-1], _END, np.int64)
        inside = np.ones(len(symbols), bool)
        inside[self._starts[1:] - 1] = False
        symbols[inside] = np.frombuffer(b"".join(texts), np.uint8)
        self._grams: list[np.ndarray] = []
        self._contexts: list[np.ndarray] = []
        context = np.zeros(len(symbols), np.int64)
        for _ in range(order):
            keys, gram = np.unique(context * SYMBOLS + symbols, return_inverse=True)
            self._grams.append(gram.astype(np.int32))
            self._contexts.append((keys // SYMBOLS).astype(np.int32))
            context = np.concatenate([[0], gram[:-1]]) if len(gram) else context
            # No n-gram has this number: it is that of start markers.
            context[self._starts[:-1]] = len(keys)

    def bits(self, trained_on: np.ndarray, tested_on: np.ndarray) -> np.ndarray:
        """The bits that a model of some texts needs for others.

        Args:
            trained_on: (m,) integers, which texts the model is fitted to.
            tested_on: (s,) integers, which ones it predicts.

        Returns:
            (s,) float64, of each text with its end.
        """
        trained, tested = self._positions(trained_on), self._positions(tested_on)
        probability = np.full(len(tested), 1 / SYMBOLS)
        for gram, context in zip(self._grams, self._contexts, strict=True):
            counts = np.bincount(gram[trained], minlength=len(context))
            followers = np.bincount(context, weights=counts)
            kinds = np.bincount(context[counts > 0], minlength=len(followers))
            wanted = gram[tested]
            before = context[wanted]
            total = followers[before] + kinds[before]
            interpolated = (counts[wanted] + kinds[before] * probability) / np.maximum(total, 1)
            probability = np.where(total > 0, interpolated, probability)
        if len(tested_on) == 0:
            return np.zeros(0)
        lengths = self.lengths[tested_on] + 1
        found: np.ndarray = np.add.reduceat(-np.log2(probability), np.cumsum(lengths) - lengths)
        return found

    def bits_per_byte(self, trained_on: np.ndarray, tested_on: np.ndarray) -> float:
        """Bits of all tested texts by their bytes; NaN where these have none."""
        size = int(self.lengths[tested_on].sum())
        return float(self.bits(trained_on, tested_on).sum() / size) if size else float("nan")

    def _positions(self, texts: np.ndarray) -> np.ndarray:
        """(p,) int64: where the symbols of some texts stand, text after text."""
        lengths = self.lengths[texts] + 1
        first = self._starts[:-1][texts] - (np.cumsum(lengths) - lengths)
        positions: np.ndarray = np.repeat(first, lengths) + np.arange(int(lengths.sum()))
        return positions
