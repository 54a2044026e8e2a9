"""SemDeDup (arXiv 2303.09540) as partitioned Dagster assets; the algorithm alone is `semdedup`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semdedup_assets.algorithm.deduplication import Deduplication, semdedup
    from semdedup_assets.analyses.manifest_comparison import compare_manifests
    from semdedup_assets.component import ManifestComparison, SemDedupPipeline, TrainingComparison
    from semdedup_assets.defs_folder import load_from_defs_folder
    from semdedup_assets.storage.manifests import read_manifest

__all__ = [
    "Deduplication",
    "ManifestComparison",
    "SemDedupPipeline",
    "TrainingComparison",
    "compare_manifests",
    "load_from_defs_folder",
    "read_manifest",
    "semdedup",
]

_HOMES = {
    "Deduplication": "semdedup_assets.algorithm.deduplication",
    "ManifestComparison": "semdedup_assets.component",
    "SemDedupPipeline": "semdedup_assets.component",
    "TrainingComparison": "semdedup_assets.component",
    "compare_manifests": "semdedup_assets.analyses.manifest_comparison",
    "load_from_defs_folder": "semdedup_assets.defs_folder",
    "read_manifest": "semdedup_assets.storage.manifests",
    "semdedup": "semdedup_assets.algorithm.deduplication",
}


def __getattr__(name: str) -> Any:
    # A library user never pays for Dagster, nor a code location for PyTorch before it has work to do.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    # Dagster looks at all that this names to find the components: the algorithm would bring PyTorch with it, a second
    # and a half at each start of a code location.
    return [*globals(), "ManifestComparison", "SemDedupPipeline", "TrainingComparison"]
