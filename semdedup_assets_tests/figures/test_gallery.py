"""The page and the pictures of a gallery: nothing is let in unescaped, nothing is too large."""

import gzip
import io
import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semdedup_assets.figures.contact_sheet import gallery_picture
from semdedup_assets.figures.gallery import (
    Band,
    Exhibit,
    Gallery,
    Panel,
    Section,
    Shown,
    gallery_page,
    gallery_rows,
    marked_differences,
    shares,
)

DOCSTRINGS = Path(__file__).parents[2] / "examples" / "docstrings" / "shards" / "00000.jsonl.gz"
HOSTILE = """<script src="https://example.org/x.js">alert('&')</script>"""


def photo(seed: int, side: int = 100) -> bytes:
    """Noise: no picture is harder to compress."""
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(content, "PNG")
    return content.getvalue()


def section(panels: int, items: int, *, bands: int = 1, title: str = "panel") -> Section:
    """Panels of consecutive ids: a kept lead, and removed items in bands."""
    made = []
    for number in range(panels):
        first = number * (items + 1)
        shown = [Shown(first + 1 + i, kept=False, similarity=0.99 - i / 100) for i in range(items)]
        parts = np.array_split(np.arange(items), bands)
        made.append(
            Panel(
                title,
                Shown(first, kept=True),
                tuple(
                    Band(f"band {i}", f"eps {i}", tuple(shown[j] for j in part), 100) for i, part in enumerate(parts)
                ),
            )
        )
    return Section("groups", title, "a note", tuple(made))


class Page(HTMLParser):
    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("content", ["image", "text", "vector"])
def test_whatever_an_item_says_is_escaped_and_nothing_is_fetched(content: str) -> None:
    exhibits = {
        0: Exhibit(HOSTILE, HOSTILE, image=photo(0), text=f"{HOSTILE} one two three four"),
        1: Exhibit(HOSTILE, HOSTILE, image=photo(1), text=f"{HOSTILE} one two three five"),
        2: Exhibit(HOSTILE, absent=HOSTILE),
    }
    gallery = Gallery(HOSTILE, {HOSTILE: HOSTILE}, (section(1, 2, title=HOSTILE),), exhibits, content)  # type: ignore[arg-type]
    page = Page(gallery_page(gallery))
    assert "script" not in page.tags
    assert HOSTILE in page.text
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert page.tags.count("img") == (2 if content == "image" else 0)


def test_a_page_shows_each_place_with_its_similarity_its_state_and_what_is_missing() -> None:
    exhibits = {
        0: Exhibit("a", image=photo(0)),
        1: Exhibit("b", "a cat", image=photo(1)),
        2: Exhibit("c", absent="gone"),
    }
    gallery = Gallery("title", {}, (section(1, 2),), exhibits, "image")
    page = gallery_page(gallery)
    words = " ".join(re.sub(r"<style>.*</style>|<[^>]*>", " ", page.decode(), flags=re.DOTALL).split())
    assert "kept a band 0 · 2 of 100 0.9900 removed a cat b gone 0.9800 removed c" in words
    assert page == gallery_page(gallery)


def test_lone_surrogates_in_a_key_do_not_break_the_page() -> None:
    gallery = Gallery("title", {}, (section(1, 0),), {0: Exhibit("\ud800")}, "vector")
    assert b"\\ud800" in gallery_page(gallery)


@pytest.mark.parametrize("items", [8, 40])
def test_a_picture_fits_the_event_log_whatever_it_shows(items: int) -> None:
    shown = section(12, items, bands=3)
    # All words that the line above the pictures may hold.
    last = replace(shown.panels[0].bands[-1], items=(Shown(1, kept=False, similarity=0.9, by_chain=True),))
    shown = replace(shown, lead="seed", panels=(replace(shown.panels[0], bands=(last,)), *shown.panels[1:]))
    exhibits = {place.item: Exhibit("key", image=photo(place.item % 20)) for place in shown.items()}
    picture = gallery_picture(shown, exhibits=exhibits)
    assert len(picture) * 4 / 3 < 100_000
    with Image.open(io.BytesIO(picture)) as image:
        assert image.format == "PNG"
        assert image.width <= 600
        pixels = np.asarray(image.convert("L"))
        assert (pixels[:, -1] == 255).all(), "cut off"


def test_a_picture_frames_lead_kept_and_removed_in_their_colours_and_fades_only_where_asked() -> None:
    red = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 0, 0)).save(red, "PNG")
    exhibits = {i: Exhibit("key", image=red.getvalue()) for i in range(3)}
    panel = Panel("p", Shown(0, kept=True), (Band("b", "", (Shown(1, kept=True), Shown(2, kept=False)), 2),))

    def colours(*, fade: bool) -> set[tuple[int, ...]]:
        picture = gallery_picture(Section("s", "t", "n", (panel,), fade=fade), exhibits=exhibits)
        with Image.open(io.BytesIO(picture)) as image:
            return {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or []}  # type: ignore[misc]

    plain, faded = colours(fade=False), colours(fade=True)
    for frame in ((43, 108, 212), (58, 125, 68), (192, 57, 43), (200, 0, 0)):
        assert frame in plain
        assert frame in faded
    faint = (233, 153, 153)  # 40 % of the red, 60 % white
    assert faint in faded
    assert faint not in plain


