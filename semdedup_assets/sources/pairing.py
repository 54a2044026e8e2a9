"""Which array of vectors belongs to which table: by their names, never by their order."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from semdedup_assets.sources.reading import file_name, fixed_roots
from semdedup_assets.storage.files import FileStat, filesystem

_SHOWN = 5


class _Named(NamedTuple):
    """A file with what its path says.

    Attributes:
        file: which.
        folder: the parts of its path below the source's, those that are the same for all files excluded.
        stem: its name without the suffix.
    """

    file: FileStat
    folder: tuple[str, ...]
    stem: str

    @property
    def number(self) -> int | None:
        """The last number in the name, whatever zeros it is padded with; None where there is none."""
        digits = re.findall(r"[0-9]+", self.stem)
        return int(digits[-1]) if digits else None


def paired(
    arrays: Sequence[FileStat], tables: Sequence[FileStat], *, arrays_path: str, tables_path: str
) -> list[tuple[FileStat, FileStat]]:
    """Each array with its table: that of the same name but for the suffix, else that with the same last number.

    `img_emb_0003.npy` belongs to `metadata_3.parquet`. Where both sides have several folders, these must be the same
    too. A single array and a single table belong together whatever they are called, if the settings name them as files.

    Args:
        arrays: files of vectors.
        tables: files of metadata.
        arrays_path: the setting that the arrays were listed by.
        tables_path: the setting that the tables were listed by.

    Returns:
        Pairs in the order of the arrays.

    Raises:
        ValueError: a file has no partner, or two of one side have one number; names files of both sides.
    """
    if len(arrays) == len(tables) == 1 and _is_named(arrays[0], arrays_path) and _is_named(tables[0], tables_path):
        return [(arrays[0], tables[0])]
    left, right = _named(arrays, arrays_path), _named(tables, tables_path)
    if not all(any(each.folder for each in side) for side in (left, right)):
        left, right = ([each._replace(folder=()) for each in side] for side in (left, right))
    found: dict[str, FileStat] = {}
    names: tuple[Callable[[_Named], object], ...] = (lambda each: each.stem, lambda each: each.number)
    for name in names:
        tables_by_name = _grouped(right, name)
        for key, group in _grouped(left, name).items():
            partners = tables_by_name.get(key, [])
            if partners and len(group) + len(partners) > 2:
                raise ValueError(_ambiguous(key[1], [*group, *partners]))
            if partners:
                found[group[0].file.path] = partners[0].file
        left = [each for each in left if each.file.path not in found]
        taken = {table.path for table in found.values()}
        right = [each for each in right if each.file.path not in taken]
    if left or right:
        message = (
            f"each array needs its own metadata file, of the same name or with the same last number in it: of "
            f"{arrays_path} {_listed(left)} without a partner, of {tables_path} {_listed(right)}"
        )
        raise ValueError(message)
    return [(array, found[array.path]) for array in arrays]


def _is_named(file: FileStat, path: str) -> bool:
    """Whether a setting names a file itself, not a folder or glob where it was found."""
    return filesystem(file.path)[1] == filesystem(path)[1]


def _named(files: Sequence[FileStat], path: str) -> list[_Named]:
    roots = [f"{root.rstrip('/')}/" for root in fixed_roots(path)]
    below = []
    for file in files:
        name = filesystem(file.path)[1]
        below.append(next((name[len(root) :] for root in roots if name.startswith(root)), file_name(name)).split("/"))
    depths = {len(parts) for parts in below}
    differing = [len(set(column)) > 1 for column in zip(*(parts[:-1] for parts in below), strict=len(depths) == 1)]
    kept = differing if len(depths) == 1 else [True] * max(depths)
    return [
        _Named(file, tuple(part for part, keep in zip(parts[:-1], kept, strict=False) if keep), _stem(parts[-1]))
        for file, parts in zip(files, below, strict=True)
    ]


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def _grouped(files: Iterable[_Named], name: Callable[[_Named], object]) -> dict[tuple[object, object], list[_Named]]:
    groups: dict[tuple[object, object], list[_Named]] = {}
    for each in files:
        groups.setdefault((each.folder, name(each)), []).append(each)
    return groups


def _ambiguous(name: object, files: Sequence[_Named]) -> str:
    what = "no number" if name is None else f"the number {name}" if isinstance(name, int) else f"the name {name!r}"
    return f"several files have {what}, so that nothing says which belong together: {_listed(files)}; rename them"


def _listed(files: Sequence[_Named]) -> str:
    paths = ", ".join(each.file.path for each in files[:_SHOWN])
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return f"{len(files)} ({paths}{more})" if files else "none"
