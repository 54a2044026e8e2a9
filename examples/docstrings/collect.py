"""Collect the docstrings of whole installed packages as JSON lines, by parsing their source.

    python collect.py

Whole packages, because duplicates live near each other: the same method of a frame and of a series, the same text
copied from module to module. The order is shuffled over all shards with a fixed seed, so that duplicates cross them.
The same versions of the packages give the same bytes.
"""

import argparse
import ast
import gzip
import json
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

PACKAGES = {  # import name: (distribution, licence)
    "numpy": ("numpy", "BSD-3-Clause"),
    "polars": ("polars", "MIT"),
    "torchvision": ("torchvision", "BSD-3-Clause"),
    "faiss": ("faiss-gpu", "MIT"),
}
SHORTEST = 40  # characters; below that a docstring says too little to be compared
SHARDS = 4
SEED = 0
Named = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Docstring:
    """A docstring and where it stands; `url` names file and line, and no two docstrings share one."""

    text: str
    url: str
    package: str
    name: str


def docstrings_of(package: str) -> Iterator[Docstring]:
    """Every docstring of an installed package that is long enough, file by file.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    root = package_folder(package)
    with warnings.catch_warnings():
        # Parsing others' source may warn of their escapes, which is not ours to mend.
        warnings.simplefilter("ignore", SyntaxWarning)
        for path in sorted(root.rglob("*.py")):
            yield from _docstrings_in(path, inside=root.parent)


def package_folder(package: str) -> Path:
    """Where the package is installed.

    Raises:
        ModuleNotFoundError: nowhere.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        message = f"{package}: not installed; `pip install {PACKAGES[package][0]}` brings it"
        raise ModuleNotFoundError(message)
    return Path(spec.origin).parent


def write_shards(docstrings: Sequence[Docstring], out: Path, *, shards: int = SHARDS) -> list[Path]:
    """Write the docstrings, shuffled, as gzipped JSON lines of almost equal counts."""
    shuffled = list(docstrings)
    random.Random(SEED).shuffle(shuffled)
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{shard:05d}.jsonl.gz" for shard in range(shards)]
    for shard, path in enumerate(paths):
        start, stop = (len(shuffled) * edge // shards for edge in (shard, shard + 1))
        lines = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in shuffled[start:stop])
        path.write_bytes(gzip.compress(lines.encode(), mtime=0))
    return paths


def copy_licences(out: Path) -> None:
    """Copy each package's licence text, which its licence asks to go with the text."""
    out.mkdir(parents=True, exist_ok=True)
    for package, (distribution, _) in PACKAGES.items():
        files = metadata.files(distribution) or []
        licence = min((file for file in files if file.stem == "LICENSE"), key=lambda file: len(file.parts))
        shutil.copyfile(Path(str(licence.locate())), out / f"{package}.txt")


def credits(counts: Counter[str]) -> str:
    """The table of packages, versions, licences and counts for CREDITS.md."""
    rows = ["| package | version | licence | docstrings |", "|-|-|-|-:|"]
    for package, (distribution, licence) in PACKAGES.items():
        version = metadata.version(distribution)
        text = f"[{licence}](licences/{package}.txt)"
        rows.append(f"| {package} ({distribution}) | {version} | {text} | {counts[package]:,} |")
    return "\n".join(rows)


def _docstrings_in(path: Path, *, inside: Path) -> Iterator[Docstring]:
    file = path.relative_to(inside)
    module = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
    for node, name in _documented(ast.parse(path.read_bytes()), module):
        text = (ast.get_docstring(node) or "").strip()
        if len(text) >= SHORTEST:
            line = 1 if isinstance(node, ast.Module) else node.lineno
            yield Docstring(text=text, url=f"python:{file.as_posix()}#L{line}", package=file.parts[0], name=name)


def _documented(node: ast.AST, name: str) -> Iterator[tuple[ast.Module | Named, str]]:
    """The node and all modules, classes and functions below it, each with its dotted name."""
    if isinstance(node, ast.Module | Named):
        yield node, name
    for child in ast.iter_child_nodes(node):
        below = f"{name}.{child.name}" if isinstance(child, Named) else name
        yield from _documented(child, below)


def main() -> None:
    """Collect, write shards and licences, and print the table for CREDITS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out: Path = parser.parse_args().out
    docstrings = [docstring for package in PACKAGES for docstring in docstrings_of(package)]
    paths = write_shards(docstrings, out / "shards")
    copy_licences(out / "licences")
    print(credits(Counter(docstring.package for docstring in docstrings)))
    total = sum(path.stat().st_size for path in paths)
    print(f"{len(docstrings)} docstrings in {len(paths)} shards, {total:,} bytes")


if __name__ == "__main__":
    main()
