"""The stages of one pipeline, of each selection that has its own: in which order, and which of them a refresh makes."""

from dataclasses import dataclass
from functools import cached_property

from semdedup_assets.compute import Compute
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import Stage, StageGraph
from semdedup_assets.kept_sets import Selection
from semdedup_assets.settings import Pipeline


@dataclass(frozen=True)
class StageAsset:
    """A stage as an asset: of one selection, where each has its own.

    Attributes:
        stage: the stage.
        name: of the selection in the settings; None where all share the asset, or where there is only one.
        selection: whose results these are.
    """

    stage: Stage
    name: str | None
    selection: Selection

    def __str__(self) -> str:
        return self.stage.name if self.name is None else f"{self.name}/{self.stage.name}"


@dataclass(frozen=True)
class PipelineStages:
    """What one pipeline consists of.

    Attributes:
        pipeline: its settings.
        graph: its stages.
    """

    pipeline: Pipeline
    graph: StageGraph

    @cached_property
    def assets(self) -> tuple[StageAsset, ...]:
        """All that it can make, each after what it is made from."""
        selections = self.pipeline.named_selections
        first = next(iter(selections.values()))
        found = []
        for stage in self.graph.stages:
            if stage.selected:
                found += [StageAsset(stage, name, selection) for name, selection in selections.items()]
            else:
                found.append(StageAsset(stage, None, first))
        return tuple(asset for asset in found if asset.stage.applies(self.pipeline, asset.selection))

    @property
    def automatic(self) -> tuple[StageAsset, ...]:
        """The assets that refreshes and automation make."""
        return tuple(asset for asset in self.assets if self.is_automatic(asset))

    def is_automatic(self, asset: StageAsset) -> bool:
        """Whether refreshes and automation make an asset."""
        return not asset.stage.on_demand or asset.stage.name in self._followed

    @cached_property
    def _followed(self) -> frozenset[str]:
        """The stages that `analyses.follow` names, and what they, and those that are made anyway, are made from."""
        automatic = {asset.stage.name for asset in self.assets if not asset.stage.on_demand}
        return self.with_inputs({*self.pipeline.analyses.follow, *automatic})

    def with_inputs(self, stages: set[str]) -> frozenset[str]:
        """Names of some stages, and of those that they are made from, however indirectly."""
        return frozenset(stages) | {
            before.name
            for asset in self.assets
            if asset.stage.name in stages
            for before in self.graph.before(asset.stage, self.pipeline, asset.selection)
        }

    def context(self, asset: StageAsset, compute: Compute | None = None) -> StageContext:
        """What the asset's stage is given."""
        return StageContext(self.pipeline, self.graph, asset.selection, compute or self.pipeline.compute)
