"""After another version has begun to answer a project: Label Studio is told, and the unlabelled tasks get its boxes.

Older predictions stay, for somebody may have a task open with one. Of several, Label Studio shows the one whose version
it was told; where a task has none of it yet, the one that was stored last. (The quick view of a page that was loaded
before keeps to the version of then until it is reloaded.) Once an hour those that nobody can have open any more are
removed, see :mod:`spica.prelabel.removal`.

What fails is tried again, after half a minute at first, then less and less often; what is done already stays done.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from spica.errors import LabelConfigError, LabelStudioRefusedError, SpicaError
from spica.http import user_and_password
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.records import Backend
from spica.models import active
from spica.models.version import answers_with, ids
from spica.prelabel.removal import Left, thin
from spica.project import ProjectKey
from spica.server.jobs import Jobs, PrelabelRequest, RunningJob
from spica.server.service import Service
from spica.settings import Settings
from spica.training.runs import Runs

logger = logging.getLogger(__name__)

AGAIN_S = 30.0
AGAIN_AT_MOST_S = 600.0
"""A project that failed is tried again after so long, then after twice as long each time, up to this."""

THIN_EVERY_S = 3600.0
THIN_AT_MOST = 2000
"""About so many old predictions of a project are removed at a time."""


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
        self._waits: dict[ProjectKey, float] = {}
        self._due: dict[ProjectKey, float] = {}

    def put_off(self, project: ProjectKey) -> None:
        """It has failed."""
        before = self._waits.get(project)
        wait_s = self._waits[project] = self._first_s if before is None else min(2 * before, self._most_s)
        self._due[project] = self._clock() + wait_s

    def forget(self, project: ProjectKey) -> None:
        """It has succeeded."""
        self._waits.pop(project, None)
        self._due.pop(project, None)

    def begin(self, project: ProjectKey) -> None:
        """It is tried now, for whatever reason."""
        self._due.pop(project, None)

    def wait_s(self) -> float | None:
        """Seconds until the next one is due; None if there is none."""
        due = min(self._due.values(), default=None)
        return None if due is None else max(0.0, due - self._clock())

    @property
    def first(self) -> ProjectKey:
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
        tell: Callable[[ProjectKey, str], None],
        again_s: float = AGAIN_S,
    ) -> None:
        self._service = service
        self._jobs = jobs
        self._settings = settings
        self._tell = tell
        self._failed = Backoff(again_s)
        self._thin_at = time.monotonic() + AGAIN_S
        self._queue: queue.SimpleQueue[ProjectKey | None] = queue.SimpleQueue()
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

    def add(self, project: ProjectKey) -> None:
        """Bring a project up to date, soon."""
        self._queue.put(project)

    def _work(self) -> None:
        while (project := self._next()) is not None:
            if self._stop.is_set():
                return
            try:
                self.roll_out(project)
            except SpicaError as error:
                self._tell(project, f"Label Studio does not show the new version yet: {error.summary}")
                self._failed.put_off(project)
            except Exception:
                logger.exception("project %s: its predictions could not be brought up to date", project)
                self._tell(project, "Label Studio does not show the new version yet; see the server's log.")
                self._failed.put_off(project)
            else:
                self._failed.forget(project)

    def _next(self) -> ProjectKey | None:
        """The next project that was added, or whose time has come again; None at the end."""
        while True:
            again_s, thin_s = self._failed.wait_s(), max(0.0, self._thin_at - time.monotonic())
            try:
                project = self._queue.get(timeout=thin_s if again_s is None else min(again_s, thin_s))
            except queue.Empty:
                if again_s is None or thin_s < again_s:
                    self._thin_all()
                    continue
                project = self._failed.first
            if project is not None:
                self._failed.begin(project)
            return project

    def _thin_all(self) -> None:
        """Remove old predictions of the projects that this server answers, until there is something else to do."""
        self._thin_at = time.monotonic() + THIN_EVERY_S
        known = {state.project for state in self._service.projects if state.project is not None}
        for project in sorted(key for key in known if key.created):
            try:
                self.thin(project)
            except SpicaError as error:
                logger.info("project %s: older predictions stay for now: %s", project, error.summary)
            except Exception:
                logger.exception("project %s: older predictions stay for now", project)

    def thin(self, project: ProjectKey) -> int:
        """Remove predictions of Spica's own versions that nobody can have open any more; returns how many.

        Raises:
            SpicaError: what could not be done; the next time goes on.
        """
        data_dir, token, base = self._settings.data_dir, self._settings.label_studio_api_key, self._service.pool.base_id
        if token is None:
            return 0
        pointer = active.read(data_dir, project)
        steps = () if pointer is None else (pointer.now, *pointer.previous)
        since = [(step.version or step.base or base, datetime.fromisoformat(step.when)) for step in steps]
        own = {base, *ids(data_dir), *(version for version, _ in since)}
        with LabelStudioClient(self._settings.label_studio_url, token.get_secret_value()) as client:
            client.known_project(project)  # another one's predictions are none of ours
            removed = thin(
                client,
                project.number,
                ours=lambda told: any(answers_with(told, version) for version in own),
                left=_left(since) if since else None,
                at_most=THIN_AT_MOST,
                go_on=lambda: not self._stop.is_set() and self._queue.empty(),
            )
        if removed:
            logger.info("project %s: %d older predictions removed, which nobody can have open", project, removed)
        return removed

    def roll_out(self, project: ProjectKey) -> None:
        """Title, predictions, disk space, in this order; twice is once.

        Raises:
            SpicaError: what could not be done; what was done stays.
        """
        try:
            self._roll_out(project)
        finally:
            self.prune()

    def _roll_out(self, project: ProjectKey) -> None:
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
                config = client.known_project(project).label_config
            except LabelStudioRefusedError as error:
                if error.http_status != 404:
                    raise
                self._tell(project, f"Label Studio has no such project any more: {error.summary}")
                return
            # First: for it Label Studio asks each model, and tells the extra params, on which our version depends.
            connected = client.backends(project.number)
            version = self._service.spec(project, config).version
            self.retitle(client, project, version, connected)
            try:
                done = self._refresh(client, project, version)
            except LabelConfigError as error:
                self._tell(project, f"no task is predicted: {error.summary}")
                done = False
        if done and not self._stop.is_set():
            self._settle(project)

    def retitle(
        self, client: LabelStudioClient, project: ProjectKey, version: str, connected: Collection[Backend]
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
        for row in ours[:1]:  # Label Studio asks the first only
            connection = client.connect_backend(
                project.number,
                url=row.url,
                is_interactive=row.is_interactive,
                basic_auth=user_and_password(self._settings.basic_auth),
            )
            for warning in connection.warnings:
                self._tell(project, warning)
        return ours

    def _refresh(self, client: LabelStudioClient, project: ProjectKey, version: str) -> bool:
        """Predict what is unlabelled; whether that is done.

        Raises:
            SpicaError: it failed.
        """
        if client.task_count(project.number) == 0:
            return True
        job = self._predict(project, version)
        if job is None:
            return False
        if job.reason is not None:
            raise job.reason
        if job.state != "done":
            self._tell(project, "the new version's predictions are not complete: their job was stopped")
            return False
        return True

    def _predict(self, project: ProjectKey, version: str) -> RunningJob | None:
        """A job over all unlabelled tasks, which has ended; None if the server stops before."""
        watched = False
        try:
            while True:
                watched = self._make_way(project, version) or watched
                if self._stop.is_set():
                    return None
                job, started = self._jobs.start(PrelabelRequest(project=project.number))
                if started:  # else somebody was quicker, with tasks of their own choice
                    return job if self._has_ended(job) else None
        finally:
            if watched and not self._stop.is_set():
                self._watch_again(project)

    def _make_way(self, project: ProjectKey, version: str) -> bool:
        """Wait until no job works on a project; whether one of those that are over now waited for new tasks.

        Stopped is what makes boxes of another version, and what would never end by itself; the others finish.
        """
        running = [job for job in self._jobs.all if job.project == project and job.finished is None]
        for job in running:
            if job.watch or job.version != version:
                job.stop_signal.set()
        for job in running:
            self._has_ended(job)
        return any(job.watch for job in running)

    def _has_ended(self, job: RunningJob) -> bool:
        while not job.join(0.5):
            if self._stop.is_set():
                return False
        return True

    def _watch_again(self, project: ProjectKey) -> None:
        try:
            self._jobs.start(PrelabelRequest(project=project.number, watch=True))
        except SpicaError as error:
            self._tell(project, f"new tasks are no longer predicted as they are added: {error.summary}")

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
            told = error.summary if isinstance(error, SpicaError) else str(error)
            logger.warning("versions that are no longer needed are left for now: %s", told)

    def _settle(self, project: ProjectKey) -> None:
        runs = Runs(self._settings.data_dir)
        for run in runs.of(project):
            if run.state == "passed" and not run.settled:
                runs.write(replace(run, settled=True))


def _left(since: Sequence[tuple[str, datetime]]) -> Left:
    """From the active versions, the latest first, each with when it became so."""

    def left(told: str) -> datetime:
        for place, (version, _) in enumerate(since):
            if answers_with(told, version):
                return since[place - 1][1] if place else datetime.min.replace(tzinfo=UTC)
        return since[0][1]  # of one that was rolled back from no more is known

    return left
