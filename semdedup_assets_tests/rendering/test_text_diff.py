import gzip
import json
import re
from html import unescape
from itertools import pairwise
from pathlib import Path

from semdedup_assets.rendering.text_diff import highlighted_diff

DOCSTRINGS = Path(__file__).parents[2] / "examples" / "docstrings" / "shards" / "00000.jsonl.gz"


def without(tag: str, html: str) -> str:
    """The text of a diff without what is in a tag."""
    return unescape(re.sub(r"</?(ins|del)>", "", re.sub(f"<{tag}>.*?</{tag}>", "", html, flags=re.DOTALL)))


def test_a_diff_contains_both_texts_of_real_docstrings() -> None:
    with gzip.open(DOCSTRINGS, "rt") as lines:
        texts = [json.loads(line)["text"][:1500] for line, _ in zip(lines, range(400), strict=False)]
    highlighted_pairs = 0
    for text, reference in pairwise(sorted(texts)):
        html = str(highlighted_diff(text, reference=reference))
        assert without("del", html) == text
        if "<ins>" in html or "<del>" in html:
            highlighted_pairs += 1
            assert without("ins", html).split() == reference.split()
    assert highlighted_pairs > 3


def test_only_different_words_are_highlighted() -> None:
    html = highlighted_diff(
        "Returns the <b>largest</b> of  two numbers.", reference="Returns the <b>least</b> of two numbers."
    )
    assert html == (
        "Returns the <del>&lt;b&gt;least&lt;/b&gt; </del><ins>&lt;b&gt;largest&lt;/b&gt; </ins>of  two numbers."
    )


def test_a_deleted_last_word_does_not_stick_to_its_neighbour() -> None:
    html = highlighted_diff("one two three", reference="one two three four")
    assert html == "one two three<del> four </del>"


def test_braces_and_ampersands_are_plain_text() -> None:
    html = highlighted_diff("one two {0} & three", reference="one two {} & three")
    assert html == "one two <del>{} </del><ins>{0} </ins>&amp; three"


def test_texts_with_few_common_words_get_no_highlights() -> None:
    html = highlighted_diff("rain falls in & spring", reference="a cat sat on the mat")
    assert html == "rain falls in &amp; spring"
