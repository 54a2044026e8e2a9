"""Draw the other vendor's test set: Fluent Emoji flat icons of the figures whose drawings the emoji demo ships.

    npm pack @iconify-json/fluent-emoji-flat@1.2.6 --pack-destination packages
    pip install resvg-py==0.5.0
    python draw_icons.py --packages packages

One icon a figure, of figures without skin tones: a figure with them has many captions for one Fluent icon. Figures are
matched by their code points, and captions are the demo's own. The icons are drawn at the size of the demo's drawings and
reduced to the size that the experiment's model sees in the same way as those. Run twice, it writes the same bytes.
"""

import argparse
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

FOLDER = Path(__file__).parent
SHARDS = FOLDER.parent / "emoji" / "shards"
PACKAGE = "iconify-json-fluent-emoji-flat-1.2.6.tgz"
DRAWN, SIZE = 64, 32  # pixels a side: of the demo's drawings, and of what the model sees
COLOURS = 64  # of a palette; pixels are off by half a level of 256 on average


@dataclass(frozen=True)
class Figure:
    """What the demo says of a figure: code points joined by hyphens, and the caption of its drawings."""

    code: str
    caption: str


def demo_figures(shards: Path = SHARDS, *, toned: bool = False) -> list[Figure]:
    """The figures of the demo's drawings by their code points, those that have skin tones only where asked for."""
    captions, with_tones = dict[str, str](), set[str]()
    for record, caption in _samples(shards):
        if record["skin"] == "none":
            captions[record["base"]] = caption
        else:
            with_tones.add(record["base"])
    return [Figure(code, captions[code]) for code in sorted(captions) if toned or code not in with_tones]


def read_icons(package: Path) -> dict[str, str]:
    """SVG of each icon, by code points.

    Raises:
        FileNotFoundError: the package is missing; tells the command that fetches it.
    """
    if not package.is_file():
        message = (
            f"{package}: no such package; run `npm pack @iconify-json/fluent-emoji-flat@1.2.6` in {package.parent}"
        )
        raise FileNotFoundError(message)
    with tarfile.open(package) as archive:
        icons, codes = (_json(archive, f"package/{name}.json") for name in ("icons", "chars"))
    bodies = {name: icon["body"] for name, icon in icons["icons"].items()}
    box = f'viewBox="0 0 {icons["width"]} {icons["height"]}"'
    size = f'width="{DRAWN}" height="{DRAWN}"'
    return {
        code: f'<svg xmlns="http://www.w3.org/2000/svg" {size} {box}>{bodies[name]}</svg>'
        for code, name in codes.items()
        if name in bodies
    }


def draw(svg: str) -> bytes:
    """PNG of an icon on white, with a palette."""
    import resvg_py

    drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")
    # The model's own resizing of the demo's drawings, and of no smaller ones.
    reduced = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    reduced.quantize(COLOURS, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def write_tar(path: Path, icons: dict[Figure, str]) -> None:
    """Write icons and captions as a WebDataset, in the order of code points."""
    # USTAR has no extra header per member, and needs no time, owner or process id of its own.
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for figure, svg in icons.items():
            for suffix, content in (("png", draw(svg)), ("txt", figure.caption.encode())):
                member = tarfile.TarInfo(f"fluent_{figure.code}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def _without_variation(code: str) -> str:
    """Code points as the package writes them: without the selector of colour."""
    return "-".join(part for part in code.split("-") if part != "fe0f")


def _samples(shards: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Record and caption of each drawing of the demo."""
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as archive:
            for name in (member.name for member in archive.getmembers() if member.name.endswith(".json")):
                yield _json(archive, name), _content(archive, name.replace(".json", ".txt")).decode()


def _json(archive: tarfile.TarFile, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_content(archive, name))
    return found


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    stream = archive.extractfile(name)
    return b"" if stream is None else stream.read()


def main() -> None:
    """Read the package, draw the icons, and print what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder with the .tgz file of `npm pack`")
    parser.add_argument("--out", type=Path, default=FOLDER / "fluent.tar")
    parser.add_argument("--toned", action="store_true", help="also figures that have skin tones, in the icons' yellow")
    options = parser.parse_args()
    icons, figures = read_icons(options.packages / PACKAGE), demo_figures(toned=options.toned)
    drawn = {figure: icons[code] for figure in figures if (code := _without_variation(figure.code)) in icons}
    write_tar(options.out, drawn)
    print(f"{len(drawn)} of {len(figures)} figures, {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
