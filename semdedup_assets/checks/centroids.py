"""What should hold of centroids."""

from semdedup_assets.algorithm.sampling import FEWEST_PER_CLUSTER
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import Check, CheckResult, Problem


def no_empty_clusters(context: StageContext) -> CheckResult:
    """Every cluster has a vector of the sample."""
    records = context.index.records("centroids")
    problems = [
        Problem(str(k), f"{found['empty_clusters']:,} of {found['k']:,} clusters", "choose a smaller k")
        for k, found in ((k, record.details) for k, record in records.items())
        if found["empty_clusters"]
    ]
    measured = {f"k={k} empty": int(record.details["empty_clusters"]) for k, record in records.items()}
    return CheckResult("centroids have clusters that no sampled vector is nearest to", problems, measured)


def sample_is_large_enough(context: StageContext) -> CheckResult:
    """Enough sampled vectors a cluster to place its centroid, as far as there are items."""
    records, problems = context.index.records("centroids"), []
    for k, record in records.items():
        sampled, items = record.details["sample_per_cluster"], record.details["items_per_cluster"]
        # Earlier records have no number of their own.
        wanted = record.details.get("wanted_per_cluster", FEWEST_PER_CLUSTER)
        if sampled < min(wanted, items):
            measured = f"{sampled:.1f} sampled vectors a cluster of {items:,.1f} items, {wanted} are wanted"
            problems.append(Problem(str(k), measured, larger_sample(context)))
    found = {f"k={k} sampled": record.details["sample_per_cluster"] for k, record in records.items()}
    return CheckResult("centroids were fitted to fewer vectors a cluster than are wanted", problems, found)


def larger_sample(context: StageContext) -> str:
    """What to do where the sample is too small for a k: it is frozen, also where its size follows the greatest k."""
    drawn = f"{context.remedy('training_sample')} with `refit`"
    if context.pipeline.training_sample.size == "auto":
        return f"{drawn}: a sample for the greatest k is drawn, and every k fitted again"
    return f"raise training_sample.size or per_cluster, and {drawn}"


CHECKS = (
    Check(no_empty_clusters, "Every cluster has a vector of the training sample.", blocking=False),
    Check(
        sample_is_large_enough,
        "There are enough sampled vectors a cluster to place its centroid (SemDeDup, section 6.1: n / k).",
        blocking=False,
    ),
)
