"""The whole method in one call, on vectors in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from semdedup_assets.algorithm.assignment import assign
from semdedup_assets.algorithm.cluster_ranges import cluster_batches
from semdedup_assets.algorithm.cross_clusters import (
    Found,
    Reach,
    Visits,
    best_of,
    earlier_members,
    greatest_earlier,
)
from semdedup_assets.algorithm.detection_efficiency import (
    NEIGHBOURS,
    ClusterRows,
    DetectionEfficiency,
    DuplicateCounter,
    sample_clusters,
)
from semdedup_assets.algorithm.epsilon_curves import EpsilonCounts
from semdedup_assets.algorithm.keep_order import (
    ClusteredItems,
    KeepOrder,
    KeepStrategy,
    check_keep,
    cluster_offsets,
    cluster_order,
    keep_keys,
)
from semdedup_assets.algorithm.kept_overlap import ComparedMasks, compare_masks
from semdedup_assets.algorithm.kmeans import spherical_kmeans, suggest_k
from semdedup_assets.algorithm.sampling import UniformSample
from semdedup_assets.algorithm.selection import (
    Selection,
    SelectionRule,
    check_epsilon,
    check_rule,
    greedy_keep_clusters,
    keep_mask,
    orphans,
    select_across,
    select_clusters,
)
from semdedup_assets.algorithm.similarity import EarlierSimilarity, score_clusters
from semdedup_assets.algorithm.tuning import epsilon_for
from semdedup_assets.algorithm.unit_rows import as_tensor, check_rows, unit_rows

# Lloyd's iterations change centroids little once each has this many vectors to average (faiss' own default).
_SAMPLE_PER_CLUSTER = 256
_ITERATIONS = 100
_BUDGET = 1 << 30


@dataclass(frozen=True, slots=True)
class _ClusteredRows:
    """The caller's vectors, and their order by cluster and within each in keep-order.

    Attributes:
        vectors: (n, d) as they were given.
        order: (n,) int64, rows of `vectors`.
        offsets: (k + 1,) int64, where each cluster starts in `order`.
        device: that does the work.
        everywhere: (n,) int64, rows of `vectors` in the keep-order of all clusters together.
        protected: (n,) bool, which rows are never removed; None where none are.
    """

    vectors: Tensor
    order: np.ndarray
    offsets: np.ndarray
    device: torch.device
    everywhere: np.ndarray
    protected: np.ndarray | None

    def unit_rows(self, first: int, stop: int) -> Tensor:
        """(m, d) float32 unit rows of the clusters from `first` to `stop`."""
        members = torch.as_tensor(self.order[self.offsets[first] : self.offsets[stop]], device=self.vectors.device)
        return unit_rows(self.vectors[members].to(self.device))

    def of_sample(self, clusters: np.ndarray) -> ClusterRows:
        """The items of some clusters, (c,) ascending, by the numbers of their rows."""
        parts = [self.members(cluster) for cluster in clusters.tolist()]
        members = np.concatenate(parts)
        vectors = unit_rows(self.vectors[torch.as_tensor(members, device=self.vectors.device)].to(self.device))
        return ClusterRows(members.astype(np.uint64), np.repeat(clusters, list(map(len, parts))), vectors)

    def members(self, cluster: int) -> np.ndarray:
        """(m,) int64, the rows of a cluster in keep-order."""
        return self.order[self.offsets[cluster] : self.offsets[cluster + 1]]

    def of_clusters(self, clusters: set[int]) -> Iterator[tuple[slice, Tensor]]:
        """The slice of `order`, and the unit rows, of each of some clusters."""
        for cluster in sorted(clusters):
            rows = slice(int(self.offsets[cluster]), int(self.offsets[cluster + 1]))
            yield rows, self.unit_rows(cluster, cluster + 1)


@dataclass(frozen=True, slots=True)
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
    """

    similarity: np.ndarray
    duplicate_of: np.ndarray
    cluster: np.ndarray
    centroid_similarity: np.ndarray
    centroids: np.ndarray
    _rows: _ClusteredRows = field(repr=False, compare=False)
    reach: Reach | None = None

    def keep_mask(self, epsilon: float, *, rule: SelectionRule = "chain") -> np.ndarray:
        """Which items are kept at an epsilon (Alg. A7).

        Args:
            epsilon: in [0, 2]; under `chain`, a higher one removes more.
            rule: `chain`, the paper's, or `greedy`, by which only kept items remove others.

        Returns:
            (n,) bool, True = kept.

        Raises:
            ValueError: epsilon is outside [0, 2], or an unknown rule.
        """
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

    def nearest_kept(self, epsilon: float, *, rule: SelectionRule = "chain") -> Selection:
        """The nearest kept item of each removed one, of its cluster.

        Args:
            epsilon: in [0, 2].
            rule: `chain` or `greedy`.

        Returns:
            `keep` (n,) bool; `kept_neighbour` (n,) int64, the row of the nearest kept item, -1 for kept ones;
            `kept_similarity` (n,) float32, the similarity to it, NaN for kept ones.

        Raises:
            ValueError: epsilon is outside [0, 2], or an unknown rule.
        """
        self._check(rule, epsilon)
        order, vectors_of = self._rows.order, self._rows.of_clusters
        earlier, cluster = self._in_keep_order(), self.cluster[order]
        if self.reach is not None:
            found = select_across(earlier, cluster, epsilon, vectors_of=vectors_of, budget=_BUDGET)
        else:
            found = select_clusters(earlier, cluster, epsilon, rule=rule, vectors_of=vectors_of, budget=_BUDGET)
        neighbour = np.where(found.kept_neighbour < 0, -1, order[found.kept_neighbour])
        return Selection(*map(self._in_row_order, (found.keep, neighbour, found.kept_similarity)))

    def groups(self, epsilon: float, *, rule: SelectionRule = "chain") -> np.ndarray:
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
        return orphans(self.nearest_kept(epsilon), epsilon)

    def kept_fraction(self, epsilons: Sequence[float] | np.ndarray) -> np.ndarray:
        """The share of the items that the chain rule keeps at each epsilon (Fig. 3).

        Args:
            epsilons: (m,) in [0, 2], in any order.

        Returns:
            (m,) float64.

        Raises:
            ValueError: an epsilon is outside [0, 2].
        """
        wanted = np.asarray(epsilons, dtype=np.float64)
        for epsilon in wanted.tolist():
            check_epsilon(epsilon)
        ascending, index = np.unique(wanted, return_inverse=True)
        counts = EpsilonCounts(ascending)
        counts.add(self.similarity)
        fraction: np.ndarray = counts.within[index] / len(self.similarity)
        return fraction

    def epsilon_for(self, *, keep: float, rule: SelectionRule = "chain") -> float:
        """The epsilon that keeps a share of the items; equal similarities stay together, so ties may keep more.

        Args:
            keep: share of the items to keep, in (0, 1].
            rule: only `chain`: under `greedy` the share may rise with epsilon.

        Raises:
            ValueError: `keep` is outside (0, 1], or the rule is not `chain`.
        """
        check_rule(rule)
        if rule == "greedy":
            message = (
                "rule: no epsilon follows from a share under 'greedy', because the kept share does not always fall as "
                "epsilon rises, and each epsilon that is tried reads vectors again; give an epsilon to keep_mask instead"
            )
            raise ValueError(message)
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
        check_epsilon(epsilon)
        if clusters is not None and clusters < 1:
            message = f"clusters: {clusters} is not a positive number; None searches all"
            raise ValueError(message)
        reach = Reach(clusters, epsilon)
        found = _across(self._rows, self.cluster, self.centroids, reach)
        nearer = found.similarity > self.similarity[found.item]
        item = found.item[nearer]
        similarity, duplicate_of = self.similarity.copy(), self.duplicate_of.copy()
        similarity[item], duplicate_of[item] = found.similarity[nearer], found.earlier[nearer]
        return replace(self, similarity=similarity, duplicate_of=duplicate_of, reach=reach)

    def _check(self, rule: SelectionRule, epsilon: float) -> None:
        """Check that a mask can be made.

        Raises:
            ValueError: an unknown rule, or one that a repair does not serve, or an epsilon that it does not reach.
        """
        check_rule(rule)
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
        neighbours: int | None = NEIGHBOURS,
        clusters: int | None = None,
        seed: int = 0,
    ) -> DetectionEfficiency:
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
        epsilons = np.atleast_1d(np.asarray(epsilon, dtype=np.float64))
        for each in epsilons.tolist():
            check_epsilon(each)
        if clusters is not None and clusters < 1:
            message = f"clusters: {clusters} is not a positive number; None samples all"
            raise ValueError(message)
        if neighbours is not None and neighbours < 0:
            message = f"neighbours: {neighbours} is negative; None compares with all clusters"
            raise ValueError(message)
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
        if (epsilon is None) == (keep is None):
            message = "give either epsilon or keep: by which what is kept is compared"
            raise ValueError(message)
        share = 1.0 if keep is None else keep
        first, second = (
            found.keep_mask(found.epsilon_for(keep=share) if epsilon is None else epsilon) for found in (self, other)
        )
        return compare_masks(first, second)

    def _in_keep_order(self) -> EarlierSimilarity:
        """The scores by cluster and in keep-order, with positions in that order."""
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
    vectors: np.ndarray | Tensor,
    *,
    k: int | None = None,
    keep: KeepStrategy | np.ndarray | KeepOrder = "hard",
    seed: int = 0,
    ids: np.ndarray | None = None,
    protect: np.ndarray | None = None,
) -> Deduplication:
    """Deduplicate vectors by SemDeDup (Abbas et al. 2023).

    Runs on the vectors' device, or on a GPU where there is one.

    Args:
        vectors: (n, d) floats; need not be of unit norm.
        k: clusters; None: a suggestion for n.
        keep: which item of a group is kept: `hard` the least similar to its centroid, `easy` the most similar, `middle`
            the one nearest to the median of its cluster, `random`; or (n,) integers, floats or `datetime64`, smallest
            first, NaN last; integers keep their exact order. A sequence of such arrays, which a strategy may end: the
            next decides where the first ties.
        seed: of k-means and of `random`.
        ids: (n,) distinct non-negative integers that settle ties and choose the sample, so that the order of the
            rows does not matter; None: the row numbers.
        protect: (n,) bool, items that are never removed; they come first in their cluster, and so remove others.

    Returns:
        Scores from which any epsilon's keep mask follows. It refers to the vectors, so do not change them.

    Raises:
        ValueError: an argument is invalid, or a row is zero or not finite; names it.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> vectors = np.repeat(rng.normal(size=(50, 8)), 2, axis=0)
        >>> int(semdedup(vectors, k=2).keep_mask(0.01).sum())
        50
    """
    tensor = as_tensor(vectors)
    check_rows(tensor)
    if len(tensor) == 0:
        message = "vectors: there are no rows to deduplicate"
        raise ValueError(message)
    identity = _checked_ids(ids, len(tensor))
    order = check_keep(keep, items=len(tensor))
    if protect is not None:
        order = [~_checked_protection(protect, len(tensor)), *order]
    k = suggest_k(len(tensor)) if k is None else k
    device, sample = _device(tensor), _sample(tensor, identity, k, seed)
    centroids = spherical_kmeans(sample, k=k, iterations=_ITERATIONS, seed=seed, devices=[device]).vectors
    assigned = assign(tensor, torch.from_numpy(centroids).to(device), budget=_BUDGET)
    items = ClusteredItems(identity, assigned.cluster, assigned.similarity)
    keys = keep_keys(order, items, seed=seed)
    in_order = cluster_order(assigned.cluster, keys=keys, ids=identity)
    # One cluster for all: the order of the whole data set.
    everywhere = cluster_order(np.zeros_like(assigned.cluster), keys=keys, ids=identity)
    offsets = cluster_offsets(assigned.cluster, k=len(centroids))
    rows = _ClusteredRows(tensor, in_order, offsets, device, everywhere, protect)
    similarity, duplicate_of = _score(rows)
    if protect is not None:
        similarity[protect], duplicate_of[protect] = -np.inf, -1
    return Deduplication(similarity, duplicate_of, assigned.cluster, assigned.similarity, centroids, rows)


