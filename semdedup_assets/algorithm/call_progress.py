"""How far one call is: a bar for each of its steps, or whatever a caller makes of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from semdedup_assets.algorithm.arguments import described

Report = Callable[[str, int, int], None]
"""Takes the name of a step, how much of it is done, and how much there is."""


def silent(step: str, done: int, total: int) -> None:
    """Report nothing."""
    del step, done, total


@contextmanager
def reporting(progress: bool | Report) -> Iterator[Report]:  # noqa: FBT001  # as the call is given it
    """What a block reports to.

    Args:
        progress: True: bars on standard error; False: nothing; or a function.

    Raises:
        TypeError: it is none of these.
    """
    if progress is False:
        yield silent
    elif progress is True:
        bars = _Bars()
        try:
            yield bars
        finally:
            bars.close()
    elif callable(progress):
        yield progress
    else:
        message = f"progress: {described(progress)} is neither True, False nor a function of step, done and total"
        raise TypeError(message)


class _Bars:
    """One bar of tqdm's after the other."""

    def __init__(self) -> None:
        self._step, self._bar = "", None

    def __call__(self, step: str, done: int, total: int) -> None:
        """Show how far a step is."""
        from tqdm import tqdm

        if step != self._step:
            self.close()
            self._step, self._bar = step, tqdm(total=total, desc=step, unit_scale=True)
        bar: Any = self._bar
        bar.update(done - bar.n)

    def close(self) -> None:
        """Leave the last bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
