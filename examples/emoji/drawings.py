"""The emoji drawings of two vendors, and which of their figures the encoder never sees.

The drawings come from two npm packages, read as `npm pack` leaves them:

    npm pack emoji-datasource-twitter@16.0.0 emoji-datasource-google@16.0.0
"""

import hashlib
import io
import json
import random
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

VENDORS = ("google", "twitter")
RELEASE = "16.0.0"
SIZE = 64  # pixels a side
HELD_OUT_SHARE = 0.2
SPLIT_SEED = 18  # chosen before any training, so that some byte-identical flags fall into the held-out part
MIDDLE_FINGER = "1f595"
SKIN_TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}


@dataclass(frozen=True)
class Drawing:
    """One vendor's picture of one concept.

    `concept` names what is drawn, skin tone included; `base` the same figure whatever its skin tone.
    Both are file names without suffix, such as `1f44b-1f3fb` and `1f44b`.
    """

    vendor: str
    concept: str
    base: str
    skin: str
    category: str
    subcategory: str
    caption: str
    png: bytes

    @property
    def key(self) -> str:
        """The WebDataset key, unique over both vendors."""
        return f"{self.vendor}_{self.concept}"

    def metadata(self) -> dict[str, str | bool]:
        """What goes into the key's `.json` beside the image."""
        names = ("vendor", "concept", "base", "skin", "category", "subcategory")
        return {**{name: getattr(self, name) for name in names}, "has_skin_tone": self.skin != "none"}


def read_drawings(packages: Path) -> list[Drawing]:
    """Every drawing that both vendors made, without the middle finger, ordered by key.

    Args:
        packages: folder with the two `.tgz` files of `npm pack`.

    Raises:
        FileNotFoundError: a package is missing; tells the command that fetches it.
    """
    drawn = {vendor: dict(_read_package(packages, vendor)) for vendor in VENDORS}
    both = set.intersection(*(set(concepts) for concepts in drawn.values()))
    kept = [drawing for concepts in drawn.values() for concept, drawing in concepts.items() if concept in both]
    return sorted((drawing for drawing in kept if drawing.base != MIDDLE_FINGER), key=lambda drawing: drawing.key)


def held_out_bases(drawings: Sequence[Drawing], *, share: float = HELD_OUT_SHARE, seed: int = SPLIT_SEED) -> set[str]:
    """A random share of the bases, none of which has a drawing byte for byte equal to one outside the share."""
    groups = _bases_linked_by_equal_drawings(drawings)
    wanted = share * sum(len(group) for group in groups)
    random.Random(seed).shuffle(groups)
    held_out: set[str] = set()
    for group in groups:
        if len(held_out) >= wanted:
            break
        held_out.update(group)
    return held_out


def on_white(image: Image.Image) -> Image.Image:
    """The image over a white ground, in RGB."""
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def open_png(png: bytes) -> Image.Image:
    """The picture in RGBA."""
    return Image.open(io.BytesIO(png)).convert("RGBA")


def _read_package(packages: Path, vendor: str) -> Iterator[tuple[str, Drawing]]:
    """Pairs of concept and drawing of one vendor's package."""
    path = packages / f"emoji-datasource-{vendor}-{RELEASE}.tgz"
    if not path.is_file():
        message = f"{path}: no such package; run `npm pack emoji-datasource-{vendor}@{RELEASE}` in {packages}"
        raise FileNotFoundError(message)
    folder = f"package/img/{vendor}/{SIZE}/"
    entries: list[dict[str, Any]] = []
    pngs: dict[str, bytes] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if member.name == "package/emoji.json":
                entries = json.loads(_content(archive, member))
            elif member.name.startswith(folder) and member.name.endswith(".png"):
                pngs[member.name.removeprefix(folder)] = _content(archive, member)
    for entry in entries:
        for file, skin in _files(entry):
            if file in pngs:
                yield Path(file).stem, _drawing(vendor, entry, file=file, skin=skin, png=pngs[file])


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    return b"" if stream is None else stream.read()


def _files(entry: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """File name and skin tones of an `emoji.json` entry and of its variations."""
    yield entry["image"], "none"
    for skin, variation in entry.get("skin_variations", {}).items():
        yield variation["image"], skin


def _drawing(vendor: str, entry: dict[str, Any], *, file: str, skin: str, png: bytes) -> Drawing:
    tones = "" if skin == "none" else f", {' and '.join(SKIN_TONES[tone] for tone in skin.split('-'))} skin tone"
    return Drawing(
        vendor=vendor,
        concept=Path(file).stem,
        base=Path(entry["image"]).stem,
        skin=skin,
        category=entry["category"],
        subcategory=entry["subcategory"],
        caption=entry["name"].lower() + tones,
        png=png,
    )


def _bases_linked_by_equal_drawings(drawings: Iterable[Drawing]) -> list[list[str]]:
    """Bases in groups: two are together when they share a drawing, as Norway and Svalbard do."""
    group_of: dict[str, set[str]] = {}
    bases_of_png: dict[str, set[str]] = defaultdict(set)
    for drawing in drawings:
        group_of.setdefault(drawing.base, {drawing.base})
        bases_of_png[hashlib.sha256(drawing.png).hexdigest()].add(drawing.base)
    for bases in bases_of_png.values():
        merged = set().union(*(group_of[base] for base in bases))
        group_of.update(dict.fromkeys(merged, merged))
    return sorted({tuple(sorted(group)): sorted(group) for group in group_of.values()}.values())
