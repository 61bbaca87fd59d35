"""The trainings of one server: begun, run, cancelled, begun again after a restart; one at a time.

Across servers that share a data folder, one a project at a time. While its end can't be written, as on a full disk, a
training stays under way, and its stage says why: nothing is trained twice meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spica.detectors import child
from spica.errors import AuthenticationError, NotFoundError, SpicaError, StorageError, TrainingError
from spica.locks import Lock
from spica.models import active
from spica.project import ProjectKey
from spica.settings import Settings
from spica.training.footprint import environment
from spica.training.runs import Run, Runs, State, TrainingJob

logger = logging.getLogger(__name__)

_LOCK = "training.lock"
_ATTEMPTS = 3
_WRITE_EVERY_S = 1.0
_AGAIN_S = 30.0
Train = Callable[[TrainingJob, Callable[[dict[str, Any]], None], threading.Event], dict[str, Any]]
"""Does a job, calls with its progress, ends when the event is set; returns fields of a :class:`Run`."""


class TrainingRunningError(SpicaError):
    """A training is under way already."""

    code = "training_running"
    status = 409


class TrainingOverError(SpicaError):
    """A training has come to its end, and can't be cancelled any more."""

    code = "training_over"
    status = 409


def train_in_child(job: TrainingJob, report: Callable[[dict[str, Any]], None], stop: threading.Event) -> dict[str, Any]:
    """Have :mod:`spica.training.session` do a job in a process of its own, which ends with this one."""
    return child.run(
        "spica.training.session",
        job.as_json(),
        what="training",
        where=f"project {job.project}",
        needs=f"{job.settings.train_memory_bytes // 2**20} MB",
        progress=report,
        stop=stop,
        failure=TrainingError,
        environment=environment(job.threads),
        background=True,
    )


@dataclass(slots=True)
class _Current:
    """The run under way."""

    run: Run
    job: TrainingJob
    lock: Lock
    stop: threading.Event = field(default_factory=threading.Event)
    cancelled: bool = False
    over: bool = False


