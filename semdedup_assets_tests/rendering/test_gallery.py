"""The page, the tables and the pictures of a gallery."""

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from semdedup_assets.rendering.contact_sheet import section_picture
from semdedup_assets.rendering.gallery import (
    CardColumn,
    Gallery,
    Group,
    ItemCard,
    Row,
    RowItem,
    Section,
    gallery_page,
    section_table,
    web_address,
)

HOSTILE = """<script src="https://example.org/x.js">alert('&')</script>"""
BREAKS_OUT_OF_ATTRIBUTES = """" onmouseover="alert(1)' onfocus='alert(2)"""


def noise_image(seed: int, side: int = 100) -> bytes:
    """No image is harder to compress."""
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(content, "PNG")
    return content.getvalue()


def example_section(groups: int, items: int, *, rows: int = 1, text: str = "title") -> Section:
    """Groups of consecutive ids: a kept query item, and removed items in rows of 100 items in total."""
    made = []
    for number in range(groups):
        query = number * (items + 1)
        removed = [RowItem(query + 1 + i, kept=False, similarity=0.99 - i / 100) for i in range(items)]
        parts = np.array_split(np.arange(items), rows)
        made.append(
            Group(
                text,
                RowItem(query, kept=True),
                tuple(
                    Row(f"{text} {i}", f"eps {i}", tuple(removed[j] for j in part), 100) for i, part in enumerate(parts)
                ),
            )
        )
    return Section(text, text, text, tuple(made))


class ParsedPage(HTMLParser):
    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["style"]:
            self.text += data


@pytest.mark.parametrize("content", ["image", "text", "vector"])
@pytest.mark.parametrize("hostile", [HOSTILE, BREAKS_OUT_OF_ATTRIBUTES])
@pytest.mark.parametrize("has_columns", [False, True])
def test_every_text_is_escaped_and_the_page_fetches_nothing(
    content: Literal["image", "text", "vector"], hostile: str, has_columns: bool
) -> None:
    cards = {
        0: ItemCard(hostile, hostile, image=noise_image(0), text=f"{hostile} one two three four"),
        1: ItemCard(hostile, hostile, image=noise_image(1), text=f"{hostile} one two three five"),
        2: ItemCard(hostile, unavailable=hostile),
    }
    if has_columns:
        columns = (CardColumn(hostile, hostile), CardColumn("url", f"https://example.org/{hostile}"))
        cards = {item: replace(card, columns=columns) for item, card in cards.items()}
    section = replace(example_section(1, 2, text=hostile), query_label=hostile)
    page = ParsedPage(gallery_page(Gallery(hostile, {hostile: hostile}, (section,), cards, content)))
    assert "script" not in page.tags
    allowed = {"alt", "charset", "class", "colspan", "content", "href", "id", "lang", "name", "src", "title"}
    # Of tooltips and values of columns, none of which is an address here.
    allowed |= {"rel", "referrerpolicy", "target"} if has_columns else set()
    assert page.attributes <= allowed
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert page.tags.count("img") == (2 if content == "image" else 0)
    # Title and fact (twice each), link, heading, note, group, row label, query label; three keys.
    everywhere = 10 + 3
    # Two captions or two texts, and the reason.
    by_content = {"image": 2 + 1, "text": 2 + 1, "vector": 0}
    # The reason stands above the sections too; of each card's columns the value, for the name is cut.
    assert page.text.count(hostile) == everywhere + by_content[content] + 1 + 6 * has_columns


def test_the_page_shows_each_item_with_its_similarity_state_caption_and_key() -> None:
    cards = {
        0: ItemCard("a", image=noise_image(0)),
        1: ItemCard("b", "a cat", image=noise_image(1)),
        2: ItemCard("c", unavailable="file is missing"),
    }
    gallery = Gallery("title", {}, (example_section(1, 2),), cards, "image")
    words = " ".join(ParsedPage(gallery_page(gallery)).text.split())
    assert "kept a title 0 · 2 of 100 0.9900 removed a cat b file is missing 0.9800 removed c" in words


def test_the_same_gallery_gives_the_same_bytes() -> None:
    cards = {i: ItemCard("key", image=noise_image(i), text="a text") for i in range(12)}
    for content in ("image", "text", "vector"):
        gallery = Gallery("title", {"k": "5"}, (example_section(2, 5),), cards, content)
        assert gallery_page(gallery) == gallery_page(gallery)


