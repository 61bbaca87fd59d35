"""A model server that says what a test tells it to, and remembers what it was asked."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

Json = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """One request that arrived."""

    method: str
    path: str
    body: Any
    headers: dict[str, str] = field(default_factory=dict)


class ScriptedBackend:
    """Answers ``/health``, ``/setup``, ``/predict`` and ``/webhook`` on a free port of 127.0.0.1.

    Attributes:
        version: what ``/setup`` and every prediction answer as ``model_version``.
        asked: the requests so far, oldest first.
        boxes: regions of a task, from the task; one box on every image by default.
        basic_auth: ``user:password`` that it asks for, or None.
        status: of the answers to ``/predict``.
    """

    def __init__(self, version: str = "scripted-1") -> None:
        self.version = version
        self.asked: list[Asked] = []
        self.boxes: Callable[[Json], list[Json]] = lambda task: [box("spike")]
        self.basic_auth: str | None = None
        self.status = 200
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """How it is reached, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def paths(self) -> list[str]:
        """The paths asked for so far."""
        return [asked.path for asked in self.asked]

    def bodies(self, path: str) -> list[Any]:
        """The bodies sent to one path so far."""
        return [asked.body for asked in self.asked if asked.path == path]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop answering; twice is fine."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON for a request."""
        if path == "/health":
            return 200, {"status": "UP"}
        if path == "/setup":
            return 200, {"model_version": self.version}
        if path == "/predict":
            results = [
                {"result": self.boxes(task), "score": 0.5, "model_version": self.version} for task in body["tasks"]
            ]
            return self.status, {"results": results}
        if path == "/webhook":
            return 200, {}
        return 404, {"error": "no such route"}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        backend = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply(None)

            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self._reply(json.loads(text) if text else None)

            def _reply(self, body: Any) -> None:
                path = self.path.split("?")[0]
                headers = {name.lower(): value for name, value in self.headers.items()}
                backend.asked.append(Asked(self.command, path, body, headers))
                status, answer = backend.answer(path, body)
                if backend.basic_auth is not None:
                    expected = "Basic " + base64.b64encode(backend.basic_auth.encode()).decode()
                    if headers.get("authorization") != expected and path != "/webhook":
                        status, answer = 401, {"error": "who are you?"}
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
                pass

        return Handler


def box(label: str, x: float = 10.0, y: float = 20.0, width: float = 30.0, height: float = 40.0) -> Json:
    """A region as Label Studio stores it, in percent of an image of 640 x 480 pixels."""
    return {
        "id": f"{label}-{x}-{y}",
        "from_name": "label",
        "to_name": "image",
        "type": "rectanglelabels",
        "original_width": 640,
        "original_height": 480,
        "image_rotation": 0,
        "score": 0.9,
        "value": {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": [label]},
    }