class Trainer:
    """Begins trainings from any thread, and does them on one.

    Args:
        settings: the server's.
        stopping: set when the server ends.
        parent_of: id and folder of the version that a project is answered with now.
        on_end: called with every run that is over; again after ``again_s`` where it raises a :class:`SpicaError`.
        train: does a job, for tests.
        again_s: see ``on_end``.
    """

    def __init__(
        self,
        settings: Settings,
        stopping: threading.Event,
        *,
        parent_of: Callable[[ProjectKey], tuple[str, Path | None]],
        on_end: Callable[[Run], Run],
        train: Train | None = None,
        again_s: float = _AGAIN_S,
    ) -> None:
        self.runs = Runs(settings.data_dir)
        self._settings = settings
        self._stopping = stopping
        self._parent_of = parent_of
        self._on_end = on_end
        self._do = train or train_in_child
        self._again_s = again_s
        self._lock = threading.Lock()
        self._current: _Current | None = None
        self._written = 0.0

    @property
    def current(self) -> Run | None:
        """The run under way, None while there is none."""
        with self._lock:
            return self._current.run if self._current is not None else None

    def begin(self, project: ProjectKey, *, title: str, cause: str, new: int) -> Run:
        """Begin a training, which :meth:`run` does.

        Raises:
            TrainingRunningError: one is under way here, or of this project on another server.
            AuthenticationError: there is no token to fetch annotations with.
            StorageError: the data folder can't be written.
        """
        with self._locked(project) as lock:
            current = self.current
            if current is not None:
                other = "this project" if current.project == project else f"project {current.project}"
                raise TrainingRunningError(
                    f"a training of {other} is under way", where=f"project {project}", hint="wait, or cancel it"
                )
            if lock is None:
                raise TrainingRunningError(
                    "another server that shares the data folder trains this project",
                    where=f"project {project}",
                    hint="wait until it is done, or cancel it on that server's page",
                )
            run = self.runs.begin(project, title=title, cause=cause, new=new)
            try:
                return self._set_up(run, lock)
            except BaseException:  # else the next start would train it
                self.runs.remove(run)
                raise

    def complete(self) -> list[Run]:
        """Put in front of people what has passed just before a server was killed; these runs."""
        completed = []
        for project in self.runs.projects():
            run = next((run for run in self.runs.of(project) if run.state == "passed"), None)
            if run is None or run.settled:
                continue
            try:
                with self._locked(project) as lock:
                    if lock is not None:  # else another server is at it
                        self._write_end(self._on_end(run))
                        completed.append(run)
            except SpicaError as error:
                logger.warning("project %s: what came of training %s waits: %s", project, run.id, error.summary)
        return completed

    def begin_again(self) -> None:
        """Begin a training again that a server which is gone has left unfinished; what can't be, has failed."""
        for run in self.runs.unfinished():
            try:
                with self._locked(run.project) as lock:
                    if lock is not None and Run.read(self.runs.folder(run)) == run:  # else another server is at it
                        self._begin_again(run, lock)
            except SpicaError as error:
                logger.warning("project %s: the unfinished training %s is left: %s", run.project, run.id, error.summary)

    def _begin_again(self, run: Run, lock: Lock) -> None:
        why = None
        if run.attempts >= _ATTEMPTS:
            why = f"its process ended {run.attempts} times without a result"
        elif self._settings.label_studio_api_key is None:
            why = "the server has no access token of Label Studio's any more"
        elif any(later.id > run.id for later in self.runs.of(run.project)):
            why = "a later training has taken its place"
        if why is not None:
            error = TrainingError("the training was cut short and is not begun again", got=why)
            self._write_end(_unsuccessful(run, "failed", error))
        elif self.current is None:  # else it comes next
            self._set_up(replace(run, stage="begun again after a restart"), lock)

    def cancel(self, number: int) -> Run:
        """End the training of the project of this number; what it has learned is dropped, what is served untouched.

        Raises:
            NotFoundError: there is none here.
            TrainingOverError: it has come to its end just now.
        """
        with self._lock:
            current = self._current
            if current is None or current.run.project.number != number:
                raise NotFoundError("no training of this project is under way here", where=f"project {number}")
            if current.over and not current.cancelled:
                raise TrainingOverError(
                    "the training is over, it can't be cancelled any more",
                    where=f"project {number}",
                    hint="wait for what comes of it; if it becomes active, "
                    f"`spica models rollback --project {number}` goes back",
                )
            current.cancelled = True
            current.stop.set()
            return current.run

    def interrupt(self) -> None:
        """End the process that trains, because the server ends; the next server begins the training again."""
        with self._lock:
            if self._current is not None:
                self._current.stop.set()

    def run(self) -> Run | None:
        """Do the training that was begun, to its end; None if there is none, or the server ends before."""
        with self._lock:
            current = self._current
        if current is None:
            return None
        ended = None
        try:
            ended = self._outcome(current)
            while ended is not None and not self._finish(current, ended):
                if current.stop.wait(self._again_s):
                    break
        except Exception:
            logger.exception("project %s: the end of training %s", current.run.project, current.run.id)
        finally:
            with self._lock:
                self._current = None
            current.lock.release()
        return ended

    @contextmanager
    def _locked(self, project: ProjectKey) -> Iterator[Lock | None]:
        """The lock of a project's trainings, None if somebody else has it; it stays taken for a run that was set up."""
        lock = Lock(self.runs.project_folder(project) / _LOCK)
        taken = lock.acquire()
        try:
            yield lock if taken else None
        finally:
            with self._lock:
                used = self._current is not None and self._current.lock is lock
            if taken and not used:
                lock.release()

    def _set_up(self, run: Run, lock: Lock) -> Run:
        """Make a run the current one, by what is active now."""
        step = step_of(self._settings.data_dir, run.project)  # before the parent: a change between the two is noticed
        parent, folder = self._parent_of(run.project)
        run = replace(run, attempts=run.attempts + 1, parent=parent, active=step)
        if self._settings.label_studio_api_key is None:
            raise no_token()
        job = TrainingJob(run.project, run.id, self.runs.folder(run), folder, parent, self._settings)
        self.runs.write(run)
        with self._lock:
            if self._current is not None or self._stopping.is_set():
                raise TrainingRunningError(
                    "a training is under way, or the server stops", where=f"project {run.project}"
                )
            self._current = _Current(run, job, lock)
        logger.info("project %s: training %s begins: %s", run.project, run.id, run.cause)
        return run

    def _outcome(self, current: _Current) -> Run | None:
        """The run as it ended; None if the server ends and it is to be begun again."""
        error: SpicaError | None = None
        result: dict[str, Any] = {}
        try:
            result = self._do(current.job, self._progress, current.stop)
        except SpicaError as failure:
            error = failure
        except Exception as failure:
            logger.exception("project %s: training %s failed", current.run.project, current.run.id)
            error = TrainingError("the training failed", got=repr(failure), hint="see the log")
        with self._lock:
            current.over = True  # from now on it is too late to cancel it
        if current.cancelled:
            return _unsuccessful(current.run, "cancelled", TrainingError("the training was cancelled"))
        if error is not None:
            if current.stop.is_set():
                return None
            logger.error("project %s: training %s failed: %s", current.run.project, current.run.id, error.summary)
            return _unsuccessful(current.run, "failed", error)
        self._progress(result)
        passed = bool((result.get("verdict") or {}).get("accepted"))
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        return replace(
            current.run, state="passed" if passed else "refused", settled=not passed, eta_s=None, finished=finished
        )

    def _progress(self, reported: dict[str, Any]) -> None:
        with self._lock:
            if self._current is None:
                return
            before = self._current.run
            run = self._current.run = replace(before, **reported)
        if (run.stage, run.epoch) != (before.stage, before.epoch) or time.monotonic() - self._written > _WRITE_EVERY_S:
            self._written = time.monotonic()
            try:
                self.runs.write(run)
            except StorageError as error:  # the page shows it all the same
                logger.warning("project %s: %s", run.project, error.summary)

    def _finish(self, current: _Current, run: Run) -> bool:
        """Put what came of a training in front of people, and write it; whether that was possible."""
        try:
            self._write_end(self._on_end(run))
        except SpicaError as error:  # the disk is full, or somebody holds the store's lock
            logger.error("project %s: the end of training %s waits: %s", run.project, run.id, error.summary)
            note = f"what came of it is not in place yet, and is tried again: {error.summary}"
            with self._lock:
                current.run = replace(run, state="running", stage=note)
            return False
        return True

    def _write_end(self, run: Run) -> None:
        stored = Run.read(self.runs.folder(run))  # Label Studio may show already what has passed
        settled = run.settled or (stored is not None and stored.state == run.state and stored.settled)
        self.runs.write(replace(run, settled=settled))
        self.runs.tidy(run.project)
        logger.info("project %s: training %s: %s. %s", run.project, run.id, run.state, run.why)


def _unsuccessful(run: Run, state: State, error: SpicaError) -> Run:
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    return replace(run, state=state, reason=error.as_json()["error"], eta_s=None, finished=finished)


def step_of(data_dir: Path, project: ProjectKey) -> dict[str, Any] | None:
    """What a project's active pointer says now; None where nothing was ever activated, or nobody can tell any more."""
    try:
        pointer = active.read(data_dir, project)
    except StorageError as error:
        logger.warning("project %s: %s", project, error.summary)
        return None
    return asdict(pointer.now) if pointer is not None else None


def no_token() -> AuthenticationError:
    """The error of a server that can't learn."""
    return AuthenticationError(
        "this server has no access token of Label Studio's, so it can't learn from submissions",
        where="LABEL_STUDIO_API_KEY of the model server",
        hint="copy the token from Label Studio's page Account & Settings, and start the server with it",
    )
