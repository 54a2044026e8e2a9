"""Where a model's files are on this machine, and what identifies their content."""

import contextlib
import json
import os
import re
import uuid
from functools import cache
from hashlib import blake2b
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

PACKAGE_PREFIX = "package:"
WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".npz"})
_CONTENT_SUFFIXES = WEIGHT_SUFFIXES | {".json", ".txt", ".model"}
_BLOCK_BYTES = 1 << 20


def local_path(name: str) -> Path | None:
    """The file or folder that a setting names.

    Args:
        name: a path (absolute, from the home folder, or relative to the current directory),
            `package:<import name>/<path>` for one inside an installed package, or a model's name.

    Returns:
        The path, or None where the name is none (a built-in model, a tag, a hub id).

    Raises:
        ValueError: the name can only be a path, and nothing is there.
    """
    if name.startswith(PACKAGE_PREFIX):
        return _package_path(name)
    path = Path(name).expanduser()
    if path.exists():
        return path
    if name.startswith((".", "/", "~")) or path.suffix in WEIGHT_SUFFIXES:
        message = f"{name}: no such file or folder; relative paths start at the current directory, {Path.cwd()}"
        raise ValueError(message)
    return None


def local_model(name: str) -> Path | None:
    """The folder that a text model's name means, None where it can only be a hub's id.

    Raises:
        ValueError: it can only be a folder, and is not there.
    """
    folder = local_path(name)
    if folder is None and name.count("/") > 1:  # a hub's id has one slash at most
        message = f"{Path(name).absolute()}: no such folder; name one, or a hub id"
        raise ValueError(message)
    return folder


def weight_problems(folder: Path) -> list[str]:
    """Why a model's folder cannot be loaded though its configuration is there; each begins with the setting's name."""
    from safetensors import SafetensorError, safe_open

    files = [file for file in folder.rglob("*") if file.suffix in WEIGHT_SUFFIXES]
    kinds = ", ".join(sorted(WEIGHT_SUFFIXES))
    found = (
        [] if files else [f"model: {folder.absolute()} holds no weights ({kinds}); name a folder with a whole model"]
    )
    for file in (each for each in files if each.suffix == ".safetensors"):
        try:
            # Reads the header, which says how long the file is.
            with safe_open(file, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            found.append(f"model: {file.absolute()} is cut off or damaged ({error}); copy it again")
    return found


def tokenizer_problems(folder: Path) -> list[str]:
    """Why a text model's folder cannot read texts; begins with the setting's name."""
    named = ("token", "vocab")
    if any(file.suffix == ".model" or any(part in file.name for part in named) for file in folder.rglob("*")):
        return []
    return [f"model: {folder.absolute()} holds no tokenizer (tokenizer.json or such); name a folder with a whole model"]


def _package_path(name: str) -> Path:
    package, _, inside = name.removeprefix(PACKAGE_PREFIX).partition("/")
    spec = _package_spec(package)
    if spec is None or not spec.submodule_search_locations:
        message = f"{name}: package {package!r} is not installed here; install it, or name a local folder"
        raise ValueError(message)
    path = Path(next(iter(spec.submodule_search_locations))) / inside
    if not path.exists():
        message = f"{name}: {path} does not exist; write package:<import name>/<path inside it>"
        raise ValueError(message)
    return path


def _package_spec(package: str) -> ModuleSpec | None:
    # find_spec would import the parents of a dotted name; a top-level one is only looked up.
    return find_spec(package) if package.isidentifier() else None


def content_hash(path: Path) -> str:
    """What identifies a checkpoint: the same wherever it is stored and whenever it was copied.

    Reads each file as a whole: frozen layers, or a merged adapter, leave most of a checkpoint as it was. The hash of
    a large file is remembered on this machine until the file is written again.

    Args:
        path: a checkpoint file, or a folder of weights, configuration and vocabulary (its own
            `.safetensors`, `.bin`, `.pt`, `.pth`, `.npz`, `.json`, `.txt` and `.model` files, and those in
            the folders that a modules.json of sentence-transformers names).

    Returns:
        32 hexadecimal digits.
    """
    digest = blake2b(digest_size=16)
    if path.is_file():
        digest.update(_file_hash(path))
        return digest.hexdigest()
    for name, file in sorted(_content_files(path).items()):
        digest.update(blake2b(name.encode()).digest())
        digest.update(_file_hash(file))
    return digest.hexdigest()


def _content_files(folder: Path) -> dict[str, Path]:
    """By their name inside the folder; of other subfolders (other formats, earlier checkpoints) nothing is read."""
    files = [*folder.iterdir()]
    for module in _module_folders(folder):
        files += module.rglob("*")
    return {
        file.relative_to(folder).as_posix(): file
        for file in files
        if file.is_file() and file.suffix in _CONTENT_SUFFIXES
    }


def _module_folders(folder: Path) -> list[Path]:
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        paths = {module["path"] for module in modules} - {"", "."}
    except (OSError, ValueError, KeyError, TypeError):
        return []  # none of sentence-transformers, or damaged: loading it says so
    return [folder / path for path in paths if (folder / path).is_dir() and ".." not in Path(path).parts]


def _file_hash(path: Path) -> bytes:
    found = path.stat()
    if found.st_size <= _BLOCK_BYTES:
        return _whole_hash(path, found.st_size)
    return _remembered_hash(path.resolve(), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def _whole_hash(path: Path, size: int) -> bytes:
    digest = blake2b(size.to_bytes(8, "little"))
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.digest()


@cache
def _remembered_hash(path: Path, size: int, *stamps: int) -> bytes:
    """The hash of a large file: each look at a store asks for it, and each of Dagster's steps is a process of its own.

    Args:
        path: of the file.
        size: bytes.
        stamps: what changes when it is written.
    """
    key = blake2b(repr((path, size, stamps)).encode(), digest_size=16).hexdigest()
    # Without a home folder, or where it cannot be written, each process reads the file once.
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        known = bytes.fromhex((_cache_folder() / key).read_text(encoding="ascii"))
        if len(known) == blake2b.MAX_DIGEST_SIZE:
            return known
    digest = _whole_hash(path, size)
    with contextlib.suppress(OSError, RuntimeError):
        folder = _cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{key}.{uuid.uuid4().hex}"
        temporary.write_text(digest.hex(), encoding="ascii")
        temporary.replace(folder / key)
    return digest


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "semdedup-assets", "checkpoints")


def short_name(name: str) -> str:
    """A model's name as a part of a path: `facebook/opt-125m` is `opt-125m`, a file loses its suffix."""
    if name.startswith(PACKAGE_PREFIX):
        return path_safe(name.removeprefix(PACKAGE_PREFIX))
    last = Path(name).expanduser()
    if last.name in ("", ".."):
        last = last.resolve()
    return path_safe(last.stem if last.suffix in WEIGHT_SUFFIXES else last.name)


def path_safe(name: str) -> str:
    """The name with what a path or a key cannot hold replaced by `-`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"
