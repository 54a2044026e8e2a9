"""Estimate what a pipeline takes before it runs: time, disk and memory of each stage."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from semdedup_assets.algorithm.cost import (
    STAGES,
    ItemBytes,
    Rates,
    Scale,
    expected_pairs,
    stage_bytes,
    stage_memory,
    stage_seconds,
)
from semdedup_assets.algorithm.kmeans import by_integers, suggest_k
from semdedup_assets.stages.calibration import (
    ArithmeticRate,
    EncoderRate,
    StoreRate,
    synthetic_vectors,
    time_arithmetic,
    time_encoder,
    time_store,
)
from semdedup_assets.stages.item_counts import ItemCount, count_items
from semdedup_assets.stages.rehearsal import (
    VECTORS,
    ClusterCosts,
    LinearCosts,
    rehearsal,
    rehearse_clusters,
    rehearse_items,
    rehearsed_clusters,
)
from semdedup_assets.stages.taken import Taken, taken
from semdedup_assets.stages.work import Work
from semdedup_assets.storage.files import filesystem, is_local
from semdedup_assets.storage.results import MissingResultError, Recipe, fingerprint, read_recipe

_SHARED = STAGES[:2]
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class _Calibration:
    """All that was measured.

    Attributes:
        encoder: the model.
        store: the store.
        arithmetic: by k, as the partition spells it.
        items: what does not hang on k.
        clusters: by k.
    """

    encoder: EncoderRate
    store: StoreRate
    arithmetic: dict[str, ArithmeticRate]
    items: LinearCosts
    clusters: dict[str, ClusterCosts]

    def rates(self, k: str) -> Rates:
        """Seconds for each kind of work."""
        arithmetic, clusters = self.arithmetic[k], self.clusters[k]
        return Rates(
            embed=self.encoder.read + self.encoder.embed + self.items.write,
            pass_id=arithmetic.pass_id,
            choose=arithmetic.choose,
            draw=self.items.draw,
            fit=arithmetic.fit,
            assign=clusters.assign,
            product=arithmetic.product,
            compare=clusters.compare,
            mask=clusters.mask,
            manifest=self.items.manifest,
            result=self.store.result,
            transfer=self.store.transfer,
        )

    def item_bytes(self, k: str) -> ItemBytes:
        """Bytes of an item in each table."""
        clusters = self.clusters[k]
        return ItemBytes(
            self.items.embedding_bytes, clusters.score_bytes, clusters.mask_bytes, self.items.manifest_bytes
        )


def estimate(work: Work) -> Recipe:
    """Estimate seconds, bytes and memory of each stage and k, from a count of the items and a calibration.

    What has run already keeps the estimate that was made before it ran, so that the two can be compared.

    Args:
        work: the pipeline at work.

    Returns:
        The estimate's recipe; `details["stages"]` has a row for each stage and k.

    Raises:
        MissingResultError: the source has not been observed yet.
        ValueError: the source does not hold what the settings say, or nothing in it can be embedded.
    """
    work.measures.restart()
    # Read before it is replaced.
    earlier = _earlier_rows(work)
    counts = count_items(work)
    work.log(f"estimate: {counts.items:,} items ({counts.counted})")
    with work.measures.phase("embed"):
        encoder = time_encoder(work, counts.files)
    scales = {k: _scale(work, counts, k, encoder.dimension) for k in work.pipeline.clustering.k}
    with work.measures.phase("rehearse"):
        measured = _calibrate(work, counts, encoder, scales)
    took = taken(work)
    rows = _kept(_rows(work, scales, measured), earlier, took)
    made_from = {"shards": _source_version(work)}
    with work.writing("estimate", work.layout.estimate, made_from=made_from) as result:
        with result.open(f"{work.layout.estimate}.json") as stream:
            stream.write(json.dumps(rows, indent=1).encode())
        result.details = {
            **_counted(counts, measured),
            "stages": rows,
            **_totals(work, rows, took, measured),
            "settings": _settings(work),
            "calibration": _calibration_details(measured),
        }
    return result.recipe()


def _source_version(work: Work) -> str:
    return fingerprint([shard.fingerprint for shard in work.shards()])


def _scale(work: Work, counts: ItemCount, k: str, dimension: int) -> Scale:
    setting, items = work.pipeline.training_sample, max(1, counts.items)
    clusters, pairs, largest = _clusters(work, k, items)
    sample = items if setting.size == "all" else min(setting.size, items)
    fit_streams = by_integers(work.pipeline.clustering.engine, k=clusters, dimension=dimension)
    return Scale(
        items=items,
        largest_shard=max(counts.by_shard.values()),
        shards=len(counts.by_shard),
        dimension=dimension,
        number_bytes=2 if work.pipeline.vectors == "float16" else 4,
        sample=sample,
        k=clusters,
        fit_sample=sample if setting.per_cluster == "all" else min(sample, clusters * setting.per_cluster),
        fit_streams=fit_streams,
        iterations=work.pipeline.iterations,
        pairs=pairs,
        largest_cluster=largest,
        buckets=work.pipeline.clustering.buckets,
        epsilons=len(work.pipeline.epsilons),
    )


def _clusters(work: Work, k: str, items: int) -> tuple[int, int, int]:
    """How many clusters, pairs within them, and items of the largest: by the centroids where they are fitted."""
    try:
        recipe = work.centroids(k)
    except MissingResultError:
        recipe = None
    if recipe is None or recipe.code_version != work.code_version("centroids"):
        count = min(items, suggest_k(items) if k == "auto" else int(k))
        pairs = expected_pairs(items, k=count)
        return count, pairs, min(items, 4 * (2 * pairs // items + 1))
    fitted = recipe.details
    growth = items / max(1.0, fitted["items_per_cluster"] * fitted["k"])
    pairs, largest = fitted["pairs_predicted"] * growth**2, fitted["largest_cluster_predicted"] * growth
    return int(fitted["k"]), round(pairs), max(1, round(largest))


def _calibrate(work: Work, counts: ItemCount, encoder: EncoderRate, scales: dict[str, Scale]) -> _Calibration:
    store = time_store(work)
    rehearsed = {
        k: rehearsed_clusters(counts.items, cluster=2 * scale.pairs / scale.items + 1) for k, scale in scales.items()
    }
    vectors = synthetic_vectors(min(VECTORS, max(64, counts.items)), dimension=encoder.dimension)
    stored = vectors.astype(work.pipeline.vectors)
    arithmetic = {k: time_arithmetic(work, stored, k=scale.k, sample=scale.sample) for k, scale in scales.items()}
    different = sorted(set(rehearsed.values()))
    with rehearsal(work, vectors=vectors, clusters=different, result=store.result) as small:
        items = rehearse_items(small, encoder=encoder, files=counts.files)
        product = min(rate.product for rate in arithmetic.values())
        costs = {count: rehearse_clusters(small, count, product=product) for count in different}
    return _Calibration(encoder, store, arithmetic, items, {k: costs[count] for k, count in rehearsed.items()})


def _rows(work: Work, scales: dict[str, Scale], measured: _Calibration) -> list[dict[str, Any]]:
    """A row for each stage and k, those that all k share once."""
    rows = []
    for index, (k, scale) in enumerate(scales.items()):
        item = measured.item_bytes(k)
        seconds, stored = stage_seconds(scale, measured.rates(k), item), stage_bytes(scale, item)
        memory = stage_memory(scale, item, budget=work.compute.budget)
        for stage in STAGES:
            if stage in _SHARED and index:
                continue
            row = {"seconds": seconds[stage], "bytes": stored[stage], "memory": memory[stage]}
            rows.append({"stage": stage, "k": "" if stage in _SHARED else k, "items": scale.items, **row})
    return sorted(rows, key=lambda row: STAGES.index(row["stage"]))


def _earlier_rows(work: Work) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of the last estimate, if it is of the same files and settings."""
    try:
        recipe = read_recipe(work.layout.estimate, cure="")
    except MissingResultError:
        return {}
    if recipe.made_from != {"shards": _source_version(work)} or recipe.details["settings"] != _settings(work):
        return {}
    return {(row["stage"], row["k"]): row for row in recipe.details["stages"]}


