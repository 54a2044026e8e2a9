"""What must hold of embeddings."""

from semdedup_assets.algorithm.shared_vectors import SharedVector, united
from semdedup_assets.checks.counting import MOST_NAMED, ItemCount, current_records
from semdedup_assets.encoders import Precomputed
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.item_lookup import item_keys
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Check, CheckResult, Problem
from semdedup_assets.storage.results import ResultRecord

# Rounding to float16 moves each number by at most 2**-11 of itself, and so the norm by at most 5e-4; to float32 by
# 6e-8, and the norms are sums over the dimension. Beyond four times the first, a vector was never of unit norm.
_NORM_ERROR = {"float16": 2e-3, "float32": 1e-5}

# Some pictures and texts differ in bytes only; many of one vector, and at least one item in so many, are no accident.
_MANY_CONTENTS, _ONE_IN = 5, 10_000


def vectors_are_finite_unit(context: StageContext) -> CheckResult:
    """No NaN, no infinity, unit norm up to the rounding of the stored type."""
    records = current_records(context, "embeddings")
    limit, problems = _NORM_ERROR[context.pipeline.vectors], []
    encoder = context.pipeline.encoder
    ready = isinstance(encoder, Precomputed) and not encoder.normalise
    for shard, record in records.items():
        invalid, error = record.details["not_finite"], record.details["norm_error"]
        if invalid or error > limit:
            remedy = "set encoder.normalise" if ready else f"{context.remedy('embeddings', shard)} again"
            problems.append(Problem(str(shard), f"{invalid} vectors not finite, norms up to {error:.2g} off", remedy))
    measured = {
        "vectors": ItemCount.of(records.values()).items,
        "not_finite": sum(record.details["not_finite"] for record in records.values()),
        "norm_error": max((record.details["norm_error"] for record in records.values()), default=0.0),
        "norm_error_limit": limit,
    }
    return CheckResult("shards have vectors that are not finite or not of unit norm", problems, measured)


def one_dimension(context: StageContext) -> CheckResult:
    """All shards with an item have one dimension, and the centroids that are in use have it too."""
    widths = {
        str(shard): int(record.details["dimension"])
        for shard, record in current_records(context, "embeddings").items()
        if record.details["items"]
    }
    sample = next(iter(current_records(context, "training_sample").values()), None)
    fitted = {
        f"centroids {k}": int(record.details["dimension"])
        for k, record in context.index.records("centroids").items()
        if sample is not None and record.inputs["training_sample"] == sample.version
    }
    both = [*fitted.values(), *widths.values()]
    # The centroids decide, for all shards are held against them; before there are any, the most shards.
    expected = next(iter(fitted.values()), max(both, key=both.count, default=0))
    problems = [
        Problem(name, f"{width} numbers where {expected} should be", _width_remedy(context, name))
        for name, width in {**widths, **fitted}.items()
        if width != expected
    ]
    fault = "shards and centroids have another dimension than the others"
    return CheckResult(fault, problems, {"dimension": expected})


def _width_remedy(context: StageContext, name: str) -> str:
    if name.startswith("centroids "):
        return context.remedy("centroids", name.removeprefix("centroids "))
    again = context.remedy("embeddings", name)
    return f"{again} again, or mend its files; encoder.dimension makes such vectors invalid items"


def ids_are_unique(context: StageContext) -> CheckResult:
    """No id is repeated in a shard, and no two shards have the same ids."""
    problems, owners = [], dict[int, str]()
    records = current_records(context, "embeddings")
    for partition, record in records.items():
        details, shard = record.details, str(partition)
        remedy = f"{context.remedy('embeddings', partition)} again"
        if details["repeated_ids"]:
            problems.append(Problem(shard, f"{details['repeated_ids']:,} ids repeated or out of order", remedy))
        if details["items"]:
            first = owners.setdefault(int(details["id_checksum"]), shard)
            if first != shard:
                problems.append(Problem(shard, f"the same ids as {first}", remedy))
    return CheckResult("shards have repeated ids", problems, {"items": ItemCount.of(records.values()).items})


def skipped_share(context: StageContext) -> CheckResult:
    """No more than a settable share of the dataset's items is invalid, over all shards that are embedded.

    Items of which the source itself says that it has no payload, such as images that img2dataset could not download, are
    no fault of the files: they are skipped and listed, but do not count here. Held-out items are no invalid ones. A shard
    may be a single file: its share alone says nothing.
    """
    limit, records = context.pipeline.max_skipped, current_records(context, "embeddings")
    counts = {shard: _invalid_items(record) for shard, record in records.items()}
    share = sum(invalid for invalid, _ in counts.values()) / max(1, sum(items for _, items in counts.values()))
    problems = [
        _skipped_problem(shard, *counts[shard], records[shard])
        for shard in sorted(counts, key=lambda each: -counts[each][0])
        if share > limit and counts[shard][0]
    ]
    details = [record.details for record in records.values()]
    measured = {
        "limit": limit,
        "share": round(share, 6),
        "skipped": sum(int(found["skipped"]) for found in details),
        "expected_missing": sum(int(found.get("expected_missing", 0)) for found in details),
    }
    if context.pipeline.held_out is not None:
        measured["held_out"] = sum(int(found.get("held_out", 0)) for found in details)
    return CheckResult(f"shards have invalid items, {share:.2%} of all, where {limit:.2%} may be", problems, measured)