def _device(vectors: Tensor) -> torch.device:
    if vectors.is_cuda or not torch.cuda.is_available():
        return vectors.device
    return torch.device("cuda")


def _checked_ids(ids: np.ndarray | None, n: int) -> np.ndarray:
    if ids is None:
        return np.arange(n, dtype=np.uint64)
    ids = np.asarray(ids)
    if ids.shape != (n,) or ids.dtype.kind not in "iu" or len(np.unique(ids)) != n or (n and ids.min() < 0):
        message = f"ids: expected {n} distinct non-negative integers, one per row"
        raise ValueError(message)
    return ids.astype(np.uint64)


def _checked_protection(protect: np.ndarray, n: int) -> np.ndarray:
    if not isinstance(protect, np.ndarray) or protect.shape != (n,) or protect.dtype != bool:
        message = f"protect: expected a NumPy array of {n} bools, one per row"
        raise ValueError(message)
    return protect


def _sample(vectors: Tensor, ids: np.ndarray, k: int, seed: int) -> np.ndarray:
    """(m, d) float32 unit rows in the order of their ids: what the centroids are fitted to."""
    sample = UniformSample(size=max(1, k) * _SAMPLE_PER_CLUSTER, seed=seed)
    sample.add(ids)
    by_id = np.argsort(ids)
    chosen = by_id[np.searchsorted(ids[by_id], sample.ids)]
    result: np.ndarray = unit_rows(vectors[torch.as_tensor(chosen, device=vectors.device)]).cpu().numpy()
    return result


