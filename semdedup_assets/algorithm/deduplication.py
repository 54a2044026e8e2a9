"""The whole method in one call, on vectors in memory; PyTorch is loaded by the call, not by the import."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import TYPE_CHECKING, Literal

import numpy as np

from semdedup_assets.algorithm.arguments import (
    check_integer,
    check_number,
    checked_ids,
    checked_k,
    checked_protection,
    checked_vectors,
)
from semdedup_assets.algorithm.call_progress import reporting
from semdedup_assets.algorithm.keep_order import KeepOrder, KeepStrategy, check_keep, keep_in_words
from semdedup_assets.algorithm.kept_overlap import ComparedMasks, compare_masks
from semdedup_assets.algorithm.tuning import epsilon_for

if TYPE_CHECKING:
    from torch import Tensor

    from semdedup_assets.algorithm.clustered_rows import ClusteredRows
    from semdedup_assets.algorithm.cross_clusters import Reach
    from semdedup_assets.algorithm.detection_efficiency import DetectionEfficiency
    from semdedup_assets.algorithm.selection import Selection, SelectionRule
    from semdedup_assets.algorithm.similarity import EarlierSimilarity

_NEIGHBOURS = 20
_BUDGET = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class Removed:
    """What is removed, and what is kept for it; one entry for each removed item, in the order of the rows.

    Attributes:
        row: (m,) int64, which items.
        kept: (m,) int64, row of the kept item that stands for each: the most similar one of its cluster, after `repaired` of
            all that were searched.
        similarity: (m,) float32, cosine similarity of the two.
        is_orphan: (m,) bool, whether that is not within epsilon: the item was removed for one that was removed itself.
    """

    row: np.ndarray
    kept: np.ndarray
    similarity: np.ndarray
    is_orphan: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def __repr__(self) -> str:
        return f"Removed({len(self):,} items, {int(self.is_orphan.sum()):,} of them orphans)"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Deduplication:
    """What one pass found; every epsilon follows from it.

    Under the chain rule, masks and shares follow from the scores alone. The nearest kept items, orphans and the greedy
    rule read the vectors again, of clusters that need them; so the vectors are held, not copied, and must not be changed.

    Attributes:
        similarity: (n,) float32, greatest cosine similarity to an earlier item of the cluster, -inf for its first and for
            protected items.
        duplicate_of: (n,) int64, row of that earlier item, -1 where there is none.
        cluster: (n,) int32.
        centroid_similarity: (n,) float64, cosine similarity to the cluster's centroid.
        centroids: (k, d) float32 unit rows.
        reach: which other clusters each item searched, after `repaired`; None: only its own was searched.
        keep: what orders the items, in words.
        seed: of k-means and of random orders.
    """

    similarity: np.ndarray
    duplicate_of: np.ndarray
    cluster: np.ndarray
    centroid_similarity: np.ndarray
    centroids: np.ndarray
    _rows: "ClusteredRows"
    reach: "Reach | None" = None
    keep: str = "'hard'"
    seed: int = 0

    def __len__(self) -> int:
        return len(self.similarity)

    def __repr__(self) -> str:
        protected = 0 if self._rows.protected is None else int(self._rows.protected.sum())
        parts = [f"n={len(self)}", f"k={len(self.centroids)}", f"keep={self.keep}", f"seed={self.seed}"]
        parts += [f"protected={protected}"] if protected else []
        parts += [] if self.reach is None else [f"repaired within epsilon={self.reach.epsilon}"]
        return f"Deduplication({', '.join(parts)})"

    def keep_mask(self, epsilon: float, *, rule: "SelectionRule" = "chain") -> np.ndarray:
        """Which items are kept at an epsilon (Alg. A7).

        Args:
            epsilon: in [0, 2]; under `chain`, a higher one removes more.
            rule: `chain`, the paper's, or `greedy`, by which only kept items remove others.

        Returns:
            (n,) bool, True = kept.

        Raises:
            ValueError: epsilon is outside [0, 2], or an unknown rule.
        """
        from semdedup_assets.algorithm.selection import greedy_keep_clusters, keep_mask

        self._check(rule, epsilon)
        if rule == "chain":
            return keep_mask(self.similarity, epsilon)
        keep = greedy_keep_clusters(
            self._in_keep_order(),
            self.cluster[self._rows.order],
            epsilon,
            vectors_of=self._rows.of_clusters,
            budget=_BUDGET,
        )
        return self._in_row_order(keep)

    def nearest_kept(self, epsilon: float, *, rule: "SelectionRule" = "chain") -> "Selection":
        """The nearest kept item of each removed one: of its cluster, after `repaired` of all that were searched.

        Args:
            epsilon: in [0, 2].
            rule: `chain` or `greedy`.

        Returns:
            `keep` (n,) bool; `kept_neighbour` (n,) int64, the row of the nearest kept item, -1 for kept ones;
            `kept_similarity` (n,) float32, the similarity to it, NaN for kept ones.

        Raises:
            ValueError: epsilon is outside [0, 2], or an unknown rule.
        """
        from semdedup_assets.algorithm.selection import Selection, select_across, select_clusters

        self._check(rule, epsilon)
        order, vectors_of = self._rows.order, self._rows.of_clusters
        earlier, cluster = self._in_keep_order(), self.cluster[order]
        if self.reach is not None:
            found = select_across(earlier, cluster, epsilon, vectors_of=vectors_of, budget=_BUDGET)
        else:
            found = select_clusters(earlier, cluster, epsilon, rule=rule, vectors_of=vectors_of, budget=_BUDGET)
        neighbour = np.where(found.kept_neighbour < 0, -1, order[found.kept_neighbour])
        return Selection(*map(self._in_row_order, (found.keep, neighbour, found.kept_similarity)))

    def groups(self, epsilon: float, *, rule: "SelectionRule" = "chain") -> np.ndarray:
        """The kept item that stands for each item: a kept one for itself, a removed one's is its nearest.

        Args:
            epsilon: in [0, 2].
            rule: `chain` or `greedy`.

        Returns:
            (n,) int64, rows; each item belongs to one group. `numpy.bincount` of them gives the groups' sizes.

        Raises:
            ValueError: epsilon is outside [0, 2], or an unknown rule.
        """
        found = self.nearest_kept(epsilon, rule=rule)
        return np.where(found.keep, np.arange(len(found.keep)), found.kept_neighbour)

    def orphans(self, epsilon: float) -> np.ndarray:
        """Items that the chain rule removes though no kept one is within epsilon: (n,) bool.

        Raises:
            ValueError: epsilon is outside [0, 2].
        """
        from semdedup_assets.algorithm.selection import orphans

        return orphans(self.nearest_kept(epsilon), epsilon)

    def removed(self, epsilon: float, *, rule: "SelectionRule" = "chain") -> Removed:
        """The removed items, each with the kept item that stands for it.

        Args:
            epsilon: in [0, 2].
            rule: `chain` or `greedy`.

        Returns:
            `row`, `kept`, `similarity` and `is_orphan`, (m,) each: the columns of a table, as `dataclasses.asdict` gives
            them.

        Raises:
            ValueError: epsilon is outside [0, 2], or an unknown rule.

        Example:
            >>> vectors = np.repeat(np.random.default_rng(0).normal(size=(3, 8)), 2, axis=0)
            >>> found = semdedup(vectors, k=1).removed(0.01)
            >>> found.row.tolist(), found.kept.tolist()
            ([1, 3, 5], [0, 2, 4])
        """
        from semdedup_assets.algorithm.selection import orphans

        found = self.nearest_kept(epsilon, rule=rule)
        row = np.flatnonzero(~found.keep)
        return Removed(row, found.kept_neighbour[row], found.kept_similarity[row], orphans(found, epsilon)[row])

    def kept_fraction(self, epsilons: Sequence[float] | np.ndarray) -> np.ndarray:
        """The share of the items that the chain rule keeps at each epsilon (Fig. 3).

        Args:
            epsilons: (m,) in [0, 2], in any order.

        Returns:
            (m,) float64.

        Raises:
            ValueError: an epsilon is outside [0, 2].
        """
        from semdedup_assets.algorithm.epsilon_curves import EpsilonCounts
        from semdedup_assets.algorithm.selection import check_epsilon

        if np.ndim(epsilons) != 1:
            message = f"epsilons: {epsilons!r} is no sequence of numbers; give several, such as [0.01, 0.05]"
            raise TypeError(message)
        for epsilon in epsilons:
            check_epsilon(epsilon)
        wanted = np.asarray(epsilons, dtype=np.float64)
        ascending, index = np.unique(wanted, return_inverse=True)
        counts = EpsilonCounts(ascending)
        counts.add(self.similarity)
        fraction: np.ndarray = counts.within[index] / len(self.similarity)
        return fraction

    def epsilon_for(self, *, keep: float, rule: "SelectionRule" = "chain") -> float:
        """The epsilon that keeps a share of the items; equal similarities stay together, so ties may keep more.

        Args:
            keep: share of the items to keep, in (0, 1].
            rule: only `chain`: under `greedy` the share may rise with epsilon.

        Raises:
            ValueError: `keep` is outside (0, 1], or the rule is not `chain`.
        """
        from semdedup_assets.algorithm.selection import check_rule

        check_rule(rule)
        if rule == "greedy":
            message = (
                "rule: no epsilon follows from a share under 'greedy', because the kept share does not always fall as "
                "epsilon rises, and each epsilon that is tried reads vectors again; give an epsilon to keep_mask instead"
            )
            raise ValueError(message)
        check_number(keep, name="keep", wanted="a share in (0, 1]")
        return epsilon_for(lambda: [self.similarity], keep=keep)

    def repaired(self, *, clusters: int | None = 4, epsilon: float = 0.1) -> "Deduplication":
        """The same, once each item has also searched other clusters for earlier items: duplicates across clusters too.

        The order is that of the whole data set, by the same keys as within a cluster. Clusters that can hold no duplicate
        within epsilon are not searched.

        Args:
            clusters: at most so many, those nearest to the item; None: all, which finds every duplicate within epsilon.
            epsilon: up to which masks may be asked for.

        Returns:
            Scores of which `duplicate_of` may lie in any cluster. The rule is `chain`.

        Raises:
            ValueError: epsilon is outside [0, 2], or the number of clusters is not positive.
        """
        from semdedup_assets.algorithm.clustered_rows import search_across
        from semdedup_assets.algorithm.cross_clusters import Reach
        from semdedup_assets.algorithm.selection import check_epsilon

        check_epsilon(epsilon)
        check_integer(clusters, name="clusters", least=1, without="None searches all")
        reach = Reach(clusters, epsilon)
        found = search_across(self._rows, self.cluster, self.centroids, reach)
        nearer = found.similarity > self.similarity[found.item]
        item = found.item[nearer]
        similarity, duplicate_of = self.similarity.copy(), self.duplicate_of.copy()
        similarity[item], duplicate_of[item] = found.similarity[nearer], found.earlier[nearer]
        return replace(self, similarity=similarity, duplicate_of=duplicate_of, reach=reach)

    def _check(self, rule: "SelectionRule", epsilon: float) -> None:
        """Check that a mask can be made.

        Raises:
            ValueError: an unknown rule, or one that a repair does not serve, or an epsilon that it does not reach.
        """
        from semdedup_assets.algorithm.selection import check_epsilon, check_rule

        check_rule(rule)
        check_epsilon(epsilon)
        if self.reach is None:
            return
        if rule == "greedy":
            message = "rule: 'greedy' needs all pairs within epsilon, and a repair finds the greatest similarity of each item; use 'chain'"
            raise ValueError(message)
        if epsilon > self.reach.epsilon:
            message = f"epsilon: {epsilon} exceeds {self.reach.epsilon}, up to which other clusters were searched; repair with a larger one"
            raise ValueError(message)

    def detection_efficiency(
        self,
        *,
        epsilon: float | Sequence[float],
        neighbours: int | None = _NEIGHBOURS,
        clusters: int | None = None,
        seed: int = 0,
    ) -> "DetectionEfficiency":
        """Which share of the duplicates the search within clusters finds (SemDeDup, appendix A.2): η.

        Args:
            epsilon: one or several, in [0, 2].
            neighbours: clusters that each sampled one is compared with beside itself, nearest first; None: all, which
                compares all pairs where all clusters are sampled.
            clusters: how many are sampled; None: all.
            seed: of the sample and of the interval's resampling.

        Returns:
            `items.share` and `pairs.share` by epsilon, with their intervals; `searched` for what a repair would find.

        Raises:
            ValueError: an epsilon is outside [0, 2], no cluster is to be sampled, or `neighbours` is negative.
        """
        import torch

        from semdedup_assets.algorithm.cluster_ranges import cluster_batches
        from semdedup_assets.algorithm.detection_efficiency import DuplicateCounter, sample_clusters
        from semdedup_assets.algorithm.selection import check_epsilon

        for each in np.atleast_1d(np.asarray(epsilon, dtype=object)).tolist():
            check_epsilon(each)
        epsilons = np.atleast_1d(np.asarray(epsilon, dtype=np.float64))
        check_integer(clusters, name="clusters", least=1, without="None samples all")
        check_integer(neighbours, name="neighbours", least=0, without="None compares with all clusters")
        check_integer(seed, name="seed", least=0)
        rows, centroids = self._rows, torch.from_numpy(self.centroids).to(self._rows.device)
        sampled = sample_clusters(len(centroids), most=clusters, seed=seed)
        counter = DuplicateCounter(
            rows.of_sample(sampled), centroids=centroids, epsilons=epsilons, neighbours=neighbours, budget=_BUDGET
        )
        sizes = np.diff(rows.offsets)
        needed = np.where(np.isin(np.arange(len(sizes)), counter.needed), sizes, 0)
        for first, stop in cluster_batches(needed, most=max(1, _BUDGET // (16 * rows.vectors.shape[1]))):
            counter.add(rows.of_sample(np.arange(first, stop)))
        return counter.result(sizes, all_clusters=len(sampled) == len(centroids), seed=seed)

    def compare(
        self, other: "Deduplication", *, epsilon: float | None = None, keep: float | None = None
    ) -> ComparedMasks:
        """What the chain rule keeps here and in another deduplication of the same items (sections 6.2, 6.3, A.1).

        Args:
            other: of the same rows in the same order: with another k, seed, keep strategy or model.
            epsilon: of both; or
            keep: share of the items that both keep, in (0, 1], each at the epsilon of its own that keeps it.

        Returns:
            Counts, the intersection I(this, other), and the rows that only one of them keeps.

        Raises:
            ValueError: the rows are not as many, an argument is outside its range, or not one of the two is given.

        Example:
            >>> vectors = np.random.default_rng(0).normal(size=(200, 8))
            >>> semdedup(vectors, k=2).compare(semdedup(vectors, k=2), keep=0.5).overlap.intersection
            1.0
        """
        if not isinstance(other, Deduplication):
            message = f"other: {type(other).__name__} is not what semdedup returns; give another Deduplication of the same rows"
            raise TypeError(message)
        if (epsilon is None) == (keep is None):
            message = "give either epsilon or keep: by which what is kept is compared"
            raise ValueError(message)
        share = 1.0 if keep is None else keep
        first, second = (
            found.keep_mask(found.epsilon_for(keep=share) if epsilon is None else epsilon) for found in (self, other)
        )
        return compare_masks(first, second)

    def _in_keep_order(self) -> "EarlierSimilarity":
        """The scores by cluster and in keep-order, with positions in that order."""
        from semdedup_assets.algorithm.similarity import EarlierSimilarity

        order = self._rows.order
        earlier = self.duplicate_of[order]
        position = np.where(earlier < 0, -1, self._ranks()[earlier])
        return EarlierSimilarity(self.similarity[order], position)

    def _ranks(self) -> np.ndarray:
        """(n,) int64: where each row comes in `order`."""
        ranks = np.empty_like(self._rows.order)
        ranks[self._rows.order] = np.arange(len(ranks))
        return ranks

    def _in_row_order(self, values: np.ndarray) -> np.ndarray:
        """(n,) values in `order`, by row."""
        by_row = np.empty_like(values)
        by_row[self._rows.order] = values
        return by_row


def semdedup(  # noqa: PLR0913  # the vectors and the method's own settings
    vectors: "np.ndarray | Tensor",
    *,
    k: int | Literal["auto"] | None = "auto",
    keep: KeepStrategy | np.ndarray | KeepOrder = "hard",
    seed: int = 0,
    ids: np.ndarray | None = None,
    protect: np.ndarray | None = None,
    progress: bool | Callable[[str, int, int], None] = False,
) -> Deduplication:
    """Deduplicate vectors by SemDeDup (Abbas et al. 2023).

    Runs on the vectors' device, or on a GPU where there is one.

    Args:
        vectors: (n, d) floats: a NumPy array, also a mapped file, or a torch tensor; need not be of unit norm.
        k: clusters; `auto`: a suggestion for n.
        keep: which item of a group is kept: `hard` the least similar to its centroid, `easy` the most similar, `middle`
            the one nearest to the median of its cluster, `random`; or (n,) integers, floats or `datetime64`, smallest
            first, NaN last; integers keep their exact order. A sequence of such arrays, which a strategy may end: the
            next decides where the first ties.
        seed: of k-means and of `random`.
        ids: (n,) distinct non-negative integers that settle ties and choose the sample, so that the order of the
            rows does not matter; None: the row numbers.
        protect: (n,) bool, items that are never removed; they come first in their cluster, and so remove others.
        progress: True: a bar for each step on standard error; or a function that is given the step's name, how much of
            it is done, and how much there is.

    Returns:
        Scores from which any epsilon's keep mask follows. It refers to the vectors, so do not change them.

    Raises:
        TypeError: an argument is of a type that cannot be used; names it and what to give.
        ValueError: an argument is invalid, or a row is zero or not finite; names it.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> vectors = np.repeat(rng.normal(size=(50, 8)), 2, axis=0)
        >>> result = semdedup(vectors, k=2)
        >>> result
        Deduplication(n=100, k=2, keep='hard', seed=0)
        >>> int(result.keep_mask(0.01).sum())
        50
    """
    check_integer(seed, name="seed", least=0)
    # faiss takes no integer of NumPy's.
    seed, tensor = index(seed), checked_vectors(vectors)
    clusters, identity = checked_k(k, len(tensor)), checked_ids(ids, len(tensor))
    order = check_keep(keep, items=len(tensor))
    words = keep_in_words(keep)
    if protect is not None:
        order = [~checked_protection(protect, len(tensor)), *order]

    from semdedup_assets.algorithm.clustered_rows import clustered_rows, score_rows

    with reporting(progress) as report:
        rows, assigned, centroids = clustered_rows(
            tensor, identity, k=clusters, order=order, protected=protect, seed=seed, report=report
        )
        similarity, duplicate_of = score_rows(rows, report)
    if protect is not None:
        similarity[protect], duplicate_of[protect] = -np.inf, -1
    return Deduplication(
        similarity, duplicate_of, assigned.cluster, assigned.similarity, centroids, rows, keep=words, seed=seed
    )
