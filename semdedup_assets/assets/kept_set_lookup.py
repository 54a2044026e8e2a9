"""Finds the kept sets that a comparison names among the assets of a project's pipelines."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import dagster as dg

from semdedup_assets.assets.builder import AssetBuilder
from semdedup_assets.comparison_settings import NamedKeptSet
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.kept_set_choice import UnknownKeptSetError, chosen
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.pipeline_stages import StageAsset
from semdedup_assets.kept_sets import Target
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import GRAPH


@dataclass(frozen=True)
class FoundKeptSet:
    """A kept set of a pipeline, and the asset whose result of it is compared.

    Attributes:
        builder: of the pipeline.
        asset: one of its assets.
        partition: of that asset; empty where it has none.
        label: in tables and pictures; empty where the settings give it no name.
        parts: what it is of, by the names of the settings.
    """

    builder: AssetBuilder
    asset: StageAsset
    partition: Partition
    label: str
    parts: dict[str, str]

    @property
    def store(self) -> str:
        """Of the pipeline."""
        return self.builder.pipeline.store

    @property
    def key(self) -> dg.AssetKey:
        """Of the asset."""
        return self.builder.key(self.asset)

    @property
    def location(self) -> str:
        """Of the result, without a suffix."""
        return self.context().location(self.asset.stage.name, self.partition)

    def context(self) -> StageContext:
        """Of the pipeline and the selection; each call sees the store afresh."""
        return self.builder.context(self.asset)


def find_kept_set(
    wanted: NamedKeptSet,
    pipelines: Sequence[Pipeline],
    assets: Callable[[AssetBuilder], Sequence[StageAsset]],
) -> FoundKeptSet:
    """The kept set that a comparison names.

    Args:
        wanted: what the settings say of it.
        pipelines: of the project.
        assets: those of a pipeline in question, one for each selection.

    Raises:
        UnknownKeptSetError: there is none, or more than one; names what there is.
    """
    of_dataset = [each for each in pipelines if each.dataset == wanted.dataset]
    chosen("dataset", wanted.dataset, sorted({each.dataset for each in pipelines}))
    model = chosen("model", wanted.model, [each.model_name for each in of_dataset])
    builder = AssetBuilder(next(each for each in of_dataset if each.model_name == model), GRAPH)
    asset = _of_selection(wanted, assets(builder))
    pipeline, dimensions = builder.pipeline, asset.stage.dimensions
    of_partition: dict[str, str] = {}
    for name, given, there in (
        ("epsilon", wanted.epsilon, [str(each) for each in pipeline.targets]),
        ("k", wanted.k, [str(each) for each in pipeline.clusterings]),
    ):
        if name in dimensions:
            of_partition[name] = chosen(name, given, there)
    # Dagster joins the dimensions of a partition in the order of their names: epsilon, k.
    partition = Partition.parse("|".join(of_partition.values()), dimensions)
    selection = {} if asset.name is None else {"selection": asset.name}
    parts = {"dataset": wanted.dataset, "model": model, **selection, **of_partition}
    return FoundKeptSet(builder, asset, partition, wanted.name or "", parts)


def _of_selection(wanted: NamedKeptSet, assets: Sequence[StageAsset]) -> StageAsset:
    """The asset of the wanted selection."""
    names = [each.name for each in assets if each.name is not None]
    if not names:
        if wanted.selection is not None and assets[0].stage.selected:
            message = (
                f"{wanted.selection!r} is none: the pipeline has one `selection`, without a name; remove this line"
            )
            raise UnknownKeptSetError(message, setting="selection")
        return assets[0]
    name = chosen("selection", wanted.selection, names)
    return next(each for each in assets if each.name == name)


def labelled(kept_sets: Sequence[FoundKeptSet]) -> list[FoundKeptSet]:
    """The same kept sets, those without a name called by what they do not all have in common."""
    names = dict.fromkeys(name for found in kept_sets for name in found.parts)
    values = {name: {found.parts.get(name) for found in kept_sets} for name in names}
    return [
        found
        if found.label
        else replace(
            found, label=" ".join(_words(name, each) for name, each in found.parts.items() if len(values[name]) > 1)
        )
        for found in kept_sets
    ]


def _words(name: str, value: str) -> str:
    if name == "k":
        return f"k = {value}"
    return Target.parse(value).label if name == "epsilon" else value


def dependencies(kept_sets: Sequence[FoundKeptSet]) -> Iterator[dg.AssetDep]:
    """Each asset once, with all of its partitions that are compared."""
    for key in dict.fromkeys(found.key for found in kept_sets):
        of_asset = {str(found.partition) for found in kept_sets if found.key == key}
        partitions = sorted(of_asset - {""})
        yield dg.AssetDep(
            key, partition_mapping=dg.SpecificPartitionsPartitionMapping(partitions) if partitions else None
        )
