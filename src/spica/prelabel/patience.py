"""Waiting for a Label Studio that restarts, or whose database is busy."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from spica.errors import LabelStudioError
from spica.retry import LIMIT_S, is_passing

logger = logging.getLogger(__name__)

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 15.0

_T = TypeVar("_T")


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
