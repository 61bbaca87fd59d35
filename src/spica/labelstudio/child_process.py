"""A child process that never outlives us."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

from spica.errors import LaunchError

_STOP_TIMEOUT_S = 10.0
_TAIL_LINES = 15
_TAIL_BYTES = 20_000


class ChildProcess:
    """The process of Label Studio with all its own, its log, and the pipe that ties it to us."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes], log_path: Path, log_start: int) -> None:
        self._process = process
        self._log = log
        self.log_path = log_path
        self._log_start = log_start
        self.pid = process.pid

    @classmethod
    def start(cls, command: list[str], environment: dict[str, str], cwd: Path, log_path: Path) -> ChildProcess:
        """Start ``command`` with exactly this environment; its output is appended to the log.

        Raises:
            LaunchError: the log can't be written, or the program can't be started.
        """
        try:
            log = log_path.open("ab")
        except OSError as error:
            raise LaunchError(
                "the log of Label Studio can't be written",
                where=str(log_path),
                got=str(error),
                hint="free space, or give a folder of your own with --data-dir",
            ) from error
        # A group of its own: Ctrl-C in the terminal then reaches us alone, and we stop it in order.
        try:
            process = subprocess.Popen(  # noqa: S603 - our own command line, no shell
                command,
                env=environment,
                cwd=cwd,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=sys.platform != "win32",
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except OSError as error:
            log.close()
            raise LaunchError("Label Studio can't be started", where=command[0], got=str(error)) from error
        except BaseException:
            log.close()
            raise
        return cls(process, log, log_path, log_path.stat().st_size)

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to end, wait, then kill it and all that it started."""
        try:
            if self._process.poll() is None:
                self._signal(gently=True)
                self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also when a second Ctrl-C cuts the waiting short
            self._signal(gently=False)
            self._process.wait()
            if self._process.stdin is not None:
                with contextlib.suppress(OSError):
                    self._process.stdin.close()
            self._log.close()

    def _signal(self, *, gently: bool) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has just ended
            if sys.platform == "win32":
                if gently:
                    self._process.send_signal(signal.CTRL_BREAK_EVENT)
                else:
                    self._process.kill()
            else:
                os.killpg(self.pid, signal.SIGTERM if gently else signal.SIGKILL)

    def tail(self, secrets: tuple[str, ...]) -> str:
        """The last lines that it wrote since it was started, without secrets."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(self._log_start, self.log_path.stat().st_size - 20_000))
                text = log.read().decode("utf-8", errors="replace")
        except OSError:
            return ""
        for secret in secrets:
            text = text.replace(secret, "***")
        return "\n".join(text.strip().splitlines()[-_TAIL_LINES:])
