"""Write the sets of held-out texts that models are evaluated on: as they are, without duplicates, novel, and unseen groups."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from semdedup_assets.checks.counting import current_records
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.held_out import HoldOut, hold_out
from semdedup_assets.execution.item_lookup import columns_version, item_keys
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.progress import Progress
from semdedup_assets.execution.stage import EVALUATE, Check, CheckResult, Picture, Problem, Rows, Shown, Stage, Worker
from semdedup_assets.kept_sets import Selection
from semdedup_assets.records import content_bytes
from semdedup_assets.rendering.held_out_plots import SplitSimilarity, similarity_to_training
from semdedup_assets.settings import Pipeline
from semdedup_assets.stages.embeddings import CONTENTS, VECTORS, model_settings
from semdedup_assets.storage.results import ResultRecord, ResultWriter, StoredFile, fingerprint
from semdedup_assets.storage.vectors import read_vectors
from semdedup_assets.training.held_out_texts import HeldOutChoice, HeldOutText
from semdedup_assets.training_settings import HeldOut

if TYPE_CHECKING:
    from torch import Tensor

PICTURE = "similarity.png"

_TITLE = "Held-out texts, by similarity to the nearest training item"
# Of fewer items bits per byte mostly say which they are.
_FEWEST = 30
_LISTED = 20
# What lies within this of the greatest counts as equal, and the earliest wins, as within one comparison.
_TIE = np.float32(1e-6)


def set_files(record: ResultRecord) -> dict[str, StoredFile]:
    """The JSON lines of each set that has an item, by its name; each line has `key`, `text`, `similarity` and `nearest`.

    Args:
        record: of the held-out sets.
    """
    return {row["set"]: record.file(_file(row["set"])) for row in record.details["sets"] if row["items"]}


def texts_version(file: StoredFile) -> str:
    """What changes when a text of a set does, whatever training item is the nearest to it.

    Args:
        file: JSON lines of a set.

    Raises:
        DamagedResultError: it is missing, or holds other bytes than were written.
    """
    lines = (json.loads(line) for line in file.content().splitlines())
    return fingerprint([[line["key"], line["text"]] for line in lines])


def _file(name: str) -> str:
    return f"{name}.jsonl"


def _worker(context: StageContext) -> Worker:
    model: Any = context.pipeline.encoder.load(context.compute)
    return lambda partition: write_sets(context, partition, model=model)


def write_sets(context: StageContext, partition: Partition, *, model: Any) -> ResultRecord:
    """Write the sets of held-out texts, each text with its most similar training item.

    At most `held_out.evaluated` texts of each split are read, embedded and held; training vectors pass by a part at a
    time. Time grows with these texts times the training items.

    Args:
        context: of the pipeline.
        partition: the only one.
        model: what the pipeline's encoder loaded.

    Raises:
        MissingResultError: items or embeddings are missing, or of other settings; names what to materialise.
        SourceChangedError: a file, or what it holds, is not what was there when the shards were read.
    """
    with context.writing("held_out_sets", partition) as result:
        choice = HeldOutChoice(context, _hold_out(context.pipeline))
        with usage.phase("read"):
            texts = list(choice.texts())
        with usage.phase("embed"):
            embedded = _Embedded.of(context, texts, model)
        with usage.phase("compare"):
            found = _Compared.of(context, embedded)
        details = _write(context, result, found)
        result.details = {
            "items": len(embedded.texts),
            "held_out": sum(choice.counts.values()),
            **{f"held_out_{split}": count for split, count in choice.counts.items()},
            "unreadable": choice.unreadable,
            "skipped": len(embedded.skipped),
            "skipped_examples": embedded.skipped[:_LISTED],
            "training_items": found.training_items,
            **details,
        }
    return result.committed


@dataclass(frozen=True)
class _Embedded:
    """Held-out texts with their vectors.

    Attributes:
        texts: n, by id.
        vectors: (n, d) unit rows, rounded as those of the training items are.
        skipped: key and reason of those that cannot be embedded.
    """

    texts: list[HeldOutText]
    vectors: np.ndarray
    skipped: list[list[str]]

    @classmethod
    def of(cls, context: StageContext, texts: list[HeldOutText], model: Any) -> "_Embedded":
        """Embed texts as the pipeline's items are."""
        rows, vectors, skipped = list[int](), list[np.ndarray](), list[list[str]]()
        for batch in model.embed(text.record for text in texts) if texts else ():
            rows += batch.rows.tolist()
            vectors.append(batch.vectors.astype(context.pipeline.vectors))
            skipped += [[item.key, item.reason] for item in batch.skipped]
        together = np.concatenate(vectors) if rows else np.zeros((0, 1), context.pipeline.vectors)
        return cls([texts[row] for row in rows], together, skipped)