def test_a_text_keeps_its_white_space_and_differs_only_by_highlighted_words() -> None:
    cards = {0: ItemCard("a", text="  two\n\n  lines < three"), 1: ItemCard("b", text="  two\n\n  lines < four")}
    page = gallery_page(Gallery("title", {}, (example_section(1, 1),), cards, "text")).decode()
    assert re.findall(r'<div class="text">(.*?)</div>', page, flags=re.DOTALL) == [
        "  two\n\n  lines &lt; three",
        "  two\n\n  lines &lt; <del>three </del><ins>four</ins>",
    ]


@pytest.mark.parametrize(
    ("text", "is_linked"),
    [
        ("https://example.org/a.jpg?x=1&y=2", True),
        ("HTTP://example.org", True),
        ("http://[::1]/a", True),
        ("https://例え.jp/画像", True),
        ("javascript:alert(1)", False),
        ("data:text/html,x", False),
        ("ftp://example.org/a", False),
        ("https://", False),
        ("https://[", False),
        ("https://example.org@evil.test/", False),
        ("https://example.org/a b", False),
        ("https://example.org/\u202egpj.exe", False),
        ("see https://example.org", False),
        ("https://example.org/" + "a" * 2000, False),
    ],
)
def test_only_plain_web_addresses_are_links_and_none_tells_whence_one_comes(text: str, is_linked: bool) -> None:
    cards = {0: ItemCard(text, columns=(CardColumn("source", text), CardColumn("none", None)))}
    for content in ("image", "text", "vector"):
        page = gallery_page(Gallery("title", {}, (example_section(1, 0),), cards, content)).decode()
        links = [tag for tag in re.findall(r"<a [^>]*>", page) if 'href="#' not in tag]
        assert len(links) == 2 * is_linked
        assert all('rel="noreferrer noopener"' in link for link in links)
        assert ("Nothing loads from there unless you follow one." in page) == is_linked
    assert (web_address(text) == text) == is_linked


def test_long_keys_and_values_do_not_make_a_page_long() -> None:
    columns = tuple(CardColumn(f"column {number}", "v" * 120) for number in range(20))
    cards = {item: ItemCard("k" * 100_000, columns=columns) for item in range(9)}
    for content in ("image", "vector"):
        page = gallery_page(Gallery("title", {}, (example_section(1, 8),), cards, content))
        assert len(page) < 100_000


def test_the_page_tells_how_many_items_show_nothing_and_why() -> None:
    cards = {
        0: ItemCard("a", image=noise_image(0)),
        1: ItemCard("b", unavailable="gone"),
        2: ItemCard("c", unavailable="gone"),
    }
    page = ParsedPage(gallery_page(Gallery("title", {}, (example_section(1, 2),), cards, "image")))
    assert "2 of the 3 items are only named: gone" in page.text


def test_lone_surrogates_in_a_key_are_escaped() -> None:
    gallery = Gallery("title", {}, (example_section(1, 0),), {0: ItemCard("\ud800")}, "vector")
    assert b"\\ud800" in gallery_page(gallery)


@pytest.mark.parametrize("items", [8, 40])
def test_a_picture_fits_the_event_log(items: int) -> None:
    section = example_section(12, items, rows=3)
    # With an orphan and a query label, the legend has all its texts.
    orphan = replace(section.groups[0].rows[-1], items=(RowItem(1, kept=False, similarity=0.9, is_orphan=True),))
    groups = (replace(section.groups[0], rows=(orphan,)), *section.groups[1:])
    section = replace(section, query_label="seed", groups=groups)
    cards = {item.id: ItemCard("key", image=noise_image(item.id % 20)) for item in section.items()}
    picture = section_picture(section, cards=cards)
    # The log holds it as base64.
    assert len(picture) * 4 / 3 < 100_000
    with Image.open(io.BytesIO(picture)) as image:
        assert image.format == "PNG"
        assert image.width <= 600
        pixels = np.asarray(image.convert("L"))
        assert (pixels[:, -1] == 255).all(), "cut off"


