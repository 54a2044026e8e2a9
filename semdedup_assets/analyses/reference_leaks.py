"""Name the training items that lie within epsilon of a reference's items, and show the pairs."""

from typing import TYPE_CHECKING, Any

import numpy as np

from semdedup_assets.analyses.galleries import PAGE, page_input_version, shown_page, write_page
from semdedup_assets.checks.references import no_leaks
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.item_lookup import item_texts
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import ANALYSE, Check, Column, Link, Shown, Stage, Worker
from semdedup_assets.settings import Reference
from semdedup_assets.stages.reference_embeddings import has_references, reference_keys
from semdedup_assets.stages.reference_matches import EPSILONS, match_files
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.tables import TableWriter, read_arrow

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

    from semdedup_assets.rendering.gallery import Gallery, Group, Section

LEAKS = "leaks.parquet"
"""The table, in the record."""

_NAMED = 3


def _worker(context: StageContext) -> Worker:
    return lambda partition: list_leaks(context, partition)


def list_leaks(context: StageContext, partition: Partition) -> ResultRecord:
    """List the training items within epsilon of the references, with keys, and draw the pairs of some of them.

    Args:
        context: of the pipeline.
        partition: a clustering.

    Raises:
        MissingResultError: matches or items are missing, or are made from other inputs than there are now.
    """
    with context.writing("reference_leaks", partition) as result:
        matches = context.index.require_consistent("reference_matches", partition)[partition]
        (references,) = context.index.require_consistent("reference_embeddings").values()
        with usage.phase("join"):
            table = _leaks(context, matches, references)
        with usage.phase("write"), result.open(LEAKS) as stream, TableWriter(stream) as writer:
            writer.write_frame(table.drop("reference_id"))
        gallery = _gallery(context, partition, table, references)
        with usage.phase("draw"):
            parts = write_page(gallery, result)
        result.details = {
            "items": int(table["id"].n_unique()),
            "exact": matches.details["exact"],
            "references": [
                _counts(name, reference, table) for name, reference in sorted(context.pipeline.references.items())
            ],
            "examples": {name: _examples(table, name) for name in context.pipeline.references},
            **gallery.details(),
            "page": PAGE,
            "parts": parts,
        }
    return result.committed


def _leaks(context: StageContext, matches: ResultRecord, references: ResultRecord) -> "pl.DataFrame":
    """All matches with both keys, by reference and falling similarity."""
    import polars as pl

    found = pl.concat([pl.DataFrame(part) for file in match_files(matches) for part in read_arrow(file)])
    ids = found["id"].unique().sort().to_numpy()
    context.index.require_all("items")
    keys = item_texts(context, ids)
    names = reference_keys(references, found["reference_id"].unique().to_numpy())
    reference_names = pl.DataFrame(
        {"reference_id": list(names), "reference_key": list(names.values())},
        schema={"reference_id": pl.UInt64, "reference_key": pl.String},
    )
    return (
        found.with_columns(pl.col("reference").cast(pl.String))
        .join(keys, on="id", how="left")
        .join(reference_names, on="reference_id", how="left")
        .sort("reference", "similarity", "id", descending=[False, True, False])
        .select("reference", "reference_key", "id", "key", "similarity", "reference_id")
    )


def _counts(name: str, reference: Reference, table: "pl.DataFrame") -> dict[str, Any]:
    """What the record says of one reference; bands beyond its epsilon are not searched, and not told."""
    import polars as pl

    own = table.filter(pl.col("reference") == name)
    similarity = own["similarity"].cast(pl.Float64)
    bands = {
        f"within {epsilon:g}": int((similarity > 1.0 - epsilon).sum()) if epsilon <= reference.epsilon else None
        for epsilon in EPSILONS
    }
    return {
        "reference": name,
        "epsilon": reference.epsilon,
        "removes": reference.remove,
        "training_items": len(own),
        "reference_items": int(own["reference_id"].n_unique()),
        **bands,
    }


def _examples(table: "pl.DataFrame", name: str) -> list[str]:
    import polars as pl

    rows = table.filter(pl.col("reference") == name).head(_NAMED).iter_rows(named=True)
    return [f"{row['key']} ~ {row['reference_key']} ({row['similarity']:.4f})" for row in rows]


