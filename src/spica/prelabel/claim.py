"""One job a project of Label Studio at a time, on one machine; and what others may know of it while it runs.

A folder for each (Label Studio, project): a lock that the system lets go when its holder ends, however that happens,
and a state file. Nothing in it matters for long: delete it, and only a request that was cut off by a kill is forgotten.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import httpx
import platformdirs

from spica.errors import LaunchError, SpicaError, StorageError
from spica.http import is_loopback
from spica.labelstudio.credentials import write_private
from spica.labelstudio.instance import FolderLock
from spica.prelabel.progress import Progress

logger = logging.getLogger(__name__)

_LOCK = "job.lock"
_STATE = "job.json"
_WRITE_EVERY_S = 0.5


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


@dataclass(frozen=True, slots=True)
class State:
    """What the state file says.

    Attributes:
        pid: of the process that works, or has worked.
        by: what it is, for people.
        started: ISO 8601, UTC.
        version: of the predictions.
        state: ``running``, ``done``, ``stopped`` or ``failed``.
        reason: why it failed, or None.
        progress: how far it is.
        sending: tasks of a request whose end nobody has heard of.
        settled_by: when it will have been carried out, if it ever is, in seconds since 1970; 0 for nothing.
    """

    pid: int
    by: str
    started: str
    version: str
    state: str
    reason: str | None
    progress: Progress
    sending: tuple[int, ...]
    settled_by: float

    @classmethod
    def read(cls, folder: Path) -> State | None:
        """From a claim's folder; None when there is nothing readable."""
        try:
            body = json.loads((folder / _STATE).read_text("utf-8"))
            return cls(
                pid=int(body["pid"]),
                by=str(body["by"]),
                started=str(body["started"]),
                version=str(body["version"]),
                state=str(body["state"]),
                reason=body["reason"],
                progress=Progress.from_json(body["progress"]),
                sending=tuple(int(task) for task in body["sending"]),
                settled_by=float(body["settled_by"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


def claims_folder(data_dir: Path) -> Path:
    """Where claims are kept: the user's own folder, so that processes with different data folders exclude each other.

    Where that can't be written to (a container, a service without a home), the data folder.
    """
    own = Path(platformdirs.user_data_dir("spica", appauthor=False)) / "jobs"
    try:
        own.mkdir(parents=True, exist_ok=True)
    except OSError:
        return data_dir / "jobs"
    return own if os.access(own, os.W_OK) else data_dir / "jobs"


def claim_folder(base: Path, label_studio_url: str, project: int) -> Path:
    """The folder of one project's claim."""
    url = httpx.URL(label_studio_url)
    host = "localhost" if is_loopback(label_studio_url) else url.host.lower()
    port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    place = f"{url.scheme}://{host}:{port}{url.path.rstrip('/')} {project}"
    return base / hashlib.sha256(place.encode()).hexdigest()[:16]


class Claim:
    """The right to work on one project, held until :meth:`release`. Use :meth:`take`.

    Attributes:
        unsettled: tasks of a request that an earlier holder was killed over, if any.
        unsettled_by: when it will have been carried out, if it ever is, in seconds since 1970.
    """

    def __init__(self, folder: Path, lock: FolderLock, *, by: str, version: str) -> None:
        self.folder = folder
        self._lock = lock
        self._by = by
        self._version = version
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._progress = Progress(total=0)
        self._sending: tuple[int, ...] = ()
        self._settled_by = 0.0
        self._written = 0.0
        self._told = False
        before = State.read(folder)
        same = before is not None and before.version == version
        self.unsettled: tuple[int, ...] = before.sending if before is not None and same else ()
        self.unsettled_by = before.settled_by if before is not None and same else 0.0

    @classmethod
    def take(cls, base: Path, label_studio_url: str, project: int, *, by: str, version: str) -> Claim:
        """Claim a project.

        Args:
            base: of all claims, from :func:`claims_folder`.
            label_studio_url: the Label Studio.
            project: its number there.
            by: who claims it, for people.
            version: of the predictions to come.

        Raises:
            JobRunningError: another process has it.
            StorageError: the folder can't be written to.
        """
        folder = claim_folder(base, label_studio_url, project)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(folder, _LOCK)
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
        self._sending, self._settled_by = tuple(tasks), time.time() + within_s
        self._write("running", None)

    def settled(self) -> None:
        """Note that all that was sent is confirmed."""
        self._sending, self._settled_by = (), 0.0
        self._write("running", None)

    def clear_up(self) -> None:
        """Note that what an earlier holder left behind is settled."""
        self.unsettled, self.unsettled_by = (), 0.0

    def show(self, progress: Progress) -> None:
        """Let other processes know how far it is."""
        self._progress = progress
        if time.monotonic() - self._written >= _WRITE_EVERY_S:
            self._write("running", None)

    def end(self, state: str, reason: str | None, progress: Progress) -> None:
        """Note how it ended."""
        self._progress = progress
        self._write(state, reason)

    def release(self) -> None:
        """Let others work on the project; twice is fine."""
        self._lock.release()

    def _write(self, state: str, reason: str | None) -> None:
        self._written = time.monotonic()
        body: dict[str, Any] = {
            "pid": os.getpid(),
            "by": self._by,
            "started": self._started,
            "version": self._version,
            "state": state,
            "reason": reason,
            "progress": self._progress.as_json(),
            "sending": [*self.unsettled, *self._sending],
            "settled_by": self._settled_by or self.unsettled_by,
        }
        try:
            write_private(self.folder / _STATE, json.dumps(body, ensure_ascii=False))
        except LaunchError as error:  # a full disk must not stop what is stored elsewhere
            if not self._told:
                self._told = True
                logger.warning("other processes can't see this job: %s", error.summary)


def is_claimed(folder: Path) -> bool:
    """Whether a process holds this claim at the moment."""
    lock = FolderLock(folder, _LOCK)
    with suppress(LaunchError):
        free = lock.acquire()
        lock.release()
        return not free
    return False
