"""Estimate what a pipeline takes before it runs: time, disk and memory of each stage."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semdedup_assets.checks.centroids import larger_sample
from semdedup_assets.estimate.actual_usage import STAGES, ActualUsage, RowKey, StageRow, actual_usage, stage_rows
from semdedup_assets.estimate.encoder_timing import EncoderTiming, time_encoder
from semdedup_assets.estimate.item_counts import ItemCount, count_items
from semdedup_assets.estimate.readable import readable_bytes, readable_seconds, room
from semdedup_assets.estimate.trial_run import Scale, by_trial, scale_of
from semdedup_assets.execution import progress, usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Rows, Shown, Stage
from semdedup_assets.storage.files import filesystem, is_local
from semdedup_assets.storage.results import ResultRecord

_MIB = 1 << 20
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
# Nothing follows for all items from results of a smaller share of them.
_LEAST_SHARE = 0.05


def estimate(context: StageContext, partition: Partition) -> ResultRecord:
    """Estimate seconds, bytes and memory of each stage: by its earlier results, else by a short trial run.

    What has run already keeps the estimate that was made before it ran, so that the two can be compared.

    Returns:
        The estimate's record; `details["stages"]` has a row for each stage, clustering and selection.

    Raises:
        MissingResultError: the source has not been observed yet.
        ValueError: the source does not hold what the settings say, or nothing in it can be embedded.
    """
    counts = count_items(context)
    progress.log(f"estimate: {counts.items:,} items ({counts.counted})")
    with usage.phase("encoder"):
        encoder = time_encoder(context, counts.heads)
    loaded = usage.peak_memory_mib()
    clusterings, d = context.pipeline.clusterings, encoder.dimension
    scales = {str(each): scale_of(context, counts.by_shard, each, dimension=d) for each in clusterings}
    with usage.phase("stages"):
        rows = _rows(context, counts, encoder, scales)
    used, last = actual_usage(context), context.index.record("estimate", Partition())
    if last is not None and context.index.is_current("estimate", Partition()):
        earlier = {(row["stage"], row["k"]): row for row in last.details["stages"]}
        rows |= {key: row for key, row in earlier.items() if key in rows and used[key].complete}
    kept = list(rows.values())
    with context.writing("estimate", partition) as result:
        with result.open("stages.json") as stream:
            stream.write(json.dumps(kept, indent=1).encode())
        result.details = {
            "items": counts.items,
            "counted": counts.counted,
            "counted_exactly": counts.exact,
            "dimension": encoder.dimension,
            "stages": kept,
            "sampled_per_cluster": {
                k: scale.fitted / scale.k for k, scale in scales.items() if scale.fewer_than_wanted
            },
            "model_load_seconds": encoder.load_seconds,
            # With what the trial run loaded, such as faiss.
            "process_bytes": round(max(loaded, usage.peak_memory_mib()) * _MIB),
        }
        result.details |= _totals(context, result.details, used)
    return result.committed


def _rows(
    context: StageContext, counts: ItemCount, encoder: EncoderTiming, scales: Mapping[str, Scale]
) -> dict[RowKey, dict[str, Any]]:
    first = context.pipeline.clusterings[0]
    rows = [(row, scales[str(row.clustering or first)]) for row in stage_rows(context)]
    known = {row.key: _by_earlier_results(row, scale) for row, scale in rows}
    tried = by_trial(context, counts, rows) if None in known.values() else {}
    found = {}
    for row, scale in rows:
        (label, k), cost = row.key, known[row.key]
        seconds, size = cost or tried[row.key]
        if row.stage == "embeddings" and cost is None:
            seconds += encoder.item_seconds * scale.items
        amounts = {"seconds": seconds, "bytes": round(size), "memory": scale.amounts(row.stage).memory}
        found[row.key] = {"stage": label, "k": k, "items": scale.items, **amounts}
    return found


def _by_earlier_results(row: StageRow, scale: Scale) -> tuple[float, float] | None:
    """Seconds and bytes, by what results of the same settings took; None where there are too few."""
    used = row.earlier()
    if used.seconds == 0 or used.items < _LEAST_SHARE * scale.items:
        return None
    targets = len(row.context.pipeline.targets) if row.stage in ("keep_masks", "manifests") else 1
    growth = scale.items * targets / used.items
    # Where some partitions are missing, these grow with the items; where the items have become more, with the pairs.
    pairs = used.complete and row.stage in ("duplicate_scores", "keep_masks")
    constant = row.stage in ("training_sample", "centroids")
    return used.seconds * growth ** (2 if pairs else 1), used.bytes * (1 if constant else growth)


def _totals(context: StageContext, details: Mapping[str, Any], used: Mapping[RowKey, ActualUsage]) -> dict[str, Any]:
    """Sums, what of them is still to come, and whether this machine has room for it."""
    rows = [(row, used[row["stage"], row["k"]]) for row in details["stages"]]
    load, loaded = details["model_load_seconds"], used["embeddings", ""].complete
    left = sum(row["seconds"] * (1 - actual.done / actual.results) for row, actual in rows)
    bytes_left = sum(max(0, row["bytes"] - actual.bytes) for row, actual in rows if not actual.complete)
    peak = max(row["memory"] for row, _ in rows) + details["process_bytes"]
    free, memory = free_disk(context), machine_memory()
    return {
        "seconds_total": load + sum(row["seconds"] for row, _ in rows),
        "seconds_left": left + (0 if loaded else load),
        "bytes_total": sum(row["bytes"] for row, _ in rows),
        "bytes_left": bytes_left,
        "memory_peak_bytes": peak,
        "disk_free_bytes": free,
        "disk_fits": None if free is None else bytes_left <= free,
        "machine_memory_bytes": memory,
        "memory_fits": peak <= memory,
    }


def free_disk(context: StageContext) -> int | None:
    """Free bytes of the disk that the store lies on; None where that is no disk of this machine."""
    if not is_local(context.pipeline.store):
        return None
    folder = Path(filesystem(context.pipeline.store)[1])
    return shutil.disk_usage(next(each for each in (folder, *folder.parents) if each.exists())).free


def machine_memory() -> int:
    """Bytes of memory that this machine, or the container, has."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else ""
    return min(memory, int(limit)) if limit.isdecimal() else memory


