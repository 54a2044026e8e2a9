"""A gallery as one page that needs no network, and as short tables."""

import base64
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

_TABLE_ROWS, _TABLE_TEXT = 50, 160
# Below this share of common words, marks on the others would be all that one sees.
_ALIKE = 0.5

_STYLE = """
:root { color-scheme: light dark; --ground: #fafafa; --card: #fff; --ink: #1d2125; --grey: #69707a; --line: #e1e4e8;
  --kept: #2f8f4e; --removed: #d0453a; --chain: #a8780a; --lead: #2b6cd4; --gone: #d0453a26; --new: #2f8f4e2e; --shade: #1d212533; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171a; --card: #1d2125; --ink: #e6e8ea; --grey: #98a1ab;
  --line: #343a41; --kept: #56b877; --removed: #ee7468; --chain: #dcae4a; --lead: #6aa3f5; --shade: #000c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 32px 24px 64px; max-width: 1400px; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 20px; margin: 44px 0 4px; } h3 { font-size: 15px; margin: 0 0 10px; }
p { margin: 4px 0 14px; color: var(--grey); max-width: 86ch; } a { color: var(--lead); }
nav a { margin-right: 18px; } .facts { display: flex; flex-wrap: wrap; gap: 6px 28px; margin: 14px 0; padding: 0; }
.facts div { display: flex; flex-direction: column-reverse; } .facts dt { color: var(--grey); font-size: 13px; }
.facts dd { margin: 0; font-size: 18px; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.panel { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; margin: 0 0 14px; }
.strip { display: flex; flex-wrap: wrap; gap: 14px 12px; align-items: flex-start; }
.band { border-left: 2px solid var(--line); padding-left: 12px; max-width: 100%; }
.label { color: var(--grey); font-size: 12.5px; min-height: 20px; }
.items { display: flex; flex-wrap: wrap; gap: 10px; }
figure { margin: 0; width: 104px; font-size: 12px; line-height: 1.35; }
.tile { width: 104px; height: 104px; border: 2px solid var(--line); border-radius: 8px; background: #fff; padding: 2px;
  display: flex; align-items: center; justify-content: center; overflow: hidden; }
.tile img { width: 100%; height: 100%; object-fit: contain; }
.absent { background: var(--ground); color: var(--grey); padding: 8px; font-size: 11px; text-align: center;
  overflow-wrap: anywhere; }
.kept .tile { border-color: var(--kept); } .removed .tile { border-color: var(--removed); }
.chain .tile { border-color: var(--chain); } .chain .state { color: var(--chain); }
.lead .tile { border: 3px solid var(--lead); }
.fade .removed img, .fade .chain img { opacity: .35; }
.fade .removed:hover img, .fade .chain:hover img { opacity: 1; }
figcaption { margin-top: 4px; overflow-wrap: anywhere; } figcaption b { font-variant-numeric: tabular-nums; }
.key, .caption { color: var(--grey); display: -webkit-box; -webkit-line-clamp: 2; -webkit-box-orient: vertical;
  overflow: hidden; }
.state { font-weight: 600; } figcaption b, figcaption .state { display: block; } .kept .state { color: var(--kept); } .removed .state { color: var(--removed); }
.lead .state { color: var(--lead); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 13px; }
th, td { text-align: left; vertical-align: top; padding: 7px 10px 7px 0; border-top: 1px solid var(--line); }
th { color: var(--grey); font-weight: 500; } tr.band-row th { padding-top: 12px; }
@media (max-width: 640px) { body { padding: 20px 12px; } td.name { width: 90px; } }
td.number { font-variant-numeric: tabular-nums; width: 74px; } td.state { width: 74px; }
td.name { width: 190px; color: var(--grey); overflow-wrap: anywhere; }
td.name.alone { width: auto; color: inherit; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 15em; overflow-y: auto; background:
  linear-gradient(var(--card) 40%, transparent) top / 100% 30px no-repeat local,
  linear-gradient(transparent, var(--card) 60%) bottom / 100% 30px no-repeat local,
  linear-gradient(var(--shade), transparent) top / 100% 12px no-repeat,
  linear-gradient(transparent, var(--shade)) bottom / 100% 12px no-repeat; }
ins { background: var(--new); text-decoration: none; border-radius: 3px; }
del { background: var(--gone); border-radius: 3px; } i { color: var(--grey); }
"""


@dataclass(frozen=True, slots=True)
class Exhibit:
    """What there is to see of an item.

    Attributes:
        key: the item's own name.
        caption: a line of the source about it.
        image: encoded, as small as it is to be shown.
        text: in full, or its begin.
        absent: why neither image nor text is there, though the source holds such.
    """

    key: str
    caption: str | None = None
    image: bytes | None = None
    text: str | None = None
    absent: str | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """An item at one place of a gallery.

    Attributes:
        item: its id.
        kept: whether it is kept at the gallery's epsilon.
        similarity: cosine similarity to what its panel is about; None for that item itself.
        by_chain: whether it is removed though no kept item is similar enough: those that are were removed too.
    """

    item: int
    kept: bool
    similarity: float | None = None
    by_chain: bool = False


