"""The bulk jobs of one server: started, followed and stopped over HTTP; one a project at a time.

They are forgotten with the process: what is stored is in Label Studio, and what is left to do is asked from there.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Annotated, Any
from weakref import WeakValueDictionary

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from spica.errors import (
    AuthenticationError,
    LabelStudioError,
    ModelUnavailableError,
    NotFoundError,
    SpicaError,
    UsageError,
)
from spica.http import same_url
from spica.labelstudio.auth import LabelStudioAuth
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.media import media_for
from spica.predictor import PredictionSpec, Predictor
from spica.prelabel.claim import Claim, claims_folder
from spica.prelabel.job import BulkJob
from spica.prelabel.progress import FailureFile, Progress
from spica.prelabel.selection import JobSpec, Selection, prepare
from spica.server.service import Service
from spica.settings import Settings

logger = logging.getLogger(__name__)

_KEPT = 20  # finished jobs that stay on the page, and files of failures that stay in the data folder
_NOTES = 20


class PrelabelRequest(BaseModel):
    """``POST /jobs/prelabel``."""

    # A misspelt name must not turn "these three tasks" into "the whole project".
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    project: int = Field(ge=1, description="its number")
    all: bool = Field(False, description="tasks that carry annotations too")
    tasks: list[Annotated[int, Field(ge=1)]] = Field([], max_length=100_000, description="only these; empty for all")
    view: int | None = Field(None, ge=1, description="only the tasks of this tab of the Data Manager")
    watch: bool = Field(False, description="stay, and predict tasks as they are added")
    dry_run: bool = Field(False, description="only say what there is to do")
    label_studio_url: str | None = Field(None, description="which is meant; refused if the server works for another")

    @property
    def selection(self) -> Selection:
        """Which tasks."""
        return Selection(annotated=self.all, tasks=tuple(self.tasks), view=self.view)


class RunningJob:
    """A job of this server's, under way or over."""

    def __init__(self, job: BulkJob, settings: Settings, service: Service) -> None:
        self.id = secrets.token_hex(4)  # for its address
        self.project = job.spec.project.key
        self.title = job.spec.project.title
        self.watch = job.watch
        self.started = datetime.now(UTC)
        self.finished: datetime | None = None
        self.reason: SpicaError | None = None  # why it failed
        self.stop_signal = job.stop  # set to let it store what is computed already and end
        self.failures: FailureFile | None = None  # once a task has failed
        self.notes: deque[str] = deque(maxlen=_NOTES)  # what people should know, the latest last
        self._job = job
        self._service = service
        self._folder = settings.data_dir / "jobs"
        self._label_studio_url = settings.label_studio_url.rstrip("/")
        self._thread: threading.Thread | None = None
        job.say, job.on_failure = self.say, self._note_failure

    @property
    def state(self) -> str:
        """``running``, ``stopping``, ``done``, ``stopped`` or ``failed``."""
        if self.finished is None:
            return "stopping" if self.stop_signal.is_set() else "running"
        return self._job.state

    @property
    def version(self) -> str:
        """Of its predictions; another one once the labelling configuration changes while it watches."""
        return self._job.version

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return self._job.progress

    def begin(self, after: Callable[[], None]) -> None:
        """Run it on a thread of its own, then ``after``."""

        def run() -> None:
            try:
                self._job.run()
            except SpicaError as error:
                self.reason = error
                logger.error("job %s of project %s ended: %s", self.id, self.project, error.summary)
            except Exception as error:
                logger.exception("job %s of project %s failed", self.id, self.project)
                self.reason = SpicaError("the job failed", got=type(error).__name__, hint="see the server's log")
            finally:
                try:
                    after()
                finally:
                    self.finished = datetime.now(UTC)

        self._thread = self._service.workers.spawn(f"job-{self.id}", run, wake=self.stop_signal.set)

    def say(self, text: str) -> None:
        """Note what people should know."""
        logger.info("job %s of project %s: %s", self.id, self.project, text)
        self.notes.append(text)

    def join(self, timeout_s: float) -> bool:
        """Wait for its end; whether it has come."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()

    def follow(self, on_progress: Callable[[Progress], None]) -> Progress:
        """Wait for its end, and call ``on_progress`` meanwhile.

        Raises:
            SpicaError: why it failed.
        """
        while not self.join(0.25):
            on_progress(self.progress)
        on_progress(self.progress)
        if self.reason is not None:
            raise self.reason
        return self.progress

    def _note_failure(self, task: int, error: SpicaError) -> None:
        """Add a failed task to the page and to the job's file."""
        self._service.note_failures(self.project, [(task, error)])
        if self.failures is None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                for old in sorted(self._folder.glob("*.failures.jsonl"))[:-_KEPT]:
                    old.unlink(missing_ok=True)
                self.failures = FailureFile(self._folder / f"{self.started:%Y%m%dT%H%M%SZ}-{self.id}.failures.jsonl")
            except (OSError, UsageError) as trouble:
                logger.warning("failed tasks of job %s are not written to a file: %s", self.id, trouble)
                return
        self.failures.write(task, error)

    def failures_after(self, after: int, *, limit: int = 1000) -> tuple[list[str], bool]:
        """Lines of the file of failed tasks behind the first ``after``, and whether that file is complete."""
        if self.failures is None:
            return [], True
        try:
            with self.failures.path.open(encoding="utf-8") as lines:
                chosen = [line.rstrip("\n") for number, line in enumerate(lines) if after <= number < after + limit]
        except OSError:
            return [], False
        return chosen, self.failures.trouble is None

    def task_url(self, task: int) -> str:
        """Where a task of the project is opened in Label Studio."""
        return f"{self._label_studio_url}/projects/{self.project}/data?task={task}"

    def as_json(self) -> dict[str, Any]:
        """For programs; see the attributes and :meth:`spica.prelabel.progress.Progress.as_json`."""
        progress = self.progress.as_json()
        for failure in progress["failures"]:
            failure["url"] = self.task_url(failure["task"])
        return {
            "id": self.id,
            "project": self.project.number,
            "created": self.project.created,
            "title": self.title,
            "version": self.version,
            "state": self.state,
            "reason": None if self.reason is None else self.reason.as_json()["error"],
            "watch": self.watch,
            "started": self.started.isoformat(timespec="seconds"),
            "finished": None if self.finished is None else self.finished.isoformat(timespec="seconds"),
            "notes": list(self.notes),
            **progress,
        }


