"""A stream of texts in windows; each text cut to what a model reads of it; batches of similar length."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from semdedup_assets.encoders.batching import Window, split_window, windows
from semdedup_assets.records import Invalid, Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_MAX_TOKENS = 2048
MAX_TOKENS_DESCRIPTION = (
    "Tokens of a text that are read, prompt included; the rest is cut. Empty: as many as the model's configuration says, "
    "at most 2048."
)
PROMPT_DESCRIPTION = (
    "Put before each text, for models trained with one, such as `passage: `. Empty: the model's default prompt, where "
    'it has one; `""`: none.'
)
Tokenize = Callable[[list[str]], "list[tuple[list[int], int | None]]"]
"""Texts to their first token ids, and the character where the last of them ends; None where that is not known."""

_WINDOW_TEXTS = 4096
_WINDOW_CHARACTERS = 16 << 20
# Characters of a token, as a first guess, and at most: 64 tokens in a row of that length are no language.
_USUAL_TOKEN, _LONGEST_TOKEN = 8, 64
_LEAST_HEAD, _LEAST_LIMIT = 1024, 1 << 16
# So far before the cut must a word end, that no token of what comes before it depends on what comes after.
_MARGIN = 256


def text_windows(records: Iterable[Record | Invalid]) -> Iterator[tuple[Window, list[str]]]:
    """Windows of a stream, and the texts of their items; what is no text is skipped with its reason."""
    for raw in windows(records, size=_WINDOW_TEXTS, payload=_WINDOW_CHARACTERS):
        window = split_window(raw, [_invalid_reason(item.record.payload) for item in raw.items])
        yield window, [item.record.payload for item in window.items if isinstance(item.record.payload, str)]


def _invalid_reason(payload: object) -> str | None:
    if not isinstance(payload, str):
        return f"{type(payload).__name__}, not a text"
    if not payload.strip():
        return "empty text"
    try:
        payload.encode()
    except UnicodeEncodeError as error:
        return f"not valid Unicode: lone surrogate at character {error.start}"
    return None


def cut_texts(texts: Sequence[str], tokenize: Tokenize, max_tokens: int) -> list[str]:
    """The head of each text that has the same first tokens as the whole.

    A book costs what its head costs. A head is long enough if its last token ends before a word's end that lies 256
    characters or more before the cut; where there is no such (scripts without spaces), if a head of a quarter of its
    length has the same tokens. Else it grows. Of a text, at most 64 characters for each token and 65,536 are looked
    at; beyond that a text has less than `max_tokens` tokens only where words or white space are longer.

    Args:
        texts: prompt included.
        tokenize: cuts at `max_tokens`.
        max_tokens: special tokens included.
    """
    limit = limit_of(max_tokens)
    heads, before = [text[:limit] for text in texts], dict[int, list[int]]()
    size = max_tokens * _USUAL_TOKEN + _LEAST_HEAD
    unsettled = [at for at, head in enumerate(heads) if len(head) > size]
    while unsettled and size < limit:
        tried = [texts[at][:size] for at in unsettled]
        for at, head, (ids, end) in zip(unsettled, tried, tokenize(tried), strict=True):
            if len(ids) >= max_tokens and (_ends_safely(head, end) or before.get(at) == ids):
                heads[at] = head
            before[at] = ids
        size *= 4
        unsettled = [at for at in unsettled if len(heads[at]) > size]
    return heads


def limit_of(max_tokens: int) -> int:
    """Characters of a text that are looked at, at most."""
    return max(_LEAST_LIMIT, max_tokens * _LONGEST_TOKEN)


def _ends_safely(head: str, end: int | None) -> bool:
    return end is not None and end <= max(head.rfind(space, 0, len(head) - _MARGIN) for space in " \n\t\r")


def cut_for(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], max_tokens: int) -> list[str]:
    """`cut_texts` for a tokenizer of transformers; one that keeps a text's end gets the last characters."""
    if tokenizer.truncation_side == "left":
        return [text[-limit_of(max_tokens) :] for text in texts]

    def tokenize(some: list[str]) -> list[tuple[list[int], int | None]]:
        settings: Any = {"truncation": True, "max_length": max_tokens, "padding": False}
        encoded: Any = tokenizer(some, return_offsets_mapping=tokenizer.is_fast, **settings)
        ends = [max((end for _, end in offsets), default=0) for offsets in encoded.get("offset_mapping", ())]
        return list(zip(encoded["input_ids"], ends or [None] * len(some), strict=True))

    return cut_texts(texts, tokenize, max_tokens)


def batches_by_length(lengths: Sequence[int], *, tokens: int, size: int) -> Iterator[list[int]]:
    """Positions of texts of similar length, the longest first.

    Args:
        lengths: tokens of each text.
        tokens: tokens of a batch at most, padding counted; a longer text is a batch of its own.
        size: texts of a batch at most.
    """
    batch: list[int] = []
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        longest = lengths[batch[0]] if batch else 0
        if batch and (len(batch) == size or (len(batch) + 1) * longest > tokens):
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch
