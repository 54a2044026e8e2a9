"""Pairs of items to look at and to mark as duplicates or not: one self-contained HTML page that needs no server.

A static page, because it opens from wherever the store is: there is nothing to install, to start or to keep running, and
whoever marks pairs needs a browser and this one file. What is marked stays in the browser until it is saved as JSON.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from semdedup_assets.rendering.gallery import ItemCard, data_uri, page_template
from semdedup_assets.rendering.text_diff import highlighted_diff

LABEL_FORMAT = "semdedup pair labels, 1"
"""What a file of labels begins with."""


@dataclass(frozen=True, slots=True)
class ShownPair:
    """A removed item and its nearest kept one.

    Attributes:
        removed: id.
        kept: id.
        band: name of the band of epsilon.
        similarity: cosine similarity of the two.
        kind: what makes them alike, in words.
        contents: what identifies the contents of both.
        order: in which they are marked, mixed over the bands, so that a band does not suggest the answer.
        cards: what there is to see of the removed and the kept item.
    """

    removed: int
    kept: int
    band: str
    similarity: float
    kind: str
    contents: str
    order: int
    cards: tuple[ItemCard, ItemCard]


@dataclass(frozen=True, slots=True)
class PairPage:
    """The content of a page of pairs.

    Attributes:
        title: heading of the page.
        facts: a few numbers or words, by name.
        identity: of the kept set; stands at the head of each file of labels.
        bands: a note on each band, by its name.
        pairs: to look at.
    """

    title: str
    facts: Mapping[str, str]
    identity: Mapping[str, str]
    bands: Mapping[str, str]
    pairs: Sequence[ShownPair]

    @property
    def storage_key(self) -> str:
        """Under which a browser keeps labels: of another page, or of these pairs made anew, there are others."""
        parts = [*self.identity.values(), *(f"{pair.removed} {pair.kept} {pair.contents}" for pair in self.pairs)]
        return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def pair_page(page: PairPage) -> bytes:
    """Render pairs as one HTML page that needs no network: it holds all images, and everything else is escaped.

    Returns:
        UTF-8; the same bytes for the same pairs.
    """
    rendered = page_template("pair_page.html.jinja").render(
        page=page, data_uri=data_uri, highlighted_diff=highlighted_diff
    )
    # A key may hold lone surrogates, which UTF-8 cannot encode.
    return rendered.encode("utf-8", "backslashreplace")
