"""What beside the scores decides on the items of a range of clusters: references that remove, captions that spare."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.kept_sets import Selection
from semdedup_assets.settings import Pipeline
from semdedup_assets.stages.caption_embeddings import caption_similarity
from semdedup_assets.stages.reference_matches import matched_by

if TYPE_CHECKING:
    from semdedup_assets.algorithm.selection import Selection as SelectedRows
    from semdedup_assets.algorithm.selection import VectorsOf


def removing_references(pipeline: Pipeline) -> tuple[str, ...]:
    """Names of the references near to whose items nothing is kept."""
    return tuple(sorted(name for name, reference in pipeline.references.items() if reference.remove))


def adjusting_inputs(pipeline: Pipeline, selection: Selection) -> tuple[str, ...]:
    """What masks are made from beside the scores."""
    captions = () if selection.spare_captions_below is None else ("caption_embeddings",)
    return (*(("reference_matches",) if removing_references(pipeline) else ()), *captions)


def adjusting_settings(pipeline: Pipeline) -> dict[str, Any]:
    """What of a pipeline's settings changes masks, beside the scores and what `adjusting_inputs` hold."""
    removing = removing_references(pipeline)
    return {"removed_by": removing} if removing else {}


@dataclass(frozen=True, slots=True)
class Leaks:
    """The items of a range of clusters that lie within epsilon of a reference that removes such items.

    Attributes:
        gone: (n,) bool, the rows that are removed.
        names: (n,) the reference that removes each of them, the most similar one; None elsewhere.
        protected: (n,) bool, the rows that always stay.
        staying: how many of these would be removed were they not protected.
    """

    gone: np.ndarray
    names: np.ndarray
    protected: np.ndarray
    staying: int


def range_leaks(context: StageContext, stored: Partition, ids: np.ndarray, protected: np.ndarray) -> Leaks:
    """Look up which items of a range lie near a reference; there are none where no reference removes.

    Protection wins: such an item stays, and a check counts it.

    Args:
        context: of the pipeline.
        stored: a clustering and a range of clusters.
        ids: (n,) uint64, the range's items.
        protected: (n,) bool, those that are never removed.
    """
    names, leaked = np.full(len(ids), None, dtype=object), np.zeros(len(ids), dtype=bool)
    removing = removing_references(context.pipeline)
    if removing:
        record = context.index.require("reference_matches", Partition(clustering=stored.clustering))
        found, by = matched_by(record, stored.cluster_range or 0, removing)
        if len(found):
            at = np.minimum(np.searchsorted(found, ids), len(found) - 1)
            leaked = found[at] == ids
            names[leaked & ~protected] = by[at[leaked & ~protected]]
    return Leaks(leaked & ~protected, names, protected, int((leaked & protected).sum()))


@dataclass(frozen=True, slots=True)
class Adjusted:
    """A range's selection once everything has decided, and what is told of it beside the masks.

    Attributes:
        selection: of the range.
        columns: further columns of the masks.
        counts: for the record, added up over all ranges.
    """

    selection: "SelectedRows"
    columns: dict[str, np.ndarray]
    counts: Counter[str]


@dataclass(frozen=True, slots=True)
class MaskAdjustment:
    """What decides on a range beside its scores.

    Attributes:
        context: of the pipeline and the selection.
        epsilon: of the masks.
        leaks: of the range.
        vectors_of: gives the vectors of the clusters that need them.
    """

    context: StageContext
    epsilon: float
    leaks: Leaks
    vectors_of: "VectorsOf"

    def apply(self, selection: "SelectedRows", ids: np.ndarray, cluster: np.ndarray) -> Adjusted:
        """Remove what lies near a reference, then spare what has a caption of its own.

        Args:
            selection: of the range's rows, by the scores.
            ids: (n,) uint64.
            cluster: (n,) the cluster of each row, ascending.
        """
        columns, counts = dict[str, np.ndarray](), Counter[str]()
        if removing_references(self.context.pipeline):
            selection = self._without_leaks(selection, cluster)
            columns["removed_by"] = np.ma.masked_array(self.leaks.names.astype(str), mask=~self.leaks.gone)
            counts.update(removed_by_reference=int(self.leaks.gone.sum()), protected_leaks=self.leaks.staying)
        if self.context.selection.spare_captions_below is not None:
            selection, spared = self._with_spared(selection, ids)
            counts.update(spared)
        return Adjusted(selection, columns, counts)

    def _without_leaks(self, selection: "SelectedRows", cluster: np.ndarray) -> "SelectedRows":
        from semdedup_assets.algorithm.adjusted_selection import decide_rest, without_rows

        rule, budget = self.context.selection.rule, self.context.compute.budget
        decide = partial(decide_rest, protected=self.leaks.protected, rule=rule, epsilon=self.epsilon, budget=budget)
        return without_rows(selection, cluster, self.leaks.gone, vectors_of=self.vectors_of, decide=decide)

    def _with_spared(self, selection: "SelectedRows", ids: np.ndarray) -> tuple["SelectedRows", dict[str, int]]:
        """Without a caption on either side it cannot be told: the item stays removed."""
        from semdedup_assets.algorithm.adjusted_selection import with_spared

        removed = np.flatnonzero(selection.kept_neighbour >= 0)
        similarity = caption_similarity(self.context, ids[removed], ids[selection.kept_neighbour[removed]])
        spared = np.zeros(len(ids), dtype=bool)
        # No number is below a missing one.
        spared[removed] = similarity < (self.context.selection.spare_captions_below or 0.0)
        counts = {"spared": int(spared.sum()), "removed_without_caption": int(np.isnan(similarity).sum())}
        return with_spared(selection, spared), counts
