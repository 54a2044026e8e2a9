"""An S3-compatible server on loopback that notes every request it answers."""

import re
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import fsspec

BUCKET = "data"
_DEADLINE_SECONDS = 120.0

# `<stem>.<attempt>.<name>`; of a manifest `<attempt>/<name>`.
_NAMED = re.compile(r"\.[0-9a-f]{12}\.(?P<name>.+)$|/[0-9a-f]{16}-[0-9a-f]{6}/(?P<part>[^/]+)")


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the server saw it.

    Attributes:
        kind: GET, HEAD, LIST, PUT, COPY, DELETE, or a step of an upload in parts.
        key: of the object, or the prefix of a listing; the first of several.
        received: bytes of the request's body.
        sent: bytes of the answer's body.
    """

    kind: str
    key: str
    received: int
    sent: int

    @property
    def file(self) -> str:
        """The kind of file it is for: `record`, or a name that a stage gave, without what numbers it."""
        if self.kind == "LIST":
            return "folder"
        if self.key.endswith(".result.json"):
            return "record"
        found = _NAMED.search(self.key)
        name = (found["name"] or found["part"]) if found else self.key.split("/")[-1]
        return re.sub(r"\d{4,}", "*", name)


@dataclass
class ObjectStore:
    """The server.

    Attributes:
        latency: seconds before each answer.
        requests: all that were answered.
        busiest: the most that were answered at once.
    """

    latency: float = 0.0
    requests: list[Request] = field(default_factory=list)
    busiest: int = 0
    url: str = f"s3://{BUCKET}"
    endpoint: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _open: int = 0
    _gate: threading.Condition = field(default_factory=threading.Condition)
    _closed: bool = False
    _closing: str | None = None
    _held: int = 0

    @contextmanager
    def counted(self) -> Iterator[list[Request]]:
        """The requests of a block, complete once it has ended."""
        start, found = len(self.requests), list[Request]()
        yield found
        found += self.requests[start:]

    @contextmanager
    def counted_kinds(self) -> Iterator[Counter[str]]:
        """How many requests of each kind a block makes, complete once it has ended."""
        found = Counter[str]()
        with self.counted() as requests:
            yield found
        found.update(each.kind for each in requests)

    @contextmanager
    def held_back(self, requests: int, *, after: str) -> Iterator[None]:
        """Hold answers back once a file was put whose name ends so.

        The block begins when so many requests wait for their answers: who asks is in the middle of work.
        """
        with self._gate:
            self._closing = after
            assert self._gate.wait_for(lambda: self._held >= requests, timeout=_DEADLINE_SECONDS), (
                f"{self._held} of {requests} requests came"
            )
        try:
            yield
        finally:
            with self._gate:
                self._closed, self._closing = False, None
                self._gate.notify_all()

    def _pass(self, kind: str, key: str) -> None:
        """Wait at the gate while it is closed."""
        with self._gate:
            self._held += 1
            self._gate.notify_all()
            self._gate.wait_for(lambda: not self._closed)
            self._held -= 1
            if self._closing is not None and kind == "PUT" and key.endswith(self._closing):
                self._closed = True

    def wrap(self, answer: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        """A WSGI application that notes what another is asked."""

        def noted(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            with self._lock:
                self._open += 1
                self.busiest = max(self.busiest, self._open)
            kind, key = _kind(environ)
            self._pass(kind, key)
            if self.latency:
                time.sleep(self.latency)
            received = int(environ.get("CONTENT_LENGTH") or 0)
            try:
                body = b"".join(answer(environ, start_response))
            finally:
                with self._lock:
                    self._open -= 1
            sent = 0 if kind == "HEAD" else len(body)
            self.requests.append(Request(kind, key, received, sent))
            return [body]

        return noted


def _kind(environ: dict[str, Any]) -> tuple[str, str]:
    method, query = environ["REQUEST_METHOD"], parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    _, _, key = environ["PATH_INFO"].lstrip("/").partition("/")
    if method == "GET" and not key:
        return "LIST", query.get("prefix", [""])[0]
    if method == "PUT" and "HTTP_X_AMZ_COPY_SOURCE" in environ:
        return "COPY", key
    if method == "POST":
        return ("DELETE" if "delete" in query else "BEGIN" if "uploads" in query else "COMPLETE"), key
    return ("PART" if "partNumber" in query else "ABORT" if "uploadId" in query else method), key


@contextmanager
def object_store(latency: float = 0.0) -> Iterator[ObjectStore]:
    """Serve an empty bucket, named in the configuration of fsspec while the block runs."""
    import boto3
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    store = ObjectStore()
    application = store.wrap(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=_quiet(MotoRequestHandler))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    store.endpoint = f"http://127.0.0.1:{server.server_port}"
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    # What moto holds belongs to the process, not to the server.
    urllib.request.urlopen(urllib.request.Request(f"{store.endpoint}/moto-api/reset", method="POST")).close()
    client = boto3.client("s3", endpoint_url=store.endpoint, **keys)
    client.create_bucket(Bucket=BUCKET)
    client.close()
    saved = fsspec.config.conf.get("s3")
    fsspec.config.conf["s3"] = {"endpoint_url": store.endpoint, "key": "test", "secret": "test"}
    store.latency = latency
    store.requests.clear()
    try:
        yield store
    finally:
        fsspec.config.conf.pop("s3")
        if saved is not None:
            fsspec.config.conf["s3"] = saved
        server.shutdown()
        server.server_close()
        thread.join()


def _quiet(handler: type) -> type:
    """A request handler that prints nothing, and keeps connections as a real store does."""

    class Quiet(handler):  # type: ignore[misc]
        protocol_version = "HTTP/1.1"

        def log_request(self, *_: object) -> None:
            return

    return Quiet