@dataclass(frozen=True)
class _Compared:
    """Held-out texts with what is most similar to them.

    Attributes:
        texts: n, by id.
        similarity: (n,) float32, the greatest to a training item; -inf where there is none.
        nearest: (n,) uint64, id of that training item, the first of equals.
        is_random: (n,) bool, which are of the random split; the others are of held-out groups.
        distinct: (n,) bool, of the random split: no earlier text of the split that is distinct itself is within epsilon.
        training_items: that they were compared with.
        epsilon: of the settings.
    """

    texts: list[HeldOutText]
    similarity: np.ndarray
    nearest: np.ndarray
    is_random: np.ndarray
    distinct: np.ndarray
    training_items: int
    epsilon: float

    @classmethod
    def of(cls, context: StageContext, embedded: _Embedded) -> "_Compared":
        """Compare held-out texts with all training items, and with each other."""
        from semdedup_assets.algorithm.unit_rows import as_tensor

        epsilon = _hold_out(context.pipeline).settings.epsilon
        queries = as_tensor(embedded.vectors).to(context.compute.torch_device)
        similarity, nearest, items = _nearest_training_items(context, queries)
        is_random = np.array([text.split == "random" for text in embedded.texts], dtype=bool)
        distinct = np.zeros(len(embedded.texts), dtype=bool)
        distinct[is_random] = _distinct(context, queries[as_tensor(is_random).to(queries.device)], epsilon)
        return cls(embedded.texts, similarity, nearest, is_random, distinct, items, epsilon)

    def sets(self, settings: HeldOut) -> dict[str, np.ndarray]:
        """(m,) int64 positions of the texts of each set that the settings ask for."""
        from semdedup_assets.algorithm.selection import keep_mask

        found = {}
        if settings.share:
            novel = self.is_random & keep_mask(self.similarity, self.epsilon)
            found = {"random": self.is_random, "dedup": self.distinct, "novel": novel}
        if settings.groups is not None:
            found["unseen"] = ~self.is_random
        return {name: np.flatnonzero(chosen) for name, chosen in found.items()}


def _nearest_training_items(context: StageContext, queries: "Tensor") -> tuple[np.ndarray, np.ndarray, int]:
    """Of each query the greatest similarity to a training item, (n,) float32, its id, (n,) uint64; and their number."""
    from semdedup_assets.algorithm.similarity import greatest_similarity
    from semdedup_assets.algorithm.unit_rows import as_tensor

    similarity, nearest = np.full(len(queries), -np.inf, np.float32), np.zeros(len(queries), np.uint64)
    records, items = context.index.require_all("embeddings").values(), 0
    with Progress("held_out_sets", total=len(records), unit="shards") as progress:
        for record in records:
            for part in read_vectors(record.file(VECTORS)) if len(queries) else ():
                vectors = as_tensor(part.vectors).to(queries.device)
                found = greatest_similarity(queries, vectors, budget=context.compute.budget)
                better = found.similarity > similarity + _TIE
                similarity[better] = found.similarity[better]
                nearest[better] = part.ids[found.position[better]]
            items += int(record.details["items"])
            progress.advance()
    return similarity, nearest, items


def _distinct(context: StageContext, vectors: "Tensor", epsilon: float) -> np.ndarray:
    """(n,) bool: which rows have no earlier row within epsilon that is distinct itself."""
    from semdedup_assets.algorithm.selection import greedy_keep_mask
    from semdedup_assets.algorithm.similarity import max_earlier_similarity

    if len(vectors) == 0:
        return np.zeros(0, dtype=bool)
    earlier = max_earlier_similarity(vectors, budget=context.compute.budget)
    return greedy_keep_mask(vectors, earlier, epsilon, budget=context.compute.budget)


def _write(context: StageContext, result: ResultWriter, found: _Compared) -> dict[str, Any]:
    """Write the sets and the picture; returns the sets' table for the details."""
    sets = found.sets(_hold_out(context.pipeline).settings)
    has_any = np.isfinite(found.similarity)
    keys = item_keys(context, np.unique(found.nearest[has_any]).tolist())
    for name, chosen in sets.items():
        with usage.phase("write"), result.open(_file(name)) as stream:
            for line in _lines(found, chosen, keys):
                stream.write(line)
    with usage.phase("draw"), result.open(PICTURE) as stream:
        stream.write(_picture(context, found))
    return {"sets": [_row(name, chosen, found) for name, chosen in sets.items()]}


def _lines(found: _Compared, chosen: np.ndarray, keys: dict[int, str]) -> Iterator[bytes]:
    for at in chosen.tolist():
        record, similarity = found.texts[at].record, float(found.similarity[at])
        compared = np.isfinite(similarity)
        line = {
            "key": record.key,
            "text": record.payload,
            "similarity": round(similarity, 6) if compared else None,
            "nearest": keys[int(found.nearest[at])] if compared else None,
        }
        yield json.dumps(line).encode() + b"\n"


