"""Server-sent events: the page's changing part, sent when it has changed."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable

_EVERY_S = 1.0
_ALIVE_S = 15.0
"""Proxies hang up on a silent connection, mostly after a minute."""

_CLOCK = re.compile(r"<p class=.{0,3}when.*", re.DOTALL)
"""The page's last line tells the time; that alone is no change."""


class Latest:
    """What all open pages are shown: made at most once a second, however many there are, off the event loop.

    Args:
        make: the text; may take its time.
    """

    def __init__(self, make: Callable[[], str]) -> None:
        self._make = make
        self._made: asyncio.Task[str] | None = None
        self._at = 0.0

    async def get(self) -> str:
        """The text, not older than a second."""
        if self._made is None or (self._made.done() and time.monotonic() - self._at >= _EVERY_S):
            self._at = time.monotonic()
            self._made = asyncio.create_task(asyncio.to_thread(self._make))
        return await asyncio.shield(self._made)  # a page that is closed must not take it from the others


async def stream(latest: Latest, *, is_stopping: Callable[[], bool]) -> AsyncIterator[str]:
    """The event ``page``, at once and whenever it has changed; never ends by itself.

    Args:
        latest: what is sent, as JSON on one line.
        is_stopping: whether the server ends; it would wait for open connections otherwise.
    """
    known: str | None = None
    sent = time.monotonic()
    while not is_stopping():
        text = await latest.get()
        mark = _CLOCK.sub("", text)
        if known != mark:
            known, sent = mark, time.monotonic()
            yield f"event: page\ndata: {json.dumps(text)}\n\n"
        elif time.monotonic() - sent > _ALIVE_S:
            sent = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(_EVERY_S)
