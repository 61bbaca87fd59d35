"""Heavy work in a process of its own: lines of JSON go in, lines of JSON come out.

The parent has a :class:`Child`, the child's module calls :func:`answer`. To each request the child answers with any
number of ``{"progress": …}``, then ``{"done": …}`` or ``{"error": …}``. A child whose parent has gone ends.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import IO, Any, Self, TextIO, cast

from spica import errors
from spica.errors import ModelUnavailableError, SpicaError, WeightsError

logger = logging.getLogger(__name__)

Json = dict[str, Any]
Progress = Callable[[Any], None]

_POLL_S = 0.2
_TAIL_BYTES = 4000
_SYNCHRONIZE, _INFINITE = 0x00100000, 0xFFFFFFFF  # of Windows' OpenProcess and WaitForSingleObject


class Child:
    """A process of this interpreter. Leaving the context ends it.

    Args:
        arguments: of the interpreter: ``-m`` and a module that calls :func:`answer`.
        what: it does, for messages: ``conversion``.
        where: the file or project that it does it to, for messages.
        hint: what to do when it was killed.
        failure: kind of the error when it ends without an answer, or with an error of an unknown kind.
        environment: of the process; None for ours.
        background: of low priority, and Ctrl-C in the terminal is for the parent alone.

    Raises:
        SpicaError: of the kind ``failure``, if it can't be started.
    """

    def __init__(
        self,
        *arguments: str,
        what: str,
        where: str,
        hint: str,
        failure: type[SpicaError] = WeightsError,
        environment: Mapping[str, str] | None = None,
        background: bool = False,
    ) -> None:
        self._what, self._where, self._hint, self._failure = what, where, hint, failure
        self._stopped = False
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__; a pipe that nobody reads would fill
        flags = ("CREATE_NEW_PROCESS_GROUP", "BELOW_NORMAL_PRIORITY_CLASS") if background else ("CREATE_NO_WINDOW",)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, with arguments of our own
                # -P: a file named torch.py in the working folder is not torch
                [sys.executable, "-P", *arguments, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env={**(environment or os.environ), "PYTHONUTF8": "1", "PYTHONWARNINGS": "ignore"},
                encoding="utf-8",
                errors="replace",
                start_new_session=background and sys.platform != "win32",
                creationflags=sum(getattr(subprocess, flag, 0) for flag in flags),
            )
        except OSError as error:
            self._stderr.close()
            raise failure(f"the process of the {what} can't be started", where=where, got=str(error)) from error

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        with contextlib.suppress(OSError):  # what was not written yet, to a process that is dead
            self._process.__exit__(kind, error, traceback)
        self._stderr.close()

    def stop(self) -> None:
        """End the process now, from any thread; :meth:`ask` raises."""
        self._stopped = True
        self._process.kill()

    def ask(self, request: Mapping[str, Any], progress: Progress | None = None) -> Json:
        """Have a request answered; blocks until it is.

        Args:
            request: JSON values.
            progress: called with what the child says meanwhile.

        Raises:
            SpicaError: the child's own; of the kind ``failure`` if it ended without an answer.
            ModelUnavailableError: :meth:`stop` was called.
        """
        stdin, stdout = cast("IO[str]", self._process.stdin), cast("IO[str]", self._process.stdout)  # both are pipes
        with contextlib.suppress(OSError):  # it is dead already; what it wrote says why
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
        for line in stdout:
            message = _message(line)
            if "progress" in message and progress is not None:
                progress(message["progress"])
            if "error" in message:
                raise self._rebuilt(message["error"])
            if "done" in message:
                return dict(message["done"])
        self._process.wait()
        if self._stopped:
            raise ModelUnavailableError(f"the {self._what} was stopped", where=self._where)
        raise self._death()

    def _rebuilt(self, facts: Mapping[str, Any]) -> SpicaError:
        kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SpicaError)]
        kind = next((kind for kind in kinds if kind.code == facts.get("code")), self._failure)
        more = {name: facts.get(name) for name in ("expected", "got", "hint")}
        return kind(str(facts.get("message")), where=facts.get("where") or self._where, **more)

    def _death(self) -> SpicaError:
        status = self._process.returncode
        killed = status in (-9, 137)
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - _TAIL_BYTES))
        last_words = self._stderr.read().decode("utf-8", errors="replace").strip()
        if last_words:
            logger.error("the %s of %s ended with status %d:\n%s", self._what, self._where, status, last_words)
        return self._failure(
            f"the {self._what} ended without a result"
            + (": the system killed it, probably for want of memory" if killed else ""),
            where=self._where,
            got=f"exit status {status}" + (f": {last_words.splitlines()[-1][:300]}" if last_words else ""),
            hint=self._hint if killed else "see the log",
        )


def run(
    module: str,
    request: Mapping[str, Any],
    *,
    what: str,
    where: str,
    needs: str,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    **options: Any,
) -> Json:
    """Have a module answer one request in a child: see :class:`Child` and :meth:`Child.ask`.

    Args:
        module: that calls :func:`answer` when it is run.
        request: JSON values.
        what: as for the child.
        where: as for the child.
        needs: how much memory it takes, for messages.
        progress: called with what the child says meanwhile.
        stop: when set, the child is ended, and ModelUnavailableError raised.
        options: further ones of the child.
    """
    hint = f"close other programs and try again; it needs about {needs}"
    with Child("-m", module, what=what, where=where, hint=hint, **options) as child:
        answered = threading.Event()

        def watch(stop: threading.Event) -> None:
            while not answered.is_set():
                if stop.wait(_POLL_S):
                    child.stop()
                    return

        if stop is not None:
            threading.Thread(target=watch, args=(stop,), name="spica-stop", daemon=True).start()
        try:
            return child.ask(request, progress)
        finally:
            answered.set()


class Answers:
    """The child's way of speaking: whole lines, from any thread. Called, it reports progress."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.Lock()

    def __call__(self, progress: object) -> None:
        """Say how far the work is."""
        self._write({"progress": progress})

    def done(self, result: Mapping[str, Any]) -> None:
        """Answer the request."""
        self._write({"done": result})

    def fail(self, error: SpicaError) -> None:
        """Answer the request with an error."""
        self._write(error.as_json())

    def _write(self, message: Mapping[str, Any]) -> None:
        with self._lock:
            self._out.write(json.dumps(message) + "\n")
            self._out.flush()


