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
from pathlib import Path
from typing import Annotated, Any
from weakref import WeakValueDictionary

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from spica.errors import (
    AuthenticationError,
    LabelStudioError,
    ModelUnavailableError,
    RequestError,
    SpicaError,
    UsageError,
)
from spica.http import same_url
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.tokens import LabelStudioAuth
from spica.predictor import PredictionSpec, Predictor
from spica.prelabel.claim import Claim, claims_folder
from spica.prelabel.failures import FailureFile
from spica.prelabel.job import BulkJob
from spica.prelabel.progress import Progress
from spica.prelabel.selection import JobSpec, Selection, prepare
from spica.project import ProjectKey
from spica.server.build import media_for
from spica.server.service import Service
from spica.settings import Settings

logger = logging.getLogger(__name__)

_KEPT = 20
"""So many jobs that are over stay on the page, and so many files of failures in the data folder."""

_CLOSE_S = 25.0
"""At the server's end jobs get so long to store what is in hand."""

_NOTES = 20


class PrelabelRequest(BaseModel):
    """``POST /jobs/prelabel``.

    Attributes:
        project: its number.
        all: tasks that carry annotations too.
        tasks: only these numbers; empty for all.
        view: only the tasks of this tab of the Data Manager.
        watch: stay, and predict tasks as they are added.
        dry_run: only say what there is to do.
        label_studio_url: the Label Studio that is meant; refused if the server works for another one.
    """

    # A misspelt name must not turn "these three tasks" into "the whole project".
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    project: int = Field(ge=1)
    all: bool = False
    tasks: list[Annotated[int, Field(ge=1)]] = Field(default=[], max_length=100_000)
    view: int | None = Field(default=None, ge=1)
    watch: bool = False
    dry_run: bool = False
    label_studio_url: str | None = None

    @property
    def selection(self) -> Selection:
        """Which tasks."""
        return Selection(annotated=self.all, tasks=tuple(self.tasks), view=self.view)


