"""Waiting for a Label Studio that restarts, or whose database is busy."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import httpx

from spica.errors import LabelStudioError, LabelStudioUnreachableError
from spica.labelstudio.api.transport import LabelStudioRefusedError

logger = logging.getLogger(__name__)

LIMIT_S = 600.0
"""So long a job waits for Label Studio: an update with migrations takes minutes, a night is for people to notice."""

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 15.0
_OVERLOADED = frozenset({408, 425, 429})
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)

_T = TypeVar("_T")


def is_passing(error: LabelStudioError) -> bool:
    """Whether the same request may succeed later: no answer, an overloaded or failing server, a proxy's page."""
    if isinstance(error, LabelStudioRefusedError):
        return error.http_status >= 500 or error.http_status in _OVERLOADED
    return True


def was_never_sent(error: LabelStudioError) -> bool:
    """Whether Label Studio can't have seen the request at all."""
    return isinstance(error, LabelStudioUnreachableError) and isinstance(error.__cause__, _NEVER_SENT)


def is_still_open(error: LabelStudioError) -> bool:
    """Whether Label Studio may still be working on the request: nobody has heard how it ended."""
    if isinstance(error, LabelStudioRefusedError):
        return error.http_status in (502, 504)  # a proxy gave up waiting
    return not was_never_sent(error)


class Patience:
    """Tries again with growing pauses; the time spent waiting in one go is bounded.

    For one thread at a time.

    Args:
        limit_s: how long to wait for Label Studio in one go; 0 gives up at once.
        stop: ends the waiting.
        tell: told what is being waited for, and None when it goes on.
    """

    def __init__(
        self, *, limit_s: float = LIMIT_S, stop: threading.Event | None = None, tell: Callable[[str | None], None]
    ) -> None:
        self._limit_s = limit_s
        self._stop = stop or threading.Event()
        self._tell = tell
        self._since: float | None = None
        self._wait_s = _FIRST_WAIT_S

    def call(self, ask: Callable[[], _T]) -> _T:
        """What ``ask`` answers, asked again while the trouble may pass. For requests that may be repeated.

        Raises:
            LabelStudioError: what does not pass, or has lasted too long.
        """
        while True:
            try:
                answer = ask()
            except LabelStudioError as error:
                self.endure(error)
            else:
                self.relieve()
                return answer

    def endure(self, error: LabelStudioError) -> None:
        """Wait a while after a failure, or raise it when waiting is of no use."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if not is_passing(error) or now - self._since >= self._limit_s or self._stop.is_set():
            self._tell(None)
            raise error
        logger.warning("%s; trying again in %.1f s", error.summary, self._wait_s)
        self._tell(f"{error.what}; trying again since {now - self._since:.0f} s")
        self._stop.wait(self._wait_s)
        self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)

    def relieve(self) -> None:
        """Label Studio answers again."""
        if self._since is not None:
            self._tell(None)
        self._since = None
        self._wait_s = _FIRST_WAIT_S
