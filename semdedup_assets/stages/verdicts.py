"""Whether what is stored is right, by what the stages measured while they had it in hand.

A verdict is on all partitions that are there, whichever run made them. Results of other settings, or of inputs that
have changed since, are outdated and not wrong: only `made_from_current` looks at those.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from semdedup_assets.algorithm.sampling import FEWEST_PER_CLUSTER
from semdedup_assets.encoders import Precomputed
from semdedup_assets.records import id_shards
from semdedup_assets.stages.stored_recipes import StoredRecipes, Tally, common_version
from semdedup_assets.stages.work import Work
from semdedup_assets.storage.files import exists
from semdedup_assets.storage.layout import Layout, recipe_path
from semdedup_assets.storage.results import MissingResultError, Recipe
from semdedup_assets.storage.tables import read_tables
from semdedup_assets.storage.vectors import read_columns

# Rounding to float16 moves each number by at most 2**-11 of itself, and so the norm by at most 5e-4; to float32 by
# 6e-8, and the norms are sums over the dimension. Beyond four times the first, a vector was never of unit norm.
_NORM_ERROR = {"float16": 2e-3, "float32": 1e-5}

# The paper's 307,000 flags of the European Union were one of 50,000 clusters of 440 million images: 35 times the
# average. Clusters of k-means on varied data seldom exceed ten times.
_LARGEST_TO_AVERAGE = 25
_LARGE_CLUSTER = 1_000

# Rows of masks that are compared item by item in one evaluation: about a second.
_MASK_ROWS = 5_000_000

_WORST = 5

# Of an object store each look is a wait and no work.
_READERS = 16

_Columns = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Problem:
    """A partition that is not as it should be.

    Attributes:
        partition: as Dagster spells it, or several in words.
        measured: what is wrong with it.
        cure: what to do.
    """

    partition: str
    measured: str
    cure: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found.

    Attributes:
        fault: what the partitions do that fail, as in "2 of the dataset's <fault>".
        problems: one a failing partition.
        measured: numbers that plot over time, and what explains them.
        certain: whether a problem means that something is wrong, not only that it is unusual.
    """

    fault: str
    problems: list[Problem]
    measured: dict[str, Any] = field(default_factory=dict)
    certain: bool = True


def vectors_are_finite_unit(stored: StoredRecipes) -> Verdict:
    """No NaN, no infinity, unit norm up to the rounding of the stored type."""
    work, recipes = stored.work, stored.current_embeddings
    limit, problems = _NORM_ERROR[work.pipeline.vectors], []
    encoder = work.pipeline.encoder
    ready = isinstance(encoder, Precomputed) and not encoder.normalise
    for shard, recipe in recipes.items():
        broken, error = recipe.details["not_finite"], recipe.details["norm_error"]
        if broken or error > limit:
            cure = "set encoder.normalise" if ready else f"{work.cure('embeddings', shard)} anew"
            problems.append(Problem(shard, f"{broken} vectors not finite, norms up to {error:.2g} off", cure))
    measured = {
        "vectors": Tally.of(recipes.values()).items,
        "not_finite": sum(recipe.details["not_finite"] for recipe in recipes.values()),
        "norm_error": max((recipe.details["norm_error"] for recipe in recipes.values()), default=0.0),
        "norm_error_limit": limit,
    }
    return Verdict("shards have vectors that are not finite or not of unit norm", problems, measured)


def one_dimension(stored: StoredRecipes) -> Verdict:
    """All shards with an item have one dimension, and the centroids that are in use have it too."""
    work = stored.work
    widths = {
        shard: int(recipe.details["dimension"])
        for shard, recipe in stored.current_embeddings.items()
        if recipe.details["items"]
    }
    sample = stored.sample
    fitted = {
        f"centroids {k}": int(recipe.details["dimension"])
        for k, recipe in stored.centroids.items()
        if sample is not None and recipe.made_from["training_sample"] == sample.version
    }
    both = [*fitted.values(), *widths.values()]
    # The centroids decide, for all shards are held against them; before there are any, the most shards.
    expected = next(iter(fitted.values()), max(both, key=both.count, default=0))
    problems = [
        Problem(name, f"{width} numbers where {expected} should be", _width_cure(work, name))
        for name, width in {**widths, **fitted}.items()
        if width != expected
    ]
    return Verdict("shards and centroids have another dimension than the others", problems, {"dimension": expected})


