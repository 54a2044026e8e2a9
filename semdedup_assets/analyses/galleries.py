"""Draw what was found: the largest groups of duplicates, items with their neighbours, a cluster before and after."""

import json
from typing import TYPE_CHECKING

from semdedup_assets.analyses.gallery_items import cards_version
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Link, Picture, Rows, Shown, Stage, Worker
from semdedup_assets.kept_sets import KeptSet
from semdedup_assets.stages.cluster_batches import AssignedClusterings, AssignedClusters
from semdedup_assets.stages.duplicate_scores import repaired_input
from semdedup_assets.storage.results import ResultRecord, ResultWriter

if TYPE_CHECKING:
    from semdedup_assets.rendering.gallery import Gallery

PAGE = "index.html"
"""The page, in the record of a gallery."""


def _worker(context: StageContext) -> Worker:
    clusterings = AssignedClusterings(context)
    return lambda partition: draw_gallery(context, partition, assigned=clusterings[partition.required_clustering])


def draw_gallery(context: StageContext, partition: Partition, *, assigned: AssignedClusters) -> ResultRecord:
    """Draw the gallery of one kept set: a page, and a small picture or table of each of its sections.

    Args:
        context: of the pipeline and the selection.
        partition: a kept set.
        assigned: the clusters, whose vectors give the neighbours of items.

    Raises:
        MissingResultError: masks, scores or items are missing, or are made from other inputs than there are now.
    """
    from semdedup_assets.analyses.gallery_items import read_cards
    from semdedup_assets.analyses.gallery_sections import SelectedClusters, choose_sections
    from semdedup_assets.rendering.gallery import Gallery

    pipeline = context.pipeline
    with context.writing("galleries", partition) as result:
        masks = context.index.require_consistent("keep_masks", partition)[partition]
        with usage.phase("choose"):
            sections = choose_sections(SelectedClusters.of(assigned, masks), pipeline.galleries)
        with usage.phase("read"):
            cards = read_cards(context, [item.id for section in sections for item in section.items()])
        facts = _facts(partition.kept_set(context.selection), masks)
        title = f"Duplicates in {pipeline.dataset} ({pipeline.model_name})"
        with usage.phase("draw"):
            parts = write_page(Gallery(title, facts, sections, cards.by_id, pipeline.source.content), result)
        result.details = {
            "page": PAGE,
            "parts": parts,
            "groups": {section.name: len(section.groups) for section in sections},
            **cards.details(),
        }
    return result.committed


def _facts(kept_set: KeptSet, masks: ResultRecord) -> dict[str, str]:
    """What the page says above its sections."""
    details, target = masks.details, kept_set.target
    epsilon = f" (ε = {details['epsilon']:.6g})" if target.epsilon is None else ""
    return {
        "clustering": kept_set.clustering.label,
        "selection": kept_set.selection.label,
        "target": f"{target.label}{epsilon}",
        "clusters with items": f"{details['clusters']:,}",
        "items": f"{details['items']:,}",
        "kept": f"{details['kept']:,}",
        "removed": f"{details['removed']:,}",
        "orphans among them": f"{details['orphans']:,}",
    }


def write_page(gallery: "Gallery", result: ResultWriter) -> dict[str, str]:
    """Write the page, and each section as a small picture or table.

    Args:
        gallery: what the page shows.
        result: takes the files.

    Returns:
        The name of each section's file.
    """
    from semdedup_assets.rendering.contact_sheet import section_picture
    from semdedup_assets.rendering.gallery import gallery_page, section_table

    has_images = gallery.content == "image"
    parts = {section.name: f"{section.name}.{'png' if has_images else 'json'}" for section in gallery.sections}
    with result.open(PAGE) as stream:
        stream.write(gallery_page(gallery))
    for section in gallery.sections:
        with result.open(parts[section.name]) as stream:
            if has_images:
                stream.write(section_picture(section, cards=gallery.cards))
            else:
                stream.write(json.dumps(section_table(gallery, section), indent=1).encode())
    return parts


def shown_page(_: StageContext, __: Partition, record: ResultRecord) -> dict[str, Shown]:
    """The page of a record as a link, and its sections as pictures or tables."""
    shown: dict[str, Shown] = {"gallery": Link(record.file(PAGE).path)}
    for name, file in record.details["parts"].items():
        content = record.file(file).content()
        if file.endswith(".png"):
            shown[name] = Picture(content, name)
        elif rows := json.loads(content):
            shown[name] = Rows(rows, brief=True)
    return shown


def page_input_version(context: StageContext, name: str, record: ResultRecord) -> str:
    """For `Stage.input_version`: of the items only what a page shows counts."""
    return record.version if name != "items" else cards_version(context, record)


STAGE = Stage(
    name="galleries",
    step="4-select",
    description="Items to look at: the largest groups of duplicates, neighbours at rising epsilon (SemDeDup, Fig. 2, "
    "A9), and a cluster before and after (Fig. A10, A11). One page that needs no network, and small pictures or tables.",
    dimensions=("epsilon", "k"),
    # Similarities are those of the scores: other vectors may leave every mask as it is.
    inputs=("duplicate_scores", "keep_masks", "items"),
    optional_inputs=repaired_input,
    input_version=page_input_version,
    # Not the pipeline's epsilons: another one leaves this gallery as it is.
    settings=lambda context: context.pipeline.galleries.model_dump(),
    location=lambda layout, partition, selection: layout.of_kept_set(partition.kept_set(selection), "gallery"),
    worker=_worker,
    kinds=frozenset({"html"}),
    shown=shown_page,
    selected=True,
    pool="cpu",
    unit="galleries",
)