def _row(name: str, chosen: np.ndarray, found: _Compared) -> dict[str, Any]:
    """Items, bytes in UTF-8, and share of the split of a set."""
    payloads = (found.texts[at].record.payload for at in chosen.tolist())
    size = sum(len(content_bytes(payload)) for payload in payloads if isinstance(payload, str))
    split = int((~found.is_random if name == "unseen" else found.is_random).sum())
    return {"set": name, "items": len(chosen), "bytes": size, "share": len(chosen) / split if split else None}


def _picture(context: StageContext, found: _Compared) -> bytes:
    pipeline, splits = context.pipeline, list[SplitSimilarity]()
    for name, chosen in (("random split", found.is_random), ("unseen groups", ~found.is_random)):
        similarity = found.similarity[chosen & np.isfinite(found.similarity)]
        if len(similarity):
            splits.append(SplitSimilarity(f"{name}: {len(similarity):,} texts", similarity))
    note = f"{pipeline.dataset}/{pipeline.model_name}: {found.training_items:,} training items"
    return similarity_to_training(splits, epsilon=found.epsilon, title=_TITLE, note=note)


def _hold_out(pipeline: Pipeline) -> HoldOut:
    found = hold_out(pipeline)
    if found is None:
        message = "held_out: nothing is held out, so there are no sets; set it, such as `held_out: {share: 0.05}`"
        raise ValueError(message)
    return found


def sets_are_large_enough(context: StageContext) -> CheckResult:
    """Each set has so many items that a metric of it says something of the model."""
    problems, measured = list[Problem](), {"fewest": _FEWEST}
    for record in current_records(context, "held_out_sets").values():
        for row in record.details["sets"]:
            measured[row["set"]] = row["items"]
            if row["items"] < _FEWEST:
                problems.append(Problem(row["set"], f"{row['items']:,} items", _more(row["set"])))
    return CheckResult(f"sets have fewer than {_FEWEST} items", problems, measured, certain=False)


def _more(name: str) -> str:
    if name == "unseen":
        return "raise `held_out.groups.share`"
    lower = "raise `held_out.share`, or lower `held_out.epsilon`, within which another item is a near duplicate"
    return "raise `held_out.share`" if name == "random" else lower


def groups_are_held_out(context: StageContext) -> CheckResult:
    """Where whole groups are to be held out, at least one is, and some stay."""
    measured, wanted = dict[str, int](), _hold_out(context.pipeline).column is not None
    for record in current_records(context, "held_out_sets").values() if wanted else ():
        measured = {name: record.details[name] for name in ("held_out_groups", "training_items")}
    remedy = "set another `held_out.seed` or `held_out.groups.share`, or a column of more values"
    problems = [Problem("unseen", f"{name}: 0 items", remedy) for name, items in measured.items() if items == 0]
    return CheckResult("columns hold out no group, or all of them", problems, measured, certain=False)


def _shown(_: StageContext, __: Partition, record: ResultRecord) -> dict[str, Shown]:
    rows = [{**row, "share": "–" if row["share"] is None else f"{row['share']:.1%}"} for row in record.details["sets"]]
    return {"similarity": Picture(record.file(PICTURE).content(), _TITLE), "sets": Rows(rows)}


def _settings(context: StageContext) -> dict[str, Any]:
    held_out = _hold_out(context.pipeline).settings.model_dump(mode="json")
    return {"held_out": held_out, **model_settings(context.pipeline)}


def _input_version(context: StageContext, name: str, record: ResultRecord) -> str:
    """Of items the keys and the groups; of embeddings the vectors, and the contents, also those of held-out items."""
    if name == "items":
        column = _hold_out(context.pipeline).column
        return columns_version(record, ("key", column) if column else ("key",))
    return fingerprint([record.version, record.files[CONTENTS].checksum])


def _applies(pipeline: Pipeline, _: Selection) -> bool:
    return pipeline.held_out is not None and pipeline.source.content == "text"


STAGE = Stage(
    name="held_out_sets",
    step=EVALUATE,
    description="The `held_out` texts that models are evaluated on, as JSON lines: `random`, those held out at random; "
    "`dedup`, these without near duplicates of each other; `novel`, those of which no training item is a near duplicate; "
    "`unseen`, whole groups. Each text with its similarity to the nearest training item. Near duplicates are more similar "
    "than 1 - `held_out.epsilon`.",
    dimensions=(),
    inputs=("items", "embeddings"),
    input_version=_input_version,
    settings=_settings,
    location=lambda layout, _, __: layout.held_out_sets,
    worker=_worker,
    kinds=frozenset({"torch", "matplotlib"}),
    checks=(
        Check(sets_are_large_enough, f"Each set has at least {_FEWEST} items.", blocking=False),
        Check(groups_are_held_out, "Where groups are to be held out, some are, and some stay.", blocking=False),
    ),
    shown=_shown,
    on_demand=True,
    applies=_applies,
    unit="sets",
)
