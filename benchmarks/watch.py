"""How long a process waits for Label Studio: the time in which at least one of its requests is open."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests of one kind.

    Attributes:
        count: of them.
        seconds: that they were open, each for itself; those that overlap count twice.
    """

    count: int
    seconds: float


class Meter:
    """Adds up the time in which at least one thing is open; things that overlap count once. Thread-safe.

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._open = 0
        self._since = 0.0
        self._seconds = 0.0
        self._kinds: dict[str, Requests] = {}

    def open(self, kind: str) -> Callable[[], None]:
        """Something begins; call what is returned when it ends, once or more."""
        with self._lock:
            began = self._clock()
            if self._open == 0:
                self._since = began
            self._open += 1
        ended = False

        def end() -> None:
            nonlocal ended
            with self._lock:
                if ended:
                    return
                ended = True
                now = self._clock()
                self._open -= 1
                if self._open == 0:
                    self._seconds += now - self._since
                before = self._kinds.get(kind, Requests(0, 0.0))
                self._kinds[kind] = Requests(before.count + 1, before.seconds + now - began)

        return end

    @property
    def seconds(self) -> float:
        """In which at least one thing was open, up to now."""
        with self._lock:
            return self._seconds + (self._clock() - self._since if self._open else 0.0)

    @property
    def kinds(self) -> dict[str, Requests]:
        """What has ended, by kind."""
        with self._lock:
            return dict(self._kinds)


class WatchedTransport(httpx.HTTPTransport):
    """The usual network; a request is open from its sending until the last byte of its answer is read.

    Args:
        meter: told of each request.
    """

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        end = self._meter.open(kind_of(request))
        try:
            response = super().handle_request(request)
        except BaseException:
            end()
            raise
        if not isinstance(response.stream, httpx.SyncByteStream):
            raise TypeError(f"the answer can't be read in this thread: {type(response.stream).__name__}")
        response.stream = _WatchedStream(response.stream, end)
        return response


class _WatchedStream(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, end: Callable[[], None]) -> None:
        self._stream = stream
        self._end = end

    def __iter__(self) -> Iterator[bytes]:
        yield from self._stream

    def close(self) -> None:
        try:
            self._stream.close()
        finally:
            self._end()


def kind_of(request: httpx.Request) -> str:
    """What a job asks Label Studio for, in words."""
    path, query = request.url.path, request.url.params
    if path.endswith("/import/predictions"):
        return "store predictions"
    if path == "/api/tasks/":
        if "in_list" in query.get("query", ""):
            return "ask what is stored"
        return "count tasks" if query.get("page_size") == "1" else "list tasks"
    return re.sub(r"\d+", "…", f"{request.method} {path}")