def _width_cure(work: Work, name: str) -> str:
    if name.startswith("centroids "):
        return work.cure("centroids", name.removeprefix("centroids "))
    return f"{work.cure('embeddings', name)} anew, or mend its files; encoder.dimension makes such vectors broken items"


def ids_are_unique(stored: StoredRecipes) -> Verdict:
    """No id twice in a shard, and no two shards with the same ids."""
    work, problems, owners = stored.work, [], dict[int, str]()
    for shard, recipe in stored.current_embeddings.items():
        details, cure = recipe.details, f"{work.cure('embeddings', shard)} anew"
        if details["repeated_ids"]:
            problems.append(Problem(shard, f"{details['repeated_ids']:,} ids twice or out of order", cure))
        checksum = details.get("id_checksum")
        if checksum is not None and details["items"]:
            first = owners.setdefault(int(checksum), shard)
            if first != shard:
                problems.append(Problem(shard, f"the same ids as {first}", cure))
    return Verdict("shards have ids twice", problems, {"items": Tally.of(stored.current_embeddings.values()).items})


def skipped_share(stored: StoredRecipes) -> Verdict:
    """No more than a settable share of any shard's items is broken."""
    limit, problems, shares = stored.work.pipeline.max_skipped, [], dict[str, float]()
    recipes = stored.current_embeddings
    for shard, recipe in recipes.items():
        share = recipe.details["skipped"] / max(1, recipe.details["records"])
        if share > limit:
            shares[shard] = share
            measured = f"{share:.2%}: {recipe.details['skipped_examples'][:3]}"
            problems.append(Problem(shard, measured, "mend the files, or raise `max_skipped`"))
    skipped = sum(int(recipe.details["skipped"]) for recipe in recipes.values())
    worst = dict(sorted(shares.items(), key=lambda pair: -pair[1])[: 10 * _WORST])
    measures = {"limit": limit, "skipped": skipped, "shards_above": worst}
    return Verdict(f"shards have more than {limit:.2%} broken items", problems, measures)


def no_shard_left_out(stored: StoredRecipes) -> Verdict:
    """No shard failed every attempt, so that all that follows goes on without it."""
    work = stored.work
    problems = [
        Problem(shard, str(recipe.details["left_out"]), f"mend its files, and {work.cure('embeddings', shard)}")
        for shard, recipe in stored.current_embeddings.items()
        if recipe.details.get("left_out")
    ]
    measured = {"shards": len(stored.current_embeddings), "left_out": len(problems)}
    return Verdict("shards could not be embedded and are left out", problems, measured)


def no_empty_clusters(stored: StoredRecipes) -> Verdict:
    """Every cluster has a vector of the sample."""
    problems = [
        Problem(k, f"{recipe.details['empty_clusters']:,} of {recipe.details['k']:,} clusters", "choose a smaller k")
        for k, recipe in stored.centroids.items()
        if recipe.details["empty_clusters"]
    ]
    measured = {f"k={k} empty": int(recipe.details["empty_clusters"]) for k, recipe in stored.centroids.items()}
    return Verdict("centroids have clusters that no sampled vector is nearest to", problems, measured)


def sample_is_large_enough(stored: StoredRecipes) -> Verdict:
    """Enough sampled vectors a cluster to place its centroid, as far as there are items."""
    cure = f"raise training_sample.size or per_cluster, and materialise {_asset(stored.work, 'training_sample')} with `refit`"
    problems = []
    for k, recipe in stored.centroids.items():
        sampled, items = recipe.details["sample_per_cluster"], recipe.details["items_per_cluster"]
        if sampled < min(FEWEST_PER_CLUSTER, items):
            problems.append(Problem(k, f"{sampled:.1f} sampled vectors a cluster of {items:,.1f} items", cure))
    measured = {f"k={k} sampled": recipe.details["sample_per_cluster"] for k, recipe in stored.centroids.items()}
    return Verdict(f"centroids were fitted to fewer than {FEWEST_PER_CLUSTER} vectors a cluster", problems, measured)


