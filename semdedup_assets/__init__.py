"""SemDeDup (arXiv 2303.09540) as partitioned Dagster assets; the algorithm alone is `semdedup`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semdedup_assets.algorithm.deduplication import Deduplication, semdedup
    from semdedup_assets.component import SemDedupPipeline

__all__ = ["Deduplication", "SemDedupPipeline", "semdedup"]

_HOMES = {
    "Deduplication": "semdedup_assets.algorithm.deduplication",
    "SemDedupPipeline": "semdedup_assets.component",
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
    # Dagster looks at all that this names to find the component: the algorithm would bring PyTorch with it, a second
    # and a half at each start of a code location.
    return [*globals(), "SemDedupPipeline"]
