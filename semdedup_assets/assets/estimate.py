"""The asset `estimate`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.assets.metadata import as_metadata

if TYPE_CHECKING:
    from semdedup_assets.stages.taken import Taken

_MIB = 1 << 20
_NO_BREAK = "\N{NO-BREAK SPACE}"

_SCHEMA = dg.TableSchema(
    columns=[
        dg.TableColumn("stage", "string"),
        dg.TableColumn("k", "string", description="Number of clusters, where the stage hangs on it."),
        dg.TableColumn("items", "string"),
        dg.TableColumn("time (took)", "string", description="Estimated, and by the results that are there."),
        dg.TableColumn("disk (is)", "string", description="Estimated, and of the results that are there."),
        dg.TableColumn(
            "memory (was)", "string", description="Of the process, model and mapped files too: estimated, and its peak."
        ),
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
    """Verdicts in words, the table of stages, and numbers that plot over time.

    Args:
        details: of the estimate's recipe.
        took: what each stage took, by stage and k.
    """
    rows = [_record(row, took[row["stage"], row["k"]], process=details["process_bytes"]) for row in details["stages"]]
    return {
        **_sentences(details, list(took.values())),
        "stages": dg.MetadataValue.table(rows, schema=_SCHEMA),
        **as_metadata(
            {
                "dimension": details["dimension"],
                "seconds_total": float(details["seconds_total"]),
                "seconds_left": float(details["seconds_left"]),
                "seconds_taken": float(sum(there.seconds or 0.0 for there in took.values())),
                "seconds_of_estimate": float(details["seconds"]),
            }
        ),
    }


def _sentences(details: Mapping[str, Any], took: Sequence["Taken"]) -> dict[str, str]:
    """What a person asks first: how long, and whether there is room."""
    time, disk = (
        f"{readable_seconds(details['seconds_total'])} in all",
        f"{readable_bytes(details['bytes_total'])} in all",
    )
    if all(there.done == there.results for there in took):
        seconds, stored = sum(there.seconds or 0.0 for there in took), sum(there.bytes for there in took)
        time += f": all made, took {readable_seconds(seconds)}"
        disk += f": all made, takes {readable_bytes(stored)}"
    else:
        left = room(details["bytes_left"], details["disk_free_bytes"], of="the store's disk")
        time += f", {readable_seconds(details['seconds_left'])} left"
        disk += f", to come {left}"
    return {
        "time": time,
        "disk": disk,
        "memory": room(details["memory_peak_bytes"], details["machine_memory_bytes"], of="this machine"),
        "items": f"{details['items']:,} ({details['counted']})",
    }


def _record(row: Mapping[str, Any], there: "Taken", *, process: int) -> dg.TableRecord:
    partly = "" if there.done in (0, there.results) else f", {there.done} of {there.results}"
    peak = there.peak_memory_mib
    took = "" if there.seconds is None else f" ({readable_seconds(there.seconds)}{partly})"
    disk = f" ({readable_bytes(there.bytes)}{partly})" if there.done else ""
    memory = "" if peak is None else f" ({readable_bytes(round(peak * _MIB))})"
    return dg.TableRecord(
        {
            "stage": row["stage"],
            "k": row["k"],
            "items": f"{row['items']:,}",
            "time (took)": f"{readable_seconds(row['seconds'])}{took}",
            "disk (is)": f"{readable_bytes(row['bytes'])}{disk}",
            "memory (was)": f"{readable_bytes(row['memory'] + process)}{memory}",
        }
    )


def room(needed: int, there: int | None, *, of: str) -> str:
    """Whether something fits, in words."""
    if there is None:
        return f"{readable_bytes(needed)}; what {of} has is not known"
    verdict = "fits" if needed <= there else "DOES NOT FIT"
    return f"{readable_bytes(needed)} of {readable_bytes(there)} that {of} has: {verdict}"


def readable_seconds(seconds: float) -> str:
    """Such as `< 0.1 s`, `0.4 s`, `3 min 20 s`, `5 h 10 min` or `2 d 4 h`, which no line breaks."""
    if seconds < 0.05:
        return f"<{_NO_BREAK}0.1{_NO_BREAK}s"
    if seconds < 9.95:
        return f"{seconds:.1f}{_NO_BREAK}s"
    whole = round(seconds)
    for unit, size, lower, lower_size in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return _NO_BREAK.join([str(whole // size), unit, str(whole % size // lower_size), lower])
    return f"{whole}{_NO_BREAK}s"


def readable_bytes(count: int) -> str:
    """Such as `512 bytes`, `24.1 kB`, `1.4 GB`, which no line breaks."""
    amount = float(count)
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if amount < 999.5:
            whole = unit == "bytes" or amount >= 100
            return f"{amount:.0f}{_NO_BREAK}{unit}" if whole else f"{amount:.1f}{_NO_BREAK}{unit}"
        amount /= 1000
    return f"{amount:,.1f}{_NO_BREAK}PB"
