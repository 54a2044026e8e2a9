"""What all assets of a pipeline share: keys, partitions, dependencies, run configuration."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import dagster as dg
from pydantic import Field, create_model

from semdedup_assets.compute import Compute
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Dimension, Partition, bucket_name
from semdedup_assets.execution.pipeline_stages import PipelineStages, StageAsset
from semdedup_assets.execution.stage import ANALYSE, EVALUATE, Stage
from semdedup_assets.kept_sets import Clustering, Selection, Target
from semdedup_assets.storage.results import fingerprint

STEP_TAG = "semdedup/step"
_GROUPS = {ANALYSE: "analyses", EVALUATE: "training"}

_ALL = dg.AllPartitionMapping()
_OF_THE_SOURCE = ("shards", "shard_index")
# Settings of `compute` that stand in the YAML alone: which machines there are is no choice of a single run.
_OF_THE_CLUSTER = ("engine", "address", "workers", "shared_paths", "patience_seconds")
_OF_A_RUN = {name: setting for name, setting in Compute.model_fields.items() if name not in _OF_THE_CLUSTER}


class AssetBuilder(PipelineStages):
    """One pipeline as Dagster sees it."""

    @property
    def prefix(self) -> list[str]:
        """First parts of all keys but those of the source."""
        return [self.pipeline.dataset, self.pipeline.model_name]

    def key(self, asset: StageAsset) -> dg.AssetKey:
        """`<dataset>/<model>/<stage>`, or `<dataset>/<model>/<selection>/<stage>`."""
        return dg.AssetKey([*self.prefix, *([asset.name] if asset.name else []), asset.stage.name])

    def source_key(self, name: str) -> dg.AssetKey:
        """`<dataset>/shards`, `<dataset>/shard_index`."""
        return dg.AssetKey([self.pipeline.dataset, name])

    def input_key(self, asset: StageAsset, name: str) -> dg.AssetKey:
        """The key of one of an asset's inputs."""
        if name in _OF_THE_SOURCE:
            return self.source_key(name)
        upstream = self.graph[name]
        return self.key(StageAsset(upstream, asset.name if upstream.selected else None, asset.selection))

    @property
    def group(self) -> str:
        """The group of the pipeline's main way in the asset graph, and the first part of its jobs' names."""
        return dagster_name("__".join(self.prefix))

    def group_of(self, asset: StageAsset) -> str:
        """The group of an asset: analyses and training have their own, so that the main way stays in sight.

        What nobody asks for is no part of it either: the group's buttons, "Materialize unsynced" too, are for the way.
        """
        own = _GROUPS.get(asset.stage.step, _GROUPS[ANALYSE] if asset.stage.on_demand else None)
        return f"{self.group}__{own}" if own else self.group

    @property
    def refresh_job(self) -> str:
        """Name of the job that makes all that is missing or stale."""
        return f"{self.group}__refresh"

    @cached_property
    def automatic_keys(self) -> frozenset[dg.AssetKey]:
        """The keys of what refreshes and automation make."""
        return frozenset(self.key(asset) for asset in self.automatic)

    def code_version(self, asset: StageAsset, context: StageContext | None = None) -> str:
        """Hash of all that determines the asset's content, its selection's path included.

        Results of several selections, which lie beside each other, are one after the other the content of the asset
        where the settings' only selection changes.

        Args:
            asset: which.
            context: of its stage, where there is one: what that hashed, a checkpoint perhaps, is not hashed again.
        """
        context, stage = context or self.context(asset), asset.stage
        version = context.code_version(stage.name)
        if not stage.selected:
            return version
        # Whichever clustering and target there are: another epsilon in the settings is no other content.
        any_partition = Partition(bucket=0, target=Target(epsilon=0.0), clustering=Clustering("auto"), shard="").only(
            stage.dimensions
        )
        location = context.location(stage.name, any_partition).removeprefix(context.layout.folder)
        return fingerprint([version, location])[:16]

    @cached_property
    def shard(self) -> dg.DynamicPartitionsDefinition:
        """A partition for each shard of the dataset."""
        return dg.DynamicPartitionsDefinition(name=f"{self.pipeline.dataset}/shard")

    @cached_property
    def _dimensions(self) -> dict[str, dg.PartitionsDefinition[str]]:
        clusterings = [str(clustering) for clustering in self.pipeline.clusterings]
        buckets = [bucket_name(index) for index in range(self.pipeline.clustering.buckets)]
        return {
            "shard": self.shard,
            "k": dg.StaticPartitionsDefinition(clusterings),
            "bucket": dg.StaticPartitionsDefinition(buckets),
            "epsilon": dg.StaticPartitionsDefinition([str(target) for target in self.pipeline.targets]),
        }

    def partitions_def(self, stage: Stage) -> dg.PartitionsDefinition[str] | None:
        """The partitions of a stage."""
        if len(stage.dimensions) == 2:
            return dg.MultiPartitionsDefinition({name: self._dimensions[name] for name in stage.dimensions})
        return self._dimensions[stage.dimensions[0]] if stage.dimensions else None

    def inputs(self, asset: StageAsset) -> tuple[str, ...]:
        """Names of what an asset depends on: what it is made from and, where that is every shard, the list of shards.

        A shard that vanishes leaves no partition whose version could change: the list of shards has one.
        """
        names = asset.stage.all_inputs(self.pipeline, asset.selection)
        every_shard = (
            any("shard" in self._dimensions_of(name) for name in names) and "shard" not in asset.stage.dimensions
        )
        return (*names, "shard_index") if every_shard and not asset.stage.frozen else names

    def _dimensions_of(self, name: str) -> tuple[Dimension, ...]:
        if name in _OF_THE_SOURCE:
            return ("shard",) if name == "shards" else ()
        return self.graph[name].dimensions

    def depends_on_same(self, asset: StageAsset, name: str) -> tuple[Dimension, ...]:
        """The dimensions by which each partition of an asset is made from one partition of an input; () if from many."""
        upstream = self._dimensions_of(name)
        return upstream if set(upstream) <= set(asset.stage.dimensions) else ()

    def is_one_to_one(self, asset: StageAsset, name: str) -> bool:
        """Whether each partition of an asset is made from one result of an input, whose version its record holds."""
        return name != "shard_index" and self.graph.is_one_to_one(asset.stage, name)

    def selected_through(self, asset: StageAsset) -> tuple[str, ...]:
        """Names of partitioned stages that an asset with partitions is made from through unpartitioned ones alone.

        A backfill, *Materialize all* among them, finds what follows the chosen partitions by mappings, and maps through no
        asset without partitions: it would leave out the centroids, and launch what needs them.
        """
        names = asset.stage.all_inputs(self.pipeline, asset.selection)
        if not asset.stage.dimensions or any(self._dimensions_of(name) for name in names):
            return ()
        return tuple(dict.fromkeys(self._partitioned_before(asset.stage, asset.selection)))

    def _partitioned_before(self, stage: Stage, selection: Selection) -> Iterator[str]:
        for name in stage.all_inputs(self.pipeline, selection):
            if name in self.graph and self.graph[name].dimensions:
                yield name
            elif name in self.graph:
                yield from self._partitioned_before(self.graph[name], selection)

    def deps(self, asset: StageAsset) -> list[dg.AssetDep]:
        """What an asset is made from: dimensions that both have are the same, of the others all is needed."""
        return [
            dg.AssetDep(self.input_key(asset, name), partition_mapping=self._mapping(asset.stage, name))
            for name in (*self.inputs(asset), *self.selected_through(asset))
        ]

    def _mapping(self, stage: Stage, name: str) -> dg.PartitionMapping | None:
        upstream = self._dimensions_of(name)
        shared = set(upstream) & set(stage.dimensions)
        if not upstream or upstream == stage.dimensions:
            return None
        if not shared:
            return _ALL
        if len(stage.dimensions) == 1 or len(upstream) == 1:
            return dg.MultiToSingleDimensionPartitionMapping(next(iter(shared)))
        (same,) = shared
        (theirs,), (ours,) = set(upstream) - shared, set(stage.dimensions) - shared
        return dg.MultiPartitionMapping(
            {
                same: dg.DimensionPartitionMapping(same, dg.IdentityPartitionMapping()),
                theirs: dg.DimensionPartitionMapping(ours, _ALL),
            }
        )

    def run_config(self, asset: StageAsset) -> type[dg.Config]:
        """What the launchpad offers: where and how fast, with the pipeline's own choices as defaults."""
        chosen = self.pipeline.compute
        fields: dict[str, Any] = {
            name: (setting.annotation, Field(getattr(chosen, name), description=setting.description))
            for name, setting in _OF_A_RUN.items()
        }
        if asset.stage.frozen:
            text = "Make it again of today's inputs: all that follows is then made again too."
            fields["refit"] = (bool, Field(default=False, description=text))
        else:
            fields["again"] = (bool, Field(default=False, description="Make partitions again that are up to date."))
        config: type[dg.Config] = create_model("RunConfig", __base__=dg.Config, **fields)
        return config

    def compute_of(self, config: dg.Config) -> Compute:
        """The pipeline's own choices, with those of a run in place of some."""
        chosen = {name: getattr(config, name) for name in _OF_A_RUN}
        return Compute.model_validate({**self.pipeline.compute.model_dump(), **chosen})

    def metadata(self, asset: StageAsset) -> dict[str, Any]:
        """Metadata of the asset itself: where it lies, how it is stored, its columns."""
        context, stage = self.context(asset), asset.stage
        storage = next((kind for kind in ("arrow", "parquet", "numpy", "html") if kind in stage.kinds), "json")
        metadata: dict[str, Any] = {"dagster/uri": context.layout.folder, "dagster/storage_kind": storage}
        if columns := stage.columns(self.pipeline):
            metadata["dagster/column_schema"] = dg.TableSchema(
                columns=[dg.TableColumn(each.name, each.type, description=each.meaning) for each in columns]
            )
        return metadata


def dagster_name(text: str) -> str:
    """A name as Dagster allows it for groups, jobs and sensors."""
    return text.replace("-", "_").replace(".", "_")
