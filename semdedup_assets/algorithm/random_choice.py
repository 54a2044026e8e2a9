"""A random choice of items as large as another one: what any choice must be better than."""

import numpy as np

from semdedup_assets.algorithm.sampling import id_hash


def random_choice(ids: np.ndarray, *, kept: np.ndarray, sizes: np.ndarray, seed: int) -> np.ndarray:
    """Keep items at random, of as much size as others keep.

    Items are taken in an order that depends on id and seed alone, so that of two sizes the smaller choice lies within
    the larger one.

    Args:
        ids: (n,) uint64.
        kept: (n,) bool, the choice whose size is wanted.
        sizes: (n,) non-negative integers; ones for as many items.
        seed: another one gives an unrelated choice.

    Returns:
        (n,) bool; its size is the wanted one to within half the size of the item at its border.
    """
    order = np.lexsort((ids, id_hash(ids, seed=seed)))
    reached, wanted = np.cumsum(sizes[order], dtype=np.int64), int(sizes[kept].sum())
    count = int(np.searchsorted(reached, wanted))
    before = int(reached[count - 1]) if count else 0
    # One item more or fewer, whichever is nearer.
    if count < len(ids) and wanted - before > int(reached[count]) - wanted:
        count += 1
    chosen = np.zeros(len(ids), bool)
    chosen[order[:count]] = True
    return chosen
