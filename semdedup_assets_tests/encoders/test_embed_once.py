"""Embedding each content once, against embedding everything."""

import io
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from semdedup_assets.compute import Compute
from semdedup_assets.encoders import OpenClip, SentenceTransformers
from semdedup_assets.encoders.batching import embedded_window, prefetch, windows
from semdedup_assets.encoders.embed_once import EmbedOnce, Sameness
from semdedup_assets.records import Embedded, Invalid, Record, Skipped
from semdedup_assets.sources import JsonLines, WebDataset
from semdedup_assets_tests.analyses.small_pipelines import checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"
CPU = Compute(device="cpu", decoding_threads=2, memory_mib=16)
HALF, SINGLE = np.dtype("float16"), np.dtype("float32")


@dataclass
class LetterModel:
    """An encoder that counts letters, in windows read ahead by a thread; a text of no letter has a zero vector."""

    window: int
    seen: list[str] = field(default_factory=list)

    def embed(self, records: Iterable[Record | Invalid]) -> Iterator[Embedded]:
        made = (window for window in windows(records, size=self.window, payload=1 << 20))
        for window in prefetch(made, depth=2):
            texts = [str(item.record.payload) for item in window.items]
            self.seen += texts
            counts = [[text.count(letter) for letter in "abc"] for text in texts]
            yield embedded_window(window, np.array(counts, np.float32).reshape(-1, 3))


def whole(batches: Iterable[Embedded]) -> tuple[list[int], list[str], np.ndarray, list[Skipped]]:
    """All batches as one; rows must rise from each to the next."""
    found = list(batches)
    rows = [row for batch in found for row in batch.rows.tolist()]
    skipped = [item for batch in found for item in batch.skipped]
    assert rows == sorted(set(rows))
    assert [item.row for item in skipped] == sorted({item.row for item in skipped})
    vectors = [batch.vectors for batch in found if len(batch.rows)]
    return rows, [key for batch in found for key in batch.keys], np.concatenate([np.zeros((0, 3)), *vectors]), skipped


def stream(texts: list[str | None]) -> list[Record | Invalid]:
    return [Invalid(f"k{at}", "lost") if text is None else Record(f"k{at}", text) for at, text in enumerate(texts)]


TEXTS = st.lists(st.one_of(st.none(), st.sampled_from(["", "x"]), st.text("abc", max_size=3)), max_size=40)


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.integers(1, 7))
def test_copies_are_as_if_each_had_been_embedded_and_no_content_is_seen_twice(
    texts: list[str | None], window: int
) -> None:
    model = LetterModel(window)
    once = EmbedOnce(model, "bytes", SINGLE, CPU)
    rows, keys, vectors, skipped = whole(once.embed(stream(texts)))
    expected = whole(LetterModel(window).embed(stream(texts)))
    assert (rows, keys, skipped) == (expected[0], expected[1], expected[3])
    np.testing.assert_array_equal(vectors, expected[2])
    contents = [text for text in texts if text is not None]
    assert sorted(model.seen) == sorted(set(contents))
    assert once.shared == len(rows) - len({texts[row] for row in rows})


def test_a_content_of_very_many_copies_comes_in_pieces() -> None:
    texts: list[str | None] = ["a", *["ab"] * 20_000, "c", *["a"] * 9_000]
    batches = list(EmbedOnce(LetterModel(2), "bytes", HALF, CPU).embed(stream(texts)))
    assert max(len(batch.rows) for batch in batches) <= 4096
    rows, _, vectors, _ = whole(batches)
    assert rows == list(range(len(texts)))
    np.testing.assert_allclose(vectors[-1], [1, 0, 0])
    np.testing.assert_allclose(vectors[20_000], [2**-0.5, 2**-0.5, 0], atol=1e-3)


def once_and_always(
    model: object, records: list[Record | Invalid], sameness: Sameness, dtype: np.dtype
) -> tuple[EmbedOnce, np.ndarray, np.ndarray]:
    once = EmbedOnce(model, sameness, dtype, CPU)
    shared, always = (list(each.embed(records)) for each in (once, model))  # type: ignore[attr-defined]
    assert [row for b in shared for row in b.rows.tolist()] == [row for b in always for row in b.rows.tolist()]
    assert [item for b in shared for item in b.skipped] == [item for b in always for item in b.skipped]
    return once, *(np.concatenate([batch.vectors for batch in found]) for found in (shared, always))


def test_docstrings_with_copies_have_the_vectors_they_would_have() -> None:
    source = JsonLines(path=str(EXAMPLES / "docstrings" / "shards"), text="text")
    records = list(source.read(str(EXAMPLES / "docstrings" / "shards" / "00000.jsonl.gz")))[:600]
    again = random.Random(0).choices(records, k=900)
    mixed = random.Random(1).sample(records + again, k=1500)
    model = SentenceTransformers(model=str(EXAMPLES / "docstrings" / "encoder")).load(CPU)
    once, shared, always = once_and_always(model, [*mixed, Record("e", " "), Record("f", " ")], "bytes", SINGLE)
    np.testing.assert_allclose(shared, always, atol=1e-6)
    contents = {each.payload for each in records if isinstance(each, Record)}
    assert once.shared == len(mixed) - len(contents)


def test_texts_that_differ_in_white_space_only_share_a_vector_where_that_is_wanted() -> None:
    model = SentenceTransformers(model=str(EXAMPLES / "docstrings" / "encoder")).load(CPU)
    texts = ["Return the\n  caf\u00e9.", "Return the cafe\u0301. ", "return the café."]
    records: list[Record | Invalid] = [Record(str(at), text) for at, text in enumerate(texts)]
    plain, normalised = (EmbedOnce(model, sameness, SINGLE, CPU) for sameness in ("bytes", "normalised"))
    first, second = (np.concatenate([b.vectors for b in each.embed(records)]) for each in (plain, normalised))
    assert (plain.shared, normalised.shared) == (0, 1)
    np.testing.assert_array_equal(second[0], second[1])
    np.testing.assert_array_equal(second[0], first[0])


def resaved(content: bytes, note: str) -> bytes:
    """The same pixels in other bytes."""
    written, notes = io.BytesIO(), PngImagePlugin.PngInfo()
    notes.add_text("note", note)
    Image.open(io.BytesIO(content)).save(written, "PNG", pnginfo=notes)
    return written.getvalue()


@pytest.mark.parametrize("sameness", ["bytes", "decoded"])
def test_pictures_of_equal_pixels_share_a_vector_where_they_are_decoded(tmp_path: Path, sameness: Sameness) -> None:
    shards = EXAMPLES / "emoji" / "shards"
    found = WebDataset(path=str(shards)).read(str(shards / "00000.tar"))
    images = [record for record, _ in zip(found, range(60), strict=False) if isinstance(record, Record)]
    others = [Record(f"{each.key} again", resaved(bytes(each.payload), each.key)) for each in images[:20]]
    damaged = [Record(f"damaged {at}", b"no picture") for at in range(3)]
    records: list[Record | Invalid] = [*images[:30], *others[:10], *damaged, *images, *others]
    model = OpenClip(model=str(checkpoint(tmp_path / "clip")), precision="float32").load(CPU)
    once, shared, always = once_and_always(model, records, sameness, SINGLE)
    np.testing.assert_allclose(shared, always, atol=1e-5)
    pixels = {Image.open(io.BytesIO(bytes(each.payload))).convert("RGBA").tobytes() for each in images}
    contents = pixels if sameness == "decoded" else {each.payload for each in (*images, *others)}
    assert once.shared == len(records) - len(damaged) - len(contents)
