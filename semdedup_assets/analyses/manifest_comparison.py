"""Compare manifests: what two of them keep, what changed between them, and why."""

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from semdedup_assets.algorithm.kept_overlap import KeptOverlap
from semdedup_assets.storage.manifests import Manifest, read_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import polars as pl

Identity = Literal["id", "key"]

MOST_EXAMPLES = 20
_BUDGET = 1 << 30
_ROW_BYTES = 512  # of a joined row with its keys, as memory has it


class IncomparableError(ValueError):
    """Manifests cannot be compared; says why, and what to do."""


def comparable_manifest(path: str) -> Manifest:
    """A manifest that lists what it keeps and what it removes.

    Args:
        path: as `read_manifest` takes it.

    Raises:
        FileNotFoundError: there is none.
        IncomparableError: it lacks one of these lists.
    """
    found = read_manifest(path)
    missing = sorted({"parquet", "removed"} - found.details["rows_written"].keys())
    if missing:
        message = (
            f"{found.folder}: it does not hold the format {' and '.join(missing)}; add it to `manifests`, and materialise "
            "the manifest again"
        )
        raise IncomparableError(message)
    return found


@dataclass(frozen=True)
class ComparedManifests:
    """Two manifests, compared.

    Attributes:
        first: one of them.
        second: the other.
        by: how items are identified: `id`, of one dataset; or `key`, of different ones, or where rows have moved.
        counts: items by what becomes of them in the first and in the second: `kept`, `removed` or `absent`.
        reasons: of the items that only one of them keeps, by why the other does not: `removed`, mostly as a duplicate;
            `excluded` with its shard; `skipped`, which could not be embedded or is held out; `absent`, not in its source
            or skipped.
        examples: the first of these items, each with key, reason and, of a removed one, the kept item and the
            similarity for which it was removed.
    """

    first: Manifest
    second: Manifest
    by: Identity
    counts: dict[tuple[str, str], int]
    reasons: dict[str, int]
    examples: list[dict[str, Any]] = field(repr=False)

    @property
    def overlap(self) -> KeptOverlap:
        """Kept by both, by one and by neither; with the intersection."""
        kept = {"first": 0, "second": 0, "both": 0, "neither": 0}
        names = {(True, True): "both", (True, False): "first", (False, True): "second", (False, False): "neither"}
        for (first, second), count in self.counts.items():
            kept[names[first == "kept", second == "kept"]] += count
        return KeptOverlap(kept["both"], kept["first"], kept["second"], kept["neither"])

    @property
    def intersection(self) -> float:
        """I(first, second): the share of what the first keeps that the second keeps too."""
        return self.overlap.intersection

    @property
    def differences(self) -> dict[str, tuple[Any, Any]]:
        """The settings and data in which they differ, by name, in the first and the second."""
        first, second = self.first.made_with, self.second.made_with
        names = [*first, *(name for name in second if name not in first)]
        return {name: (first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)}


def compare_manifests(
    first: str,
    second: str,
    *,
    by: Identity | None = None,
    changed: "Callable[[pl.DataFrame], None] | None" = None,
    budget: int = _BUDGET,
) -> ComparedManifests:
    """Compare two manifests: between epsilons, k, strategies, models, dates, or with a baseline.

    Reads `parquet/` and `removed/` a shard at a time, or where keys identify the items as many of them as fit the budget.

    Args:
        first: folder of a manifest, or of all its versions, of which the current one is meant, or `current.json` there.
        second: the same.
        by: what identifies an item; None: `id` (its shard and row) where both are of one dataset and every id has the
            same key in both, else `key`.
        changed: takes the rows of what only one of them keeps, part by part.
        budget: bytes that the joined rows may take.

    Raises:
        FileNotFoundError: there is no manifest.
        IncomparableError: one lacks the format `parquet` or `removed`, keys identify items and repeat, or ids should and do not.

    Example:
        `compare_manifests("…/k=100/hard/epsilon=0.05/manifests", "…/k=200/hard/epsilon=0.05/manifests").intersection`
    """
    one, other = comparable_manifest(first), comparable_manifest(second)
    identity = _identity(one, other, by)
    parts = _by_shard(one, other) if identity == "id" else _by_key(one, other, budget=budget)
    counts, reasons, examples = Counter[tuple[str, str]](), Counter[str](), list[dict[str, Any]]()
    for shard, left, right in parts:
        joined = _joined(left, right, identity)
        counts.update({(a, b): n for a, b, n in joined.group_by("first", "second").len().iter_rows()})
        rows = _with_reasons(joined, _why_not_there(one, other, shard))
        reasons.update(dict(rows.group_by("reason").len().iter_rows()))
        examples += rows.head(MOST_EXAMPLES - len(examples)).to_dicts()
        if changed is not None:
            changed(rows)
    return ComparedManifests(one, other, identity, dict(counts), dict(reasons), examples)


