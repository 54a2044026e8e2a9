"""Fingerprints against computations of the same that share no code with them."""

import gzip
import io
import json
import sys
import unicodedata
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from datasketch import MinHash
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from semdedup_assets.analysis_settings import Fingerprints
from semdedup_assets.baselines.fingerprints import (
    MissingExtraError,
    decoded_hash,
    hamming_distance,
    image_phash,
    minhash_jaccard,
    normalised_text,
    require_library,
    text_minhash,
    word_ngrams,
)
from semdedup_assets_tests.analyses.small_pipelines import png

DOCSTRINGS = Path(__file__).parents[2] / "examples" / "docstrings" / "shards" / "00000.jsonl.gz"
SETTINGS = Fingerprints()


def docstrings(count: int) -> list[str]:
    with gzip.open(DOCSTRINGS, "rt") as lines:
        return [json.loads(line)["text"] for line, _ in zip(lines, range(count), strict=False)]


def jaccard(one: str, other: str) -> float:
    first, second = (word_ngrams(text, words=SETTINGS.ngram_words) for text in (one, other))
    return len(first & second) / len(first | second)


def related_pairs() -> list[tuple[str, str]]:
    """Real texts beside the same with a part cut off: every Jaccard similarity from 0 to 1 occurs."""
    texts = [text for text in docstrings(300) if len(text.split()) > 20]
    cut = [
        (text, " ".join(text.split()[: 5 + len(text.split()) * (index % 11) // 10])) for index, text in enumerate(texts)
    ]
    return cut + list(pairwise(sorted(texts)))


def test_minhash_estimates_the_jaccard_similarity_of_real_texts_as_well_as_datasketch_does() -> None:
    pairs = related_pairs()
    exact = np.array([jaccard(*pair) for pair in pairs])
    one, other = (text_minhash([pair[side] for pair in pairs], SETTINGS) for side in (0, 1))
    estimated = minhash_jaccard(one, other)
    theirs = []
    for pair in pairs:
        hashes = [MinHash(num_perm=SETTINGS.permutations) for _ in pair]
        for found, text in zip(hashes, pair, strict=True):
            found.update_batch(list(word_ngrams(text, words=SETTINGS.ngram_words)))
        theirs.append(hashes[0].jaccard(hashes[1]))
    deviation = np.sqrt(np.clip(exact * (1 - exact), 1e-3, None) / SETTINGS.permutations)
    assert (np.abs(estimated - exact) < 5 * deviation).all()
    assert np.abs(estimated - exact).mean() < 2 * np.abs(np.array(theirs) - exact).mean()
    assert exact.min() < 0.1 < 0.9 < exact.max()


def test_a_signature_depends_on_nothing_but_its_text_and_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = docstrings(40)
    together = text_minhash(texts, SETTINGS)
    monkeypatch.setattr("semdedup_assets.baselines.fingerprints._BATCH_CHARACTERS", 500)
    assert np.array_equal(together[::-1], text_minhash(texts[::-1], SETTINGS))
    assert not np.array_equal(together, text_minhash(texts, SETTINGS.model_copy(update={"seed": 1})))
    assert text_minhash([], SETTINGS).shape == (0, SETTINGS.permutations)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One, two; THREE four", {"one two three", "two three four"}),
        ("one two", {"one two"}),
        ("…!?", {"...!?"}),
        (" \n", set[str]()),
        ("春が来た ok", {"春 が 来", "が 来 た", "来 た ok"}),
    ],
)
def test_ngrams_are_runs_of_words(text: str, expected: set[str]) -> None:
    assert word_ngrams(text, words=3) == {each.encode() for each in expected}


@given(st.text(st.sampled_from("aAßſﬁ①ǅ \t\u3000é\u0301e漢ＡΣς.İ")))
def test_normalising_twice_changes_nothing_and_spaces_case_and_width_do_not_count(text: str) -> None:
    normal = normalised_text(text)
    assert normalised_text(normal) == normal
    assert normalised_text(f"\t{unicodedata.normalize('NFKC', text)}\u3000") == normal
    assert decoded_hash(text) == decoded_hash(normal)


def test_halves_of_surrogate_pairs_are_no_obstacle() -> None:
    assert text_minhash(["\ud800 one two three four five"], SETTINGS).shape == (1, SETTINGS.permutations)
    assert decoded_hash("\ud800") != decoded_hash("\ud801")


def phash_by_hand(encoded: bytes) -> np.ndarray:
    """64 bits: which of the lowest frequencies of the cosine transform of a small grey picture lie above their median."""
    with Image.open(io.BytesIO(encoded)) as image:
        grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    place = np.arange(32)
    cosine = np.cos(np.pi * np.outer(place, 2 * place + 1) / 64)
    low = (cosine @ grey @ cosine.T)[:8, :8]
    return (low > np.median(low)).reshape(-1)


def test_the_perceptual_hash_is_the_sign_of_the_lowest_frequencies() -> None:
    hashes, bits = [], []
    for seed in range(20):
        hashes.append(image_phash(png(seed)))
        bits.append(phash_by_hand(png(seed)))
    expected = [[int((one != other).sum()) for other in bits] for one in bits]
    array = np.array(hashes, np.uint64)
    assert [hamming_distance(array, one).tolist() for one in array] == expected
    assert f"{hashes[0]:064b}" == "".join(str(int(bit)) for bit in bits[0])


def test_pixels_count_and_not_how_they_are_stored() -> None:
    with Image.open(io.BytesIO(png(0))) as image:
        stored = io.BytesIO()
        image.save(stored, "PNG", compress_level=0)
        bitmap = io.BytesIO()
        image.save(bitmap, "BMP")
        wide = io.BytesIO()
        Image.frombytes("RGB", (80, 20), image.tobytes()).save(wide, "PNG")
    assert decoded_hash(png(0)) == decoded_hash(stored.getvalue()) == decoded_hash(bitmap.getvalue())
    assert len({decoded_hash(png(0)), decoded_hash(png(1)), decoded_hash(wide.getvalue())}) == 3


def test_without_the_extra_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagehash", None)
    monkeypatch.setitem(sys.modules, "rensa", None)
    for content in ("image", "text"):
        with pytest.raises(MissingExtraError, match=r"pip install 'semdedup-assets\[baselines\]'"):
            require_library(content)
