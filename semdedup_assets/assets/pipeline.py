"""All definitions of one pipeline."""

import dagster as dg

from semdedup_assets.assets.assignments import assignments_asset
from semdedup_assets.assets.automation import automation_definitions
from semdedup_assets.assets.centroids import centroids_asset
from semdedup_assets.assets.checks import current_checks
from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.assets.duplicate_scores import duplicate_scores_asset
from semdedup_assets.assets.embeddings import embeddings_asset
from semdedup_assets.assets.estimate import estimate_asset
from semdedup_assets.assets.figures import figures_asset
from semdedup_assets.assets.galleries import galleries_asset
from semdedup_assets.assets.keep_masks import keep_masks_asset
from semdedup_assets.assets.manifests import manifests_asset
from semdedup_assets.assets.shards import shards_definitions
from semdedup_assets.assets.training_sample import training_sample_asset
from semdedup_assets.settings import Pipeline


def pipeline_definitions(pipeline: Pipeline) -> dg.Definitions:
    """The assets of one dataset and one embedding model, from source files to training manifests."""
    declaration = Declaration(pipeline)
    assets = [
        estimate_asset(declaration),
        embeddings_asset(declaration),
        training_sample_asset(declaration),
        centroids_asset(declaration),
        assignments_asset(declaration),
        duplicate_scores_asset(declaration),
        keep_masks_asset(declaration),
        manifests_asset(declaration),
        figures_asset(declaration),
        galleries_asset(declaration),
    ]
    definitions = dg.Definitions.merge(
        shards_definitions(declaration), dg.Definitions(assets=assets, asset_checks=[current_checks(declaration)])
    )
    return dg.Definitions.merge(definitions, automation_definitions(declaration, definitions))