def _shown(context: StageContext, _: Partition, record: ResultRecord) -> dict[str, Shown]:
    """What a person asks first: how long, and whether there is room; then each stage, estimated and actual."""
    used, details = actual_usage(context), record.details
    now = _totals(context, details, used)
    seconds, size = sum(each.seconds for each in used.values()), sum(each.bytes for each in used.values())
    if all(each.complete for each in used.values()):
        time, disk = f"all made, took {readable_seconds(seconds)}", f"all made, takes {readable_bytes(size)}"
    else:
        left = room(now["bytes_left"], now["disk_free_bytes"], of="the disk of the store")
        time, disk = f"{readable_seconds(now['seconds_left'])} left", f"to come {left}"
    rows = [_shown_row(row, used[row["stage"], row["k"]], details["process_bytes"]) for row in details["stages"]]
    return {
        "time": f"{readable_seconds(now['seconds_total'])} in all; {time}",
        "disk": f"{readable_bytes(now['bytes_total'])} in all; {disk}",
        "memory": room(now["memory_peak_bytes"], now["machine_memory_bytes"], of="this machine"),
        "items": f"{details['items']:,} ({details['counted']})",
        "stages": Rows(rows),
        **_small_sample(context, details.get("sampled_per_cluster", {})),
        **{name: value for name, value in now.items() if value is not None},
        "seconds_used": seconds,
        "bytes_used": size,
    }


def _small_sample(context: StageContext, sampled: Mapping[str, float]) -> dict[str, Shown]:
    """Which centroids will be fitted to fewer vectors than are wanted, and what to do."""
    if not sampled:
        return {}
    found = ", ".join(f"{number:.1f} vectors a cluster at k = {k}" for k, number in sampled.items())
    wanted = context.pipeline.training_sample.wanted_per_cluster
    return {"training sample": f"{found}, where {wanted} are wanted; {larger_sample(context)}"}


def _shown_row(row: Mapping[str, Any], actual: ActualUsage, process: int) -> dict[str, str]:
    partly, made = "" if actual.complete else f" ({actual.done} of {actual.results})", actual.done > 0
    return {
        "stage": row["stage"],
        "k": row["k"],
        "items": f"{row['items']:,}",
        "time": readable_seconds(row["seconds"]),
        "actual time": f"{readable_seconds(actual.seconds)}{partly}" if made else "",
        "disk": readable_bytes(row["bytes"]),
        "actual disk": f"{readable_bytes(actual.bytes)}{partly}" if made else "",
        "memory": readable_bytes(row["memory"] + process),
        "actual memory": readable_bytes(actual.peak_memory_mib * _MIB) if made else "",
    }


STAGE = Stage(
    name="estimate",
    step="1-embed",
    description="What the stages will take before they run: time, disk and memory of each, from a count of the items, "
    "earlier results and a short trial run. Beside it stands what they took. Of a repair, references and captions nothing is "
    "estimated.",
    dimensions=(),
    inputs=("shards",),
    settings=lambda context: {
        "stages": {stage: context.code_version(stage) for stage in STAGES},
        "clusterings": [str(each) for each in context.pipeline.clusterings],
        "targets": [str(each) for each in context.pipeline.targets],
        "selections": {str(name): each.identity() for name, each in context.pipeline.named_selections.items()},
    },
    location=lambda layout, _, __: layout.estimate,
    worker=lambda context: lambda partition: estimate(context, partition),
    kinds=frozenset({"torch"}),
    shown=_shown,
    on_demand=True,
    pool=None,
    unit="estimates",
)
