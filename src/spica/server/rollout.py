"""After another version has begun to answer a project: Label Studio is told, and the unlabelled tasks get its boxes."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from spica.errors import LabelConfigError, SpicaError
from spica.labelstudio.api.records import Backend
from spica.labelstudio.client import LabelStudioClient
from spica.prelabel.refresh import remove_older
from spica.server.jobs import Jobs, PrelabelRequest
from spica.server.service import Service
from spica.settings import Settings
from spica.training.runs import Runs

logger = logging.getLogger(__name__)

_BACKUPS = 5
"""So many files of removed predictions are kept for each project."""


class Rollouts:
    """One after the other, on a thread of its own; closed with the server.

    Args:
        service: what answers.
        jobs: the bulk jobs.
        settings: where Label Studio is, its token, the data folder.
        tell: what people should know about a project.
    """

    def __init__(self, service: Service, jobs: Jobs, settings: Settings, *, tell: Callable[[int, str], None]) -> None:
        self._service = service
        self._jobs = jobs
        self._settings = settings
        self._tell = tell
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
        while (project := self._queue.get()) is not None:
            if self._stop.is_set():
                return
            try:
                self.roll_out(project)
            except SpicaError as error:
                self._tell(project, f"Label Studio does not show the new version yet: {error.one_line}")
            except Exception:
                logger.exception("project %d: its predictions could not be brought up to date", project)
                self._tell(project, "Label Studio does not show the new version yet; see the server's log.")

    def roll_out(self, project: int) -> None:
        """Title, predictions, disk space, in this order; twice is once.

        Raises:
            SpicaError: what could not be done; what was done stays.
        """
        token = self._settings.label_studio_api_key
        if token is None:
            self._tell(
                project,
                "this server has no access token of Label Studio's: predictions are made when tasks are opened, and "
                "`spica predictions refresh` replaces the older ones",
            )
            return
        with LabelStudioClient(self._settings.label_studio_url, token.get_secret_value()) as client:
            config = client.project(project).label_config
            self.retitle(client, project, self._service.plan(project, config).version)
            try:
                version = self._refresh(client, project)
            except LabelConfigError as error:
                self._tell(project, f"no task is predicted: {error.one_line}")
                version = None
        if version is not None and not self._stop.is_set():
            self._settle(project)
        self._prune()

    def retitle(self, client: LabelStudioClient, project: int, version: str) -> list[Backend]:
        """Make the title of our connected model, and the project's choice, the version that it answers.

        Ours is the one that answers this version: listing them has made Label Studio ask each.
        """
        ours = [row for row in client.backends(project) if row.model_version == version]
        secret = self._settings.basic_auth.get_secret_value() if self._settings.basic_auth is not None else None
        user, _, password = (secret or "").partition(":")
        for row in ours[:1]:  # Label Studio asks the first only
            connected = client.connect_backend(
                project,
                url=row.url,
                is_interactive=row.is_interactive,
                basic_auth=(user, password) if secret is not None else None,
            )
            for warning in connected.warnings:
                self._tell(project, warning)
        return ours

    def _refresh(self, client: LabelStudioClient, project: int) -> str | None:
        """Predict what is unlabelled, then remove older predictions where the new one is stored; its version."""
        if client.task_count(project) == 0:
            return self._service.plan(project, client.project(project).label_config).version
        watched = self._end_jobs(project)
        job, _ = self._jobs.start(PrelabelRequest(project=project))
        try:
            while not job.join(0.5):
                if self._stop.is_set():
                    return None
        finally:
            if watched and not self._stop.is_set():
                self._jobs.start(PrelabelRequest(project=project, watch=True))
        if job.reason is not None:
            raise job.reason
        if job.state != "done":
            self._tell(project, "the new version's predictions are not complete: their job was stopped")
            return None
        folder = self._settings.data_dir / "backups"
        folder.mkdir(parents=True, exist_ok=True)
        backup = folder / f"predictions-{project}-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.jsonl"
        remove_older(client, project, job.version, annotated=False, backup=backup)
        old = sorted(folder.glob(f"predictions-{project}-*.jsonl"))
        for path in old[: max(0, len(old) - _BACKUPS)]:
            path.unlink(missing_ok=True)
        return job.version

    def _end_jobs(self, project: int) -> bool:
        """Stop what still works with an older version, or waits for new tasks; whether one of them waited."""
        running = [job for job in self._jobs.all if job.project == project and job.finished is None]
        for job in running:
            job.stop()
        for job in running:
            while not job.join(0.5) and not self._stop.is_set():
                pass
        return any(job.watch for job in running)

    def _settle(self, project: int) -> None:
        runs = Runs(self._settings.data_dir)
        for run in runs.of(project):
            if run.state == "passed" and not run.settled:
                runs.write(replace(run, settled=True))

    def _prune(self) -> None:
        from spica.models import space

        shown = [served.version for served in self._service.served]
        space.prune(self._settings.data_dir, self._settings.models_bytes, keep=shown)
