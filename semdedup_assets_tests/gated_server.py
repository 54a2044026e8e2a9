"""An S3-compatible server whose answers can be held back: what asks it is then in the middle of its work."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

_DEADLINE_SECONDS = 120.0


class GatedServer:
    """Moto's server behind a gate.

    Attributes:
        access: what fsspec needs to reach it.
    """

    def __init__(self) -> None:
        app: Callable[..., Iterable[bytes]] = DomainDispatcherApplication(create_backend_app)
        self._changed = threading.Condition()
        self._open, self._held = True, 0

        def gated(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            with self._changed:
                self._held += 1
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._open)
                self._held -= 1
            return app(environ, start_response)

        self._server = make_server("127.0.0.1", 0, gated, threaded=True, request_handler=MotoRequestHandler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        host, port = self._server.server_address[:2]
        self.access = {"endpoint_url": f"http://{host}:{port}", "key": "test", "secret": "test"}

    @contextmanager
    def held_back(self, requests: int) -> Iterator[None]:
        """Hold answers back; the block begins once so many requests wait for theirs."""
        with self._changed:
            self._open = False
            assert self._changed.wait_for(lambda: self._held >= requests, timeout=_DEADLINE_SECONDS), (
                f"{self._held} of {requests} requests came"
            )
        try:
            yield
        finally:
            with self._changed:
                self._open = True
                self._changed.notify_all()

    def create_bucket(self, name: str) -> None:
        """Make an empty bucket."""
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=self.access["endpoint_url"],
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=name)
        client.close()

    def stop(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._thread.join()
