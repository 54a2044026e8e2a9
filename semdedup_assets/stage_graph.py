"""The stages of every pipeline, each after those it is made from: a new asset is one file and one line here."""

from semdedup_assets.analyses import (
    baseline_overlaps,
    caption_disagreement,
    clustering_comparison,
    cost,
    detection_efficiency,
    epsilon_estimate_errors,
    epsilon_estimates,
    figures,
    galleries,
    label_precision,
    outliers,
    pruned_pairs,
    redundancy_by_size,
    reference_leaks,
    removed_by_value,
    removed_items,
    rule_comparison,
)
from semdedup_assets.baselines import (
    exact_manifests,
    exact_masks,
    near_duplicate_manifests,
    near_duplicate_masks,
    perceptual_hashes,
    perceptual_manifests,
    perceptual_masks,
    random_manifests,
    random_masks,
    text_signatures,
)
from semdedup_assets.estimate import estimate
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import StageGraph
from semdedup_assets.settings import Pipeline
from semdedup_assets.stages import (
    assignments,
    boundary_items,
    caption_embeddings,
    centroids,
    cross_cluster_scores,
    duplicate_scores,
    embeddings,
    items,
    keep_masks,
    manifests,
    reference_embeddings,
    reference_matches,
    repaired_scores,
    training_sample,
)
from semdedup_assets.training import held_out_sets

GRAPH = StageGraph(
    (
        estimate.STAGE,
        items.STAGE,
        embeddings.STAGE,
        training_sample.STAGE,
        centroids.STAGE,
        assignments.STAGE,
        duplicate_scores.STAGE,
        boundary_items.STAGE,
        cross_cluster_scores.STAGE,
        repaired_scores.STAGE,
        reference_embeddings.STAGE,
        reference_matches.STAGE,
        caption_embeddings.STAGE,
        keep_masks.STAGE,
        removed_by_value.STAGE,
        manifests.STAGE,
        detection_efficiency.STAGE,
        figures.STAGE,
        galleries.STAGE,
        removed_items.STAGE,
        reference_leaks.STAGE,
        rule_comparison.STAGE,
        epsilon_estimates.STAGE,
        epsilon_estimate_errors.STAGE,
        clustering_comparison.STAGE,
        redundancy_by_size.STAGE,
        cost.STAGE,
        pruned_pairs.STAGE,
        label_precision.STAGE,
        outliers.STAGE,
        caption_disagreement.STAGE,
        exact_masks.STAGE,
        exact_manifests.STAGE,
        text_signatures.STAGE,
        near_duplicate_masks.STAGE,
        near_duplicate_manifests.STAGE,
        perceptual_hashes.STAGE,
        perceptual_masks.STAGE,
        perceptual_manifests.STAGE,
        random_masks.STAGE,
        random_manifests.STAGE,
        baseline_overlaps.STAGE,
        held_out_sets.STAGE,
    )
)


def pipeline_context(pipeline: Pipeline, selection: str | None = None) -> StageContext:
    """What the stages of a pipeline are given, to look at its results without Dagster.

    Args:
        pipeline: its settings.
        selection: name of one of its `selections`; None: the only one, or the first.

    Raises:
        KeyError: there is no selection of this name.
    """
    selections = pipeline.named_selections
    chosen = next(iter(selections.values())) if selection is None else selections[selection]
    return StageContext(pipeline, GRAPH, chosen, pipeline.compute)