def answer(work: Callable[[Json, Answers], Mapping[str, Any]], *, repeatedly: bool = False) -> int:
    """The child's side: read a request, work, answer; ends with its parent.

    Args:
        work: makes the answer of a request; a SpicaError is an answer too.
        repeatedly: answer requests until the input ends, which is noticed between two of them; else one.

    Returns:
        The exit status: 0 if every request was answered.
    """
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries that print must not get between our lines
    with out:
        answers = Answers(out)
        while line := sys.stdin.readline():
            if not repeatedly:
                threading.Thread(target=end_with_parent, name="spica-parent", daemon=True).start()
            try:
                answers.done(work(json.loads(line), answers))
            except SpicaError as error:
                answers.fail(error)
            if not repeatedly:
                return 0
    return 0 if repeatedly else 1


def require(package: str, purpose: str, hint: str) -> Any:
    """A package that not every installation has.

    Args:
        package: its name, as it is imported.
        purpose: what it is needed for: ``to convert a weights file``.
        hint: how to install it, and what for.

    Raises:
        WeightsError: it is not installed, or can't be loaded.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        what = f"{package} is needed {purpose}, and it is not installed"
        raise WeightsError(what, got=str(error), hint=hint) from error
    except (ImportError, OSError) as error:
        what = f"{package} is installed, but it can't be loaded"
        raise WeightsError(what, got=str(error), hint=f"install it again: {hint}") from error


def end_with_parent() -> None:
    """Wait for the end of the parent, and end the process.

    On Windows its process is waited for, whose id is the last argument: beside a thread that is blocked in reading the
    standard input, the import of numpy hangs there (https://github.com/numpy/numpy/issues/24290). This was not run.
    """
    if sys.platform == "win32":
        import ctypes
        from ctypes import wintypes

        kernel = ctypes.WinDLL("kernel32")
        kernel.OpenProcess.restype = wintypes.HANDLE
        kernel.WaitForSingleObject.argtypes = [wintypes.HANDLE, wintypes.DWORD]
        kernel.WaitForSingleObject(kernel.OpenProcess(_SYNCHRONIZE, False, int(sys.argv[-1])), _INFINITE)
    else:
        sys.stdin.read()
    os._exit(1)


def _message(line: str) -> Json:
    """A line of the protocol; empty for anything else."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}
