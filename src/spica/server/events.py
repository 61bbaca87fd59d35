"""Server-sent events: what has changed, sent while a page is open."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping

from starlette.responses import StreamingResponse

_EVERY_S = 1.0
_ALIVE_S = 15.0
"""Proxies hang up on a silent connection, mostly after a minute."""

_CLOCK = re.compile(r"<p class=.{0,3}when.*", re.DOTALL)
"""The page's last line tells the time; that alone is no change."""


def stream(sources: Mapping[str, Callable[[], str]], *, is_stopping: Callable[[], bool]) -> StreamingResponse:
    """A response that never ends by itself: each source once, and again when it has changed.

    Args:
        sources: by the event's name; each gives one line of JSON, from memory.
        is_stopping: whether the server ends; it would wait for open connections otherwise.
    """
    return StreamingResponse(
        _events(sources, is_stopping),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _events(sources: Mapping[str, Callable[[], str]], is_stopping: Callable[[], bool]) -> AsyncIterator[str]:
    known: dict[str, str] = {}
    sent = time.monotonic()
    while not is_stopping():
        for name, source in sources.items():
            text = source()
            mark = _CLOCK.sub("", text)
            if known.get(name) != mark:
                known[name] = mark
                sent = time.monotonic()
                yield f"event: {name}\ndata: {text}\n\n"
        if time.monotonic() - sent > _ALIVE_S:
            sent = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(_EVERY_S)
