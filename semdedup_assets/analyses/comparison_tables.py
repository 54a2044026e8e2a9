"""Several manifests compared, pair by pair, as tables and a picture (SemDeDup, sections 6.2, 6.3, A.1)."""

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from semdedup_assets.analyses.manifest_comparison import ComparedManifests, comparable_manifest, compare_manifests
from semdedup_assets.execution.stage import Link, Picture, Rows, Shown
from semdedup_assets.storage.manifests import read_manifest
from semdedup_assets.storage.results import (
    ResultRecord,
    ResultWriter,
    attempting,
    changed_inputs,
    commit,
    fingerprint,
    read_record,
)
from semdedup_assets.storage.tables import TableWriter

if TYPE_CHECKING:
    import polars as pl

OVERLAPS, CHANGED, PICTURE = "overlaps.parquet", "changed.parquet", "intersections.png"

_VERSION = 1
_LABEL_LINE, _LABEL_LINES = 14, 3
_LISTED = 20
_SIDES = ("in first", "in second")


def write_comparison(location: str, manifests: Mapping[str, str], *, budget: int) -> ResultRecord:
    """Compare each two of several manifests, and commit the tables.

    Args:
        location: of the result, without a suffix.
        manifests: by their names in the tables: folder of a manifest, or of all its versions, of which the current
            one is meant.
        budget: bytes that joined rows may take.

    Raises:
        FileNotFoundError: a manifest is missing.
        IncomparableError: one lacks the format `parquet` or `removed`, or keys identify items and repeat.
    """
    # First: what is compared is what the record names, whatever becomes current meanwhile.
    found = {name: comparable_manifest(path) for name, path in manifests.items()}
    compared: dict[tuple[str, str], ComparedManifests] = {}
    with attempting(ResultWriter(location)) as writer:
        with writer.open(CHANGED) as stream, TableWriter(stream) as table:
            for first, second in combinations(found, 2):

                def changed(rows: "pl.DataFrame", first: str = first, second: str = second) -> None:
                    _write_changed(table, rows, first=first, second=second)

                compared[first, second] = compare_manifests(
                    found[first].folder, found[second].folder, changed=changed, budget=budget
                )
        kept = {name: int(manifest.details["kept"]) for name, manifest in found.items()}
        matrix = _matrix(list(found), compared)
        _write_overlaps(writer, compared, matrix)
        writer.details = {
            "kept": kept,
            "intersections": matrix,
            "identified_by": {f"{a} / {b}": each.by for (a, b), each in compared.items()},
            "reasons": [
                {"first": a, "second": b, "reason": reason, "items": count}
                for (a, b), each in compared.items()
                for reason, count in sorted(each.reasons.items())
            ],
            "settings_that_differ": _differences(compared),
            "changed_examples": _examples(compared),
        }
        return commit(
            writer,
            code_version=fingerprint([_VERSION, dict(manifests)])[:16],
            inputs={name: manifest.version for name, manifest in found.items()},
        )


def _write_changed(table: TableWriter, rows: "pl.DataFrame", *, first: str, second: str) -> None:
    """Append what one of two manifests keeps alone."""
    import polars as pl

    statuses = {"first": "in_first", "second": "in_second"}
    names = {"first": pl.lit(first), "second": pl.lit(second)}
    named = rows.rename(statuses).with_columns(**names).select("first", "second", pl.all().exclude("first", "second"))
    table.write_frame(named)


def _matrix(names: list[str], compared: Mapping[tuple[str, str], ComparedManifests]) -> list[list[float]]:
    """I(row, column), of each manifest with itself 1."""
    found = {(name, name): 1.0 for name in names}
    for (first, second), each in compared.items():
        found[first, second], found[second, first] = each.overlap.intersection, each.overlap.reverse_intersection
    return [[found[row, column] for column in names] for row in names]


def _write_overlaps(
    writer: ResultWriter, compared: Mapping[tuple[str, str], ComparedManifests], matrix: list[list[float]]
) -> None:
    """The table of all pairs, and the picture of the matrix."""
    from semdedup_assets.rendering.analysis_plots import IntersectionMatrix, kept_set_intersections

    names = list(dict.fromkeys(name for pair in compared for name in pair))
    rows = [
        {
            "first": first,
            "second": second,
            "kept_by_first": each.overlap.first,
            "kept_by_second": each.overlap.second,
            "both": each.overlap.both,
            "only_first": each.overlap.only_first,
            "only_second": each.overlap.only_second,
            "neither": each.overlap.neither,
            "intersection": each.overlap.intersection,
            "reverse_intersection": each.overlap.reverse_intersection,
            "jaccard": each.overlap.jaccard,
        }
        for (first, second), each in compared.items()
    ]
    with writer.open(OVERLAPS) as stream, TableWriter(stream) as table:
        table.write({name: np.array([row[name] for row in rows]) for name in rows[0]})
    sizes = sorted({size for each in compared.values() for size in (each.overlap.first, each.overlap.second)})
    span = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    shares = IntersectionMatrix(f"{span} kept items", np.array(matrix))
    note = "Share of what the row's manifest keeps that the column's keeps too."
    with writer.open(PICTURE) as stream:
        stream.write(
            kept_set_intersections(names, [shares], note=note, title="Intersections of the compared manifests")
        )


def _differences(compared: Mapping[tuple[str, str], ComparedManifests]) -> list[dict[str, str]]:
    """In which settings and data each two differ, in words."""
    return [
        {"first": first, "second": second, "setting": name, **dict(zip(_SIDES, map(_in_words, values), strict=True))}
        for (first, second), each in compared.items()
        for name, values in each.differences.items()
    ][:_LISTED]


def _in_words(value: Any) -> str:
    """A setting's value as a person reads it."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_in_words(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_in_words, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return "–" if value is None else str(value)


def _examples(compared: Mapping[tuple[str, str], ComparedManifests]) -> list[dict[str, Any]]:
    """Some items that one of two keeps alone, of each two as many."""
    most = max(1, _LISTED // len(compared))
    return [
        {
            "kept by": first if row["first"] == "kept" else second,
            "not by": second if row["first"] == "kept" else first,
            "item": row["key"],
            "reason": row["reason"],
            "duplicate of": row["kept_key"] or "",
            "similarity": "" if row["similarity"] is None else f"{row['similarity']:.4f}",
        }
        for (first, second), each in compared.items()
        for row in each.examples[:most]
    ]


def shown_comparison(record: ResultRecord) -> dict[str, Shown]:
    """What a person sees of a comparison: the matrix, as a picture and as a table, and where all that changed is."""
    names = list(record.details["kept"])
    matrix = [
        {"I(row, column)": name, **{other: f"{value:.3f}" for other, value in zip(names, values, strict=True)}}
        for name, values in zip(names, record.details["intersections"], strict=True)
    ]
    return {
        "intersections": Picture(record.file(PICTURE).content(), "Intersections of kept sets"),
        "matrix": Rows(matrix),
        "all_that_changed": Link(record.file(CHANGED).path),
        "overlaps": Link(record.file(OVERLAPS).path),
    }


def changed_since(location: str, manifests: Mapping[str, str]) -> dict[str, tuple[str, str]] | None:
    """Which manifests were made again since they were compared.

    Args:
        location: of the comparison.
        manifests: as they are to be compared now.

    Returns:
        By name, the version that was compared and the one that is there now; None where there is no comparison.
    """
    record = read_record(location)
    if record is None:
        return None
    now = {}
    for name, path in manifests.items():
        try:
            now[name] = read_manifest(path).version
        except FileNotFoundError:
            now[name] = "missing"
    return changed_inputs(record, now)