def test_a_picture_frames_items_by_state_and_dims_removed_ones_only_on_request() -> None:
    red = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 0, 0)).save(red, "PNG")
    cards = {i: ItemCard("key", image=red.getvalue()) for i in range(4)}
    items = (RowItem(1, kept=True), RowItem(2, kept=False), RowItem(3, kept=False, is_orphan=True))
    group = Group("g", RowItem(0, kept=True), (Row("r", "", items, 3),))

    def colours(*, dimmed: bool) -> set[tuple[int, ...]]:
        picture = section_picture(Section("s", "t", "n", (group,), dimmed=dimmed), cards=cards)
        with Image.open(io.BytesIO(picture)) as image:
            return {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or []}  # type: ignore[misc]

    bright, dimmed = colours(dimmed=False), colours(dimmed=True)
    blue, green, frame_red, ochre = (43, 108, 212), (58, 125, 68), (192, 57, 43), (184, 134, 11)
    assert {blue, green, frame_red, ochre, (200, 0, 0)} <= bright & dimmed
    dimmed_red = (233, 153, 153)  # 40 % of the image's red, 60 % white
    assert dimmed_red in dimmed
    assert dimmed_red not in bright


def test_a_removed_item_without_a_kept_neighbour_is_called_an_orphan() -> None:
    cards = {i: ItemCard("key", image=noise_image(i), text="a text") for i in range(3)}
    items = (RowItem(1, kept=False, similarity=0.99), RowItem(2, kept=False, similarity=0.8, is_orphan=True))
    section = Section("s", "t", "n", (Group("g", RowItem(0, kept=True), (Row("r", "", items, 2),)),))
    for content in ("image", "text"):
        page = gallery_page(Gallery("title", {}, (section,), cards, content)).decode()
        assert re.findall(r'class="state">([^<]*)<', page) == ["kept", "removed", "orphan"]
        assert re.findall(r'<(?:tr|figure) class="(query|removed|orphan)"', page) == ["query", "removed", "orphan"]
    table = section_table(Gallery("title", {}, (section,), cards, "text"), section)
    assert [row["state"] for row in table] == ["kept", "removed", "orphan"]


def test_a_picture_reports_how_many_items_it_shows_only_if_some_are_missing() -> None:
    cards = {i: ItemCard("key", image=noise_image(0)) for i in range(3)}

    def title_width(total: int) -> int:
        items = (RowItem(1, kept=True, similarity=0.9), RowItem(2, kept=True, similarity=0.8))
        group = Group("g", RowItem(0, kept=True), (Row("r", "0.05", items, total),))
        picture = section_picture(Section("s", "t", "n", (group,)), cards=cards)
        title = np.asarray(Image.open(io.BytesIO(picture)).convert("L"))[26:40]
        return int(np.flatnonzero((title < 200).any(axis=0)).max())

    assert title_width(2) < 40 < title_width(60)


def test_a_section_without_groups_is_rendered_as_none() -> None:
    empty = Section("groups", "Largest groups", "note", ())
    assert b"None." in gallery_page(Gallery("title", {}, (empty,), {}, "image"))
    assert section_picture(empty, cards={}).startswith(b"\x89PNG")
    assert section_table(Gallery("title", {}, (empty,), {}, "text"), empty) == []


def test_a_cluster_has_no_query_item() -> None:
    items = (RowItem(1, kept=True, similarity=0.9), RowItem(2, kept=False, similarity=0.8))
    section = Section("s", "t", "n", (Group("Before: 2 items", None, (Row("r", "", items, 2),)),), dimmed=True)
    cards = {i: ItemCard("key", text="a text", image=noise_image(i)) for i in (1, 2)}
    table = section_table(Gallery("title", {}, (section,), cards, "text"), section)
    assert [(row["group"], row["state"], row["similarity"]) for row in table] == [
        ("before", "kept", "0.9000"),
        ("before", "removed", "0.8000"),
    ]
    for content in ("image", "text"):
        page = gallery_page(Gallery("title", {}, (section,), cards, content)).decode()
        assert re.findall(r'<(?:tr|figure) class="(query|kept|removed)"', page) == ["kept", "removed"]
        assert '<section id="s" class="dimmed">' in page


def test_a_table_is_short_and_its_rows_have_the_same_columns() -> None:
    section = example_section(20, 5)
    cards = {item.id: ItemCard(f"key {item.id}", text="word\n" * 1000) for item in section.items()}
    table = section_table(Gallery("title", {}, (section,), cards, "text"), section)
    assert len(table) == 50
    assert {tuple(row) for row in table} == {("group", "state", "similarity", "key", "text")}
    assert [row["group"] for row in table[:7]] == ["1"] * 6 + ["2"]
    assert [row["state"] for row in table[:7]] == ["kept", *["removed"] * 5, "kept"]
    assert [row["similarity"] for row in table[:3]] == ["", "0.9900", "0.9800"]
    assert max(len(row["text"]) for row in table) == 160
