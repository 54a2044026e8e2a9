"""What recognises near duplicates without a model: MinHash of texts, perceptual hashes of images, hashes after decoding.

The baselines and the analysis of what is pruned use the same functions with the same settings (`Fingerprints`), so that
what one calls a near duplicate the other does too.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from semdedup_assets.analysis_settings import Fingerprints
from semdedup_assets.encoders.decoding import MAX_PIXELS, rgb_image
from semdedup_assets.records import Content, content_hash

if TYPE_CHECKING:
    from PIL import Image

_INSTALL = "install it with `pip install 'semdedup-assets[baselines]'`"

# Scripts that are written without spaces: each of their characters counts as a word.
_UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
# Texts are hashed in batches: the n-grams of one are held at a time, never those of all.
_BATCH_CHARACTERS = 4 << 20


class MissingExtraError(ModuleNotFoundError):
    """A library of the extra `baselines` is not installed; says how to install it."""


def normalised_text(text: str) -> str:
    """A text as it is compared: compatibility forms folded (Unicode NFKC), case folded, white space collapsed.

    Applying it twice gives the same as applying it once.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def decoded_hash(payload: "bytes | Image.Image | str", *, max_pixels: int = MAX_PIXELS) -> int:
    """What identifies an item after decoding: 64 bits of an image's size and RGB pixels, or of a normalised text.

    Args:
        payload: an encoded image, one that `rgb_image` decoded, or a text.
        max_pixels: of an encoded image.

    Raises:
        UndecodableImageError: the image cannot be decoded; says why.
    """
    if isinstance(payload, str):
        return content_hash(normalised_text(payload))
    image = _decoded(payload, max_pixels)
    return content_hash(b"%d %d\n" % image.size + image.tobytes())


def word_ngrams(text: str, *, words: int) -> set[bytes]:
    """The distinct runs of consecutive words of a normalised text, as bytes.

    A word is a run of letters and digits, or one character of a script that is written without spaces. A text of fewer
    words is one n-gram of all it has, one without any word is its own n-gram, and an empty one has none.

    Args:
        text: as it comes; it is normalised here.
        words: of an n-gram.
    """
    normal = normalised_text(text)
    found = _WORD.findall(normal) or ([normal] if normal else [])
    starts = range(max(1, len(found) - words + 1)) if found else ()
    return {" ".join(found[start : start + words]).encode("utf-8", "surrogatepass") for start in starts}


def text_minhash(texts: Sequence[str], settings: Fingerprints) -> np.ndarray:
    """MinHash signatures of texts over n-grams of words, by `rensa` (Lee et al. 2021 use MinHash for near duplicates).

    Args:
        texts: n texts.
        settings: words of an n-gram, permutations and seed.

    Returns:
        (n, permutations) uint32; the same for the same text, whatever the others are.

    Raises:
        MissingExtraError: `rensa` is not installed.
    """
    rensa = _library("rensa")
    signatures = np.empty((len(texts), settings.permutations), np.uint32)
    for batch in _batches(texts):
        ngrams = [list(word_ngrams(text, words=settings.ngram_words)) for text in texts[batch]]
        found = rensa.RMinHash.digest_matrix_from_token_byte_sets(ngrams, settings.permutations, settings.seed)
        signatures[batch] = found.to_rows()
    return signatures


def minhash_jaccard(signatures: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Estimated Jaccard similarity of texts: the share of equal entries of their signatures.

    Args:
        signatures: (n, permutations) uint32.
        others: (n, permutations) uint32, or (permutations,).

    Returns:
        (n,) float64 in [0, 1]; its standard error is at most 0.5 / sqrt(permutations).
    """
    shares: np.ndarray = (signatures == others).mean(axis=-1)
    return shares


def image_phash(image: "bytes | Image.Image", *, max_pixels: int = MAX_PIXELS) -> int:
    """Perceptual hash of an image by `imagehash`: 64 bits, the signs of its lowest frequencies around their median.

    Args:
        image: an encoded image, which is decoded as the encoders do, or one that `rgb_image` decoded.
        max_pixels: of an encoded image.

    Raises:
        MissingExtraError: `imagehash` is not installed.
        UndecodableImageError: the image cannot be decoded; says why.
    """
    imagehash = _library("imagehash")
    bits = imagehash.phash(_decoded(image, max_pixels), hash_size=8).hash
    return int.from_bytes(np.packbits(bits.reshape(-1)).tobytes(), "big")


def hamming_distance(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Bits in which perceptual hashes differ: (n,) int64, of two times (n,) uint64 or one of them a single hash."""
    differing = np.ascontiguousarray(np.atleast_1d(hashes ^ others))
    bits: np.ndarray = np.unpackbits(differing.view(np.uint8).reshape(len(differing), 8), axis=1)
    counts: np.ndarray = bits.sum(axis=1, dtype=np.int64)
    return counts


def require_library(content: Content) -> None:
    """See that near duplicates of a kind of content can be recognised, before anything is read.

    Raises:
        MissingExtraError: the library is not installed; says how to install it.
    """
    _library("imagehash" if content == "image" else "rensa")


def _decoded(image: "bytes | Image.Image", max_pixels: int) -> "Image.Image":
    return rgb_image(image, shortest_side=None, max_pixels=max_pixels) if isinstance(image, bytes) else image


def _batches(texts: Sequence[str]) -> Iterator[slice]:
    start, characters = 0, 0
    for index, text in enumerate(texts):
        characters += len(text)
        if characters >= _BATCH_CHARACTERS or index == len(texts) - 1:
            yield slice(start, index + 1)
            start, characters = index + 1, 0


def _library(name: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        message = f"{name} is not installed, which compares items without a model; {_INSTALL}"
        raise MissingExtraError(message, name=name) from error
