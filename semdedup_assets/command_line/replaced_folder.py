"""A folder that takes the place of another as a whole, and which of the two is there when Ctrl-C is pressed."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

_BUSY_SECONDS = 1.0


class ReplacedFolder:
    """A folder, what is to take its place, and where that is written.

    Args:
        path: of the folder, as a person named it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beside: Path | None = None
        self._replaced = False
        self._at_it = Lock()

    @contextmanager
    def beside(self, to: Path) -> Iterator[Path]:
        """A temporary folder beside it, so that a folder with the name is always whole; it goes with the block.

        Args:
            to: the whole path of the folder.
        """
        with tempfile.TemporaryDirectory(prefix=".semdedup-", dir=to.parent) as beside:
            self._beside = Path(beside)
            yield self._beside

    def replace(self, to: Path, written: Path) -> None:
        """Put what was written in its place; where that fails, or Ctrl-C is pressed, the earlier one stays.

        Args:
            to: the whole path of the folder.
            written: in the temporary folder beside it, where the earlier one is removed with it.
        """
        earlier = written.with_name(".earlier")
        with self._at_it:
            try:
                if to.exists():
                    to.replace(earlier)
                written.replace(to)
            except BaseException:
                if earlier.exists() and not to.exists():
                    earlier.replace(to)
                raise
            finally:
                self._replaced = not written.exists()

    def interrupted(self) -> str:
        """What is said of it when Ctrl-C is pressed."""
        # Between the two names that change it is neither.
        settled = self._at_it.acquire(timeout=_BUSY_SECONDS)
        state = "holds the new export" if self._replaced else "is as it was"
        if settled:
            self._at_it.release()
        return f"interrupted: {self._path} {state}"

    def left(self) -> str:
        """What is said of the temporary folder where there was no time to remove it."""
        return f"{self._beside} is left, and may be removed" if self._beside and self._beside.exists() else ""
