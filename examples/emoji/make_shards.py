"""Write the demo's WebDataset shards: the drawings of the figures that the encoder never saw.

    npm pack emoji-datasource-twitter@16.0.0 emoji-datasource-google@16.0.0 --pack-destination packages
    python make_shards.py --packages packages

Run twice, it writes the same bytes: the order is seeded, and the members carry neither times nor owners.
"""

import argparse
import io
import json
import random
import tarfile
from collections.abc import Sequence
from pathlib import Path

from drawings import Drawing, held_out_bases, read_drawings

ORDER_SEED = 0
SHARDS = 4


def write_shards(drawings: Sequence[Drawing], out: Path, *, shards: int = SHARDS) -> list[Path]:
    """Write the drawings, shuffled, as tars of almost equal counts in the layout of img2dataset."""
    shuffled = list(drawings)
    random.Random(ORDER_SEED).shuffle(shuffled)
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{shard:05d}.tar" for shard in range(shards)]
    for shard, path in enumerate(paths):
        start, stop = (len(shuffled) * edge // shards for edge in (shard, shard + 1))
        _write_tar(path, shuffled[start:stop])
    return paths


def _write_tar(path: Path, drawings: Sequence[Drawing]) -> None:
    # USTAR has no extra header per member, and needs no time, owner or process id of its own.
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for drawing in drawings:
            _add(archive, f"{drawing.key}.png", drawing.png)
            _add(archive, f"{drawing.key}.txt", drawing.caption.encode())
            _add(archive, f"{drawing.key}.json", json.dumps(drawing.metadata()).encode())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def main() -> None:
    """Read the packages, write the held-out drawings, and print what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder with the two .tgz files of `npm pack`")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "shards")
    options = parser.parse_args()
    drawings = read_drawings(options.packages)
    bases = held_out_bases(drawings)
    held_out = [drawing for drawing in drawings if drawing.base in bases]
    paths = write_shards(held_out, options.out)
    total = sum(path.stat().st_size for path in paths)
    print(f"{len(held_out)} drawings of {len(bases)} figures in {len(paths)} shards, {total:,} bytes")


if __name__ == "__main__":
    main()
