"""Highlight the words in which two texts differ."""

import difflib
import re

from markupsafe import Markup, escape

# Below this share of common words nearly every word would be highlighted.
_MIN_COMMON_WORDS = 0.5


def highlighted_diff(text: str, *, reference: str) -> Markup:
    """A text as HTML, with its own words in `<ins>` and words that only the reference has in `<del>`.

    The comparison ignores the white space around words. Texts that have less than half of their words in common
    get no highlights.

    Args:
        text: the text to show.
        reference: the text that it is compared with.
    """
    # Each word with the white space after it.
    words, reference_words = (re.findall(r"\S+\s*|\s+", each) for each in (text, reference))
    matcher = difflib.SequenceMatcher(
        None, [word.strip() for word in reference_words], [word.strip() for word in words], autojunk=False
    )
    if matcher.quick_ratio() < _MIN_COMMON_WORDS or matcher.ratio() < _MIN_COMMON_WORDS:
        return escape(text)
    parts: list[str] = []
    for change, first, last, start, stop in matcher.get_opcodes():
        deleted, inserted = "".join(reference_words[first:last]), "".join(words[start:stop])
        if change == "equal":
            parts.append(escape(inserted))
            continue
        if deleted:
            # The last word of a text has no white space after it, so it would stick to its neighbour.
            before = " " if start and not words[start - 1][-1].isspace() else ""
            after = "" if deleted[-1].isspace() else " "
            parts.append(Markup("<del>{}</del>").format(f"{before}{deleted}{after}"))
        if inserted:
            parts.append(Markup("<ins>{}</ins>").format(inserted))
    return Markup("").join(parts)
