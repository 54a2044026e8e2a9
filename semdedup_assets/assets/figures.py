"""The asset `figures`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg

from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.assets.metadata import picture, rounded
from semdedup_assets.assets.provenance import ALL, PartitionRecorder

if TYPE_CHECKING:
    from semdedup_assets.stages.work import Work

_BY_EPSILON = dg.TableSchema(
    columns=[
        dg.TableColumn("epsilon", "string", description="As the settings spell it."),
        dg.TableColumn("as a number", "float"),
        dg.TableColumn("items kept", "string", description="By the chain rule (SemDeDup, Fig. 3a)."),
        dg.TableColumn("items with a duplicate", "string", description="Within their cluster (SemDeDup, Fig. 3b)."),
    ]
)


def figures_asset(declaration: Declaration) -> dg.AssetsDefinition:
    """One partition a k: what the scores tell, in pictures, with their numbers."""

    @dg.asset(
        **declaration.described("figures"),
        partitions_def=declaration.k,
        deps=[declaration.same("duplicate_scores", "k")],
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool="gpu",
    )
    def figures(
        context: dg.AssetExecutionContext,
        config: declaration.run_config,  # type: ignore[name-defined]
    ) -> Iterator[dg.MaterializeResult[None]]:
        from semdedup_assets.stages.figures import draw_figures

        work = declaration.work(context, config)
        recorder = PartitionRecorder(context, declaration, "figures")
        for k in recorder.partitions:
            inputs = recorder.inputs({declaration.key("duplicate_scores"): ALL})
            recipe = draw_figures(work, k)
            pictures = {**_pictures(work, k), "by_epsilon": _table(recipe.details["by_epsilon"])}
            recorder.record(k, recipe, inputs=inputs, pictures=pictures)
        yield from recorder.finish()

    return figures


def _pictures(work: "Work", k: str) -> dict[str, Any]:
    """Each picture as it is seen in the UI."""
    from semdedup_assets.figures.plots import TITLES
    from semdedup_assets.stages.figures import read_figure

    return {name: picture(read_figure(work, k, f"{name}.png"), title=title) for name, title in TITLES.items()}


def _table(rows: list[dict[str, Any]]) -> Any:
    """What each of the pipeline's epsilons keeps."""
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "epsilon": row["epsilon"],
                    "as a number": rounded(row["number"]),
                    "items kept": f"{row['kept']:.2%}",
                    "items with a duplicate": f"{row['with_duplicate']:.2%}",
                }
            )
            for row in rows
        ],
        schema=_BY_EPSILON,
    )
