"""Seconds and bytes as a person reads them."""

_NO_BREAK = "\N{NO-BREAK SPACE}"


def readable_seconds(seconds: float) -> str:
    """Such as `< 0.1 s`, `0.4 s`, `3 min 20 s`, `5 h 10 min` or `2 d 4 h`, which no line breaks."""
    if seconds < 0.05:
        return f"<{_NO_BREAK}0.1{_NO_BREAK}s"
    if seconds < 9.95:
        return f"{seconds:.1f}{_NO_BREAK}s"
    whole = round(seconds)
    for unit, size, lower, lower_size in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return _NO_BREAK.join([str(whole // size), unit, str(whole % size // lower_size), lower])
    return f"{whole}{_NO_BREAK}s"


def readable_bytes(count: float) -> str:
    """Such as `512 bytes`, `24.1 kB`, `1.4 GB`, which no line breaks."""
    amount = float(count)
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if amount < 999.5:
            whole = unit == "bytes" or amount >= 100
            return f"{amount:.0f}{_NO_BREAK}{unit}" if whole else f"{amount:.1f}{_NO_BREAK}{unit}"
        amount /= 1000
    return f"{amount:,.1f}{_NO_BREAK}PB"


def room(needed: float, available: float | None, *, of: str) -> str:
    """Whether something fits, in words."""
    if available is None:
        return f"{readable_bytes(needed)}; how much {of} has is not known"
    conclusion = "fits" if needed <= available else "DOES NOT FIT"
    return f"{readable_bytes(needed)} of {readable_bytes(available)} that {of} has: {conclusion}"