def _gallery(context: StageContext, partition: Partition, table: "pl.DataFrame", references: ResultRecord) -> "Gallery":
    """Reference items with the training items near them: as many as `galleries` says, of each reference."""
    from semdedup_assets.analyses.gallery_items import read_cards
    from semdedup_assets.analyses.reference_cards import read_reference_cards
    from semdedup_assets.rendering.gallery import Gallery

    pipeline = context.pipeline
    with usage.phase("choose"):
        sections = tuple(_sections(context, table))
    with usage.phase("read"):
        shown = list(dict.fromkeys(item.id for section in sections for item in section.items()))
        cards = read_cards(context, [item for item in shown if not is_reference(item)]).by_id
        cards |= read_reference_cards(context, references, [item for item in shown if is_reference(item)])
    facts = {"clustering": partition.required_clustering.label, "training items found": f"{table['id'].n_unique():,}"}
    title = f"Training items of {pipeline.dataset} near the references ({pipeline.model_name})"
    return Gallery(title, facts, sections, cards, pipeline.source.content)


_REFERENCE = 1 << 63


def is_reference(card: int) -> bool:
    """Whether a card of the page is that of a reference's item: training items' ids fit 63 bits."""
    return card >= _REFERENCE


def _sections(context: StageContext, table: "pl.DataFrame") -> "Iterator[Section]":
    import polars as pl

    from semdedup_assets.rendering.gallery import Section

    for name, reference in sorted(context.pipeline.references.items()):
        own = table.filter(pl.col("reference") == name)
        queries = own["reference_id"].unique(maintain_order=True)
        groups = min(context.pipeline.galleries.groups, len(queries))
        chosen = (
            queries.gather(np.linspace(0, len(queries) - 1, groups).round().astype(np.int64)) if groups else queries
        )
        epsilon = f"ε = {reference.epsilon:g}"
        fate = (
            "removed from every kept set" if reference.remove else "not removed (“remove: true” in its settings would)"
        )
        note = (
            f"{len(own):,} training items lie within {epsilon} of {len(queries):,} of its items; they are {fate}. Each is "
            "shown beside the reference's item that is most similar to it. Reference items are taken evenly from the one "
            "with the most similar training item to the one with the least: the last show whether ε is too high."
        )
        yield Section(
            f"reference_{name}",
            f"Reference {name}",
            note,
            tuple(_group(own.filter(pl.col("reference_id") == query), context, reference) for query in chosen),
            query_label="reference",
            item_label="training item",
        )


def _group(rows: "pl.DataFrame", context: StageContext, reference: Reference) -> "Group":
    from semdedup_assets.rendering.gallery import Group, Row, RowItem

    shown = rows.head(context.pipeline.galleries.items)
    items = tuple(
        RowItem(item, kept=not reference.remove, similarity=similarity)
        for item, similarity in shown.select("id", "similarity").iter_rows()
    )
    query = RowItem(int(rows["reference_id"][0]) | _REFERENCE, kept=True)
    title = f"{len(rows):,} training item{'s' * (len(rows) != 1)}, most similar {rows['similarity'][0]:.4f}"
    return Group(title, query, (Row("training items", "", items, len(rows)),))


def _shown(context: StageContext, partition: Partition, record: ResultRecord) -> dict[str, Shown]:
    return {**shown_page(context, partition, record), "table": Link(record.file(LEAKS).path)}


STAGE = Stage(
    name="reference_leaks",
    step=ANALYSE,
    description="The training items within epsilon of an item of a `references` entry, such as an evaluation set: each with "
    "the most similar one as a table, counts by epsilon, and a page that shows pairs. Beyond the paper.",
    dimensions=("k",),
    inputs=("reference_matches", "reference_embeddings", "items"),
    input_version=page_input_version,
    settings=lambda context: {
        "remove": sorted(name for name, each in context.pipeline.references.items() if each.remove),
        "galleries": context.pipeline.galleries.model_dump(include={"groups", "items", "mib"}),
    },
    location=lambda layout, partition, _: layout.of_clustering(partition.required_clustering, "reference_leaks"),
    worker=_worker,
    applies=lambda pipeline, _: has_references(pipeline),
    kinds=frozenset({"polars", "parquet", "html"}),
    columns=lambda _: (
        Column("reference", "string", "Name of the reference."),
        Column("reference_key", "string", "The own name of its most similar item."),
        Column("id", "uint64", "The training item: shard (32 bits) and row in the shard (32 bits)."),
        Column("key", "string", "Its own name; null where the source no longer has it."),
        Column("similarity", "float32", "Cosine similarity of the two."),
    ),
    checks=(
        Check(
            no_leaks,
            "No training item lies within epsilon of an item of a reference that does not remove such items.",
            blocking=False,
        ),
    ),
    shown=_shown,
    pool="cpu",
    unit="clusterings",
)
