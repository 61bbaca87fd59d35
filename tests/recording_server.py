"""A small HTTP server that answers as it is told and remembers what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    method: str
    path: str  # with the query, still encoded
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def token(self) -> str | None:
        """The header Authorization."""
        return self.headers.get("authorization")


@dataclass(frozen=True)
class Answer:
    """What to answer. Without ``length`` the body ends when the connection does."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = -1  # -1: that of the body
    wait: threading.Event | None = None  # before the body

    @classmethod
    def redirect(cls, location: str, status: int = 302) -> Answer:
        """To another address."""
        return cls(status=status, headers={"Location": location})


class RecordingServer:
    """``answer`` is called for each request; ``asked`` keeps them in order."""

    def __init__(self, answer: Callable[[Asked], Answer]) -> None:
        self.asked: list[Asked] = []
        recorded = self.asked

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                size = int(self.headers.get("content-length") or 0)
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Asked(self.command, self.path, headers, self.rfile.read(size))
                recorded.append(request)
                given = answer(request)
                self.send_response(given.status)
                for name, value in given.headers.items():
                    self.send_header(name, value)
                if given.length is None:
                    self.send_header("Connection", "close")
                else:
                    self.send_header("Content-Length", str(len(given.body) if given.length < 0 else given.length))
                self.end_headers()
                if given.wait is not None:
                    given.wait.wait(60)
                self.wfile.write(given.body)
                if given.length is not None and given.length > len(given.body):
                    self.close_connection = True  # the promised rest never comes

            do_POST = do_GET  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - inherited
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """Clients that hang up are part of the tests."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        """Without a slash at the end."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