def _settings(work: Work) -> str:
    """Hash of the settings of all stages: another estimate is due when one of them changes."""
    return fingerprint([work.code_version(stage) for stage in STAGES] + [list(work.pipeline.epsilons)])


def _kept(
    rows: Sequence[dict[str, Any]],
    earlier: dict[tuple[str, str], dict[str, Any]],
    took: dict[tuple[str, str], Taken],
) -> list[dict[str, Any]]:
    """The rows, but for what has run those that were estimated before it ran."""
    named = [((row["stage"], row["k"]), row) for row in rows]
    return [earlier[name] if name in earlier and took[name].complete else row for name, row in named]


def _counted(counts: ItemCount, measured: _Calibration) -> dict[str, Any]:
    return {
        "items": counts.items,
        "counted": counts.counted,
        "counted_exactly": counts.exact,
        "dimension": measured.encoder.dimension,
    }


def _totals(
    work: Work, rows: list[dict[str, Any]], took: dict[tuple[str, str], Taken], measured: _Calibration
) -> dict[str, Any]:
    """Sums, what of them is still to come, and whether this machine has the room for it."""
    free, memory = free_disk(work), machine_memory()
    done = [took[row["stage"], row["k"]] for row in rows]
    process, load = round(measured.encoder.peak_mib * (1 << 20)), measured.encoder.load
    peak = max(row["memory"] for row in rows) + process
    left = [row["seconds"] for row, there in zip(rows, done, strict=True) if there.done < there.results]
    bytes_left = sum(max(0, row["bytes"] - there.bytes) for row, there in zip(rows, done, strict=True))
    return {
        "seconds_total": sum(row["seconds"] for row in rows) + load,
        "seconds_left": sum(left) + (load if done[0].done < done[0].results else 0.0),
        "bytes_total": sum(row["bytes"] for row in rows),
        "bytes_left": bytes_left,
        "process_bytes": process,
        "memory_peak_bytes": peak,
        "disk_free_bytes": free,
        "disk_fits": None if free is None else bytes_left <= free,
        "machine_memory_bytes": memory,
        "memory_fits": None if memory is None else peak <= memory,
    }