class RunningJob:
    """A job of this server's, under way or over.

    Attributes:
        id: for its address.
        project: which one.
        title: of the project.
        version: of its predictions.
        watch: whether it stays.
        started: in UTC.
        finished: in UTC, None while it runs.
        reason: why it failed, if it did.
    """

    def __init__(self, request: PrelabelRequest, work: JobSpec, label_studio_url: str) -> None:
        self.id = secrets.token_hex(4)
        self.project = work.project.key
        self.title = work.project.title
        self.watch = request.watch
        self.started = datetime.now(UTC)
        self.finished: datetime | None = None
        self.reason: SpicaError | None = None
        self.failures: FailureFile | None = None
        self._label_studio_url = label_studio_url.rstrip("/")
        self._stop = threading.Event()
        self._notes: deque[str] = deque(maxlen=_NOTES)
        self._job: BulkJob | None = None
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> str:
        """``running``, ``stopping``, ``done``, ``stopped`` or ``failed``."""
        if self.finished is None:
            return "stopping" if self._stop.is_set() else "running"
        return self._job.state if self._job is not None else "failed"

    @property
    def version(self) -> str:
        """Of its predictions."""
        return self._job.version if self._job is not None else ""

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return self._job.progress if self._job is not None else Progress(total=0)

    @property
    def notes(self) -> list[str]:
        """What people should know, the latest last."""
        return list(self._notes)

    def begin(self, job: BulkJob, after: Callable[[], None]) -> None:
        """Run ``job`` on a thread of its own, then ``after``."""
        self._job = job

        def run() -> None:
            try:
                job.run()
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

        self._thread = threading.Thread(target=run, name=f"spica-job-{self.id}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let it store what is in hand and end; twice is once."""
        self._stop.set()

    @property
    def stop_signal(self) -> threading.Event:
        """What the job looks at."""
        return self._stop

    def say(self, text: str) -> None:
        """Note what people should know."""
        logger.info("job %s of project %s: %s", self.id, self.project, text)
        self._notes.append(text)

    def join(self, timeout_s: float) -> bool:
        """Wait for its end; whether it has come."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()

    def follow(self, on_progress: Callable[[Progress], None]) -> Progress:
        """Wait for its end, telling how far it is.

        Raises:
            SpicaError: why it failed.
        """
        while not self.join(0.25):
            on_progress(self.progress)
        on_progress(self.progress)
        if self.reason is not None:
            raise self.reason
        return self.progress

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
            "notes": self.notes,
            **progress,
        }


class Jobs:
    """The jobs of a server. Thread-safe; closed with the server.

    Args:
        service: the model, and what Label Studio has said of projects.
        settings: where Label Studio is, its token, the data folder.
    """

    def __init__(self, service: Service, settings: Settings) -> None:
        self._service = service
        self._settings = settings
        self._jobs: OrderedDict[str, RunningJob] = OrderedDict()
        self._lock = threading.Lock()
        self._starting: WeakValueDictionary[int, threading.Lock] = WeakValueDictionary()  # by project, while it starts
        self._closed = False

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
            RequestError: there is none.
        """
        with self._lock:
            found = self._jobs.get(job)
        if found is None:
            raise _NoSuchJobError("there is no such job", where=f"/jobs/{job[:40]}", hint="see /jobs")
        return found

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
                client = stack.enter_context(self._client(request, token))
                project = client.project(request.project).key
                # The job keeps the model that it begins with: boxes and version must not come from two.
                model = stack.enter_context(self._service.pool.lease(project))
                predictor = self._predictor(model, token, stack)
                work = prepare(
                    client,
                    request.project,
                    self._spec_for(client, project, model),
                    request.selection,
                    empty=request.watch,
                )
                job = RunningJob(request, work, self.label_studio_url)
                claim = self._claim(request, work)
                stack.callback(claim.release)
                stack.callback(lambda: job.failures.close() if job.failures is not None else None)
                bulk = BulkJob(
                    client,
                    predictor,
                    work,
                    selection=request.selection,
                    spec_for=lambda config: self._service.spec(project, config, model),
                    stop=job.stop_signal,
                    watch=request.watch,
                    claim=claim,
                    on_failure=lambda task, error: self._note_failure(job, task, error),
                    say=job.say,
                )
                with self._lock:  # from here on :meth:`close` sees it
                    self._refuse_if_ending()
                    self._keep(job)
                    job.begin(bulk, stack.pop_all().close)
            logger.info(
                "job %s: %d tasks of project %d as %s", job.id, work.total, request.project, work.prediction.version
            )
            return job, True

    def look(self, request: PrelabelRequest, token: SecretStr | None = None) -> JobSpec:
        """What a job would do. Asks Label Studio: call it on a pool.

        Raises:
            SpicaError: the project can't be predicted, and why.
        """
        with self._client(request, token) as client:
            project = client.project(request.project).key
            with self._service.pool.lease(project) as model:
                spec_for = self._spec_for(client, project, model)
                return prepare(client, request.project, spec_for, request.selection, empty=request.watch)

    def close(self) -> None:
        """Let all jobs store what is in hand and end. May be called twice."""
        with self._lock:
            self._closed = True
        running = [job for job in self.all if job.finished is None]
        for job in running:
            job.stop()
        for job in running:
            if not job.join(_CLOSE_S):
                logger.warning("job %s did not end in time; the next run goes on where it stopped", job.id)

    def _refuse_if_ending(self) -> None:
        status = self._service.predictor.engine.status
        if self._closed or status.state == "closed":
            raise ModelUnavailableError("the model server is stopping", where="/jobs/prelabel")
        if status.error is not None:
            raise status.error

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

    def _predictor(self, model: Predictor, token: SecretStr | None, stack: ExitStack) -> Predictor:
        """The model itself; where the server has no token, one that reads images with the caller's."""
        if token is None or self.has_token:
            return model
        auth = LabelStudioAuth(self.label_studio_url, token.get_secret_value())
        return model.with_media(stack.enter_context(media_for(self._settings, auth)))

    def _spec_for(
        self, client: LabelStudioClient, project: ProjectKey, model: Predictor
    ) -> Callable[[str], PredictionSpec]:
        if all(state.project != project for state in self._service.projects):
            # Listing a project's models makes Label Studio tell them its extra params again, which the version needs.
            try:
                client.backends(project.number)
            except LabelStudioError as error:
                logger.info("the models of project %s are not known: %s", project, error.summary)
        return lambda config: self._service.spec(project, config, model)

    def _claim(self, request: PrelabelRequest, work: JobSpec) -> Claim:
        return Claim.take(
            claims_folder(self._settings.data_dir),
            self.label_studio_url,
            request.project,
            by="a model server",
            version=work.prediction.version,
        )

    def _keep(self, job: RunningJob) -> None:
        self._jobs[job.id] = job
        over = [each for each in self._jobs.values() if each.finished is not None]
        for old in over[: max(0, len(over) - _KEPT)]:
            del self._jobs[old.id]

    def _note_failure(self, job: RunningJob, task: int, error: SpicaError) -> None:
        self._service.note_failures(job.project, [(task, error)])
        if job.failures is None:
            folder = self._settings.data_dir / "jobs"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _forget_old(folder)
                job.failures = FailureFile(folder / f"{job.started:%Y%m%dT%H%M%SZ}-{job.id}.failures.jsonl")
            except (OSError, UsageError) as trouble:
                logger.warning("failed tasks of job %s are not written to a file: %s", job.id, trouble)
                return
        job.failures.write(task, error)


class _NoSuchJobError(RequestError):
    code = "not_found"
    status = 404


def _forget_old(folder: Path) -> None:
    files = sorted(folder.glob("*.failures.jsonl"))
    for old in files[: max(0, len(files) - _KEPT)]:
        old.unlink(missing_ok=True)


def failures_after(job: RunningJob, after: int, *, limit: int = 1000) -> tuple[list[str], bool]:
    """Lines of a job's file of failures behind the first ``after``, and whether the file is all there is."""
    if job.failures is None:
        return [], True
    try:
        with job.failures.path.open(encoding="utf-8") as lines:
            found = [line.rstrip("\n") for number, line in enumerate(lines) if after <= number < after + limit]
    except OSError:
        return [], False
    return found, job.failures.trouble is None