def every_item_in_one_cluster(stored: StoredRecipes) -> Verdict:
    """Each assigned shard holds the items that were embedded, each once."""
    work, problems, items, outdated = stored.work, [], 0, 0
    for k, recipes in stored.assignments.items():
        for shard, recipe in recipes.items():
            embedded = stored.embeddings.get(shard)
            if embedded is None or recipe.made_from["embeddings"] != embedded.version:
                outdated += 1
                continue
            difference = Tally.of([recipe]).difference(Tally.of([embedded]))
            items += recipe.details["items"]
            if difference:
                cure = f"{work.cure('assignments', f'{k}|{shard}')} anew"
                problems.append(Problem(f"{k}|{shard}", difference, cure))
    measured = {"items": items, "outdated_partitions": outdated}
    return Verdict("assigned shards do not hold the items that were embedded", problems, measured)


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
        worst = sorted(self.means.items(), key=lambda pair: pair[1])[:_WORST]
        return {
            f"k={k} sample": self.baseline,
            f"k={k} new": self.mean,
            f"k={k} drift": self.loss,
            f"k={k} new_shards": len(self.means),
            f"k={k} worst_shards": dict(worst),
        }


def similarity_has_not_drifted(stored: StoredRecipes) -> Verdict:
    """What was embedded since the sample was drawn is about as near to the centroids as the sample was."""
    limit, problems, measured = stored.work.pipeline.refresh.max_drift, [], dict[str, Any]()
    asset = _asset(stored.work, "training_sample")
    cure = f"launch {asset} with `refit`, or the job whose name ends in __refit: centroids and all below follow"
    for k in stored.assignments:
        drift = _drift(stored, k)
        if drift is None:
            measured[f"k={k}"] = "no shard was embedded since the training sample was drawn"
            continue
        measured |= drift.measured(k)
        if drift.loss > limit:
            text = (
                f"mean similarity {drift.mean:.3f} in {len(drift.means)} new shards, {drift.baseline:.3f} in the sample"
            )
            problems.append(Problem(k, text, cure))
    return Verdict(
        f"centroids have lost more than {limit:g} of mean similarity to new items",
        problems,
        {"limit": limit, **measured},
    )


def _drift(stored: StoredRecipes, k: str) -> _Drift | None:
    """None where no shard is newer than the sample, or it is not known which are."""
    sample, centroids = stored.sample, stored.centroids.get(k)
    if sample is None or centroids is None or centroids.made_from["training_sample"] != sample.version:
        return None
    sampled = sample.details.get("sampled_shards")
    new = {
        shard: recipe.details
        for shard, recipe in stored.assignments[k].items()
        if sampled is not None
        and recipe.made_from["centroids"] == centroids.version
        and recipe.made_from["embeddings"] != sampled.get(shard)
        and recipe.details["items"]
    }
    if not new:
        return None
    means = {shard: float(details["similarity_to_centroid_mean"]) for shard, details in new.items()}
    items = {shard: int(details["items"]) for shard, details in new.items()}
    return _Drift(float(centroids.details["objective"][-1]), means, items)


def every_item_scored_once(stored: StoredRecipes) -> Verdict:
    """The buckets of each k hold the items that were assigned, each once."""
    work, problems, measured = stored.work, [], dict[str, Any]()
    for k, scores in stored.scores.items():
        if not _complete(stored, k):
            measured[f"k={k}"] = "not all buckets are scored from the assignments there are now"
            continue
        found, assigned = Tally.of(scores.values()), Tally.of(stored.assignments[k].values())
        measured[f"k={k} items"] = found.items
        difference = found.difference(assigned)
        if difference:
            problems.append(Problem(f"all buckets of k={k}", difference, f"{work.cure('duplicate_scores')} anew"))
    return Verdict("numbers of clusters have scores of other items than were assigned", problems, measured)


