"""The asset that compares manifests of any pipelines of a project."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import dagster as dg

from semdedup_assets.analyses.comparison_tables import changed_since, shown_comparison, write_comparison
from semdedup_assets.assets.builder import STEP_TAG, AssetBuilder, StageAsset, dagster_name
from semdedup_assets.assets.metadata import as_metadata, markdown_text, shown_metadata
from semdedup_assets.comparison_settings import ComparedManifest, Comparison
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.progress import reporting_to
from semdedup_assets.execution.stage import ANALYSE
from semdedup_assets.kept_sets import Target
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets.storage.files import join
from semdedup_assets.storage.layout import comparison as comparison_location

_TEXT = (
    "Which items some manifests keep in common: I(A, B) = |A and B| / |A| of each two (SemDeDup, sections 6.2, 6.3, A.1), "
    "and each item that only one of two keeps, with the reason. Materialise it when you want it; it is stale once one "
    "of the manifests is made again."
)
_CHECK = "The manifests that were compared are those that are there now."


class UnknownManifestError(ValueError):
    """A comparison names a manifest that no pipeline has.

    Attributes:
        message: what there is instead.
        setting: of the manifest, which is wrong.
    """

    def __init__(self, message: str, *, setting: str) -> None:
        super().__init__(message)
        self.message, self.setting = message, setting


@dataclass(frozen=True)
class FoundManifest:
    """A manifest of a pipeline.

    Attributes:
        store: of the pipeline.
        label: in tables and pictures; empty where the settings give it no name.
        parts: what it is of, by the names of the settings.
        key: of the asset that makes it.
        partition: of that asset; empty where it has none.
        path: folder of all its versions, or of a fixed one.
    """

    store: str
    label: str
    parts: dict[str, str]
    key: dg.AssetKey
    partition: str
    path: str


def find_manifest(wanted: ComparedManifest, pipelines: Sequence[Pipeline]) -> FoundManifest:
    """The manifest that a comparison names.

    Args:
        wanted: what the settings say of it.
        pipelines: of the project.

    Raises:
        UnknownManifestError: there is none, or more than one; names what there is.
    """
    of_dataset = [each for each in pipelines if each.dataset == wanted.dataset]
    _chosen("dataset", wanted.dataset, sorted({each.dataset for each in pipelines}))
    model = _chosen("model", wanted.model, [each.model_name for each in of_dataset])
    builder = AssetBuilder(next(each for each in of_dataset if each.model_name == model), GRAPH)
    asset = _asset(wanted, builder)
    pipeline, dimensions = builder.pipeline, asset.stage.dimensions
    parts: dict[str, str] = {}
    for name, given, there in (
        ("epsilon", wanted.epsilon, [str(each) for each in pipeline.targets]),
        ("k", wanted.k, [str(each) for each in pipeline.clusterings]),
    ):
        if name in dimensions:
            parts[name] = _chosen(name, given, there)
    # Dagster joins the dimensions of a partition in the order of their names: epsilon, k.
    partition = "|".join(parts.values())
    folder = builder.context(asset).location(asset.stage.name, Partition.parse(partition, dimensions))
    named: dict[str, str | None] = {"dataset": wanted.dataset, "model": model, "selection": asset.name}
    named |= {"baseline": wanted.baseline, **parts, "version": wanted.version}
    return FoundManifest(
        pipeline.store,
        wanted.name or "",
        {name: value for name, value in named.items() if value is not None},
        builder.key(asset),
        partition,
        join(folder, wanted.version) if wanted.version else folder,
    )


def labelled(manifests: Sequence[FoundManifest]) -> list[FoundManifest]:
    """The same manifests, those without a name called by what they do not all have in common."""
    names = dict.fromkeys(name for found in manifests for name in found.parts)
    values = {name: {found.parts.get(name) for found in manifests} for name in names}
    return [
        found
        if found.label
        else replace(
            found, label=" ".join(_words(name, each) for name, each in found.parts.items() if len(values[name]) > 1)
        )
        for found in manifests
    ]


def _words(name: str, value: str) -> str:
    if name == "k":
        return f"k = {value}"
    return Target.parse(value).label if name == "epsilon" else value


def _asset(wanted: ComparedManifest, builder: AssetBuilder) -> StageAsset:
    """The asset of the method's manifests or a baseline's, of the wanted selection."""
    suffix = "_manifests"
    if wanted.baseline is None:
        assets = [each for each in builder.assets if each.stage.name == "manifests"]
    else:
        baselines = sorted({each.stage.name for each in builder.assets if each.stage.name.endswith(suffix)})
        _chosen("baseline", wanted.baseline, [name.removesuffix(suffix) for name in baselines])
        assets = [each for each in builder.assets if each.stage.name == f"{wanted.baseline}{suffix}"]
    names = [each.name for each in assets if each.name is not None]
    if not names:
        if wanted.selection is not None and assets[0].stage.selected:
            message = (
                f"{wanted.selection!r} is none: the pipeline has one `selection`, without a name; remove this line"
            )
            raise UnknownManifestError(message, setting="selection")
        return assets[0]
    name = _chosen("selection", wanted.selection, names)
    return next(each for each in assets if each.name == name)


def _chosen(setting: str, given: str | None, there: Sequence[str]) -> str:
    """The one that is meant of those that there are."""
    named = ", ".join(there) or "none"
    if given is None and len(there) == 1:
        return there[0]
    if given is None:
        message = f"missing; there are several: {named}"
        raise UnknownManifestError(message, setting=setting)
    if given not in there:
        message = f"{given!r} is none of those that there are: {named}"
        raise UnknownManifestError(message, setting=setting)
    return given


def comparison_definitions(comparison: Comparison, manifests: Sequence[FoundManifest]) -> dg.Definitions:
    """The asset of a comparison, with its check.

    Args:
        comparison: its settings.
        manifests: what it names, as they were found.
    """
    key = dg.AssetKey([comparison.name, "manifest_comparison"])
    location = comparison_location(comparison.store or manifests[0].store, comparison.name)
    paths = {found.label: found.path for found in manifests}

    @dg.asset(
        key=key,
        group_name=dagster_name(comparison.name),
        owners=list(comparison.owners),
        code_version="1",
        description=_TEXT,
        kinds={"parquet"},
        tags={STEP_TAG: ANALYSE},
        metadata={"dagster/uri": location, "dagster/storage_kind": "parquet"},
        deps=list(_deps(manifests)),
    )
    def manifest_comparison(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        with reporting_to(context.log.info):
            record = write_comparison(location, paths, budget=comparison.memory_mib << 20)
        shown, details = shown_metadata(shown_comparison(record)), dict(record.details)
        del details["intersections"]
        return dg.MaterializeResult(
            metadata={**shown, **as_metadata(details), "dagster/uri": location},
            data_version=dg.DataVersion(record.version),
        )

    return dg.Definitions(assets=[manifest_comparison], asset_checks=[_check(key, location, paths)])


def _deps(manifests: Sequence[FoundManifest]) -> Iterator[dg.AssetDep]:
    """Each asset once, with all of its partitions that are compared."""
    for key in dict.fromkeys(found.key for found in manifests):
        partitions = sorted({found.partition for found in manifests if found.key == key and found.partition})
        yield dg.AssetDep(
            key, partition_mapping=dg.SpecificPartitionsPartitionMapping(partitions) if partitions else None
        )


def _check(key: dg.AssetKey, location: str, paths: Mapping[str, str]) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=key, description=_CHECK)
    def manifests_are_as_compared() -> dg.AssetCheckResult:
        changed = changed_since(location, paths)
        named = [f"{name} ({then} was compared, {now} is there)" for name, (then, now) in (changed or {}).items()]
        problem = "nothing was compared yet" if changed is None else f"made again since: {', '.join(named)}"
        return dg.AssetCheckResult(
            passed=changed == {},
            severity=dg.AssetCheckSeverity.WARN,
            description=None if changed == {} else markdown_text(f"{problem}; materialise {key.to_user_string()}"),
            metadata={"manifests": len(paths), "changed": len(named)},
        )

    return manifests_are_as_compared
