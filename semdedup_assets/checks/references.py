"""What must hold of references: that they were read, and that they are the files that there are now."""

from collections import Counter

from semdedup_assets.checks.counting import MOST_NAMED, current_records
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.reference_files import files_fingerprint
from semdedup_assets.execution.stage import Check, CheckResult, Problem


def reference_items_embedded(context: StageContext) -> CheckResult:
    """At most `max_skipped` of any reference's items could not be embedded, and no file of it ends early."""
    limit, problems, counted = context.pipeline.max_skipped, [], Counter[str]()
    for record in current_records(context, "reference_embeddings").values():
        for found in record.details["references"]:
            counted += Counter({"items": found["items"], "skipped": found["skipped"]})
            share = (found["skipped"] - found["expected_missing"]) / max(1, found["records"])
            if found["items"] == 0:
                problems.append(Problem(found["reference"], "no item could be embedded", "mend its files"))
            elif share > limit:
                measured = f"{share:.2%} of its items are invalid: {record.details['skipped_examples'][:3]}"
                problems.append(Problem(found["reference"], measured, "mend its files, or raise `max_skipped`"))
        for path, reason in record.details["cut_files"][:MOST_NAMED]:
            problems.append(Problem(path, reason, "replace the file: what is missing of it was not embedded"))
    return CheckResult("references could not be read as a whole", problems, {"limit": limit, **counted})


def reference_files_unchanged(context: StageContext) -> CheckResult:
    """The references have the files that were embedded."""
    fault = "references have other files than were embedded"
    remedy = f"start a refresh, or {context.remedy('reference_embeddings')} with `again`"
    problems, known = [], dict[str, str]()
    for record in current_records(context, "reference_embeddings").values():
        known |= record.details["fingerprints"]
    for name, reference in sorted(context.pipeline.references.items()):
        if name not in known:
            continue
        try:
            if files_fingerprint(reference.source.files()) != known[name]:
                problems.append(Problem(name, "its files were changed, or others came or vanished", remedy))
        except (OSError, ValueError) as error:
            problems.append(Problem(name, f"its files cannot be listed: {error}", "bring them back, or mend the path"))
    return CheckResult(fault, problems, {"references": len(known)}, certain=False)


def no_leaks(context: StageContext) -> CheckResult:
    """No training item lies within epsilon of an item of a reference that removes none."""
    problems, measured = [], dict[str, int]()
    for partition, record in current_records(context, "reference_leaks").items():
        for found in record.details["references"]:
            name, count = found["reference"], int(found["training_items"])
            measured[name] = max(count, measured.get(name, 0))
            if count and not found["removes"]:
                pairs = "; ".join(record.details["examples"][name])
                what = (
                    f"{count:,} training items lie within {found['epsilon']:g} of {found['reference_items']:,} items of "
                    f"{name}: {pairs}"
                )
                remedy = f"look at the page; `references.{name}.remove: true` removes them from every kept set"
                problems.append(Problem(f"{partition}, {name}", what, remedy))
    return CheckResult("training items are near to what a reference holds", problems, measured, certain=False)


CHECKS = (
    Check(
        reference_items_embedded,
        "At most `max_skipped` of any reference's items are invalid, and no file of it ends early: what is not embedded "
        "is not searched for.",
        blocking=False,
    ),
    Check(
        reference_files_unchanged,
        "The references' files are the ones that were embedded; refreshes list them anew.",
        blocking=False,
        alone=True,
    ),
)
