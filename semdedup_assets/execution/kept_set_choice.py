"""Which kept set is meant, where a person names some of its parts and the settings have the others."""

from collections.abc import Sequence


class UnknownKeptSetError(ValueError):
    """A kept set is named that no pipeline has.

    Attributes:
        message: what there is instead.
        setting: of the kept set, which is wrong.
    """

    def __init__(self, message: str, *, setting: str) -> None:
        super().__init__(message)
        self.message, self.setting = message, setting


def chosen(setting: str, given: str | None, there: Sequence[str]) -> str:
    """The one that is meant of those that there are.

    Args:
        setting: that names it.
        given: its value; None where it is left out.
        there: what it can be.

    Raises:
        UnknownKeptSetError: there is no such one, or none is given and there are several.
    """
    named = ", ".join(there) or "none"
    if given is None and len(there) == 1:
        return there[0]
    if given is None:
        message = f"missing; there are several: {named}"
        raise UnknownKeptSetError(message, setting=setting)
    if given not in there:
        message = f"{given!r} is none of those that there are: {named}"
        raise UnknownKeptSetError(message, setting=setting)
    return given