def _complete(stored: StoredRecipes, k: str) -> bool:
    assigned, scores = stored.assignments[k], stored.scores[k]
    if len(scores) < len(stored.work.buckets) or len(assigned) < len(stored.shards):
        return False
    version = common_version(assigned)
    return all(recipe.made_from["assignments"] == version for recipe in scores.values())


def largest_cluster(stored: StoredRecipes) -> Verdict:
    """No cluster is far larger than the average one."""
    problems, measured = [], dict[str, Any]()
    for k, scores in stored.scores.items():
        known = {bucket: recipe for bucket, recipe in scores.items() if recipe.details.get("largest_cluster")}
        if not known or k not in stored.centroids:
            continue
        bucket = max(known, key=lambda name: known[name].details["largest_cluster"]["items"])
        largest = known[bucket].details["largest_cluster"]
        # Of all clusters: many copies of one item leave clusters empty, which would hide it in the average.
        average = Tally.of(scores.values()).items / int(stored.centroids[k].details["k"])
        ratio = largest["items"] / average
        measured |= {f"k={k} largest": largest["items"], f"k={k} average": average, f"k={k} ratio": ratio}
        if largest["items"] > _LARGE_CLUSTER and ratio > _LARGEST_TO_AVERAGE:
            text = (
                f"cluster {largest['cluster']}: {largest['items']:,} items, {ratio:,.0f} times the average; nearest to "
                f"its centroid: {_key(stored, largest['item'])}"
            )
            cure = "look at it: copies of one thing are removed as duplicates, a broken decoder or placeholder is not"
            problems.append(Problem(f"{bucket}|{k}", text, cure))
    return Verdict(f"buckets have a cluster of more than {_LARGEST_TO_AVERAGE} times the average", problems, measured)


def _key(stored: StoredRecipes, item: int) -> str:
    """The key of an item, or its id where its shard no longer has it."""
    index = int(id_shards(np.array([item], dtype=np.uint64))[0])
    names = [shard.name for shard in stored.shards if shard.index == index and shard.name in stored.embeddings]
    for name in names:
        for batch in read_columns(stored.work.layout.embeddings(name), ["id", "key"]):
            place = np.flatnonzero(batch.column("id").to_numpy() == item)
            if len(place):
                return f"{batch.column('key')[int(place[0])]} ({name})"
    return f"item {item}"


def masks_are_monotone(stored: StoredRecipes) -> Verdict:
    """A higher epsilon keeps no item that a lower one removes."""
    pairs = list(_neighbouring_masks(stored))
    problems = [problem for pair in pairs if (problem := _rises(stored.work, pair))]
    compared, returned = _compare_masks(stored.work, pairs)
    problems += returned
    greedy = stored.work.pipeline.selection.rule == "greedy"
    measured = {"pairs_of_masks": len(pairs), "rows_compared": compared}
    # What the greedy rule keeps at a higher epsilon may be what suppressed nothing at a lower one.
    return Verdict("keep masks keep items that a lower epsilon removes", problems, measured, certain=not greedy)


@dataclass(frozen=True, slots=True)
class _MaskPair:
    """Masks of one k from the same scores, at an epsilon and at the next higher one."""

    k: str
    lower: str
    higher: str
    kept: tuple[int, int]
    version: str

    def problem(self, work: Work, measured: str) -> Problem:
        partition = f"{self.higher}|{self.k}"
        cure = f"{work.cure('keep_masks', partition)} anew, and {self.lower}|{self.k}"
        return Problem(partition, f"{measured}, against {self.lower}", cure)


def _neighbouring_masks(stored: StoredRecipes) -> Iterator[_MaskPair]:
    for k, masks in stored.masks.items():
        order = sorted(masks, key=lambda epsilon: float(masks[epsilon].details["epsilon"]))
        alike: dict[tuple[str, str], list[str]] = {}
        for epsilon in order:
            recipe = masks[epsilon]
            alike.setdefault((recipe.made_from["duplicate_scores"], recipe.code_version), []).append(epsilon)
        for group in alike.values():
            for lower, higher in pairwise(group):
                kept = int(masks[lower].details["kept"]), int(masks[higher].details["kept"])
                yield _MaskPair(k, lower, higher, kept, masks[higher].version)


