"""The trainings of one server: begun, followed, cancelled, taken up again after a restart; one at a time.

Across servers that share a data folder, one a project at a time. An end that can't be written, as on a full disk, is
kept in memory and tried again: the page shows it, and nothing is trained twice meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from spica.errors import AuthenticationError, LaunchError, NotFoundError, SpicaError, StorageError, TrainingError
from spica.locks import Lock
from spica.models import active
from spica.project import ProjectKey
from spica.settings import Settings
from spica.training.process import CancelledError, Request, WorkerProcess, threads_of
from spica.training.runs import Run, Runs

logger = logging.getLogger(__name__)

_LOCK = "training.lock"
_ATTEMPTS = 3
_WRITE_EVERY_S = 1.0
_CLOSE_S = 20.0
_TOLD = frozenset(each.name for each in fields(Run)) - {
    "id",
    "project",
    "started",
    "cause",
    "attempts",
    "settled",
    "state",
    "parent",
    "active",
}
_SETTINGS = (
    "score_floor",
    "max_detections",
    "norm_eps",
    "holdout_share",
    "holdout_min",
    "max_pixels",
    "max_image_bytes",
    "media_timeout_s",
    "threshold",
    "precision",
    "tile",
    "overlap",
)


class TrainingRunningError(SpicaError):
    """A training is under way already."""

    code = "training_running"
    status = 409


class TrainingOverError(SpicaError):
    """A training has come to its end, and can't be cancelled any more."""

    code = "training_over"
    status = 409


class _NothingToCancelError(NotFoundError):
    """No training of this project is under way here."""


class _Pending(NamedTuple):
    """A training that is over, and why its end is not written or not put in front of people yet."""

    run: Run
    why: SpicaError

    @property
    def shown(self) -> Run:
        """With the reason."""
        note = f"what came of it is not in place yet, and is tried again: {self.why.summary}"
        return replace(self.run, notes=(*self.run.notes, note))