def _calibration_details(measured: _Calibration) -> dict[str, Any]:
    encoder, store = measured.encoder, measured.store
    return {
        "model_load_seconds": encoder.load,
        "items_embedded": encoder.items,
        "items_embedded_per_second": 1 / max(encoder.embed, 1e-12),
        "items_read_per_second": 1 / max(encoder.read, 1e-12),
        "store_result_seconds": store.result,
        "store_write_bytes_per_second": store.write,
        "store_read_bytes_per_second": store.read,
        "by_k": {
            k: {
                "kmeans_gflops": 1e-9 / max(rate.fit, 1e-18),
                "assignment_gflops": 1e-9 / max(rate.product, 1e-18),
                **asdict(measured.clusters[k]),
            }
            for k, rate in measured.arithmetic.items()
        },
    }


def free_disk(work: Work) -> int | None:
    """Free bytes of the disk the store lies on; None where that is no disk of this machine."""
    if not is_local(work.pipeline.store):
        return None
    folder = Path(filesystem(work.pipeline.store)[1])
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def machine_memory() -> int | None:
    """Bytes of memory that this machine, or the container, has; None where it does not tell."""
    limits = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    if _CGROUP_LIMIT.exists() and (text := _CGROUP_LIMIT.read_text().strip()).isdecimal():
        limits.append(int(text))
    return min(limits, default=None)
