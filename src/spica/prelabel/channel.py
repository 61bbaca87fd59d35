"""A bounded way from threads to threads that can be ended in order, or at once."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

_T = TypeVar("_T")
_TURN_S = 0.5
"""Waits are cut into turns of this length: on Windows a longer one would not notice Ctrl-C."""


class EndOfChannel(Exception):  # noqa: N818 - no failure: there is nothing more to come
    """All producers have ended and everything was taken, or the channel was aborted."""


class Channel(Generic[_T]):
    """A queue of at most ``capacity`` items between ``producers`` threads and any number of consumers.

    ``put`` waits while it is full, ``get`` while it is empty.
    """

    def __init__(self, capacity: int, *, producers: int = 1) -> None:
        self._capacity = capacity
        self._producers = producers
        self._items: deque[_T] = deque()
        self._aborted = False
        self._changed = threading.Condition()

    def put(self, item: _T) -> bool:
        """Hand an item over; False when nobody will take it any more."""
        with self._changed:
            while len(self._items) >= self._capacity and not self._aborted:
                self._changed.wait(_TURN_S)
            if self._aborted:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def get(self, timeout_s: float | None = None) -> _T | None:
        """The next item; None when ``timeout_s`` seconds are over.

        Raises:
            EndOfChannel: nothing more will come.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not self._items:
                if self._aborted or self._producers == 0:
                    raise EndOfChannel
                turn = _TURN_S if until is None else min(_TURN_S, until - time.monotonic())
                if turn <= 0:
                    return None
                self._changed.wait(turn)
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def end(self) -> None:
        """One producer has handed over all it had."""
        with self._changed:
            self._producers -= 1
            self._changed.notify_all()

    def abort(self) -> None:
        """Forget what waits; nobody has to wait any more."""
        with self._changed:
            self._aborted = True
            self._items.clear()
            self._changed.notify_all()
