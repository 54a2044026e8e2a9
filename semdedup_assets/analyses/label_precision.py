"""Compute from labels that persons gave how many removed items are duplicates, and which epsilon fits a wanted share."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from semdedup_assets.algorithm.label_precision import (
    BandLabels,
    Precision,
    band_precision,
    cumulative_precision,
    epsilon_for_precision,
)
from semdedup_assets.analyses.pair_labels import PairLabels, PairVotes, labels_version
from semdedup_assets.analyses.pruned_pairs import PAIRS, band_counts
from semdedup_assets.checks.counting import current_records
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import (
    ANALYSE,
    Check,
    CheckResult,
    Column,
    Picture,
    Problem,
    Rows,
    Shown,
    Stage,
    Worker,
)
from semdedup_assets.kept_sets import Selection
from semdedup_assets.rendering import plots
from semdedup_assets.settings import Pipeline
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.tables import read_table, write_table

TABLE, DISAGREEMENTS, PICTURE = "precision.parquet", "disagreements.parquet", "precision.png"
"""The files of a kept set's precision, in its record."""

_TITLE = "Duplicates among removed items, by band of epsilon"
_LISTED = 20


def _worker(context: StageContext) -> Worker:
    return lambda partition: measure_precision(context, partition)


def measure_precision(context: StageContext, partition: Partition) -> ResultRecord:
    """Measure the precision of what one kept set removes, from labels (SemDeDup, section 4.3, looks at pairs).

    Args:
        context: of the pipeline and the selection.
        partition: a kept set.

    Raises:
        MissingResultError: the pairs are missing, or are made from other inputs than there are now.
        FileNotFoundError: there are no labels where `analyses.labels` says.
    """
    analyses, pipeline = context.pipeline.analyses, context.pipeline
    with context.writing("label_precision", partition) as result:
        pairs = context.index.require_consistent("pruned_pairs", partition)[partition]
        labels = PairLabels.read(str(analyses.labels), dataset=pipeline.dataset)
        measured = _Measured.of(pairs, labels)
        subject = f"{pipeline.dataset}/{pipeline.model_name}, {partition.kept_set(context.selection).label}"
        with usage.phase("draw"), result.open(PICTURE) as stream:
            stream.write(measured.picture(subject, wanted=analyses.precision, persons=len(labels.persons)))
        with result.open(TABLE) as stream:
            write_table(stream, measured.table())
        with result.open(DISAGREEMENTS) as stream:
            write_table(stream, measured.disagreements())
        result.details = {
            "label_files": labels.files,
            "files_of_other_datasets": labels.other_datasets,
            "invalid_label_files": [
                dict(zip(("file", "reason", "remedy"), each, strict=True)) for each in labels.invalid
            ],
            "persons": sorted(labels.persons)[:_LISTED],
            **measured.details(wanted=analyses.precision),
        }
    return result.committed


