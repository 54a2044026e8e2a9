"""Sources whose keys, captions and file names trip readers of manifests: each is right, and must survive."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CAPTIONS = [
    "a lone\rcarriage return",
    "two\r\nlines",
    "two\nlines",
    "x" * 200_000,
    "a\ttab",
    '"quoted"',
    'begins "in the midst',
    '"',
    "None",
    "NA",
    "null",
    "nan",
    "n/a",
    "",
    " ",
    "=1+1",
    "+1",
    "-5",
    "@SUM(A1)",
    "007",
    "1e5",
    "inf",
    "true",
    "FALSE",
    "nul\0byte",
    "line\u2028separator and next\x85line",
    "中文 é e\u0301 🙂",
    "\ufeffa byte order mark",
    "back\\slash\\n",
    "'single'",
]

FILES = [
    b"plain.png",
    b"photo.1.png",
    b"photo_1.png",
    b"photo_1_png.png",
    b"A.png",
    b"a.PNG",
    b"two words.jpg",
    b"tab\there.png",
    b"line\nbreak.png",
    b"carriage\rreturn.png",
    b'"quoted".png',
    b"back\\slash\\t.png",
    b"=cmd().png",
    b"-1.png",
    b"not \xff utf-8.png",
    b"not \xfe utf-8.png",
    "é.png".encode(),
    "e\u0301.png".encode(),
    b"dir.v1/x.png",
    b"dir.v1/y.tar.png",
    b"deep/" * 30 + b"x.png",
    b"n" * 120 + b".png",
    b"m" * 240 + b".png",
    b"case/X.png",
    b"CASE/x.png",
    b"None.png",
    *(f"plain {number}.png".encode() for number in range(4)),
]

TAR_MEMBERS = [
    "image.png",
    "a.jpg",
    "a.JPG",
    "B.png",
    "b.png",
    "image.png",
    "../up.png",
    "/absolute/x.png",
    "x/../../y.png",
    "__meta__/z.png",
    "__meta.png",
    "k.png",
    "dir.v1/k.png",
    "line\nbreak/k.png",
    "a.b\nc/k.png",
    "é" * 60 + ".png",
    "l" * 120 + ".png",
    "m" * 300 + ".png",
    "p/" * 150 + "q.png",
]

LINES = [
    b'\xef\xbb\xbf{"text": "the first line of a file"}',
    b'{"text": "with a carriage return at its end"}\r',
    b'{"text": "with one between its values",\r"url": "u"}',
    b"",
    b"  ",
    b'\xef\xbb\xbf{"text": "a mark in the middle, as joined files have"}',
    '{"text": "line\u2028separator \x85 and é"}'.encode(),
    b'{"text": "half a pair elsewhere", "url": "\\ud83d"}',
    b'{"text": "a whole pair \\ud83d\\ude00", "url": "v"}',
    b'{"text": "half a pair in bytes", "url": "\xed\xa0\xbd"}',
    b'  {"text": "indented"}  ',
    b'{"text": "nul \\u0000 and \\r\\n in it"}',
    b'{"text": "NaN", "url": null}',
    b'{"text": "the last line, which no newline ends"}',
]


def image(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).resize((40, 40)).save(content, "PNG")
    return content.getvalue()


def write_folder(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Write a hostile folder of images; returns image and caption by path."""
    written = {}
    for number, name in enumerate(FILES):
        path = os.fsdecode(os.path.join(os.fsencode(folder), name))  # noqa: PTH118  # of bytes
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        caption = CAPTIONS[number % len(CAPTIONS)]
        written[path] = image(number), caption
        Path(path).write_bytes(written[path][0])
        Path(path.rpartition(".")[0] + ".txt").write_bytes(caption.encode())
    return written


def write_tar(path: Path, members: list[str], *, seed: int) -> None:
    """Write a tar of one image for each name, a text beside it."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number, name in enumerate(members):
            text = CAPTIONS[(seed + number) % len(CAPTIONS)].encode()
            stem = name.rpartition(".")[0]
            for each, content in ((name, image(1000 * seed + number)), (f"{stem}.txt", text)):
                member = tarfile.TarInfo(each)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_lines(folder: Path) -> list[str]:
    """Write files of hostile lines; returns the texts of those that have one."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        lines = [line.replace(b'"text": "', f'"text": "{number} '.encode()) for line in LINES]
        (folder / f"{number}.jsonl").write_bytes(b"\n".join(lines))
    texts = [json.loads(line)["text"] for line in LINES if line.strip()]
    return [f"{number} {text}" for number in range(2) for text in texts]
