"""What is asked of S3, counted where it is sent."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from semdedup_assets.storage.files import filesystem


@contextmanager
def requests_to(url: str) -> Iterator[Counter[str]]:
    """The requests that a block sends to S3, by operation."""
    sent = Counter[str]()
    fs = filesystem(url)[0]
    fs.connect()

    def note(model: Any, **_: object) -> None:
        sent[model.name] += 1

    events = fs.s3.meta.events
    events.register("before-call.s3", note)
    try:
        yield sent
    finally:
        events.unregister("before-call.s3", note)