def _rises(work: Work, pair: _MaskPair) -> Problem | None:
    lower, higher = pair.kept
    return pair.problem(work, f"{higher:,} items kept, not at most {lower:,}") if higher > lower else None


def _compare_masks(work: Work, pairs: list[_MaskPair]) -> tuple[int, list[Problem]]:
    """Compare stored masks item by item, as far as the bound on rows allows; returns how many rows were compared."""
    rows, returned = 0, dict[_MaskPair, int]()
    for pair, low, high in _mask_pieces(work, pairs):
        rows += len(low["id"])
        same = np.array_equal(low["id"], high["id"])
        count = int((high["kept"] & ~low["kept"]).sum()) if same else len(high["id"])
        returned[pair] = returned.get(pair, 0) + count
        if rows >= _MASK_ROWS:
            break
    problems = [
        pair.problem(work, f"{count:,} items kept that are removed") for pair, count in returned.items() if count
    ]
    return rows, problems


def _mask_pieces(work: Work, pairs: list[_MaskPair]) -> Iterator[tuple[_MaskPair, _Columns, _Columns]]:
    """Rows of the masks of each pair, bucket after bucket."""
    # Other buckets come first whenever masks are made anew, so that in time all are looked at.
    start = int(pairs[0].version[:8], 16) if pairs else 0
    for turn in range(len(work.buckets)):
        bucket = work.buckets[(start + turn) % len(work.buckets)]
        for pair in pairs:
            lower, higher = (work.layout.mask(pair.k, epsilon, bucket) for epsilon in (pair.lower, pair.higher))
            pieces = (read_tables(path, ["id", "kept"]) for path in (lower, higher))
            for low, high in zip(*pieces, strict=False):
                yield pair, low, high


def every_cluster_keeps_one(stored: StoredRecipes) -> Verdict:
    """The first item of each cluster is kept."""
    work, problems, clusters = stored.work, [], 0
    for k, masks in stored.masks.items():
        for epsilon, recipe in masks.items():
            without = recipe.details.get("clusters_without_kept", 0)
            clusters += recipe.details["clusters"]
            if without:
                partition = f"{epsilon}|{k}"
                cure = f"{work.cure('duplicate_scores')} anew, then keep_masks {partition}"
                problems.append(Problem(partition, f"{without:,} clusters of {recipe.details['clusters']:,}", cure))
    return Verdict("keep masks keep nothing of a cluster", problems, {"clusters": clusters})


def every_item_masked_once(stored: StoredRecipes) -> Verdict:
    """The masks hold the items that were scored, each once."""
    work, problems, items, outdated = stored.work, [], 0, 0
    for k, masks in stored.masks.items():
        scored, version = Tally.of(stored.scores[k].values()), common_version(stored.scores[k])
        for epsilon, recipe in masks.items():
            if recipe.made_from["duplicate_scores"] != version:
                outdated += 1
                continue
            items += recipe.details["items"]
            difference = Tally.of([recipe]).difference(scored)
            if difference:
                partition = f"{epsilon}|{k}"
                problems.append(Problem(partition, difference, f"{work.cure('keep_masks', partition)} anew"))
    measured = {"items": items, "outdated_partitions": outdated}
    return Verdict("keep masks hold other items than were scored", problems, measured)


def counts_are_conserved(stored: StoredRecipes) -> Verdict:
    """Every record of the source is kept, removed or skipped, and what is kept was written."""
    work, problems = stored.work, []
    complete = len(stored.embeddings) == len(stored.shards)
    version = common_version(stored.embeddings) if complete else None
    records, skipped = (
        sum(int(r.details[name]) for r in stored.embeddings.values()) for name in ("records", "skipped")
    )
    for k, manifests in stored.manifests.items():
        for epsilon, recipe in manifests.items():
            wrong = list(_miscounts(recipe.details))
            if recipe.made_from["embeddings"] == version:
                source = {"records": records, "skipped": skipped, **_masked(stored, recipe, k, epsilon)}
                wrong += _differences(recipe.details, source)
            if wrong:
                folder = work.layout.manifest(k, epsilon, recipe.details["manifest"])
                cure = f"remove {folder}, and {work.cure('manifests', f'{epsilon}|{k}')}"
                problems.append(Problem(f"{epsilon}|{k}", "; ".join(wrong), cure))
    count = sum(len(manifests) for manifests in stored.manifests.values())
    measured = {"manifests": count, "records": records, "skipped": skipped}
    return Verdict("manifests do not add up to their source", problems, measured)


