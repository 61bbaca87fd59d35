"""Progress bars, and Ctrl-C: one of each for all commands."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from rich.markup import escape

from spica.cli.console import err, is_quiet

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def ctrl_c(on_first: Callable[[], None] | None = None) -> Iterator[threading.Event]:
    """Within the block the first Ctrl-C, or polite kill, sets the event that this gives; the second one ends the block.

    Args:
        on_first: called by the first one; None lets the first one end the block too, by KeyboardInterrupt.
    """
    stop = threading.Event()

    def handle(*_: object) -> None:
        if on_first is None or stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        on_first()

    # SIGINT itself too: what a script starts in the background begins with it ignored.
    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def working(text: str = "") -> Iterator[Callable[[str], None]]:
    """Show what is being done, on a terminal; calling what this gives changes the text."""
    if is_quiet():
        yield lambda _: None
        return
    with err.status(escape(text)) as status:
        yield lambda line: status.update(escape(line))


class Bar:
    """One line: what is being done, done / total, and what else there is to say.

    Args:
        what: is being done.
        transient: whether it vanishes at its end.
    """

    def __init__(self, what: str, *, transient: bool = False) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rest]}"),
        )
        eta = (TimeRemainingColumn(),) if transient else ()
        self._progress = Progress(*columns, *eta, console=err, transient=transient, disable=is_quiet())
        self._task = self._progress.add_task(escape(what), total=None, rest="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def line(self, text: str) -> None:
        """A line above the bar."""
        self._progress.console.print(escape(text))

    def show(self, done: int, total: int | None, *, rest: str = "", what: str | None = None) -> None:
        """How far it is; ``rest`` is rich's markup."""
        changed: dict[str, Any] = {} if what is None else {"description": escape(what)}
        self._progress.update(self._task, completed=done, total=total, rest=rest, **changed)


def duration(seconds: float | None) -> str:
    """``0:01:30 to go``; nothing for what is not known."""
    if not seconds:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} to go"
