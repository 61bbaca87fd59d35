"""Heavy work in a process of its own: one line of JSON goes in, lines of JSON come out.

The parent calls :func:`ask`, the child's module :func:`answer`. Lines are ``{"progress": …}``, and at the end
``{"done": …}`` or ``{"error": …}``. When its input ends, its parent has gone, and the child ends too.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import IO, Any, TextIO, cast

from spica.errors import ImageError, ModelUnavailableError, SpicaError, StorageError, WeightsError

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]

_POLL_S = 0.2
_LOOK_S = 0.5
_BROKEN_PIPE = 109
"""ERROR_BROKEN_PIPE of Windows: the other end is closed."""
_KINDS: tuple[type[SpicaError], ...] = (WeightsError, StorageError, ImageError)


def ask(
    module: str,
    request: Mapping[str, Any],
    *,
    what: str,
    where: str,
    needs: str,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Have a module do its work in a child process, and return what it made of the request.

    Args:
        module: that calls :func:`answer` when it is run.
        request: JSON values.
        what: is done, for messages: ``conversion``.
        where: the file that it is done to, for messages.
        needs: how much memory it takes, for messages.
        progress: told what is being done, in a few words.
        stop: when set, the child is ended.

    Raises:
        WeightsError: the child said so, or ended without a result.
        StorageError: the child said so.
        ImageError: the child said so.
        ModelUnavailableError: ``stop`` was set.
    """
    command = [sys.executable, "-P", "-m", module]  # -P: a file named torch.py in the working folder is not torch
    environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONWARNINGS": "ignore"}
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(  # noqa: S603 - this interpreter, with arguments of our own
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            text=True,
            encoding="utf-8",
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        ) as process,
    ):
        try:
            if stop is not None:
                threading.Thread(target=_end_when, args=(process, stop), daemon=True).start()
            report = _converse(process, request, progress or (lambda _: None))
        finally:
            process.kill()
            process.wait()
        if stop is not None and stop.is_set():
            raise ModelUnavailableError(f"the {what} was stopped", where=where)
        if report is None:
            raise _silent_death(what, where, needs, process.returncode, _tail(errors))
    if "error" in report:
        raise _rebuilt(report["error"], where)
    return dict(report["done"])


def answer(work: Callable[[dict[str, Any], Progress], dict[str, Any]]) -> int:
    """The child's side: read the request, work, report.

    Returns:
        The exit status: 0 if the report was given, even of a failure.
    """
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries that print must not get between our lines
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_parent, name="spica-parent", daemon=True).start()
    with out:
        try:
            _report(out, done=work(request, lambda text: _report(out, progress=text)))
        except SpicaError as error:
            _report(out, **error.as_json())
    return 0


def end_with_parent() -> None:
    """Wait for the end of the standard input, and end the process.

    Windows lets one at a time have a pipe, and libraries look at the standard input when they are loaded: beside a
    thread that is blocked in reading it, the import of numpy hangs (https://github.com/numpy/numpy/issues/24290). So
    there the pipe is looked at now and then, and read only when something is in it. This is written by the
    documentation of PeekNamedPipe and was not run on Windows.
    """
    if sys.platform == "win32":
        until_ended(_waiting, lambda count: os.read(0, count), lambda: time.sleep(_LOOK_S))
    else:
        sys.stdin.read()
    os._exit(1)


def until_ended(waiting: Callable[[], int | None], read: Callable[[int], object], pause: Callable[[], None]) -> None:
    """Return when a pipe has ended, without ever being blocked in it.

    Args:
        waiting: how many bytes can be read from it now; None when it has ended.
        read: takes so many bytes out of it: an end is told only behind them.
        pause: called while there is nothing.
    """
    while (count := waiting()) is not None:
        if count:
            read(count)
        else:
            pause()


if sys.platform == "win32":

    def _waiting() -> int | None:
        """Bytes in the standard input's pipe; None when nobody can write into it any more."""
        import ctypes
        import msvcrt
        from ctypes import wintypes

        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.PeekNamedPipe.argtypes = [
            wintypes.HANDLE,
            wintypes.LPVOID,
            wintypes.DWORD,
            wintypes.LPDWORD,
            wintypes.LPDWORD,
            wintypes.LPDWORD,
        ]
        count = wintypes.DWORD()
        if kernel.PeekNamedPipe(msvcrt.get_osfhandle(0), None, 0, None, ctypes.byref(count), None):
            return int(count.value)
        return None if ctypes.get_last_error() == _BROKEN_PIPE else 0


def _converse(process: subprocess.Popen[str], request: Mapping[str, Any], progress: Progress) -> dict[str, Any] | None:
    """Send the request, listen to the end; the report, None if there was none."""
    stdin, stdout = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)  # both are pipes
    try:
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
    except OSError:  # it is dead already; what it said tells why
        pass
    for line in stdout:
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if "progress" in told:
            progress(str(told["progress"]))
        else:
            return dict(told)
    process.wait()
    return None


def _end_when(process: subprocess.Popen[str], stop: threading.Event) -> None:
    while process.poll() is None:
        if stop.wait(_POLL_S):
            process.kill()
            return


def _rebuilt(told: Mapping[str, Any], where: str) -> SpicaError:
    kind = next((kind for kind in _KINDS if kind.code == told.get("code")), WeightsError)
    return kind(
        str(told["message"]),
        where=told.get("where") or where,
        expected=told.get("expected"),
        got=told.get("got"),
        hint=told.get("hint"),
    )


def _silent_death(what: str, where: str, needs: str, status: int, said: str) -> WeightsError:
    killed = status in (-9, 137)
    if said:
        logger.error("the %s of %s ended with status %d:\n%s", what, where, status, said)
    return WeightsError(
        f"the {what} ended without a result"
        + (": the system killed it, probably for want of memory" if killed else ""),
        where=where,
        got=f"exit status {status}" + (f": {said.splitlines()[-1]}" if said else ""),
        hint=f"close other programs and try again; it needs about {needs}" if killed else "see the log",
    )


def _tail(errors: IO[bytes]) -> str:
    errors.seek(max(0, errors.seek(0, os.SEEK_END) - 4000))
    return errors.read().decode("utf-8", errors="replace").strip()


def _report(out: TextIO, **line: Any) -> None:
    out.write(json.dumps(line) + "\n")
    out.flush()
