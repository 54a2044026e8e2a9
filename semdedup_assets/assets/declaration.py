"""What all assets of a pipeline share: keys, partitions, mappings, run configuration."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict

import dagster as dg
from pydantic import Field, create_model

from semdedup_assets.assets.conditions import refresh_condition
from semdedup_assets.assets.description import STEP_TAG, description, static_metadata
from semdedup_assets.compute import Compute
from semdedup_assets.settings import Pipeline

if TYPE_CHECKING:
    from semdedup_assets.stages.work import Work

_ALL = dg.AllPartitionMapping()


class Observable(TypedDict):
    """What every observed source has, as `dagster.observable_source_asset` takes it."""

    key: dg.AssetKey
    group_name: str
    description: str
    tags: dict[str, str]
    metadata: dict[str, Any]


class Described(Observable):
    """What every asset has, as `dagster.asset` takes it."""

    owners: list[str]
    code_version: str
    kinds: set[str]
    automation_condition: dg.AutomationCondition[Any] | None


@dataclass(frozen=True)
class Declaration:
    """One pipeline as Dagster sees it."""

    pipeline: Pipeline

    def key(self, asset: str) -> dg.AssetKey:
        """`<dataset>/shards` and `<dataset>/catalogue`, or `<dataset>/<model>/<asset>`."""
        return dg.AssetKey([*(self.prefix[:1] if asset in ("shards", "catalogue") else self.prefix), asset])

    @property
    def prefix(self) -> list[str]:
        """First parts of all keys but those of the source."""
        return [self.pipeline.dataset, self.pipeline.model_name]

    @cached_property
    def observed(self) -> frozenset[dg.AssetKey]:
        """The assets that are observed, not materialised."""
        return frozenset({self.key("shards"), self.key("catalogue")})

    @property
    def group(self) -> str:
        """The pipeline's group in the asset graph."""
        return "__".join(self.prefix).replace("-", "_").replace(".", "_")

    def described(self, asset: str) -> Described:
        """What is declared of an asset beside its partitions and what it is made from."""
        shown = description(asset)
        return {
            "key": self.key(asset),
            "group_name": self.group,
            "owners": list(self.pipeline.owners),
            "code_version": self.code_version(asset),
            "description": shown.text,
            "kinds": set(shown.kinds),
            "tags": {STEP_TAG: shown.step},
            "metadata": static_metadata(self.pipeline, asset),
            "automation_condition": None
            if asset == "estimate"
            else refresh_condition(self.pipeline, asset, refresh_job=self.refresh_job),
        }

    def observable(self, asset: str, metadata: dict[str, Any]) -> Observable:
        """What is declared of an observed source beside its partitions."""
        shown = description(asset)
        return {
            "key": self.key(asset),
            "group_name": self.group,
            "description": shown.text,
            "tags": {STEP_TAG: shown.step, **{f"dagster/kind/{kind}": "" for kind in sorted(shown.kinds)}},
            "metadata": metadata,
        }

    @property
    def refresh_job(self) -> str:
        """Name of the job that makes all that is missing or stale."""
        return f"{self.group}__refresh"

    @cached_property
    def shard(self) -> dg.DynamicPartitionsDefinition:
        """A partition for each shard of the dataset."""
        return dg.DynamicPartitionsDefinition(name=f"{self.pipeline.dataset}/shard")

    @cached_property
    def k(self) -> dg.StaticPartitionsDefinition:
        """A partition for each number of clusters."""
        return dg.StaticPartitionsDefinition(list(self.pipeline.clustering.k))

    def with_k(self, dimension: str) -> dg.MultiPartitionsDefinition:
        """Partitions of k × shard, k × bucket or k × epsilon."""
        others: dict[str, dg.PartitionsDefinition[str]] = {
            "shard": self.shard,
            "bucket": dg.StaticPartitionsDefinition([f"b{i:04d}" for i in range(self.pipeline.clustering.buckets)]),
            "epsilon": dg.StaticPartitionsDefinition(list(self.pipeline.epsilons)),
        }
        return dg.MultiPartitionsDefinition({"k": self.k, dimension: others[dimension]})

    def same(self, asset: str, dimension: str) -> dg.AssetDep:
        """A dependency on the partition of the same shard, or of the same k."""
        return dg.AssetDep(self.key(asset), partition_mapping=dg.MultiToSingleDimensionPartitionMapping(dimension))

    def every(self, asset: str) -> dg.AssetDep:
        """A dependency on all partitions."""
        return dg.AssetDep(self.key(asset), partition_mapping=_ALL)

    def every_of_same_k(self, asset: str, upstream: str, downstream: str) -> dg.AssetDep:
        """A dependency on all partitions that have the same k."""
        return dg.AssetDep(
            self.key(asset),
            partition_mapping=dg.MultiPartitionMapping(
                {
                    "k": dg.DimensionPartitionMapping("k", dg.IdentityPartitionMapping()),
                    upstream: dg.DimensionPartitionMapping(downstream, _ALL),
                }
            ),
        )

    @cached_property
    def run_config(self) -> type[dg.Config]:
        """What the launchpad offers: where and how fast, with the pipeline's own choices as defaults."""
        return self.run_config_with()

    def run_config_with(self, **more: Any) -> type[dg.Config]:
        """The same with more fields: name = (type, pydantic's Field)."""
        chosen = self.pipeline.compute
        fields: dict[str, Any] = {
            name: (field.annotation, Field(getattr(chosen, name), description=field.description))
            for name, field in Compute.model_fields.items()
        }
        config: type[dg.Config] = create_model("RunConfig", __base__=dg.Config, **fields, **more)
        return config

    def work(self, context: dg.AssetExecutionContext, config: dg.Config) -> "Work":
        """The pipeline at work in one run."""
        from semdedup_assets.stages.work import Work

        compute = Compute.model_validate({name: getattr(config, name) for name in Compute.model_fields})
        return Work(self.pipeline, compute, context.log.info)

    def code_version(self, asset: str) -> str:
        """Hash of the settings that determine an asset's content."""
        from semdedup_assets.stages.code_version import code_version

        return code_version(self.pipeline, asset)
