"""SemDeDup (arXiv 2303.09540): `semdedup` on vectors in memory, and a pipeline as partitioned Dagster assets."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semdedup_assets.algorithm.deduplication import Deduplication, Removed, semdedup
    from semdedup_assets.analyses.manifest_comparison import compare_manifests
    from semdedup_assets.component import ManifestComparison, SemDedupPipeline, TrainingComparison
    from semdedup_assets.defs_folder import load_from_defs_folder
    from semdedup_assets.storage.manifests import read_manifest

__all__ = [
    "Deduplication",
    "ManifestComparison",
    "Removed",
    "SemDedupPipeline",
    "TrainingComparison",
    "compare_manifests",
    "load_from_defs_folder",
    "read_manifest",
    "semdedup",
]

_COMPONENTS, _DEFS = "semdedup_assets.component", "semdedup_assets.defs_folder"
_HOMES = {
    "Deduplication": "semdedup_assets.algorithm.deduplication",
    "ManifestComparison": _COMPONENTS,
    "Removed": "semdedup_assets.algorithm.deduplication",
    "SemDedupPipeline": _COMPONENTS,
    "TrainingComparison": _COMPONENTS,
    "compare_manifests": "semdedup_assets.analyses.manifest_comparison",
    "load_from_defs_folder": _DEFS,
    "read_manifest": "semdedup_assets.storage.manifests",
    "semdedup": "semdedup_assets.algorithm.deduplication",
}


def __getattr__(name: str) -> Any:
    # A library user never pays for Dagster, nor a code location for PyTorch: Dagster looks at all that `dir` names to find
    # the components, so none of these modules loads PyTorch before it has work to do.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("semdedup-assets")
        except PackageNotFoundError as error:
            message = f"module {__name__!r} has no attribute {name!r}: it is not installed as a package"
            raise AttributeError(message) from error
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)


def _names_there() -> list[str]:
    from importlib.util import find_spec

    # Without Dagster there is none of its part: whoever takes all that is named, as `help` and `import *` do, would fail.
    missing = set() if find_spec("dagster") else {_COMPONENTS, _DEFS}
    return [name for name, home in _HOMES.items() if home not in missing]


__all__[:] = _names_there()


def __dir__() -> list[str]:
    return sorted({*globals(), *_names_there(), "__version__"} - {"Any", "TYPE_CHECKING"})