class Jobs:
    """The jobs of a server. Thread-safe."""

    def __init__(self, service: Service, settings: Settings) -> None:
        self._service = service
        self._settings = settings
        self._jobs: OrderedDict[str, RunningJob] = OrderedDict()
        self._lock = threading.Lock()
        self._starting: WeakValueDictionary[int, threading.Lock] = WeakValueDictionary()  # by project, while it starts

    @property
    def label_studio_url(self) -> str:
        """Of the Label Studio that the jobs work for."""
        return self._settings.label_studio_url.rstrip("/")

    @property
    def has_token(self) -> bool:
        """Whether callers need no token of their own."""
        return self._settings.label_studio_api_key is not None

    @property
    def all(self) -> list[RunningJob]:
        """The jobs since the start, the latest first; of those that are over, the last twenty."""
        with self._lock:
            return list(reversed(self._jobs.values()))

    def get(self, job: str) -> RunningJob:
        """The job of this id.

        Raises:
            NotFoundError: there is none.
        """
        with self._lock:
            if job in self._jobs:
                return self._jobs[job]
        raise NotFoundError("there is no such job", where=f"/jobs/{job[:40]}", hint="see /jobs")

    def start(self, request: PrelabelRequest, token: SecretStr | None = None) -> tuple[RunningJob, bool]:
        """Start a job, unless one works on the project already. Asks Label Studio: call it on a pool.

        Args:
            request: what to do.
            token: of the caller, used for this job only and never written anywhere; the server's own if None.

        Returns:
            The job, and whether it was started just now.

        Raises:
            SpicaError: the project can't be predicted, and why.
        """
        with self._lock:
            starting = self._starting.setdefault(request.project, threading.Lock())
        with starting:  # one look at a project at a time: two clicks must not become two jobs
            for job in self.all:
                if job.project.number == request.project and job.finished is None:
                    return job, False
            self._refuse_if_ending()
            with ExitStack() as stack:
                client, model, spec = self._prepare(request, token, stack)
                if token is not None and not self.has_token:  # images are read with the caller's
                    auth = LabelStudioAuth(self.label_studio_url, token.get_secret_value())
                    model = model.with_media(stack.enter_context(media_for(self._settings, auth)))
                claim = Claim.take(
                    claims_folder(self._settings.data_dir),
                    self.label_studio_url,
                    request.project,
                    by="a model server",
                    version=spec.prediction.version,
                )
                stack.callback(claim.release)
                bulk = BulkJob(client, model, spec, claim, watch=request.watch)
                job = RunningJob(bulk, self._settings, self._service)
                with self._lock:
                    self._refuse_if_ending()
                    self._jobs[job.id] = job
                    for old in [job for job in self._jobs.values() if job.finished is not None][:-_KEPT]:
                        del self._jobs[old.id]
                    job.begin(stack.pop_all().close)
            logger.info("job %s: %d tasks of project %d as %s", job.id, spec.total, request.project, job.version)
            return job, True

    def look(self, request: PrelabelRequest, token: SecretStr | None = None) -> JobSpec:
        """What a job would do. Asks Label Studio: call it on a pool.

        Raises:
            SpicaError: the project can't be predicted, and why.
        """
        with ExitStack() as stack:
            return self._prepare(request, token, stack)[2]

    def _refuse_if_ending(self) -> None:
        status = self._service.predictor.engine.status
        if self._service.workers.stopping.is_set() or status.state == "closed":
            raise ModelUnavailableError("the model server is stopping", where="/jobs/prelabel")
        if status.error is not None:
            raise status.error

    def _prepare(
        self, request: PrelabelRequest, token: SecretStr | None, stack: ExitStack
    ) -> tuple[LabelStudioClient, Predictor, JobSpec]:
        """Label Studio, the model that the job keeps from begin to end, and what there is to do."""
        client = stack.enter_context(self._client(request, token))
        project = client.project(request.project).key
        model = stack.enter_context(self._service.pool.lease(project))
        if all(state.project != project for state in self._service.projects):
            # Listing a project's models makes Label Studio tell them its extra params again, which the version needs.
            try:
                client.backends(project.number)
            except LabelStudioError as error:
                logger.info("the models of project %s are not known: %s", project, error.summary)

        def spec_for(label_config: str) -> PredictionSpec:
            return self._service.spec(project, label_config, model)

        return client, model, prepare(client, request.project, spec_for, request.selection, empty=request.watch)

    def _client(self, request: PrelabelRequest, token: SecretStr | None) -> LabelStudioClient:
        url = self.label_studio_url
        if request.label_studio_url is not None and not same_url(request.label_studio_url, url):
            raise UsageError(
                "this model server works for another Label Studio",
                where="LABEL_STUDIO_URL of the model server",
                expected=request.label_studio_url,
                got=url,
                hint="start `spica serve` with LABEL_STUDIO_URL set to the right one, or give --weights instead",
            )
        own = token or self._settings.label_studio_api_key
        if own is None:
            raise AuthenticationError(
                "the model server has no access token of Label Studio's, and none came with the request",
                where="/jobs/prelabel",
                expected="the header X-Api-Key or Authorization: Token …, or LABEL_STUDIO_API_KEY of the server",
                hint="copy the token from Label Studio's page Account & Settings",
            )
        return LabelStudioClient(url, own.get_secret_value())