def test_what_no_kept_item_resembles_is_said_to_be_removed_by_chain() -> None:
    exhibits = {i: Exhibit("key", image=photo(i), text="a text") for i in range(3)}
    places = (Shown(1, kept=False, similarity=0.99), Shown(2, kept=False, similarity=0.8, by_chain=True))
    chained = Section("s", "t", "n", (Panel("p", Shown(0, kept=True), (Band("b", "", places, 2),)),))
    for content in ("image", "text"):
        page = gallery_page(Gallery("title", {}, (chained,), exhibits, content)).decode()
        assert re.findall(r">(removed[^<]*)<", page) == ["removed", "removed by chain"]
        assert page.count('class="chain"') == 1
    rows = gallery_rows(Gallery("title", {}, (chained,), exhibits, "text"), chained)
    assert [row["state"] for row in rows] == ["kept", "removed", "removed by chain"]


def test_a_picture_says_how_many_it_shows_only_where_some_are_left_out() -> None:
    exhibits = {i: Exhibit("key", image=photo(0)) for i in range(3)}

    def drawn(total: int) -> np.ndarray:
        places = (Shown(1, kept=True, similarity=0.9), Shown(2, kept=True, similarity=0.8))
        panel = Panel("p", Shown(0, kept=True), (Band("b", "0.05", places, total),))
        picture = gallery_picture(Section("s", "t", "n", (panel,)), exhibits=exhibits)
        return np.asarray(Image.open(io.BytesIO(picture)).convert("L"))[26:40]

    def inked(row: np.ndarray) -> int:
        return int(np.flatnonzero((row < 200).any(axis=0)).max())

    assert inked(drawn(2)) < 40 < inked(drawn(60))


def test_a_section_without_a_panel_is_drawn_as_none() -> None:
    empty = Section("groups", "Largest groups", "note", ())
    assert b"None." in gallery_page(Gallery("title", {}, (empty,), {}, "image"))
    assert gallery_picture(empty, exhibits={}).startswith(b"\x89PNG")
    assert gallery_rows(Gallery("title", {}, (empty,), {}, "text"), empty) == []


def test_rows_are_few_and_short_and_have_the_same_columns() -> None:
    shown = section(20, 5)
    exhibits = {place.item: Exhibit(f"key {place.item}", text="word\n" * 1000) for place in shown.items()}
    rows = gallery_rows(Gallery("title", {}, (shown,), exhibits, "text"), shown)
    assert len(rows) == 50
    assert {tuple(row) for row in rows} == {("group", "state", "similarity", "key", "text")}
    assert [row["group"] for row in rows[:7]] == ["1"] * 6 + ["2"]
    assert [row["state"] for row in rows[:7]] == ["kept", *["removed"] * 5, "kept"]
    assert [row["similarity"] for row in rows[:3]] == ["", "0.9900", "0.9800"]
    assert max(len(row["text"]) for row in rows) == 160


def without(tag: str, marked: str) -> str:
    """The marked text less what stands in a tag."""
    return unescape(re.sub(r"</?(ins|del)>", "", re.sub(f"<{tag}>.*?</{tag}>", "", marked, flags=re.DOTALL)))


def test_marks_give_back_both_texts_of_real_docstrings() -> None:
    with gzip.open(DOCSTRINGS, "rt") as lines:
        texts = [json.loads(line)["text"][:1500] for line, _ in zip(lines, range(400), strict=False)]
    marked_pairs = 0
    for text, beside in pairwise(sorted(texts)):
        marked = marked_differences(text, beside=beside)
        assert without("del", marked) == text
        if "<ins>" in marked or "<del>" in marked:
            marked_pairs += 1
            assert without("ins", marked).split() == beside.split()
    assert marked_pairs > 3


def test_only_the_words_that_differ_are_marked() -> None:
    marked = marked_differences(
        "Returns the <b>largest</b> of  two numbers.", beside="Returns the <b>least</b> of two numbers."
    )
    assert marked == (
        "Returns the <del>&lt;b&gt;least&lt;/b&gt; </del><ins>&lt;b&gt;largest&lt;/b&gt; </ins>of  two numbers."
    )


def test_texts_that_have_little_in_common_are_not_marked() -> None:
    assert marked_differences("rain falls in & spring", beside="a cat sat on the mat") == "rain falls in &amp; spring"


def test_room_is_shared_evenly_and_none_is_left_while_items_are() -> None:
    assert shares([10, 10, 10], most=8) == [3, 3, 2]
    assert shares([1, 0, 10], most=8) == [1, 0, 7]
    assert shares([1, 2], most=8) == [1, 2]
    assert shares([], most=8) == []
