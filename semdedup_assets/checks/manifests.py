"""What must hold of manifests."""

from collections.abc import Iterator
from typing import Any

from semdedup_assets.checks.counting import common_version, inputs_up_to_date
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Check, CheckResult, Problem
from semdedup_assets.storage.files import join
from semdedup_assets.storage.results import ResultRecord


def counts_are_conserved(context: StageContext) -> CheckResult:
    """Every record of the source is kept, removed or skipped, and what is kept was written."""
    index, problems = context.index, []
    items, manifests = index.records("items"), index.records("manifests")
    records = sum(int(record.details["items"]) for record in items.values())
    for partition, record in manifests.items():
        wrong = list(_miscounts(record.details))
        if record.inputs["items"] == common_version(items):
            expected = {"records": records, **_masked(context, partition, record)}
            wrong += [
                f"{record.details[name]:,} {name} where {count:,} should be"
                for name, count in expected.items()
                if record.details[name] != count
            ]
        if wrong:
            folder = join(record.location, record.details["manifest"])
            remedy = f"{context.remedy('manifests', partition)} again; this one lies in {folder}"
            problems.append(Problem(str(partition), "; ".join(wrong), remedy))
    return CheckResult(
        "manifests do not add up to their source", problems, {"manifests": len(manifests), "records": records}
    )


def _miscounts(details: dict[str, Any]) -> Iterator[str]:
    total = details["kept"] + details["removed"] + details["skipped"]
    if total != details["records"]:
        yield f"kept, removed and skipped are {total:,}, records {details['records']:,}"
    for kind, rows in details["rows_written"].items():
        if rows != details["kept"]:
            yield f"{rows:,} rows in {kind}, {details['kept']:,} kept"


def _masked(context: StageContext, partition: Partition, manifest: ResultRecord) -> dict[str, int]:
    masks = context.index.record("keep_masks", partition)
    if masks is None or manifest.inputs["keep_masks"] != masks.version:
        return {}
    # Those of shards whose keys could not be read are in the masks, and in no manifest.
    unlisted, unlisted_kept = manifest.details["unlisted"], manifest.details["unlisted_kept"]
    return {
        "kept": int(masks.details["kept"]) - unlisted_kept,
        "removed": int(masks.details["removed"]) - (unlisted - unlisted_kept),
    }


CHECKS = (
    Check(
        counts_are_conserved,
        "Every record of the source is kept, removed or skipped, and each format holds as many rows as are kept.",
    ),
    inputs_up_to_date("manifests"),
)