@dataclass(frozen=True)
class _Measured:
    """What the labels say of one kept set's bands.

    Attributes:
        bands: name, limits, pairs and pairs of equal bytes of each band; the last is that of orphans.
        pairs: (m,) band, id and kept_id of the pairs that could be labelled, by column.
        votes: of each of them; None where nobody labelled it.
        labels: counts by band.
        of_other_pairs: labels of pairs that these are not.
    """

    bands: dict[str, np.ndarray]
    pairs: dict[str, np.ndarray]
    votes: list[PairVotes | None]
    labels: BandLabels
    of_other_pairs: int

    @classmethod
    def of(cls, record: ResultRecord, labels: PairLabels) -> "_Measured":
        """Look the votes of the shown pairs up, and count them."""
        bands = band_counts(record)
        pairs = read_table(record.file(PAIRS), ["id", "kept_id", "band", "contents", "similarity", "shown"])
        shown = pairs.pop("shown").astype(bool)
        pairs = {name: values[shown] for name, values in pairs.items()}
        keys = zip(*(pairs[name].tolist() for name in ("id", "kept_id", "contents")), strict=True)
        votes = [labels.votes.get(key) for key in keys]
        found = sum(vote is not None for vote in votes)
        said = np.array([vote.label if vote else "" for vote in votes], dtype=object)
        duplicates, different = (
            _by_band(bands["band"], pairs["band"][said == label]) for label in ("duplicate", "different")
        )
        counted = BandLabels(bands["pairs"], bands["same_bytes"], duplicates + different, duplicates)
        return cls(bands, pairs, votes, counted, len(labels.votes) - found)

    @property
    def precision(self) -> Precision:
        """In each band."""
        return band_precision(self.labels)

    @property
    def cumulative(self) -> Precision:
        """In each band and those before it."""
        return cumulative_precision(self.labels, self.precision)

    def _count(self, chosen: list[bool]) -> np.ndarray:
        return _by_band(self.bands["band"], self.pairs["band"][np.array(chosen, dtype=bool)])

    def table(self) -> dict[str, np.ndarray]:
        """By band: counts, precision and cumulative precision with their intervals."""
        columns: dict[str, np.ndarray] = {
            **self.bands,
            "labelled": self.labels.labelled,
            "duplicates": self.labels.duplicates,
            "unsure": self._count([vote is not None and vote.label == "unsure" for vote in self.votes]),
            "disagreements": self._count([vote is not None and vote.disagrees for vote in self.votes]),
        }
        for name, found in (("precision", self.precision), ("cumulative", self.cumulative)):
            values = {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
            columns |= {column: np.ma.masked_invalid(value) for column, value in values.items()}
        return columns

    def disagreements(self) -> dict[str, np.ndarray]:
        """The pairs that one person calls a duplicate and another does not."""
        rows = [index for index, vote in enumerate(self.votes) if vote is not None and vote.disagrees]
        said = [", ".join(sorted(vote.by_person.values())) for vote in self.votes if vote and vote.disagrees]
        return {**{name: values[rows] for name, values in self.pairs.items()}, "labels": np.array(said, dtype=object)}

    def details(self, *, wanted: float) -> dict[str, Any]:
        """Precision of all that is removed, and the epsilon for the wanted one: by the value, and by its low end."""
        within = slice(0, len(self.bands["band"]) - 1)
        edges, precision = self.bands["high"][within], self.precision
        labels = BandLabels(*(values[within] for values in asdict(self.labels).values()))
        found = epsilon_for_precision(edges, labels, precision.value[within], wanted=wanted)
        certain = epsilon_for_precision(edges, labels, precision.low[within], wanted=wanted)
        value, low, high = (_number(each[-1]) for each in asdict(self.cumulative).values())
        return {
            "labelled_pairs": int(self.labels.labelled.sum()),
            "labels_of_other_pairs": self.of_other_pairs,
            "disagreements": sum(vote is not None and vote.disagrees for vote in self.votes),
            "precision": value,
            "precision_low": low,
            "precision_high": high,
            "wanted_precision": wanted,
            "epsilon_for_precision": found.epsilon,
            "epsilon_ends_by": found.ends,
            "epsilon_for_certain_precision": certain.epsilon,
            "by_band": self._rows(),
        }

    def _rows(self) -> list[dict[str, Any]]:
        table = self.table()
        names = ("band", "pairs", "same_bytes", "labelled", "duplicates", "unsure", "precision", "precision_low")
        rows = zip(*(table[name].tolist() for name in (*names, "precision_high", "cumulative")), strict=True)
        found = [dict(zip((*names, "precision_high", "cumulative"), row, strict=True)) for row in rows]
        return [row for row in found if row["pairs"]]

    def picture(self, subject: str, *, wanted: float, persons: int) -> bytes:
        """The precision by band, with 95 % intervals."""
        filled = np.flatnonzero(self.bands["pairs"])
        share, cumulative = (
            np.stack(list(asdict(each).values()))[:, filled] for each in (self.precision, self.cumulative)
        )
        shares = plots.BandShares(self.bands["band"][filled].tolist(), share, cumulative, wanted)
        labelled = (
            f"{int(self.labels.labelled.sum()):,} pairs labelled by {persons} person{'s' if persons != 1 else ''}"
        )
        return plots.precision_by_band(shares, title=_TITLE, note=f"{subject}: {labelled}, 95 % intervals (Wilson)")


def _by_band(names: np.ndarray, band: np.ndarray) -> np.ndarray:
    counts: np.ndarray = (names[:, None] == band[None, :]).sum(axis=1, dtype=np.int64)
    return counts


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def precision_is_enough(context: StageContext) -> CheckResult:
    """Of what is removed, as many items are duplicates as the settings want."""
    wanted, problems, measured = context.pipeline.analyses.precision, list[Problem](), dict[str, float]()
    for partition, record in current_records(context, "label_precision").items():
        details, value = record.details, record.details["precision"]
        if value is None:
            continue
        measured[f"precision {partition}"] = value
        if value < wanted:
            interval = f"{details['precision_low']:.1%} to {details['precision_high']:.1%}"
            problems.append(
                Problem(
                    str(partition),
                    f"{value:.1%} of the removed items are duplicates ({interval}), {wanted:.1%} are wanted",
                    _remedy(details),
                )
            )
    fault = "kept sets remove too many items that are no duplicates"
    return CheckResult(fault, problems, measured, certain=False)


def _remedy(details: dict[str, Any]) -> str:
    if details["epsilon_ends_by"] == "bands":
        return "pairs within epsilon are precise enough, orphans are not: `selection.rule: greedy` removes none"
    epsilon = details["epsilon_for_precision"]
    return f"remove less: epsilon {epsilon:.3g} has the wanted precision; or change `analyses.precision`"


def label_files_are_valid(context: StageContext) -> CheckResult:
    """Each file of labels could be read."""
    problems = [
        Problem(str(partition), f"{file['file']}: {file['reason']}", file["remedy"])
        for partition, record in current_records(context, "label_precision").items()
        for file in record.details["invalid_label_files"]
    ]
    return CheckResult("kept sets have label files that cannot be used", problems, {}, certain=False)


def _shown(_: StageContext, __: Partition, record: ResultRecord) -> dict[str, Shown]:
    return {
        "precision by band": Picture(record.file(PICTURE).content(), _TITLE),
        "by_band": Rows([_in_words(row) for row in record.details["by_band"]]),
    }


def _in_words(row: dict[str, Any]) -> dict[str, Any]:
    """A band with its precision and interval in one column."""
    counted = {name: row[name] for name in ("band", "pairs", "same_bytes", "labelled", "duplicates")}
    interval = "" if row["precision"] is None else f" ({row['precision_low']:.0%} to {row['precision_high']:.0%})"
    return {
        **counted,
        "precision": f"{_percent(row['precision'])}{interval}",
        "up to it": _percent(row["cumulative"]),
    }


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _settings(context: StageContext) -> dict[str, Any]:
    """Of the labels their content: a new file makes the result stale."""
    analyses = context.pipeline.analyses
    version = labels_version(analyses.labels) if analyses.labels else None
    return {"labels": version, "precision": analyses.precision}


def _applies(pipeline: Pipeline, _: Selection) -> bool:
    return pipeline.analyses.labels is not None and pipeline.source.content != "vector"


STAGE = Stage(
    name="label_precision",
    step=ANALYSE,
    description="Which share of the removed items are duplicates, from the labels that persons gave to a sample of pairs "
    "on the page of `pruned_pairs`: by band of epsilon with 95 % intervals, up to each, and the epsilon for a wanted "
    "share. There where `analyses.labels` names the labels.",
    dimensions=("epsilon", "k"),
    inputs=("pruned_pairs",),
    settings=_settings,
    location=lambda layout, partition, selection: layout.of_kept_set(partition.kept_set(selection), "label_precision"),
    worker=_worker,
    kinds=frozenset({"matplotlib", "parquet"}),
    columns=lambda _: (
        Column("band", "string", "Of epsilon, 1 - similarity to the nearest kept item; the last is that of orphans."),
        Column("low", "float64", "Where it begins."),
        Column("high", "float64", "Where it ends."),
        Column("pairs", "int64", "Removed items in it."),
        Column("same_bytes", "int64", "Those whose kept item is equal byte by byte: duplicates without a label."),
        Column("labelled", "int64", "Pairs of other bytes that most persons call a duplicate, or not."),
        Column("duplicates", "int64", "Duplicates among these."),
        Column("unsure", "int64", "Pairs that were labelled without a result."),
        Column("disagreements", "int64", "Pairs that one person calls a duplicate and another does not."),
        Column("precision", "float64", "Share of duplicates in the band; null where none was labelled."),
        Column("precision_low", "float64", "Low end of its 95 % interval."),
        Column("precision_high", "float64", "High end of its 95 % interval."),
        Column("cumulative", "float64", "Share of duplicates in this band and those before it."),
        Column("cumulative_low", "float64", "Low end of its 95 % interval."),
        Column("cumulative_high", "float64", "High end of its 95 % interval."),
    ),
    checks=(
        Check(
            precision_is_enough, "As many removed items are duplicates as `analyses.precision` wants.", blocking=False
        ),
        Check(label_files_are_valid, "Each file of labels can be used.", blocking=False),
    ),
    shown=_shown,
    selected=True,
    on_demand=True,
    applies=_applies,
    pool="cpu",
    unit="kept sets",
)
