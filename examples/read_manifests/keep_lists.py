r"""Read a manifest's keep lists: which records of which source file are kept.

    python examples/read_manifests/keep_lists.py data/photos/ViT-B-16-openai/k=100/hard/epsilon=0.05/manifests/current.json

The manifest must hold the format `keep_lists`: a table for each shard, tab-separated, of file, row in the file and key.
File names and keys may hold anything: `\t`, `\n`, `\r`, `\\` and `\xHH`, a byte, stand for what would end a cell or a
line. `samples/*.tsv`, beside the format `webdataset`, are written the same way, with the key in the tar in front.
"""

import argparse
import csv
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from semdedup_assets import read_manifest

_ESCAPE = re.compile(rb"\\(x[0-9a-f]{2}|.)")
_SHORT = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}


def read_table(path: Path) -> Iterator[list[str]]:
    """The rows of a table, as they were before they were escaped."""
    csv.field_size_limit(sys.maxsize)  # keys are never cut
    with path.open(encoding="utf-8", newline="") as stream:
        for row in csv.reader(stream, delimiter="\t"):
            yield [unescaped(cell) for cell in row]


def unescaped(cell: str) -> str:
    """A path as Python opens it, or a key; bytes that are not UTF-8 become what `os.fsdecode` makes of them."""
    return os.fsdecode(_ESCAPE.sub(_character, cell.encode()))


def _character(found: "re.Match[bytes]") -> bytes:
    code = found[1]
    return bytes.fromhex(code[1:].decode()) if code.startswith(b"x") else _SHORT.get(code, code)


def main() -> None:
    """Print the first kept records, and how many there are."""
    parser = argparse.ArgumentParser(description="Read a manifest's keep lists.")
    parser.add_argument("manifest", help="current.json, or the folder of one manifest, which holds keep_lists/*.tsv")
    items = 0
    for path in read_manifest(parser.parse_args().manifest).files("keep_lists"):
        for file, row, key in read_table(Path(path)):
            if items < 3:
                print(f"record {row} of {file!r}: {key!r}")
            items += 1
    print(f"{items} items")


if __name__ == "__main__":
    main()
