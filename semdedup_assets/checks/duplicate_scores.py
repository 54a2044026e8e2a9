"""What must hold of scores."""

from typing import Any

import numpy as np

from semdedup_assets.checks.counting import ItemCount, by_clustering, common_version
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.item_lookup import item_keys
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Check, CheckResult, Problem
from semdedup_assets.records import id_shards
from semdedup_assets.storage.results import MissingResultError, ResultRecord

# The paper's 307,000 flags of the European Union were one of 50,000 clusters of 440 million images: 35 times the
# average. Clusters of k-means on varied data seldom exceed ten times.
_LARGEST_TO_AVERAGE = 25
_LARGE_CLUSTER = 1_000


def every_item_scored_once(context: StageContext) -> CheckResult:
    """The scores of each clustering hold the items that were assigned, each once."""
    problems, measured = [], dict[str, Any]()
    for k, scores in by_clustering(context.index.records("duplicate_scores")).items():
        assigned = _assigned(context, scores)
        if assigned is None:
            measured[f"k={k}"] = "not all buckets are scored from the assignments there are now"
            continue
        found = ItemCount.of(scores.values())
        measured[f"k={k} items"] = found.items
        difference = found.difference(ItemCount.of(assigned.values()))
        if difference:
            remedy = f"{context.remedy('duplicate_scores')} again"
            problems.append(Problem(f"all buckets of k={k}", difference, remedy))
    return CheckResult("numbers of clusters have scores of other items than were assigned", problems, measured)


def _assigned(context: StageContext, scores: dict[Partition, ResultRecord]) -> dict[Partition, ResultRecord] | None:
    """The assignments that scores were made from; None where they are incomplete, or of others."""
    within = Partition(clustering=next(iter(scores)).clustering)
    try:
        assigned = context.index.require_all("assignments", within)
        complete = len(scores) == len(context.index.stored("duplicate_scores", within))
    except MissingResultError:
        return None
    version = common_version(assigned)
    same = all(record.inputs["assignments"] == version for record in scores.values())
    return assigned if complete and same else None


def largest_cluster(context: StageContext) -> CheckResult:
    """No cluster is far larger than the average one."""
    problems, measured = [], dict[str, Any]()
    for k, scores in by_clustering(context.index.records("duplicate_scores")).items():
        known = [record.details["largest_cluster"] for record in scores.values() if record.details["largest_cluster"]]
        centroids = context.index.record("centroids", Partition(clustering=next(iter(scores)).clustering))
        if not known or centroids is None:
            continue
        largest = max(known, key=lambda each: each["items"])
        # Of all clusters: many copies of one item leave clusters empty, which would hide it in the average.
        average = ItemCount.of(scores.values()).items / int(centroids.details["k"])
        ratio = largest["items"] / average
        measured |= {f"k={k} largest": largest["items"], f"k={k} average": average, f"k={k} ratio": ratio}
        if largest["items"] > _LARGE_CLUSTER and ratio > _LARGEST_TO_AVERAGE:
            text = (
                f"cluster {largest['cluster']}: {largest['items']:,} items, {ratio:,.0f} times the average; nearest to "
                f"its centroid: {_named(context, largest['item'])}"
            )
            remedy = "look at it: copies of one thing are removed as duplicates, a bad decoder or placeholder is not"
            problems.append(Problem(k, text, remedy))
    fault = f"numbers of clusters have a cluster of more than {_LARGEST_TO_AVERAGE} times the average"
    return CheckResult(fault, problems, measured)


def _named(context: StageContext, item: int) -> str:
    """An item by its key and shard."""
    index = int(id_shards(np.array([item], dtype=np.uint64))[0])
    name = next((shard.name for shard in context.shard_index.shards if shard.index == index), None)
    return f"{item_keys(context, [item])[item]}" + (f" ({name})" if name else "")


CHECKS = (
    Check(every_item_scored_once, "The buckets of each k hold every assigned item exactly once."),
    Check(
        largest_cluster,
        "No cluster is far larger than the average; the paper found one of 307,000 flags. Names an item of it.",
        blocking=False,
    ),
)
