"""One job a project of Label Studio at a time, on one machine; and what others may know of it while it runs.

A folder for each (Label Studio, project): a lock that the system releases when its holder ends, however that happens,
and a state file. Delete it, and only a request that was cut off by a kill is forgotten.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import httpx
import platformdirs
from pydantic import BaseModel

from spica.errors import LaunchError, SpicaError, StorageError
from spica.files import read_text, write_text
from spica.http import is_loopback
from spica.locks import Lock
from spica.prelabel.progress import Progress

logger = logging.getLogger(__name__)

_LOCK = "job.lock"
_STATE = "job.json"
_WRITE_EVERY_S = 0.5
_SETTLE_AT_MOST_S = 60.0
"""A request of a process that was killed is waited for no longer, whatever the clocks say."""


class JobRunningError(SpicaError):
    """Another process works on the project already.

    Attributes:
        folder: of its claim.
    """

    code = "job_running"
    status = 409

    def __init__(self, what: str, *, folder: Path, where: str, got: str) -> None:
        super().__init__(what, where=where, got=got, hint="wait until it ends, or stop it where it was started")
        self.folder = folder


class State(BaseModel, frozen=True):
    """What the state file says of the process that works on the project, or has worked on it."""

    pid: int
    by: str  # what that process is, in words
    started: str  # ISO 8601, UTC
    version: str  # of the predictions
    state: str = "running"  # or done, stopped, failed
    reason: str | None = None  # why it failed
    progress: dict[str, Any] = Progress(total=0).as_json()
    sending: tuple[int, ...] = ()  # tasks of requests whose end nobody has heard of
    settled_by: float = 0.0  # when they will have been carried out, if ever, in seconds since 1970

    @classmethod
    def read(cls, folder: Path) -> State | None:
        """From a claim's folder; None when there is nothing readable."""
        try:
            return cls.model_validate_json(read_text(folder / _STATE))
        except (OSError, ValueError):
            return None


def claims_folder(data_dir: Path) -> Path:
    """Where claims are kept: the user's own folder, so that processes with different data folders exclude each other.

    Where that can't be written to (a container, a service without a home), the data folder.
    """
    own = Path(platformdirs.user_data_dir("spica", appauthor=False)) / "jobs"
    with suppress(OSError):
        own.mkdir(parents=True, exist_ok=True)
    return own if os.access(own, os.W_OK) else data_dir / "jobs"


def claim_folder(base: Path, label_studio_url: str, project: int) -> Path:
    """The folder of one project's claim."""
    url = httpx.URL(label_studio_url)
    host = "localhost" if is_loopback(label_studio_url) else url.host.lower()
    port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    place = f"{url.scheme}://{host}:{port}{url.path.rstrip('/')} {project}"
    return base / hashlib.sha256(place.encode()).hexdigest()[:16]


class Claim:
    """The right to work on one project, held until :meth:`release`. Use :meth:`take`."""

    def __init__(self, folder: Path, lock: Lock, *, by: str, version: str) -> None:
        self.folder = folder
        self._lock = lock
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self._state = State(pid=os.getpid(), by=by, started=started, version=version)
        self._written = 0.0
        self._warned = False
        self._open: dict[int, float] = {}  # tasks of requests without an answer, and when each is carried out if ever
        before = State.read(folder)
        if before is not None and before.version == version:
            until = min(before.settled_by, time.time() + _SETTLE_AT_MOST_S)
            self._open = dict.fromkeys(before.sending, until)

    @classmethod
    def take(cls, base: Path, label_studio_url: str, project: int, *, by: str, version: str) -> Claim:
        """Claim a project, below :func:`claims_folder`, for predictions of this version; others are shown ``by``.

        Raises:
            JobRunningError: another process has it.
            StorageError: the folder can't be written to.
        """
        folder = claim_folder(base, label_studio_url, project)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = Lock(folder / _LOCK)
            taken = lock.acquire()
        except (OSError, LaunchError) as error:
            raise StorageError(
                "the folder of running jobs can't be used", where=str(folder), got=str(error), hint="free some space"
            ) from None
        if not taken:
            other = State.read(folder)
            raise JobRunningError(
                f"project {project} is being predicted already",
                folder=folder,
                where=label_studio_url,
                got="another process" if other is None else f"{other.by}, process {other.pid}, since {other.started}",
            )
        return cls(folder, lock, by=by, version=version)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def sending(self, tasks: Iterable[int], within_s: float) -> None:
        """Note before a request is sent which tasks' predictions are in it, and how long it will take at most."""
        self._open |= dict.fromkeys(tasks, time.time() + within_s)
        self._write()

    def settled(self, tasks: Iterable[int]) -> None:
        """Note that a request with these tasks has come to its end."""
        for task in tasks:
            self._open.pop(task, None)
        self._write()

    @property
    def pending(self) -> set[int]:
        """Tasks whose predictions a request may still store of which nobody has heard the end."""
        now = time.time()
        return {task for task, until in self._open.items() if until > now}

    def show(self, progress: Progress) -> None:
        """Let other processes know how far it is."""
        if time.monotonic() - self._written >= _WRITE_EVERY_S:
            self._write(progress=progress.as_json())

    def end(self, state: str, reason: str | None, progress: Progress) -> None:
        """Note how it ended."""
        self._write(state=state, reason=reason, progress=progress.as_json())

    def release(self) -> None:
        """Let others work on the project; may be called again."""
        self._lock.release()

    def _write(self, **update: Any) -> None:
        self._written = time.monotonic()
        self._open = {task: self._open[task] for task in self.pending}
        update |= {"sending": tuple(self._open), "settled_by": max(self._open.values(), default=0.0)}
        self._state = self._state.model_copy(update=update)
        try:
            write_text(self.folder / _STATE, self._state.model_dump_json(), 0o600)
        except StorageError as error:  # a full disk must not stop what is stored elsewhere
            if not self._warned:
                self._warned = True
                logger.warning("other processes can't see this job: %s", error.summary)


def is_claimed(folder: Path) -> bool:
    """Whether a process holds this claim at the moment."""
    lock = Lock(folder / _LOCK)
    with suppress(LaunchError):
        free = lock.acquire()
        lock.release()
        return not free
    return False
