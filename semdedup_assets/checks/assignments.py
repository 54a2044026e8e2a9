"""What must hold of assignments."""

from dataclasses import dataclass
from typing import Any

from semdedup_assets.checks.counting import MOST_NAMED, ItemCount, by_clustering, current_records
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Check, CheckResult, Problem
from semdedup_assets.storage.results import ResultRecord


def every_item_in_one_cluster(context: StageContext) -> CheckResult:
    """Each assigned shard holds the items that were embedded, each once."""
    problems, items, stale = [], 0, 0
    embeddings = context.index.records("embeddings")
    for partition, record in context.index.records("assignments").items():
        embedded = embeddings.get(Partition(shard=partition.shard))
        if embedded is None or record.inputs["embeddings"] != embedded.version:
            stale += 1
            continue
        difference = ItemCount.of([record]).difference(ItemCount.of([embedded]))
        items += record.details["items"]
        if difference:
            problems.append(Problem(str(partition), difference, f"{context.remedy('assignments', partition)} again"))
    measured = {"items": items, "stale_partitions": stale}
    return CheckResult("assigned shards do not hold the items that were embedded", problems, measured)


@dataclass(frozen=True, slots=True)
class _Drift:
    """How much nearer to the centroids the sample was than what was embedded since; `means` by new shard."""

    baseline: float
    means: dict[str, float]
    items: dict[str, int]

    @property
    def mean(self) -> float:
        return sum(self.means[shard] * count for shard, count in self.items.items()) / sum(self.items.values())

    @property
    def loss(self) -> float:
        return self.baseline - self.mean

    def measured(self, k: str) -> dict[str, Any]:
        worst = sorted(self.means.items(), key=lambda pair: pair[1])[:MOST_NAMED]
        return {
            f"k={k} sample": self.baseline,
            f"k={k} new": self.mean,
            f"k={k} drift": self.loss,
            f"k={k} new_shards": len(self.means),
            f"k={k} worst_shards": dict(worst),
        }


def similarity_has_not_drifted(context: StageContext) -> CheckResult:
    """What was embedded since the sample was drawn is about as near to the centroids as the sample was."""
    limit, problems, measured = context.pipeline.refresh.max_drift, [], dict[str, Any]()
    remedy = (
        f"launch {context.asset('training_sample')} with `refit`, or the job whose name ends in __refit: centroids and "
        "all below follow"
    )
    for k, records in by_clustering(context.index.records("assignments")).items():
        drift = _drift(context, records)
        if drift is None:
            measured[f"k={k}"] = "no shard was embedded since the training sample was drawn"
            continue
        measured |= drift.measured(k)
        if drift.loss > limit:
            new = f"mean similarity {drift.mean:.3f} in {len(drift.means)} new shards"
            problems.append(Problem(k, f"{new}, {drift.baseline:.3f} in the sample", remedy))
    fault = f"centroids have lost more than {limit:g} of mean similarity to new items"
    return CheckResult(fault, problems, {"limit": limit, **measured})


def _drift(context: StageContext, records: dict[Partition, ResultRecord]) -> _Drift | None:
    """None where no shard is newer than the sample, or it is not known which are."""
    clustering = next(iter(records)).clustering
    sample = next(iter(current_records(context, "training_sample").values()), None)
    centroids = context.index.record("centroids", Partition(clustering=clustering))
    if sample is None or centroids is None or centroids.inputs["training_sample"] != sample.version:
        return None
    sampled = sample.details["sampled_shards"]
    new = {
        str(partition.shard): record.details
        for partition, record in records.items()
        if record.inputs["centroids"] == centroids.version
        and record.inputs["embeddings"] != sampled.get(partition.shard)
        and record.details["items"]
    }
    if not new:
        return None
    means = {shard: float(details["similarity_to_centroid_mean"]) for shard, details in new.items()}
    items = {shard: int(details["items"]) for shard, details in new.items()}
    return _Drift(float(centroids.details["objective"][-1]), means, items)


CHECKS = (
    Check(
        every_item_in_one_cluster,
        "Every embedded item is in exactly one cluster (SemDeDup, section 3): as many, and the same ids.",
    ),
    Check(
        similarity_has_not_drifted,
        "Shards that were embedded since the training sample was drawn are about as similar to their centroids "
        "as the sample (`refresh.max_drift`); else the centroids should be refitted.",
        blocking=False,
    ),
)