class Worker(Protocol):
    """:class:`spica.training.process.WorkerProcess`, or what a test takes for it."""

    def run(self, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Train; see there."""

    def end(self, why: str = "") -> None:
        """End it now."""


class Trainer:
    """Thread-safe; closed with the server.

    Args:
        settings: the server's.
        parent_of: id and folder of the version that a project is answered with now.
        on_end: called with every run that is over, on the run's thread, while the project's lock is held; again where
            it raises a :class:`SpicaError`.
        on_idle: called after it, when another one may begin.
        worker: makes the process, for tests.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        parent_of: Callable[[ProjectKey], tuple[str, Path | None]],
        on_end: Callable[[Run], Run],
        on_idle: Callable[[], None] = lambda: None,
        worker: Callable[[Request], Worker] = WorkerProcess,
    ) -> None:
        self.runs = Runs(settings.data_dir)
        self._settings = settings
        self._parent_of = parent_of
        self._on_end = on_end
        self._on_idle = on_idle
        self._make = worker
        self._lock = threading.Lock()
        self._run: Run | None = None
        self._worker: Worker | None = None
        self._thread: threading.Thread | None = None
        self._pending: dict[ProjectKey, _Pending] = {}
        self._written = 0.0
        self._cancelled = self._over = False
        self._closed = False

    @property
    def current(self) -> Run | None:
        """The run under way, None while there is none."""
        with self._lock:
            return self._run

    def of(self, project: ProjectKey) -> list[Run]:
        """A project's runs, the latest first; of one whose end could not be written, how it ended."""
        with self._lock:
            pending = self._pending.get(project)
        found = {run.id: run for run in self.runs.of(project)}
        if pending is not None:
            found[pending.run.id] = pending.shown
        return [found[name] for name in sorted(found, reverse=True)]

    @property
    def projects(self) -> list[ProjectKey]:
        """Projects that have runs."""
        with self._lock:
            pending = set(self._pending)
        return sorted(pending.union(self.runs.projects()))

    def begin(self, project: ProjectKey, *, title: str, cause: str, new: int) -> Run:
        """Start a training.

        Raises:
            TrainingRunningError: one is under way here, or of this project on another server.
            AuthenticationError: there is no token to fetch annotations with.
            StorageError: the data folder can't be written.
        """
        token = self._token()
        self._refuse_if_busy(project)
        lock = self._take(project)
        if lock is None:
            raise TrainingRunningError(
                "another server that shares the data folder trains this project",
                where=f"project {project}",
                hint="wait until it is done, or cancel it on that server's page",
            )
        run = None
        try:
            step = step_of(self._settings.data_dir, project)  # before the parent: a change between the two is noticed
            parent = self._parent_of(project)[0]
            run = self.runs.begin(project, title=title, cause=cause, new=new, parent=parent, active=step)
            self._launch(run, lock, token)
        except BaseException:
            if run is not None:  # else the next start would train it
                self.runs.remove(run)
            lock.release()
            raise
        return run

    def recover(self) -> None:
        """Take up what a server that is gone has left unfinished, or clear it where that can't be done."""
        for run in list(self.runs.unfinished()):
            try:
                if self.current is None:
                    self._recover(run)
            except SpicaError as error:
                logger.warning("the unfinished training of project %s is left: %s", run.project, error.summary)
        for project in self.runs.projects():
            try:
                self._complete(project)
            except SpicaError as error:
                logger.warning("what came of the last training of project %s waits: %s", project, error.summary)

    def _complete(self, project: ProjectKey) -> None:
        """Put in front of people what has passed just before a server was killed."""
        lock = self._take(project)
        if lock is None:  # another server is at it
            return
        try:
            run = next((run for run in self.runs.of(project) if run.state == "passed"), None)
            if run is not None and not run.settled:
                self._finish(run)
            self.runs.tidy(project)
        finally:
            lock.release()

    def _recover(self, run: Run) -> None:
        lock = self._take(run.project)
        if lock is None:  # another server is at it
            return
        taken = False
        try:
            found = Run.read(self.runs.folder(run))  # it may have ended meanwhile
            if found is None or found.is_over:
                return
            why = None
            if found.attempts >= _ATTEMPTS:
                why = f"its process ended {found.attempts} times without a result"
            elif self._settings.label_studio_api_key is None:
                why = "the server has no access token of Label Studio's any more"
            elif any(later.id > run.id for later in self.runs.of(run.project)):
                why = "a later training has taken its place"
            if why is None:
                logger.info("project %s: taking up the unfinished training %s", run.project, run.id)
                # As if it began now: what is active may have been changed by hand while no server was there.
                step = step_of(self._settings.data_dir, run.project)
                parent = self._parent_of(run.project)[0]
                again = replace(found, stage="taken up after a restart", parent=parent, active=step)
                self._launch(again, lock, self._token())
                taken = True
                return
            cut = TrainingError("the training was cut short and is not taken up again", got=why)
            self._end(replace(found, state="failed", reason=cut.as_json()["error"]))
        finally:
            if not taken:
                lock.release()

    def cancel(self, project: ProjectKey) -> Run:
        """End the training of a project; what it has learned is dropped, what is served is untouched.

        Raises:
            NotFoundError: there is none here.
            TrainingOverError: it has come to its end just now.
        """
        with self._lock:
            run, worker = self._run, self._worker
            if run is None or worker is None or run.project != project:
                raise _NothingToCancelError(
                    "no training of this project is under way on this server", where=f"project {project}"
                )
            if self._over and not self._cancelled:
                raise TrainingOverError(
                    "the training is over, it can't be cancelled any more",
                    where=f"project {project}",
                    hint="wait for what comes of it; if it becomes active, "
                    f"`spica models rollback --project {project}` goes back",
                )
            self._cancelled = True
        worker.end("cancelled")
        return run

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of the run under way; whether it has come."""
        with self._lock:  # whoever starts it holds the lock until it runs
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        return thread is None or not thread.is_alive()

    def close(self) -> None:
        """End the process; the run is taken up again by the next server. May be called twice."""
        with self._lock:
            self._closed = True
            worker = self._worker
        if worker is not None:
            worker.end("the server stops")
        if not self.join(_CLOSE_S):
            logger.warning("the training did not end in time")

    # --- the run, on a thread of its own ----------------------------------------------------------------------------

    def _token(self) -> str:
        secret = self._settings.label_studio_api_key
        if secret is None:
            raise AuthenticationError(
                "the model server has no access token of Label Studio's, so it can't fetch annotations",
                where="LABEL_STUDIO_API_KEY of the model server",
                hint="copy the token from Label Studio's page Account & Settings, and start the server with it",
            )
        return secret.get_secret_value()

    def _refuse_if_busy(self, project: ProjectKey) -> None:
        with self._lock:
            if self._closed:
                raise TrainingError("the model server is stopping", where=f"project {project}")
            if self._run is not None:
                other = "this project" if self._run.project == project else f"project {self._run.project}"
                raise TrainingRunningError(
                    f"a training of {other} is under way", where=f"project {project}", hint="wait, or cancel it"
                )

    def _take(self, project: ProjectKey) -> Lock | None:
        folder = self.runs.project_folder(project)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = Lock(folder / _LOCK)
            return lock if lock.acquire() else None
        except (OSError, LaunchError) as error:
            raise StorageError(
                "the folder of trainings can't be used",
                where=str(folder),
                got=str(error),
                hint="free some space, or choose another folder with --data-dir",
            ) from None

    def _launch(self, run: Run, lock: Lock, token: str) -> None:
        run = replace(run, attempts=run.attempts + 1)
        self.runs.write(run)
        worker = self._make(self._request(run, token))
        with self._lock:
            if self._closed or self._run is not None:
                raise TrainingRunningError(
                    "a training is under way, or the server stops", where=f"project {run.project}"
                )
            thread = threading.Thread(
                target=self._train, args=(run, worker, lock), name=f"spica-training-{run.project}", daemon=True
            )
            before = self._run, self._worker, self._thread
            self._run, self._worker, self._thread = run, worker, thread
            self._cancelled = self._over = False
            try:
                thread.start()
            except RuntimeError:  # the system has no more of them
                self._run, self._worker, self._thread = before
                raise
        logger.info("project %s: training %s begins: %s", run.project, run.id, run.cause)

    def _request(self, run: Run, token: str) -> Request:
        settings = self._settings
        parent, folder = self._parent_of(run.project)
        named = {name: getattr(settings, name) for name in _SETTINGS}
        root = settings.local_files_document_root
        named["local_files_document_root"] = str(root) if root is not None else None
        named["label_studio_data_dir"] = str(settings.label_studio_data_dir)
        return Request(
            project=run.project,
            run=run.id,
            folder=str(self.runs.folder(run).resolve()),
            data_dir=str(settings.data_dir.resolve()),
            label_studio_url=settings.label_studio_url,
            token=token,
            parent=str(folder.resolve()) if folder is not None else None,
            parent_id=parent,
            settings=named,
            threads=threads_of(settings.train_threads),
            memory_bytes=settings.train_memory_bytes,
        )

    def _train(self, run: Run, worker: Worker, lock: Lock) -> None:
        try:
            ended = self._outcome(run, worker)
            if ended is not None:
                self._finish(ended)
        except Exception:
            logger.exception("project %s: the end of training %s", run.project, run.id)
        finally:
            with self._lock:
                self._run = self._worker = None
            lock.release()
            self._on_idle()

    def _outcome(self, run: Run, worker: Worker) -> Run | None:
        """The run as it ended; None if it is to be taken up again."""
        try:
            try:
                report = worker.run(self._progress)
            finally:
                cancelled = self._is_cancelled()
            if cancelled:  # it was done at the same moment
                raise CancelledError("the training was ended", where=f"project {run.project}", got="cancelled")
        except CancelledError as error:
            if self._closed and not cancelled:
                return None
            return self._failed("cancelled", error)
        except SpicaError as error:
            logger.error("project %s: training %s failed: %s", run.project, run.id, error.summary)
            return self._failed("failed", error)
        except Exception as error:
            logger.exception("project %s: training %s failed", run.project, run.id)
            return self._failed("failed", TrainingError("the training failed", got=repr(error), hint="see the log"))
        self._progress({name: value for name, value in report.items() if name in _TOLD})
        accepted = bool((report.get("verdict") or {}).get("accepted"))
        return replace(self._now(), state="passed" if accepted else "refused", settled=not accepted, eta_s=None)

    def _is_cancelled(self) -> bool:
        """Whether somebody has cancelled it; from now on it is too late for that."""
        with self._lock:
            self._over = True
            return self._cancelled

    def _now(self) -> Run:
        with self._lock:
            assert self._run is not None  # noqa: S101 - only the run's own thread asks
            return self._run

    def _failed(self, state: Any, error: SpicaError) -> Run:
        return replace(self._now(), state=state, reason=error.as_json()["error"], eta_s=None)

    def _progress(self, told: dict[str, Any]) -> None:
        known = {name: value for name, value in told.items() if name in _TOLD}
        if "notes" in known:
            known["notes"] = tuple(str(note) for note in known["notes"])
        with self._lock:
            if self._run is None:
                return
            before = self._run
            run = self._run = replace(before, **known)
        if (run.stage, run.epoch) != (before.stage, before.epoch) or time.monotonic() - self._written > _WRITE_EVERY_S:
            self._written = time.monotonic()
            try:
                self.runs.write(run)
            except StorageError as error:  # the page shows it all the same
                logger.warning("project %s: %s", run.project, error.summary)

    def _finish(self, run: Run) -> None:
        """Put what came of a training in front of people, and write it; what fails is kept, for :meth:`retry`."""
        run = replace(run, finished=run.finished or datetime.now(UTC).isoformat(timespec="seconds"))
        try:
            self._end(self._on_end(run))
        except SpicaError as error:  # the disk is full, or somebody holds the store's lock
            logger.error("project %s: the end of training %s waits: %s", run.project, run.id, error.summary)
            with self._lock:
                self._pending[run.project] = _Pending(run, error)
        else:
            with self._lock:
                self._pending.pop(run.project, None)

    def retry(self) -> None:
        """Try again what could not be written, or put in front of people, when a training ended."""
        with self._lock:
            pending = dict(self._pending)
        for project, (run, _) in pending.items():
            try:
                lock = self._take(project)
            except StorageError as error:
                logger.warning("project %s: the end of training %s waits: %s", project, run.id, error.summary)
                continue
            if lock is None:  # the next one is under way
                continue
            try:
                found = Run.read(self.runs.folder(run))
                if found is None or found.attempts == run.attempts:
                    self._finish(run)
                else:  # another server has taken it up
                    with self._lock:
                        del self._pending[project]
            finally:
                lock.release()

    def _end(self, run: Run) -> None:
        known = Run.read(self.runs.folder(run))  # what it has changed in Label Studio may be done already
        settled = run.settled or (known is not None and known.state == run.state and known.settled)
        finished = run.finished or datetime.now(UTC).isoformat(timespec="seconds")
        run = replace(run, finished=finished, settled=settled)
        self.runs.write(run)
        with suppress(OSError):  # the next one will do it
            self.runs.tidy(run.project)
        logger.info("project %s: training %s: %s. %s", run.project, run.id, run.state, run.why)


def step_of(data_dir: Path, project: ProjectKey) -> dict[str, Any] | None:
    """What a project's active pointer says now; None where nothing was ever activated, or nobody can tell any more."""
    try:
        pointer = active.read(data_dir, project)
    except StorageError as error:
        logger.warning("project %s: %s", project, error.summary)
        return None
    return asdict(pointer.now) if pointer is not None else None
