"""Read some items of references again to look at them, each from the source of its reference."""

from collections.abc import Sequence

import numpy as np

from semdedup_assets.analyses.gallery_items import with_content
from semdedup_assets.analyses.source_items import ReadLimit, WantedFile, read_wanted
from semdedup_assets.execution.context import StageContext
from semdedup_assets.records import id_rows, positions_by_shard
from semdedup_assets.rendering.gallery import ItemCard
from semdedup_assets.stages.reference_embeddings import ReferencePart, stored_parts
from semdedup_assets.storage.results import ResultRecord

_ROW_BITS = (1 << 63) - 1


def read_reference_cards(context: StageContext, record: ResultRecord, cards: Sequence[int]) -> dict[int, ItemCard]:
    """Fetch what there is to see of some items of references, for which at most `galleries.mib` of each are read.

    Args:
        context: of the pipeline.
        record: of the references' embeddings.
        cards: ids of the items as cards have them: with the highest bit set, unlike those of training items.
    """
    ids = np.array([card & _ROW_BITS for card in cards], dtype=np.uint64)
    parts = {part.index: part for part in stored_parts(record)}
    found, wanted = dict[int, ItemCard](), dict[str, dict[str, WantedFile]]()
    for index, positions in positions_by_shard(ids):
        part, rows = parts[index], id_rows(ids[positions]).tolist()
        keys = part.keys()
        found |= {cards[at]: ItemCard(keys[row]) for at, row in zip(positions.tolist(), rows, strict=True)}
        if context.pipeline.source.content != "vector":
            by_path = wanted.setdefault(part.reference, {})
            _locate(part, [cards[at] for at in positions.tolist()], rows, by_path)
    keys = {card: item.key for card, item in found.items()}
    for name, by_path in wanted.items():
        source, limit = context.pipeline.references[name].source, ReadLimit.of_galleries(context)
        for file in by_path.values():
            for card, content in read_wanted(source, file, keys, limit):
                found[card] = with_content(found[card], content)
    return found


def _locate(part: ReferencePart, cards: list[int], rows: list[int], files: dict[str, WantedFile]) -> None:
    """Note which files hold some items of a part, and what they held when they were embedded."""
    paths, starts = part.files()
    hashes = part.content_hashes()
    for card, row in zip(cards, rows, strict=True):
        at = int(np.searchsorted(starts, row, side="right")) - 1
        file = files.setdefault(paths[at], WantedFile(paths[at], None, is_current=True))
        file.items[row - int(starts[at])] = card
        file.hashes[row - int(starts[at])] = int(hashes[row])
