"""The asset `training_sample`."""

import dagster as dg
from pydantic import Field

from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.assets.metadata import as_metadata


def training_sample_asset(declaration: Declaration) -> dg.AssetsDefinition:
    """A frozen, bounded, seeded, uniform sample of all vectors."""
    refit = Field(default=False, description="Draw a new sample of today's embeddings: centroids are then fitted anew.")
    run_config = declaration.run_config_with(refit=(bool, refit))

    @dg.asset(
        **declaration.described("training_sample"),
        deps=[declaration.every("embeddings")],
    )
    def training_sample(
        context: dg.AssetExecutionContext,
        config: run_config,  # type: ignore[valid-type]
    ) -> dg.MaterializeResult[None]:
        from semdedup_assets.stages.training_sample import draw_sample, frozen_sample

        work = declaration.work(context, config)
        frozen = None if config.refit else frozen_sample(work)  # type: ignore[attr-defined]
        recipe = frozen or draw_sample(work)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(recipe.version),
            metadata=as_metadata({**recipe.details, "kept_as_it_was": frozen is not None}),
        )

    return training_sample
