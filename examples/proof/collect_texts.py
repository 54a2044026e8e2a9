"""Collect the documentation strings of some of botocore's services as JSON lines.

    pip install botocore==1.43.117
    python collect_texts.py

Services are chosen that say the same in other words: two databases and two analytics services are described by templates
that were copied and changed, and small ones repeat the sentences on names, tags and pages. The small ones can be held out
whole, as groups of which nothing was trained on. Of equal texts the first stays, so that what is near is not equal. The
same version of botocore gives the same bytes.
"""

import argparse
import gzip
import html
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SERVICES = (
    "arc-zonal-shift", "cloudhsm", "docdb", "identitystore", "kinesisanalytics", "kinesisanalyticsv2", "mq", "neptune"
)  # fmt: skip
SHORTEST = 40  # characters; below that a text says too little to be compared
_BREAKS = re.compile(r"</?(?:p|li|ul|ol|br|dl|dt|dd|div|note|important|h\d)\b[^>]*>")
_TAGS = re.compile(r"<[^>]+>")


@dataclass(frozen=True)
class Text:
    """What is said of an operation, a shape or a shape's member; `key` says of which."""

    key: str
    service: str
    text: str


def texts_of(service: str) -> Iterator[Text]:
    """Every documentation string of a service's newest version that is long enough.

    Raises:
        ModuleNotFoundError: botocore is not installed.
    """
    path = max((botocore_folder() / "data" / service).glob("*/service-2.json.gz"))
    for name, markup in _documented(json.loads(gzip.decompress(path.read_bytes()))):
        text = plain(markup)
        if len(text) >= SHORTEST:
            yield Text(f"{service}/{name}", service, text)


def plain(markup: str) -> str:
    """Words of HTML, with single spaces."""
    return " ".join(html.unescape(_TAGS.sub("", _BREAKS.sub(" ", markup))).split())


def botocore_folder() -> Path:
    """Where botocore is installed.

    Raises:
        ModuleNotFoundError: nowhere.
    """
    spec = find_spec("botocore")
    if spec is None or spec.origin is None:
        message = "botocore: not installed; `pip install botocore==1.43.117` brings it"
        raise ModuleNotFoundError(message)
    return Path(spec.origin).parent


def _documented(model: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and documentation of a service, its operations, its shapes and their members."""
    yield "service", model.get("documentation", "")
    for name, operation in model["operations"].items():
        yield f"operation.{name}", operation.get("documentation", "")
    for name, shape in model["shapes"].items():
        yield name, shape.get("documentation", "")
        for member, documented in shape.get("members", {}).items():
            yield f"{name}.{member}", documented.get("documentation", "")


def copy_licence(out: Path) -> None:
    """Copy botocore's licence and notice, which its licence asks to go with the texts."""
    out.mkdir(parents=True, exist_ok=True)
    for file in metadata.files("botocore") or []:
        if file.name in ("LICENSE.txt", "NOTICE") and len(file.parts) == 2:  # in the folder of metadata
            shutil.copyfile(Path(str(file.locate())), out / f"botocore-{file.stem.lower()}.txt")


def main() -> None:
    """Collect, write texts and licence, and print how many each service has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER)
    out: Path = parser.parse_args().out
    first: dict[str, Text] = {}
    for text in (text for service in SERVICES for text in texts_of(service)):
        first.setdefault(text.text, text)
    lines = "".join(json.dumps(asdict(text), ensure_ascii=False) + "\n" for text in first.values())
    (out / "texts.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    copy_licence(out / "licences")
    for service, count in Counter(text.service for text in first.values()).items():
        print(f"| {service} | {count:,} |")
    print(f"{len(first):,} texts of {sum(map(len, first)):,} characters, {len(lines):,} bytes of lines")


if __name__ == "__main__":
    main()