def _miscounts(details: dict[str, Any]) -> Iterator[str]:
    total = details["kept"] + details["removed"] + details["skipped"]
    if total != details["records"]:
        yield f"kept, removed and skipped are {total:,}, records {details['records']:,}"
    for kind, rows in details.get("rows_written", {}).items():
        if rows != details["kept"]:
            yield f"{rows:,} rows in {kind}, {details['kept']:,} kept"


def _masked(stored: StoredRecipes, manifest: Recipe, k: str, epsilon: str) -> dict[str, int]:
    masks = stored.masks[k].get(epsilon)
    current = masks is not None and manifest.made_from["keep_masks"] == masks.version
    return {name: int(masks.details[name]) for name in ("kept", "removed")} if masks is not None and current else {}


def _differences(details: dict[str, Any], expected: dict[str, int]) -> list[str]:
    return [
        f"{details[name]:,} {name} where {count:,} should be"
        for name, count in expected.items()
        if details[name] != count
    ]


def made_from_current(work: Work, stage: str) -> Verdict:
    """Whether what is there of a stage was made from what is there now of the stages before it.

    Partitions that were never made are no fault: Dagster shows them as missing. Nor can it be told while a result
    before them is missing: that is one.

    Args:
        work: the pipeline at work.
        stage: `assignments`, `duplicate_scores`, `keep_masks`, `manifests`, `figures` or `galleries`.
    """
    from semdedup_assets.stages.outdated import outdated_partitions

    fault = f"{stage} were made from other results or settings than there are now"
    made = _made(work, stage)
    if not made:
        return Verdict(fault, [], {"made": 0})
    try:
        outdated = {str(partition) for partition in outdated_partitions(work, stage)}
    except MissingResultError as error:
        problem = Problem("all", f"it cannot be told: {error}", "materialise what is missing")
        return Verdict(fault, [problem], {"made": len(made)}, certain=False)
    problems = [
        Problem(partition, "outdated", work.cure(stage, partition)) for partition in made if partition in outdated
    ]
    return Verdict(fault, problems, {"made": len(made), "outdated": len(problems)}, certain=False)


def _made(work: Work, stage: str) -> list[str]:
    """The partitions that are there, whatever they were made from."""
    partitions = _partitions(work, stage)
    with ThreadPoolExecutor(_READERS) as pool:
        there = pool.map(lambda partition: exists(_marker(work.layout, stage, partition)), partitions)
        return [partition for partition, is_there in zip(partitions, there, strict=True) if is_there]


def _partitions(work: Work, stage: str) -> list[str]:
    pipeline = work.pipeline
    ks = pipeline.clustering.k
    if stage == "figures":
        return list(ks)
    if stage == "assignments":
        return [f"{k}|{shard.name}" for k in ks for shard in work.catalogue().shards]
    others = work.buckets if stage == "duplicate_scores" else pipeline.epsilons
    return [f"{other}|{k}" for k in ks for other in others]


def _marker(layout: Layout, stage: str, partition: str) -> str:
    """The file that completes a result."""
    first, _, second = partition.partition("|")
    places: dict[str, Callable[[], str]] = {
        "assignments": lambda: recipe_path(layout.assignments(first, second)),
        "duplicate_scores": lambda: recipe_path(layout.scores(second, first)),
        "keep_masks": lambda: recipe_path(layout.masks(second, first)),
        "manifests": lambda: layout.current_manifest(second, first),
        "figures": lambda: recipe_path(layout.figures(first)),
        "galleries": lambda: recipe_path(layout.gallery(second, first)),
    }
    return places[stage]()


def _asset(work: Work, stage: str) -> str:
    return f"{work.pipeline.dataset}/{work.pipeline.model_name}/{stage}"
