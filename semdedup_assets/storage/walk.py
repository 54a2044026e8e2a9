"""Local files below a folder, links followed: what fsspec's listings pass over or report as "other"."""

import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import translate

HIDDEN = "hidden names (. or _ first)"
NOWHERE = "links that lead nowhere"
LOOPS = "links that loop"
UNREADABLE = "folders that may not be read, or what is in them"
SPECIAL = "neither file nor folder"

_MAGIC = re.compile(r"[*?[]")
_ESCAPED = re.compile(r"\[([*?[])\]")
_VISITS = 100  # of one folder, by links: folders that link to each other would else be walked in every order

_Chain = tuple[tuple[int, int], "_Chain | None"]
"""A folder's device and inode, and the chain of the folder that holds it."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is a tool's own, as Spark and Hadoop have it; `_year=2020` is a partition."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def literal(segment: str) -> str | None:
    """The one name that a segment of a glob stands for; None where it may stand for several."""
    name = _ESCAPED.sub("", segment)
    return None if _MAGIC.search(name) else _ESCAPED.sub(r"\1", segment)


def suffix_of(name: str) -> str:
    """How a name ends, for counts: `suffix .md`."""
    stem, dot, suffix = name.rpartition(".")
    return f"suffix .{suffix.lower()}" if stem and dot and len(suffix) <= 12 else "no suffix"


class Walk:
    """The files that a glob matches below a folder.

    A link counts as what it leads to, under its own name. A folder is not entered again below itself.

    Attributes:
        found: status of each file (of a link's target) by path.
        passed_over: how many names were passed over, by reason.
    """

    def __init__(self, suffixes: tuple[str, ...] | None) -> None:
        self.found: dict[str, os.stat_result] = {}
        self.passed_over: Counter[str] = Counter()
        self._suffixes = suffixes
        self._visits: Counter[tuple[int, int]] = Counter()

    def glob(self, root: str, segments: Sequence[str]) -> None:
        """Find the files that segments of a glob match below a folder.

        Args:
            root: an existing folder, taken literally.
            segments: parts between slashes; `**` stands for any number of folders, and last for all files below.

        Raises:
            OSError: a folder cannot be listed for another cause than its permissions.
        """
        waiting: list[tuple[str, tuple[str, ...], _Chain | None, bool]] = [(root, tuple(segments), None, False)]
        while waiting:
            path, rest, outer, linked = waiting.pop()
            while len(rest) > 1 and (name := literal(rest[0])) is not None:
                path, rest = f"{path.rstrip('/')}/{name}", rest[1:]
            if len(rest) == 1 and (name := literal(rest[0])) is not None:
                self.add_named(f"{path.rstrip('/')}/{name}")
                continue
            chain = self._entered(path, outer, linked=linked)
            if chain is None:
                continue
            if rest[0] == "**" and len(rest) > 2:
                waiting.append((path, rest[1:], outer, linked))
            for folder, below, is_link in self._scan(path, rest):
                waiting.append((folder, below, chain, linked or is_link))

    def add_named(self, path: str) -> None:
        """Add one file under its literal name, where it is there."""
        try:
            status = os.stat(path)  # noqa: PTH116  # a path object for each of a million names takes seconds
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            return
        if stat.S_ISREG(status.st_mode):
            self.found[path] = status

    def _entered(self, path: str, outer: _Chain | None, *, linked: bool) -> _Chain | None:
        """A folder's chain; None where it must not be entered."""
        try:
            status = os.stat(path)  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError:
            self.passed_over[UNREADABLE] += 1
            return None
        identity = (status.st_dev, status.st_ino)
        if linked:
            self._visits[identity] += 1
            above = outer
            while above is not None and above[0] != identity:
                above = above[1]
            if above is not None or self._visits[identity] > _VISITS:
                self.passed_over[LOOPS] += 1
                return None
        return identity, outer

    def _scan(self, path: str, rest: tuple[str, ...]) -> list[tuple[str, tuple[str, ...], bool]]:
        """Add the files of a folder that the rest of a glob matches; the folders to go on in, with what, by a link."""
        deep = rest[0] == "**"
        of_files = rest[-1] if len(rest) == 1 + (deep and len(rest) > 1) else None
        of_folders, below = ("**", rest) if deep else (rest[0], rest[1:])
        patterns = {False: of_files and _Pattern.of(of_files), True: _Pattern.of(of_folders) if below else None}
        folders = []
        for entry in self._entries(path):
            problem = _link_problem(entry) if entry.is_symlink() else None
            is_folder = problem is None and entry.is_dir()
            pattern = patterns[is_folder]
            if not pattern or not pattern.matches(entry.name):
                continue
            if is_hidden(entry.name) and not pattern.names_hidden:
                self.passed_over[HIDDEN] += 1
            elif is_folder:
                folders.append((entry.path, below, entry.is_symlink()))
            else:
                self._add(entry, problem)
        return folders

    def _entries(self, path: str) -> list["os.DirEntry[str]"]:
        try:
            with os.scandir(path) as entries:
                return list(entries)
        except PermissionError:
            self.passed_over[UNREADABLE] += 1
        except (FileNotFoundError, NotADirectoryError):
            # It vanished since its parent was listed, or a file has the name of a glob's folder.
            pass
        return []

    def _add(self, entry: "os.DirEntry[str]", problem: str | None) -> None:
        if self._suffixes is not None and not entry.name.lower().endswith(self._suffixes):
            self.passed_over[suffix_of(entry.name)] += 1
            return
        if problem is not None:
            self.passed_over[problem] += 1
            return
        try:
            status = entry.stat()
        except FileNotFoundError:
            return
        except PermissionError:
            self.passed_over[UNREADABLE] += 1
            return
        if stat.S_ISREG(status.st_mode):
            self.found[entry.path] = status
        else:
            self.passed_over[SPECIAL] += 1


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A segment of a glob.

    Attributes:
        matches: whether it matches a name.
        names_hidden: whether it begins with `.` or `_`, and so asks for hidden names.
    """

    matches: Callable[[str], object]
    names_hidden: bool

    @classmethod
    def of(cls, segment: str) -> "_Pattern":
        return cls(re.compile(translate("*" if segment == "**" else segment)).match, segment[0] in "._")


def _link_problem(entry: "os.DirEntry[str]") -> str | None:
    """Why a link leads nowhere; None where it leads to something."""
    try:
        entry.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return LOOPS
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EACCES):
            return NOWHERE
        raise
    return None
