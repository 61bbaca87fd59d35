"""The process that trains, seen from the server: started, listened to, cancelled; it ends with us.

See :mod:`spica.training.worker` for the other side. Secrets go through its standard input only.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import IO, Any, cast

from spica import errors
from spica.errors import SpicaError, TrainingError
from spica.project import ProjectKey

logger = logging.getLogger(__name__)

_SECRETS = ("LABEL_STUDIO_API_KEY", "LABEL_STUDIO_ACCESS_TOKEN", "SPICA_BASIC_AUTH")
_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_TAIL_BYTES = 4000
_PASSED_ON: Sequence[type[SpicaError]] = (
    errors.DataSetError,
    errors.WeightsError,
    errors.StorageError,
    errors.LabelConfigError,
    errors.LabelStudioUnreachableError,
    errors.LabelStudioError,
    errors.AuthenticationError,
    errors.MediaError,
    errors.ImageError,
    errors.ModelUnavailableError,
    errors.UsageError,
)


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be trained.

    Attributes:
        project: which one.
        run: id of the run.
        folder: of the run, with its checkpoints; an unfinished training goes on from there.
        data_dir: Spica's.
        label_studio_url: where Label Studio is.
        token: for it.
        parent: folder of the version to start from and to compare with, None for none.
        parent_id: its id.
        settings: those that matter for a training, by name.
        threads: at most so many.
        memory_bytes: with more, it ends.
    """

    project: ProjectKey
    run: str
    folder: str
    data_dir: str
    label_studio_url: str
    token: str = field(repr=False)
    parent: str | None
    parent_id: str | None
    settings: dict[str, Any]
    threads: int
    memory_bytes: int

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Request:
        """From the line that the process is given."""
        return cls(**{**told, "project": ProjectKey(**told["project"])})


class CancelledError(TrainingError):
    """Somebody wanted it to end."""

    code = "cancelled"


class WorkerProcess:
    """One process that trains; :meth:`run` is called once.

    Args:
        request: what to train.
        command: to start, for tests.
    """

    def __init__(self, request: Request, command: Sequence[str] | None = None) -> None:
        self._request = request
        # -P: a file named torch.py in the working folder is not torch
        self._command = list(command or (sys.executable, "-P", "-m", "spica.training.worker"))
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._ended: str | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, None before it was started."""
        return self._process.pid if self._process is not None else None

    def end(self, why: str = "") -> None:
        """End the process now; what it has on disk stays. May be called from any thread, also before :meth:`run`."""
        with self._lock:
            if self._ended is None:
                self._ended = why
            if self._process is not None and self._process.poll() is None:
                self._process.kill()

    def run(self, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Train; blocks to the end.

        Args:
            tell: called with every line of progress, fields of :class:`spica.training.runs.Run`.

        Returns:
            Its report.

        Raises:
            CancelledError: :meth:`end` was called.
            SpicaError: why nothing came of it.
        """
        with tempfile.TemporaryFile() as said:
            process = self._start(said)
            with process:
                report = self._converse(process, tell)
                process.wait()
            if self._ended is not None:
                raise CancelledError(
                    "the training was ended", where=f"project {self._request.project}", got=self._ended
                )
            if report is None:
                raise self._silent_death(process.returncode, _tail(said))
        if "error" in report:
            raise rebuilt(report["error"])
        return dict(report["report"])

    def _start(self, said: IO[bytes]) -> subprocess.Popen[str]:
        # A session of its own: Ctrl-C in the terminal is for the server, which ends it in order.
        flags = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) | getattr(
            subprocess, "BELOW_NORMAL_PRIORITY_CLASS", 0
        )
        with self._lock:
            if self._ended is not None:
                raise CancelledError(
                    "the training was ended", where=f"project {self._request.project}", got=self._ended
                )
            try:
                self._process = subprocess.Popen(  # noqa: S603 - this interpreter, with arguments of our own
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    env=environment(self._request.threads),
                    text=True,
                    encoding="utf-8",
                    errors="replace",
                    start_new_session=sys.platform != "win32",
                    creationflags=flags,
                )
            except OSError as error:
                raise TrainingError(
                    "the process that trains can't be started", where=self._command[0], got=str(error)
                ) from error
            return self._process

    def _converse(
        self, process: subprocess.Popen[str], tell: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any] | None:
        """Send the request, listen to the end; the report, None if there was none."""
        stdin, stdout = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)  # both are pipes
        try:
            stdin.write(json.dumps(asdict(self._request)) + "\n")
            stdin.flush()
        except OSError:  # it is dead already; what it said tells why
            pass
        report: dict[str, Any] | None = None
        for line in stdout:
            try:
                told = json.loads(line)
            except ValueError:
                continue
            if isinstance(told, dict) and "progress" in told:
                tell(dict(told["progress"]))
            elif isinstance(told, dict):
                report = told
        return report

    def _silent_death(self, status: int, said: str) -> TrainingError:
        if said:
            logger.error("the training of project %s ended with status %d:\n%s", self._request.project, status, said)
        killed = status in (-9, 137)
        return TrainingError(
            "the process that trains ended without a result"
            + (": it was killed, perhaps by the system for want of memory" if killed else ""),
            where=f"project {self._request.project}",
            got=f"exit status {status}" + (f": {said.splitlines()[-1][:300]}" if said else ""),
            hint="the next submission or Start Training starts anew" + ("" if killed else "; see the server's log"),
        )


def environment(threads: int) -> dict[str, str]:
    """Of the process: ours without secrets, with a bound on the threads of numerical libraries."""
    kept = {name: value for name, value in os.environ.items() if name.upper() not in _SECRETS}
    return {**kept, **dict.fromkeys(_THREADS, str(threads)), "PYTHONUTF8": "1", "PYTHONWARNINGS": "ignore"}


def threads_of(setting: int) -> int:
    """So many threads for a training: the setting, or half of the processors, at least one."""
    return setting or max(1, (os.cpu_count() or 2) // 2)


def rebuilt(told: dict[str, Any]) -> SpicaError:
    """The error that another process has told, of its own kind where that is known."""
    kind = next((kind for kind in _PASSED_ON if kind.code == told.get("code")), TrainingError)
    return kind(
        str(told.get("message") or "the training failed"),
        where=told.get("where"),
        expected=told.get("expected"),
        got=told.get("got"),
        hint=told.get("hint"),
    )


def _tail(said: IO[bytes]) -> str:
    said.seek(max(0, said.seek(0, os.SEEK_END) - _TAIL_BYTES))
    return said.read().decode("utf-8", errors="replace").strip()
