"""After another version has begun to answer a project: Label Studio is told, and the unlabelled tasks get its boxes.

What fails is tried again, after half a minute at first, then less and less often; what is done already stays done.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime

from spica.errors import LabelConfigError, LabelStudioError, SpicaError
from spica.labelstudio.api.records import Backend
from spica.labelstudio.client import LabelStudioClient
from spica.prelabel.refresh import remove_older
from spica.prelabel.selection import is_gone
from spica.server.jobs import Jobs, PrelabelRequest, RunningJob
from spica.server.service import Service
from spica.settings import Settings
from spica.training.runs import Runs

logger = logging.getLogger(__name__)

_BACKUPS = 5
"""So many files of removed predictions are kept for each project."""

AGAIN_S = 30.0
AGAIN_AT_MOST_S = 600.0
"""A project that failed is tried again after so long, then after twice as long each time, up to this."""


class Backoff:
    """When projects that have failed are tried again. For one thread.

    Args:
        first_s: so long after the first failure.
        most_s: never later than this.
        clock: seconds that never go back.
    """

    def __init__(
        self, first_s: float, most_s: float = AGAIN_AT_MOST_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._clock = clock
        self._waits: dict[int, float] = {}
        self._due: dict[int, float] = {}

    def put_off(self, project: int) -> None:
        """It has failed."""
        before = self._waits.get(project)
        wait_s = self._waits[project] = self._first_s if before is None else min(2 * before, self._most_s)
        self._due[project] = self._clock() + wait_s

    def forget(self, project: int) -> None:
        """It has succeeded."""
        self._waits.pop(project, None)
        self._due.pop(project, None)

    def begin(self, project: int) -> None:
        """It is tried now, for whatever reason."""
        self._due.pop(project, None)

    def wait_s(self) -> float | None:
        """Seconds until the next one is due; None if there is none."""
        due = min(self._due.values(), default=None)
        return None if due is None else max(0.0, due - self._clock())

    @property
    def first(self) -> int:
        """The one that is due first; there must be one."""
        return min(self._due, key=lambda each: self._due[each])


class Rollouts:
    """One after the other, on a thread of its own; closed with the server.

    Args:
        service: what answers.
        jobs: the bulk jobs.
        settings: where Label Studio is, its token, the data folder.
        tell: what people should know about a project.
        again_s: see :data:`AGAIN_S`.
    """

    def __init__(
        self,
        service: Service,
        jobs: Jobs,
        settings: Settings,
        *,
        tell: Callable[[int, str], None],
        again_s: float = AGAIN_S,
    ) -> None:
        self._service = service
        self._jobs = jobs
        self._settings = settings
        self._tell = tell
        self._failed = Backoff(again_s)
        self._queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="spica-rollout", daemon=True)

    def start(self) -> None:
        """Begin to wait for projects."""
        self._thread.start()

    def close(self) -> None:
        """Leave what is not begun; the next server does it. May be called twice."""
        self._stop.set()
        self._queue.put(None)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)

    def add(self, project: int) -> None:
        """Bring a project up to date, soon."""
        self._queue.put(project)

    def _work(self) -> None:
        while (project := self._next()) is not None:
            if self._stop.is_set():
                return
            try:
                self.roll_out(project)
            except SpicaError as error:
                self._tell(project, f"Label Studio does not show the new version yet: {error.one_line}")
                self._failed.put_off(project)
            except Exception:
                logger.exception("project %d: its predictions could not be brought up to date", project)
                self._tell(project, "Label Studio does not show the new version yet; see the server's log.")
                self._failed.put_off(project)
            else:
                self._failed.forget(project)

    def _next(self) -> int | None:
        """The next project that was added, or whose time has come again; None at the end."""
        try:
            project = self._queue.get(timeout=self._failed.wait_s())
        except queue.Empty:
            project = self._failed.first
        if project is not None:
            self._failed.begin(project)
        return project

    def roll_out(self, project: int) -> None:
        """Title, predictions, disk space, in this order; twice is once.

        Raises:
            SpicaError: what could not be done; what was done stays.
        """
        try:
            self._roll_out(project)
        finally:
            self.prune()

    def _roll_out(self, project: int) -> None:
        token = self._settings.label_studio_api_key
        if token is None:
            self._tell(
                project,
                "this server has no access token of Label Studio's: predictions are made when tasks are opened, and "
                "`spica predictions refresh` replaces the older ones",
            )
            return
        with LabelStudioClient(self._settings.label_studio_url, token.get_secret_value()) as client:
            try:
                config = client.project(project).label_config
            except LabelStudioError as error:
                if not is_gone(error):
                    raise
                self._tell(project, f"Label Studio has no such project any more: {error.one_line}")
                return
            # First: for it Label Studio asks each model, and tells the extra params, on which our version depends.
            connected = client.backends(project)
            version = self._service.plan(project, config).version
            self.retitle(client, project, version, connected)
            try:
                done = self._refresh(client, project, version)
            except LabelConfigError as error:
                self._tell(project, f"no task is predicted: {error.one_line}")
                done = False
        if done and not self._stop.is_set():
            self._settle(project)

    def retitle(
        self, client: LabelStudioClient, project: int, version: str, connected: Collection[Backend]
    ) -> list[Backend]:
        """Make the title of our connected model, and the project's choice, the version that it answers.

        Ours is the one that has answered this version when the connected ones were listed.
        """
        ours = [row for row in connected if row.model_version == version]
        if not ours:
            others = ", ".join(
                f"{row.url} ({row.model_version or row.error_message or row.state})" for row in connected
            )
            self._tell(
                project,
                f"no connected model answers {version}, so no title in Label Studio was changed; connected: "
                f"{others or 'none'}. `spica connect --project {project}` connects this server",
            )
        secret = self._settings.basic_auth.get_secret_value() if self._settings.basic_auth is not None else None
        user, _, password = (secret or "").partition(":")
        for row in ours[:1]:  # Label Studio asks the first only
            connection = client.connect_backend(
                project,
                url=row.url,
                is_interactive=row.is_interactive,
                basic_auth=(user, password) if secret is not None else None,
            )
            for warning in connection.warnings:
                self._tell(project, warning)
        return ours

    def _refresh(self, client: LabelStudioClient, project: int, version: str) -> bool:
        """Predict what is unlabelled, then remove older predictions where the new one is stored; whether that is done.

        Raises:
            SpicaError: it failed; nothing was removed of a task without the new prediction.
        """
        if client.task_count(project) == 0:
            return True
        job = self._predict(project, version)
        if job is None:
            return False
        if job.reason is not None:
            raise job.reason
        if job.state != "done":
            self._tell(project, "the new version's predictions are not complete: their job was stopped")
            return False
        folder = self._settings.data_dir / "backups"
        folder.mkdir(parents=True, exist_ok=True)
        backup = folder / f"predictions-{project}-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.jsonl"
        remove_older(client, project, job.version, annotated=False, backup=backup)
        old = sorted(folder.glob(f"predictions-{project}-*.jsonl"))
        for path in old[: max(0, len(old) - _BACKUPS)]:
            path.unlink(missing_ok=True)
        return True

    def _predict(self, project: int, version: str) -> RunningJob | None:
        """A job over all unlabelled tasks, which has ended; None if the server stops before."""
        watched = False
        try:
            while True:
                watched = self._make_way(project, version) or watched
                if self._stop.is_set():
                    return None
                job, started = self._jobs.start(PrelabelRequest(project=project))
                if started:  # else somebody was quicker, with tasks of their own choice
                    return job if self._has_ended(job) else None
        finally:
            if watched and not self._stop.is_set():
                self._watch_again(project)

    def _make_way(self, project: int, version: str) -> bool:
        """Wait until no job works on a project; whether one of those that are over now waited for new tasks.

        Stopped is what makes boxes of another version, and what would never end by itself; the others finish.
        """
        running = [job for job in self._jobs.all if job.project == project and job.finished is None]
        for job in running:
            if job.watch or job.version != version:
                job.stop()
        for job in running:
            self._has_ended(job)
        return any(job.watch for job in running)

    def _has_ended(self, job: RunningJob) -> bool:
        while not job.join(0.5):
            if self._stop.is_set():
                return False
        return True

    def _watch_again(self, project: int) -> None:
        try:
            self._jobs.start(PrelabelRequest(project=project, watch=True))
        except SpicaError as error:
            self._tell(project, f"new tasks are no longer predicted as they are added: {error.one_line}")

    def prune(self, keep: Collection[str] = ()) -> None:
        """Delete versions where they take too much space; what stands in the way is logged.

        Args:
            keep: ids of versions that must stay, besides those that the store and this server need.
        """
        from spica.models import space

        shown = [served.version for served in self._service.served]
        try:
            space.prune(self._settings.data_dir, self._settings.models_bytes, keep=[*shown, *keep])
        except (SpicaError, OSError) as error:
            told = error.one_line if isinstance(error, SpicaError) else str(error)
            logger.warning("versions that are no longer needed are left for now: %s", told)

    def _settle(self, project: int) -> None:
        runs = Runs(self._settings.data_dir)
        for run in runs.of(project):
            if run.state == "passed" and not run.settled:
                runs.write(replace(run, settled=True))
