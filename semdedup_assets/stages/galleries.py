"""Draw what was found: the largest groups of duplicates, items with their neighbours, a cluster before and after."""

import json
from typing import Any

from semdedup_assets.figures.contact_sheet import gallery_picture
from semdedup_assets.figures.gallery import Gallery, gallery_page, gallery_rows
from semdedup_assets.stages.duplicate_scores import AssignedShards
from semdedup_assets.stages.gallery_choice import chosen_sections
from semdedup_assets.stages.gallery_items import Exhibits, read_exhibits
from semdedup_assets.stages.manifests import checked_masks
from semdedup_assets.stages.work import Work
from semdedup_assets.storage.results import Recipe, ResultWriter, fingerprint

PAGE = "index.html"


def draw_gallery(work: Work, epsilon: str, *, assigned: AssignedShards) -> Recipe:
    """Draw the gallery of one k and epsilon: a page, and a small picture or table of each of its three parts.

    Args:
        work: the pipeline at work.
        epsilon: as the partition spells it: `0.05` or `keep=50%`.
        assigned: the assignments of one k, whose vectors give the seeds' neighbours.

    Returns:
        The gallery's recipe: how much is shown, and the names of its files.

    Raises:
        MissingResultError: the masks are missing, or were made from other embeddings than there are now.
    """
    work.measures.restart()
    k = assigned.k
    embeddings = {shard.name: work.embeddings(shard.name) for shard in work.shards()}
    masks = checked_masks(work, epsilon, assigned, embeddings)
    made_from = {
        "keep_masks": masks.version,
        "embeddings": fingerprint({name: recipe.version for name, recipe in embeddings.items()}),
    }
    with work.measures.phase("choose"):
        sections = chosen_sections(work, epsilon, assigned=assigned, masks=masks)
    with work.measures.phase("read"):
        ids = [place.item for section in sections for place in section.items()]
        exhibits = read_exhibits(work, embeddings, ids)
    title = f"Duplicates in {work.pipeline.dataset} ({work.pipeline.model_name})"
    gallery = Gallery(title, _facts(k, epsilon, masks), sections, exhibits.by_id, work.pipeline.source.content)
    with work.writing("galleries", work.layout.gallery(k, epsilon), made_from=made_from) as result:
        with work.measures.phase("draw"):
            parts = _write(work, gallery, result, (k, epsilon))
        result.details = _details(gallery, exhibits, parts)
    return result.recipe()


def _facts(k: str, epsilon: str, masks: Recipe) -> dict[str, str]:
    details = masks.details
    number = f" (ε = {details['epsilon']:.6g})" if epsilon.startswith("keep=") else ""
    return {
        "k": k,
        "clusters with items": f"{details['clusters']:,}",
        "ε": f"{epsilon}{number}",
        "items": f"{details['items']:,}",
        "kept": f"{details['kept']:,}",
        "removed": f"{details['removed']:,}",
        "of these by chain": f"{details['orphans']:,}",
    }


def _write(work: Work, gallery: Gallery, result: ResultWriter, partition: tuple[str, str]) -> dict[str, str]:
    """Write the page and its parts in small; returns the name of each part's file."""
    suffix = "png" if gallery.content == "image" else "json"
    parts = {section.name: f"{section.name}.{suffix}" for section in gallery.sections}
    with result.open(work.layout.gallery_file(*partition, PAGE)) as stream:
        stream.write(gallery_page(gallery))
    for section in gallery.sections:
        with result.open(work.layout.gallery_file(*partition, parts[section.name])) as stream:
            if gallery.content == "image":
                stream.write(gallery_picture(section, exhibits=gallery.exhibits))
            else:
                stream.write(json.dumps(gallery_rows(gallery, section), indent=1).encode())
    return parts


def _details(gallery: Gallery, exhibits: Exhibits, parts: dict[str, str]) -> dict[str, Any]:
    absent = [exhibit.absent for exhibit in gallery.exhibits.values() if exhibit.absent is not None]
    return {
        "page": PAGE,
        "parts": parts,
        "panels": {section.name: len(section.panels) for section in gallery.sections},
        "items_shown": len(gallery.exhibits) - len(absent),
        "items_absent": len(absent),
        "files_read": exhibits.files_read,
    }