@dataclass(frozen=True, slots=True)
class Band:
    """Items of a panel between two thresholds.

    Attributes:
        label: what they have in common.
        mark: the same in a few ASCII letters, for pictures: the epsilon; empty where it goes without saying.
        items: those that are shown.
        total: how many there are.
    """

    label: str
    mark: str
    items: tuple[Shown, ...]
    total: int


@dataclass(frozen=True, slots=True)
class Panel:
    """An item and others beside it, or the items of a cluster, which then has no lead."""

    title: str
    lead: Shown | None
    bands: tuple[Band, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """Panels of one kind.

    Attributes:
        name: of its anchor, and of its files.
        title: its heading.
        note: a sentence that says what is seen.
        panels: from top to bottom.
        lead: what a panel's first item is called.
        fade: whether removed items are drawn faint.
    """

    name: str
    title: str
    note: str
    panels: tuple[Panel, ...]
    lead: str = "kept"
    fade: bool = False

    def items(self) -> Iterator[Shown]:
        """Every place of an item, panel by panel."""
        for panel in self.panels:
            yield from _places(panel)


@dataclass(frozen=True, slots=True)
class Gallery:
    """All that a page shows.

    Attributes:
        title: heading of the page.
        facts: a few numbers or words by name.
        sections: from top to bottom.
        exhibits: by id, one for every item of the sections.
        content: what the items are.
    """

    title: str
    facts: Mapping[str, str]
    sections: tuple[Section, ...]
    exhibits: Mapping[int, Exhibit] = field(repr=False)
    content: Literal["image", "text", "vector"]


def shares(counts: Sequence[int], *, most: int) -> list[int]:
    """How many to show of each of several lists: at most `most` together, from all as evenly as they allow."""
    taken = [0] * len(counts)
    for _ in range(min(most, sum(counts))):
        least = min((i for i, count in enumerate(counts) if taken[i] < count), key=lambda i: taken[i])
        taken[least] += 1
    return taken


def gallery_page(gallery: Gallery) -> bytes:
    """Draw a gallery as one HTML page: pictures are inlined, everything else is escaped.

    Returns:
        UTF-8; the same bytes for the same gallery.
    """
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in gallery.facts.items()
    )
    links = "".join(f'<a href="#{escape(section.name)}">{escape(section.title)}</a>' for section in gallery.sections)
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(gallery.title)}</title><style>{_STYLE}</style></head><body>",
        f'<h1>{escape(gallery.title)}</h1><dl class="facts">{facts}</dl><nav>{links}</nav>',
        *(_section(gallery, section) for section in gallery.sections),
        "</body></html>\n",
    ]
    return "\n".join(parts).encode("utf-8", "backslashreplace")


def gallery_rows(gallery: Gallery, section: Section) -> list[dict[str, str]]:
    """A section as the rows of one short table: at most 50, texts cut off, no similarity where a panel begins."""
    found = []
    for number, panel in enumerate(section.panels, start=1):
        for place in _places(panel):
            exhibit = gallery.exhibits[place.item]
            row = {
                # That of a cluster is its state: before or after.
                "group": str(number) if panel.lead is not None else panel.title.partition(":")[0].lower(),
                "state": _state(section, panel, place),
                "similarity": "" if place.similarity is None else f"{place.similarity:.4f}",
                "key": exhibit.key,
            }
            if gallery.content == "text":
                row["text"] = _shortened(" ".join((exhibit.text or exhibit.absent or "").split()))
            found.append(row)
    return found[:_TABLE_ROWS]


def _places(panel: Panel) -> Iterator[Shown]:
    if panel.lead is not None:
        yield panel.lead
    for band in panel.bands:
        yield from band.items


def _state(section: Section, panel: Panel, place: Shown) -> str:
    if place is panel.lead:
        return section.lead
    return _kept(place)


def _shortened(text: str) -> str:
    return text if len(text) <= _TABLE_TEXT else f"{text[: _TABLE_TEXT - 1]}…"


def _section(gallery: Gallery, section: Section) -> str:
    draw = _strip if gallery.content == "image" else _table
    panels = "".join(
        f'<article class="panel"><h3>{escape(panel.title)}</h3>{draw(gallery, section, panel)}</article>'
        for panel in section.panels
    )
    return (
        f'<section id="{escape(section.name)}" class="{"fade" if section.fade else "plain"}">'
        f"<h2>{escape(section.title)}</h2><p>{escape(section.note)}</p>{panels or '<p><i>None.</i></p>'}</section>"
    )


def _heading(band: Band) -> str:
    shown = f"{len(band.items)} of {band.total:,}" if len(band.items) < band.total else f"{band.total:,}"
    return f"{escape(band.label)} · {shown}"


