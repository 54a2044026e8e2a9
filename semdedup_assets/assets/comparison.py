"""The assets that compare kept sets of any pipelines of a project: their manifests, or the models trained on them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import dagster as dg

from semdedup_assets.analyses.comparison_tables import changed_since, shown_comparison, write_comparison
from semdedup_assets.assets.builder import STEP_TAG, AssetBuilder, dagster_name
from semdedup_assets.assets.kept_set_lookup import (
    FoundKeptSet,
    dependencies,
    find_kept_set,
)
from semdedup_assets.assets.lost_runs import alive
from semdedup_assets.assets.metadata import as_metadata, markdown_text, shown_metadata
from semdedup_assets.comparison_settings import ComparedManifest, Comparison, ModelComparison, NamedKeptSet
from semdedup_assets.execution.kept_set_choice import UnknownKeptSetError, chosen
from semdedup_assets.execution.pipeline_stages import StageAsset
from semdedup_assets.execution.progress import reporting_to
from semdedup_assets.execution.stage import ANALYSE, Shown
from semdedup_assets.settings import Pipeline
from semdedup_assets.storage.files import join
from semdedup_assets.storage.layout import comparison as comparison_location
from semdedup_assets.storage.layout import training_comparison as training_comparison_location
from semdedup_assets.storage.results import ResultRecord, changed_inputs, read_record
from semdedup_assets.training.training_comparison import (
    ComparedKeptSet,
    evaluated_version,
    shown_training_comparison,
    write_training_comparison,
)

_MANIFEST_ORDER = ("dataset", "model", "selection", "baseline", "epsilon", "k", "version")
_EVALUATIONS = "evaluations"


@dataclass(frozen=True)
class _ComparisonAsset:
    """What makes up the asset of a comparison.

    Attributes:
        name: last part of its key.
        description: of the asset.
        check: name of the check whether what was compared is what is there now.
        check_description: of that check.
        compared: what is compared, in words.
        location: of the result, without a suffix.
        write: compares, and commits the result.
        shown: what a person sees of the result.
        hidden: details of the record that are shown by that already.
        changed: what was made again since it was compared: by name, then and now; None where there is no comparison.
    """

    name: str
    description: str
    check: str
    check_description: str
    compared: str
    location: str
    write: Callable[[], ResultRecord]
    shown: Callable[[ResultRecord], Mapping[str, Shown]]
    hidden: frozenset[str]
    changed: Callable[[], dict[str, tuple[str, str]] | None]


def find_manifest(wanted: ComparedManifest, pipelines: Sequence[Pipeline]) -> FoundKeptSet:
    """The manifest that a comparison names.

    Args:
        wanted: what the settings say of it.
        pipelines: of the project.

    Raises:
        UnknownKeptSetError: there is none, or more than one; names what there is.
    """
    found = find_kept_set(wanted, pipelines, lambda builder: _manifests(wanted, builder))
    named = {**found.parts, "baseline": wanted.baseline, "version": wanted.version}
    parts = {name: value for name in _MANIFEST_ORDER if (value := named.get(name)) is not None}
    return replace(found, parts=parts)


def _manifests(wanted: ComparedManifest, builder: AssetBuilder) -> list[StageAsset]:
    """The assets of the method's manifests or a baseline's."""
    suffix = "_manifests"
    if wanted.baseline is None:
        return [each for each in builder.assets if each.stage.name == "manifests"]
    baselines = sorted({each.stage.name for each in builder.assets if each.stage.name.endswith(suffix)})
    chosen("baseline", wanted.baseline, [name.removesuffix(suffix) for name in baselines])
    return [each for each in builder.assets if each.stage.name == f"{wanted.baseline}{suffix}"]


def find_evaluations(wanted: NamedKeptSet, pipelines: Sequence[Pipeline]) -> FoundKeptSet:
    """The evaluations of the kept set that a comparison of trained models names.

    Args:
        wanted: what the settings say of it.
        pipelines: of the project.

    Raises:
        UnknownKeptSetError: there is none, or more than one, or its pipeline trains nothing; names what there is.
    """

    def assets(builder: AssetBuilder) -> list[StageAsset]:
        found = [each for each in builder.assets if each.stage.name == _EVALUATIONS]
        if not found:
            message = (
                f"the pipeline {'/'.join(builder.prefix)} has no `training`, so that no model is trained and evaluated; "
                "set `training` there, or name another pipeline"
            )
            raise UnknownKeptSetError(message, setting="model" if wanted.model else "dataset")
        return found

    return find_kept_set(wanted, pipelines, assets)


def comparison_definitions(comparison: Comparison, manifests: Sequence[FoundKeptSet]) -> dg.Definitions:
    """The asset of a comparison of manifests, with its check.

    Args:
        comparison: its settings.
        manifests: what it names, as they were found.
    """
    location = comparison_location(comparison.store or manifests[0].store, comparison.name)
    paths = {found.label: _manifest_path(found) for found in manifests}
    asset = _ComparisonAsset(
        name="manifest_comparison",
        description="Which items some manifests keep in common: I(A, B) = |A and B| / |A| of each two (SemDeDup, sections "
        "6.2, 6.3, A.1), and each item that only one of two keeps, with the reason. Materialise it when you want it; it is "
        "stale once one of the manifests is made again.",
        check="manifests_are_as_compared",
        check_description="The manifests that were compared are those that are there now.",
        compared="manifests",
        location=location,
        write=lambda: write_comparison(location, paths, budget=comparison.memory_mib << 20),
        shown=shown_comparison,
        hidden=frozenset({"intersections"}),
        changed=lambda: changed_since(location, paths),
    )
    return _definitions(comparison, asset, manifests)


def _manifest_path(found: FoundKeptSet) -> str:
    """Folder of all versions of a manifest, or of a fixed one."""
    return join(found.location, found.parts["version"]) if "version" in found.parts else found.location


def training_comparison_definitions(comparison: ModelComparison, kept_sets: Sequence[FoundKeptSet]) -> dg.Definitions:
    """The asset of a comparison of trained models, with its check.

    Args:
        comparison: its settings.
        kept_sets: what it names, as they were found.
    """
    location = training_comparison_location(comparison.store or kept_sets[0].store, comparison.name)
    asset = _ComparisonAsset(
        name="training_comparison",
        description="What models that were trained on some kept sets are worth beside each other: keep strategies, k, "
        "epsilons and embedding models (SemDeDup, Tables 1 to 4 and A6). A difference counts as clear only beyond two pooled "
        "standard deviations of the seeds; what was measured on other data, or trained otherwise, is not compared. "
        "Materialise it when you want it; it is stale once one of the evaluations is made again.",
        check="evaluations_are_as_compared",
        check_description="The evaluations that were compared are those that are there now.",
        compared="kept_sets",
        location=location,
        write=lambda: write_training_comparison(location, {each.label: _evaluated(each) for each in kept_sets}),
        shown=shown_training_comparison,
        hidden=frozenset({"kept_sets", "verdicts", "not_compared"}),
        changed=lambda: _changed_evaluations(location, kept_sets),
    )
    return _definitions(comparison, asset, kept_sets)


def _evaluated(found: FoundKeptSet) -> ComparedKeptSet:
    """A kept set with its evaluations, once everything that they depend on is seen to fit together."""
    records = found.context().index.require_consistent(_EVALUATIONS, found.partition)
    return ComparedKeptSet(found.parts, records[found.partition])


def _changed_evaluations(location: str, kept_sets: Sequence[FoundKeptSet]) -> dict[str, tuple[str, str]] | None:
    record = read_record(location)
    if record is None:
        return None
    found = {each.label: each.context().index.record(_EVALUATIONS, each.partition) for each in kept_sets}
    now = {name: "missing" if each is None else evaluated_version(each) for name, each in found.items()}
    return changed_inputs(record, now)


def _definitions(
    comparison: Comparison | ModelComparison, asset: _ComparisonAsset, kept_sets: Sequence[FoundKeptSet]
) -> dg.Definitions:
    """An asset that depends on what it compares, with its check."""
    key = dg.AssetKey([comparison.name, asset.name])

    @dg.asset(
        key=key,
        group_name=dagster_name(comparison.name),
        owners=list(comparison.owners),
        code_version="1",
        description=asset.description,
        kinds={"parquet"},
        tags={STEP_TAG: ANALYSE},
        metadata={"dagster/uri": asset.location, "dagster/storage_kind": "parquet"},
        deps=list(dependencies(kept_sets)),
        pool="cpu",
    )
    def compare(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        with reporting_to(context.log.info), alive(context.instance, context.run.run_id):
            record = asset.write()
        shown = shown_metadata(asset.shown(record))
        details = {name: value for name, value in record.details.items() if name not in asset.hidden}
        return dg.MaterializeResult(
            metadata={**shown, **as_metadata(details), "dagster/uri": asset.location},
            data_version=dg.DataVersion(record.version),
        )

    return dg.Definitions(assets=[compare], asset_checks=[_check(key, asset, compared=len(kept_sets))])


def _check(key: dg.AssetKey, asset: _ComparisonAsset, *, compared: int) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=key, name=asset.check, description=asset.check_description, op_tags={STEP_TAG: ANALYSE})
    def are_as_compared(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        with alive(context.instance, context.run.run_id):
            changed = asset.changed()
        named = [f"{name} ({then} was compared, {now} is there)" for name, (then, now) in (changed or {}).items()]
        problem = "nothing was compared yet" if changed is None else f"made again since: {', '.join(named)}"
        return dg.AssetCheckResult(
            passed=changed == {},
            severity=dg.AssetCheckSeverity.WARN,
            description=None if changed == {} else markdown_text(f"{problem}; materialise {key.to_user_string()}"),
            metadata={asset.compared: compared, "changed": len(named)},
        )

    return are_as_compared