def _skipped_problem(shard: Partition, invalid: int, items: int, record: ResultRecord) -> Problem:
    measured = f"{invalid / max(1, items):.2%}, {invalid:,} of {items:,}: {record.details['skipped_examples'][:3]}"
    return Problem(str(shard), measured, "mend the files, or raise `max_skipped`")


def _invalid_items(record: ResultRecord) -> tuple[int, int]:
    """The invalid items of a shard, and all of which that could be said."""
    expected = int(record.details.get("expected_missing", 0))
    return int(record.details["skipped"]) - expected, int(record.details["records"]) - expected


def skipped_share_of_shards(context: StageContext) -> CheckResult:
    """No shard has a greater share of invalid items than the whole dataset may have."""
    limit, problems, shares = context.pipeline.max_skipped, [], dict[str, float]()
    records = current_records(context, "embeddings")
    for shard, record in records.items():
        invalid, items = _invalid_items(record)
        if invalid > limit * items:
            shares[str(shard)] = invalid / items
            problems.append(_skipped_problem(shard, invalid, items, record))
    worst = dict(sorted(shares.items(), key=lambda pair: -pair[1])[: 10 * MOST_NAMED])
    measured = {"limit": limit, "shards": len(records), "shards_above": worst}
    return CheckResult(f"shards have more than {limit:.2%} invalid items", problems, measured)


def no_shard_excluded(context: StageContext) -> CheckResult:
    """No shard failed every attempt, so that all that follows goes on without it."""
    records = current_records(context, "embeddings")
    problems = [
        Problem(str(shard), record.excluded, f"mend its files, and {context.remedy('embeddings', shard)}")
        for shard, record in records.items()
        if record.excluded
    ]
    measured = {"shards": len(records), "excluded": len(problems)}
    return CheckResult("shards could not be embedded and are excluded", problems, measured)


def files_are_whole(context: StageContext) -> CheckResult:
    """No file ends early; what a setting accepts all the same is reported here."""
    problems, count = [], 0
    records = current_records(context, "embeddings")
    for shard, record in records.items():
        cut = record.details.get("cut_files", [])
        count += len(cut)
        if cut:
            more = f", and {len(cut) - MOST_NAMED} more" * (len(cut) > MOST_NAMED)
            measured = "; ".join(reason for _, reason in cut[:MOST_NAMED]) + more
            problems.append(
                Problem(str(shard), measured, "replace the files: what is missing of them was not embedded")
            )
    measured_all = {"shards": len(records), "cut_files": count}
    return CheckResult("shards have files that end early", problems, measured_all)


def vectors_tell_items_apart(context: StageContext) -> CheckResult:
    """No vector stands for many items of different content."""
    records = current_records(context, "embeddings")
    found: dict[int, list[SharedVector]] = {}
    for record in records.values():
        for shared in record.details.get("shared_vectors", []):
            each = SharedVector(**{**shared, "sketch": tuple(shared["sketch"])})
            found.setdefault(each.vector, []).append(each)
    total = ItemCount.of(records.values()).items
    limit = max(_MANY_CONTENTS, total // _ONE_IN)
    largest = sorted(((*united(each), each[0].example) for each in found.values()), key=lambda each: -each[1])
    suspicious = [each for each in largest if each[1] >= limit][:MOST_NAMED]
    names = item_keys(context, [example for *_, example in suspicious])
    problems = [
        Problem(
            f"{names[example]} and others",
            f"{items:,} items of {contents:,} different contents have one vector",
            "look at them: a decoder or a model that cannot tell them apart makes duplicates of them",
        )
        for items, contents, example in suspicious
    ]
    fault = "vectors stand for many different items"
    return CheckResult(fault, problems, {"items": total, "limit": limit, "largest": largest[0][1] if largest else 0})


def items_and_vectors_agree(context: StageContext) -> CheckResult:
    """Keys and columns were read from as many records as vectors were."""
    items, problems = context.index.records("items"), []
    records = current_records(context, "embeddings")
    for shard, record in records.items():
        read = items.get(Partition(shard=shard.shard))
        same_files = read is not None and read.inputs == record.inputs
        if read is not None and same_files and not (read.excluded or record.excluded):
            found, expected = int(read.details["items"]), int(record.details["records"])
            if found != expected:
                remedy = f"{context.remedy('items', shard)} again, and its embeddings"
                problems.append(Problem(str(shard), f"{found:,} items where {expected:,} records were read", remedy))
    return CheckResult("shards changed between reading items and vectors", problems, {"shards": len(records)})


CHECKS = (
    Check(
        vectors_are_finite_unit,
        "No vector holds a NaN or an infinity, and all are of unit norm (SemDeDup, section 3: cosine similarity).",
    ),
    Check(one_dimension, "All shards, and the centroids in use, have vectors of one dimension."),
    Check(ids_are_unique, "No id is repeated, in a shard or in two."),
    Check(skipped_share, "At most `max_skipped` of the dataset's items are invalid."),
    Check(items_and_vectors_agree, "Keys and columns were read from as many records as vectors were."),
    Check(
        files_are_whole,
        "No file ends early (`cut_files`).",
        blocking=False,
    ),
    Check(
        skipped_share_of_shards,
        "No shard has a greater share of invalid items than `max_skipped`, such as a file of which nothing can be read.",
        blocking=False,
    ),
    Check(
        vectors_tell_items_apart,
        "No vector stands for many items whose bytes differ.",
        blocking=False,
    ),
    Check(
        no_shard_excluded,
        "No shard failed every attempt (`refresh.attempts`) and is excluded.",
        blocking=False,
    ),
)