def _strip(gallery: Gallery, section: Section, panel: Panel) -> str:
    lead = ""
    if panel.lead is not None:
        figure = _figure(gallery.exhibits[panel.lead.item], panel.lead, _state(section, panel, panel.lead))
        lead = f'<div><div class="label"></div>{figure}</div>'
    bands = []
    for band in panel.bands:
        figures = "".join(
            _figure(gallery.exhibits[place.item], place, _state(section, panel, place)) for place in band.items
        )
        bands.append(
            f'<div class="band"><div class="label">{_heading(band)}</div><div class="items">{figures}</div></div>'
        )
    return f'<div class="strip">{lead}{"".join(bands)}</div>'


def _figure(exhibit: Exhibit, place: Shown, state: str) -> str:
    name = escape(exhibit.key)
    if exhibit.image is None:
        tile = f'<div class="tile absent">{escape(exhibit.absent or "nothing to show")}</div>'
    else:
        tile = f'<div class="tile"><img alt="{name}" src="{data_uri(exhibit.image)}"></div>'
    number = "" if place.similarity is None else f"<b>{place.similarity:.4f}</b> "
    caption = f'<span class="caption">{escape(exhibit.caption)}</span>' if exhibit.caption else ""
    return (
        f'<figure class="{_class(place)}" title="{name}">{tile}<figcaption>{number}'
        f'<span class="state">{escape(state)}</span>{caption}<span class="key">{name}</span></figcaption></figure>'
    )


def _kept(place: Shown) -> str:
    return "kept" if place.kept else "removed by chain" if place.by_chain else "removed"


def _class(place: Shown) -> str:
    """How the page colours an item."""
    return "lead" if place.similarity is None else "chain" if place.by_chain else _kept(place)


def data_uri(image: bytes) -> str:
    """A PNG or JPEG as a URL that holds it."""
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _table(gallery: Gallery, section: Section, panel: Panel) -> str:
    texts = gallery.content == "text"
    columns = ["similarity", "", "key", *(["text"] if texts else [])]
    beside = gallery.exhibits[panel.lead.item].text if panel.lead is not None else None
    rows = [f"<tr>{''.join(f'<th>{name}</th>' for name in columns)}</tr>"]
    if panel.lead is not None:
        rows.append(_row(gallery.exhibits[panel.lead.item], panel.lead, section.lead, texts=texts, beside=None))
    for band in panel.bands:
        rows.append(f'<tr class="band-row"><th colspan="{len(columns)}">{_heading(band)}</th></tr>')
        rows += [
            _row(gallery.exhibits[place.item], place, _state(section, panel, place), texts=texts, beside=beside)
            for place in band.items
        ]
    return f'<div class="scroll"><table>{"".join(rows)}</table></div>'


def _row(exhibit: Exhibit, place: Shown, state: str, *, texts: bool, beside: str | None) -> str:
    number = "" if place.similarity is None else f"{place.similarity:.4f}"
    text = f'<td><div class="text">{_text(exhibit, beside)}</div></td>' if texts else ""
    return (
        f'<tr class="{_class(place)}"><td class="number">{number}</td><td class="state">{escape(state)}</td>'
        f'<td class="name{"" if texts else " alone"}">{escape(exhibit.key)}</td>{text}</tr>'
    )


def _text(exhibit: Exhibit, beside: str | None) -> str:
    if exhibit.text is None:
        return f"<i>{escape(exhibit.absent or 'nothing to show')}</i>"
    return escape(exhibit.text) if beside is None else marked_differences(exhibit.text, beside=beside)


def marked_differences(text: str, *, beside: str) -> str:
    """A text as HTML, with its own words as `<ins>` and those that only the other has as `<del>`.

    Words are compared without the white space around them. Texts that have less than half of their words in common
    are not marked.

    Args:
        text: to be shown.
        beside: what it is compared with.
    """
    ours, theirs = _words(text), _words(beside)
    matcher = difflib.SequenceMatcher(
        None, [word.strip() for word in theirs], [word.strip() for word in ours], autojunk=False
    )
    if matcher.quick_ratio() < _ALIKE or matcher.ratio() < _ALIKE:
        return escape(text)
    parts = []
    for change, first, last, start, stop in matcher.get_opcodes():
        gone, new = "".join(theirs[first:last]), "".join(ours[start:stop])
        if change == "equal":
            parts.append(escape(new))
            continue
        parts += [
            f"<del>{escape(_apart(gone, ours[:start]))}</del>" if gone else "",
            f"<ins>{escape(new)}</ins>" if new else "",
        ]
    return "".join(parts)


def _apart(gone: str, before: list[str]) -> str:
    """Words with white space around them: the last word of a text has none of its own."""
    begin = " " if before and not before[-1][-1].isspace() else ""
    return f"{begin}{gone}{'' if gone[-1].isspace() else ' '}"


def _words(text: str) -> list[str]:
    """Words with the white space that follows them."""
    return re.findall(r"\S+\s*|\s+", text)