def _across(rows: _ClusteredRows, cluster: np.ndarray, centroids: np.ndarray, reach: Reach) -> Found:
    """The greatest similarity of each row to an earlier one of another cluster that it searches."""
    tensor = torch.from_numpy(centroids).to(rows.device)
    vectors = rows.vectors.to(rows.device)
    visits = Visits(vectors, cluster, tensor, reach=reach, budget=_BUDGET)
    rank = np.argsort(rows.everywhere)
    found = [(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64))]
    for there in range(len(centroids)):
        visitors, _ = visits.of(range(there, there + 1))
        if rows.protected is not None:
            visitors = visitors[~rows.protected[visitors]]
        members = rows.members(there)
        keys = (np.concatenate([rank[members], rank[visitors]]),)
        earlier = greatest_earlier(
            unit_rows(vectors[torch.as_tensor(visitors, device=rows.device)]),
            rows.unit_rows(there, there + 1),
            earlier=earlier_members(keys, members=len(members)),
            budget=_BUDGET,
        )
        known = earlier.position >= 0
        found.append((visitors[known], earlier.similarity[known], rank[members[earlier.position[known]]]))
    best = best_of(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
    return Found(best.item, best.similarity, rows.everywhere[best.earlier])


def _score(rows: _ClusteredRows) -> tuple[np.ndarray, np.ndarray]:
    """Greatest similarity to an earlier item (n,) and its row (n,), in the vectors' own order."""
    order, offsets = rows.order, rows.offsets
    similarity = np.full(len(order), -np.inf, dtype=np.float32)
    duplicate_of = np.full(len(order), -1, dtype=np.int64)
    most = max(1, _BUDGET // (8 * rows.vectors.shape[1]))
    for first, stop in cluster_batches(np.diff(offsets), most=most):
        members = order[offsets[first] : offsets[stop]]
        earlier = score_clusters(
            rows.unit_rows(first, stop), offsets[first : stop + 1] - offsets[first], budget=_BUDGET
        )
        similarity[members] = earlier.similarity
        duplicate_of[members] = np.where(earlier.position < 0, -1, members[earlier.position])
    return similarity, duplicate_of
