"""The stages of every pipeline, each after those it is made from: a new asset is one file and one line here."""

from semdedup_assets.analyses import (
    baseline_overlaps,
    caption_disagreement,
    clustering_comparison,
    cost,
    data_screen,
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
    everything_manifests,
    everything_masks,
    exact_manifests,
    exact_masks,
    near_duplicate_manifests,
    near_duplicate_masks,
    perceptual_hashes,
    perceptual_manifests,
    perceptual_masks,
    random_manifests,
    random_masks,
    sized_random_manifests,
    sized_random_masks,
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
from semdedup_assets.training import (
    evaluation_curves,
    evaluations,
    everything_trained_models,
    exact_trained_models,
    held_out_sets,
    random_trained_models,
    sized_random_trained_models,
    trained_models,
)

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
        everything_masks.STAGE,
        everything_manifests.STAGE,
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
        sized_random_masks.STAGE,
        sized_random_manifests.STAGE,
        baseline_overlaps.STAGE,
        held_out_sets.STAGE,
        everything_trained_models.STAGE,
        exact_trained_models.STAGE,
        trained_models.STAGE,
        random_trained_models.STAGE,
        sized_random_trained_models.STAGE,
        evaluations.STAGE,
        evaluation_curves.STAGE,
        data_screen.STAGE,
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
