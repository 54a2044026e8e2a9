"""The asset `estimate`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.assets.metadata import as_metadata

if TYPE_CHECKING:
    from semdedup_assets.stages.taken import Taken

_MIB = 1 << 20

# Shown otherwise, or of the estimate's own small result.
_NOT_SHOWN = ("stages", "settings", "items", "items_per_second", "bytes")

_SCHEMA = dg.TableSchema(
    columns=[
        dg.TableColumn("stage", "string"),
        dg.TableColumn("k", "string", description="Number of clusters, where the stage hangs on it."),
        dg.TableColumn("items", "int"),
        dg.TableColumn("estimated_time", "string"),
        dg.TableColumn("took", "string", description="By the results that are there."),
        dg.TableColumn("estimated_disk", "string"),
        dg.TableColumn("on_disk", "string", description="By the results that are there."),
        dg.TableColumn("estimated_memory", "string", description="Of the whole process, model and mapped files too."),
        dg.TableColumn("peak_memory", "string", description="Of the process that ran the stage."),
    ]
)


def estimate_asset(declaration: Declaration) -> dg.AssetsDefinition:
    """What the pipeline will take, and what it took."""

    @dg.asset(**declaration.described("estimate"), deps=[declaration.every("shards")], pool="gpu")
    def estimate(
        context: dg.AssetExecutionContext,
        config: declaration.run_config,  # type: ignore[name-defined]
    ) -> dg.MaterializeResult[None]:
        from semdedup_assets.stages.estimate import estimate as estimated
        from semdedup_assets.stages.taken import taken

        work = declaration.work(context, config)
        recipe = estimated(work)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(recipe.version), metadata=estimate_metadata(recipe.details, taken(work))
        )

    return estimate


def estimate_metadata(details: Mapping[str, Any], took: Mapping[tuple[str, str], "Taken"]) -> dict[str, Any]:
    """The table of stages, verdicts in words, and numbers that plot over time.

    Args:
        details: of the estimate's recipe.
        took: what each stage took, by stage and k.
    """
    rows = [_record(row, took[row["stage"], row["k"]], process=details["process_bytes"]) for row in details["stages"]]
    numbers = {name: value for name, value in details.items() if name not in _NOT_SHOWN}
    seconds = [there.seconds for there in took.values() if there.seconds is not None]
    return {
        "stages": dg.MetadataValue.table(rows, schema=_SCHEMA),
        "time": f"{readable_seconds(details['seconds_total'])} in all, {readable_seconds(details['seconds_left'])} left",
        "disk": room(details["bytes_left"], details["disk_free_bytes"], of="the store's disk"),
        "memory": room(details["memory_peak_bytes"], details["machine_memory_bytes"], of="this machine"),
        "items": details["items"],
        **as_metadata(numbers),
        "taken_seconds": float(sum(seconds)),
        "taken_bytes": sum(there.bytes for there in took.values()),
    }


def _record(row: Mapping[str, Any], there: "Taken", *, process: int) -> dg.TableRecord:
    partly = "" if there.done in (0, there.results) else f" ({there.done} of {there.results})"
    peak = there.peak_memory_mib
    return dg.TableRecord(
        {
            "stage": row["stage"],
            "k": row["k"],
            "items": row["items"],
            "estimated_time": readable_seconds(row["seconds"]),
            "took": "" if there.seconds is None else f"{readable_seconds(there.seconds)}{partly}",
            "estimated_disk": readable_bytes(row["bytes"]),
            "on_disk": f"{readable_bytes(there.bytes)}{partly}" if there.done else "",
            "estimated_memory": readable_bytes(row["memory"] + process),
            "peak_memory": "" if peak is None else readable_bytes(round(peak * _MIB)),
        }
    )


def room(needed: int, there: int | None, *, of: str) -> str:
    """Whether something fits, in words."""
    if there is None:
        return f"{readable_bytes(needed)}; what {of} has is not known"
    verdict = "fits" if needed <= there else "DOES NOT FIT"
    return f"{readable_bytes(needed)} of {readable_bytes(there)} that {of} has: {verdict}"


def readable_seconds(seconds: float) -> str:
    """Such as `< 0.1 s`, `0.4 s`, `3 min 20 s`, `5 h 10 min` or `2 d 4 h`."""
    if seconds < 0.05:
        return "< 0.1 s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, size, lower, lower_size in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // lower_size} {lower}"
    return f"{whole} s"


def readable_bytes(count: int) -> str:
    """Such as `512 bytes`, `24.1 kB`, `1.4 GB`."""
    amount = float(count)
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if amount < 999.5:
            return f"{amount:.0f} {unit}" if unit == "bytes" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} PB"