def _identity(first: Manifest, second: Manifest, by: Identity | None) -> Identity:
    """What identifies an item in both manifests."""
    if by == "key":
        return "key"
    if _ids_agree(first, second):
        return "id"
    if by == "id":
        message = (
            f"{first.folder} and {second.folder}: an id is one item in the first and another in the second, for they are of "
            "two datasets, or rows have moved; compare them by `key`"
        )
        raise IncomparableError(message)
    return "key"


def _ids_agree(first: Manifest, second: Manifest) -> bool:
    """Whether both are of one dataset whose items have not moved: what has one id has one key."""
    if first.made_with["dataset"] != second.made_with["dataset"]:
        return False
    for shard in sorted(set(first.shards) & set(second.shards)):
        joined = first.rows(shard).join(second.rows(shard), on="id")
        if not joined["key"].equals(joined["key_right"]):
            return False
    return True


def _by_shard(first: Manifest, second: Manifest) -> "Iterator[tuple[str | None, pl.DataFrame, pl.DataFrame]]":
    for shard in sorted({*first.shards, *second.shards}):
        yield shard, first.rows(shard), second.rows(shard)


def _by_key(
    first: Manifest, second: Manifest, *, budget: int
) -> "Iterator[tuple[str | None, pl.DataFrame, pl.DataFrame]]":
    """The items whose keys' hashes are the same modulo the number of parts: each part reads all tables."""
    import polars as pl

    rows = max(each.details["kept"] + each.details["removed"] for each in (first, second))
    parts = max(1, -(-rows * _ROW_BYTES // budget))
    for part in range(parts):
        found = []
        for manifest in (first, second):
            chosen = pl.col("key").hash(seed=0) % parts == part
            tables = [manifest.rows(shard).filter(chosen) for shard in manifest.shards]
            found.append(pl.concat(tables) if tables else manifest.rows(""))
            _require_distinct(
                manifest, found[-1], same_dataset=first.made_with["dataset"] == second.made_with["dataset"]
            )
        yield None, found[0], found[1]


def _require_distinct(manifest: Manifest, rows: "pl.DataFrame", *, same_dataset: bool) -> None:
    repeated = rows.filter(rows["key"].is_duplicated())["key"].unique().sort()
    if len(repeated):
        why = "rows have moved in the dataset's shards" if same_dataset else "the manifests are of two datasets"
        message = (
            f"{manifest.folder}: {why}, so that keys identify the items, and {len(repeated):,} of them repeat "
            f"({', '.join(map(repr, repeated.head(3)))}); give the source distinct keys, or compare manifests of one state "
            "of one dataset"
        )
        raise IncomparableError(message)


def _joined(first: "pl.DataFrame", second: "pl.DataFrame", by: Identity) -> "pl.DataFrame":
    """Every item of either, with what becomes of it in both; ids and keys of both."""
    import polars as pl

    def named(rows: "pl.DataFrame", name: str) -> "pl.DataFrame":
        status = pl.when("kept").then(pl.lit("kept")).otherwise(pl.lit("removed"))
        columns = pl.col("id", "key", "kept_key", "similarity")
        return rows.select(pl.col(by).alias("item"), status.alias(name), columns.name.prefix(f"{name}_"))

    joined = named(first, "first").join(named(second, "second"), on="item", how="full", coalesce=True)
    return joined.with_columns(pl.col("first", "second").fill_null("absent"))


def _why_not_there(first: Manifest, second: Manifest, shard: str | None) -> dict[str, str]:
    """Why an item that one of the manifests has is not in the other, by the other's name."""
    same = shard is not None and first.made_with["dataset_fingerprint"] == second.made_with["dataset_fingerprint"]
    found = {}
    for name, manifest in (("first", first), ("second", second)):
        excluded = shard is not None and shard in manifest.made_with["excluded"]
        found[name] = "excluded" if excluded else "skipped" if same else "absent"
    return found


def _with_reasons(joined: "pl.DataFrame", why: dict[str, str]) -> "pl.DataFrame":
    """The items that only one keeps, each with why the other does not."""
    import polars as pl

    def without(name: str) -> "pl.Expr":
        reason = pl.when(pl.col(name) == "removed").then(pl.lit("removed"))
        return reason.otherwise(pl.lit(why[name]))

    changed = joined.filter((pl.col("first") == "kept") != (pl.col("second") == "kept"))
    by_second = pl.col("first") == "kept"
    return changed.select(
        pl.coalesce("first_key", "second_key").alias("key"),
        "first_id",
        "second_id",
        "first",
        "second",
        pl.when(by_second).then(without("second")).otherwise(without("first")).alias("reason"),
        *(
            pl.when(by_second).then(f"second_{name}").otherwise(f"first_{name}").alias(name)
            for name in ("kept_key", "similarity")
        ),
    ).sort("first", "first_id", "second_id", nulls_last=True)
