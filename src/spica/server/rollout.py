"""After another version has begun to answer a project: Label Studio names it, and the unlabelled tasks get its boxes.

Older predictions stay, for somebody may have a task open with one. Of several, Label Studio shows the one whose version
the project names; where a task has none of it yet, the one that was stored last. (The quick view of a page that was
loaded before keeps to the version of then until it is reloaded.) Once an hour those that nobody can have open any more
are removed, see :mod:`spica.prelabel.removal`.

What fails is tried again, after half a minute at first, then less and less often; what is done already stays done.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from spica.errors import LabelConfigError, LabelStudioRefusedError, SpicaError
from spica.http import user_and_password
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.records import Backend
from spica.models import active, space
from spica.models.version import answers_with, ids
from spica.prelabel.removal import Left, thin
from spica.project import ProjectKey
from spica.retry import doubling
from spica.server.jobs import Jobs, PrelabelRequest, RunningJob
from spica.server.service import Service
from spica.settings import Settings
from spica.training.runs import Runs

logger = logging.getLogger(__name__)

AGAIN_S = 30.0
AGAIN_AT_MOST_S = 600.0
"""A project that failed is tried again after the first, then after twice as long each time, up to the second."""

THIN_EVERY_S = 3600.0
THIN_AT_MOST = 2000
"""About this many old predictions of a project are removed at a time."""


class Rollouts:
    """One after the other, on one of the server's threads.

    Args:
        service: what answers.
        jobs: the bulk jobs.
        settings: where Label Studio is, its token, the data folder.
        tell: called with what people should know about a project.
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
        self._again_s = again_s
        self._failures: dict[ProjectKey, int] = {}
        self._due: dict[ProjectKey, float] = {}
        self._thin_at = time.monotonic() + AGAIN_S
        self._queue: queue.SimpleQueue[ProjectKey | None] = queue.SimpleQueue()
        self._stop = service.workers.stopping

    def start(self) -> None:
        """Wait for projects until the server ends; what is not begun then is the next server's."""
        self._service.workers.spawn("rollout", self._work, wake=lambda: self._queue.put(None))

    def add(self, project: ProjectKey) -> None:
        """Bring a project up to date, soon."""
        self._queue.put(project)

    def _work(self) -> None:
        while not self._stop.is_set():
            project = self._next()
            if project is None or self._stop.is_set():
                continue
            self._due.pop(project, None)
            try:
                self.roll_out(project)
            except SpicaError as error:
                self._put_off(project, f"Label Studio does not show the new version yet: {error.summary}")
            except Exception:
                logger.exception("project %s: its predictions could not be brought up to date", project)
                self._put_off(project, "Label Studio does not show the new version yet; see the server's log.")
            else:
                self._failures.pop(project, None)

    def _put_off(self, project: ProjectKey, why: str) -> None:
        self._tell(project, why)
        failures = self._failures[project] = self._failures.get(project, 0) + 1
        self._due[project] = time.monotonic() + doubling(failures, self._again_s, AGAIN_AT_MOST_S)

    def _next(self) -> ProjectKey | None:
        """The next project that was added, or whose time has come again; None after something else was done."""
        first = min(self._due, key=lambda project: self._due[project], default=None)
        due = self._thin_at if first is None else min(self._due[first], self._thin_at)
        try:
            return self._queue.get(timeout=max(0.0, due - time.monotonic()))
        except queue.Empty:
            if due == self._thin_at:
                self._thin_all()
                return None
            return first

    # --- older predictions ------------------------------------------------------------------------------------------

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
                ours=lambda name: any(answers_with(name, version) for version in own),
                left=_left(since) if since else None,
                at_most=THIN_AT_MOST,
                go_on=lambda: not self._stop.is_set() and self._queue.empty(),
            )
        if removed:
            logger.info("project %s: %d older predictions removed, which nobody can have open", project, removed)
        return removed

    # --- the new version --------------------------------------------------------------------------------------------

    def roll_out(self, project: ProjectKey) -> None:
        """Title, predictions, disk space, in this order; what is done already is not done again.

        Raises:
            SpicaError: what could not be done; what was done stays.
        """
        try:
            self._roll_out(project)
        finally:
            self.prune()

    def prune(self, keep: Collection[str] = ()) -> None:
        """Delete versions where they take too much space; what stands in the way is logged.

        Args:
            keep: ids of versions that must stay, besides those that the store and this server need.
        """
        shown = [served.version for served in self._service.served]
        try:
            space.prune(self._settings.data_dir, self._settings.models_bytes, keep=[*shown, *keep])
        except (SpicaError, OSError) as error:
            why = error.summary if isinstance(error, SpicaError) else str(error)
            logger.warning("versions that are no longer needed are left for now: %s", why)

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
            # First: for it Label Studio asks each model with its extra params, on which our version depends.
            connected = client.backends(project.number)
            version = self._service.spec(project, config).version
            self._retitle(client, project, version, connected)
            try:
                done = client.task_count(project.number) == 0 or self._refresh(project, version)
            except LabelConfigError as error:
                self._tell(project, f"no task is predicted: {error.summary}")
                return
            if done:  # Label Studio saves a model's whole row when it has asked it: a title set meanwhile is lost
                connected = client.backends(project.number)
                if any(row.model_version == version != row.title for row in connected):
                    self._retitle(client, project, version, connected)
        if done and not self._stop.is_set():
            runs = Runs(self._settings.data_dir)
            for run in runs.of(project):
                if run.state == "passed" and not run.settled:
                    runs.write(replace(run, settled=True))

    def _retitle(
        self, client: LabelStudioClient, project: ProjectKey, version: str, connected: Collection[Backend]
    ) -> None:
        """Have the title of our connected model name the version: the one that answered it when they were listed."""
        ours = next((row for row in connected if row.model_version == version), None)
        if ours is not None:
            credentials = user_and_password(self._settings.basic_auth)
            done = client.connect_backend(
                project.number, url=ours.url, is_interactive=ours.is_interactive, basic_auth=credentials
            )
            for warning in done.warnings:
                self._tell(project, warning)
            return
        others = ", ".join(f"{row.url} ({row.model_version or row.error_message or row.state})" for row in connected)
        self._tell(
            project,
            f"no connected model answers {version}, so no title in Label Studio was changed; connected: "
            f"{others or 'none'}. `spica connect --project {project}` connects this server",
        )

    def _refresh(self, project: ProjectKey, version: str) -> bool:
        """Predict what is unlabelled; whether that is done.

        Raises:
            SpicaError: it failed.
        """
        job = self._predict(project, version)
        if job is None:
            return False
        if job.reason is not None:
            raise job.reason
        if job.state != "done":
            self._tell(project, "the new version's predictions are not complete: their job was stopped")
        return job.state == "done"

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
                try:
                    self._jobs.start(PrelabelRequest(project=project.number, watch=True))
                except SpicaError as error:
                    self._tell(project, f"new tasks are no longer predicted as they are added: {error.summary}")

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


def _left(since: Sequence[tuple[str, datetime]]) -> Left:
    """From the active versions, the latest first, each with when it became so."""

    def left(name: str) -> datetime:
        for place, (version, _) in enumerate(since):
            if answers_with(name, version):
                return since[place - 1][1] if place else datetime.min.replace(tzinfo=UTC)
        return since[0][1]  # of one that was rolled back from no more is known

    return left
