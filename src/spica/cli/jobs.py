"""What `spica prelabel` and `spica predictions refresh` share: run a job here or on a server, show it, sum it up."""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.markup import escape

from spica.cli.console import client_for, err, identify, label_studio, out
from spica.cli.remote import RemoteError, RemoteServer, error_of
from spica.errors import SpicaError
from spica.settings import Settings

if TYPE_CHECKING:
    from spica.labelstudio.client import LabelStudioClient
    from spica.models.version import ModelIdentity
    from spica.predictor import PredictionSpec
    from spica.prelabel.progress import FailureFile, Progress
    from spica.prelabel.selection import JobSpec, Selection

SOME_FAILED = 3
NONE_STORED = 4
INTERRUPTED = 130

_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Order:
    """What a command was asked for.

    Attributes:
        project: its number.
        selection: which tasks.
        watch: stay for tasks that are added.
        weights: run here with these weights; None asks the server.
        model_url: of the server.
        url: of Label Studio, if it was given.
        token: of Label Studio's, if it was given.
        data_dir: of `spica up`, if it was given.
        settings: others, by name.
    """

    project: int
    selection: Selection
    watch: bool
    weights: Path | None
    model_url: str | None
    url: str | None
    token: str | None
    data_dir: Path | None
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """How a job ended.

    Attributes:
        progress: at the end.
        state: ``done`` or ``stopped``.
        version: of the predictions.
    """

    progress: Progress
    state: str
    version: str

    @property
    def exit_code(self) -> int:
        """0 all stored, 3 some failed, 4 none stored, 130 stopped."""
        if self.state == "stopped":
            return INTERRUPTED
        if not self.progress.failed:
            return 0
        return SOME_FAILED if self.progress.stored else NONE_STORED


class Interrupt:
    """Ctrl-C: the first lets the job store what is in hand, the second stops at once.

    Attributes:
        asked: set by the first.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Within the block, Ctrl-C and a polite kill set :attr:`asked`."""

        def handle(*_: object) -> None:
            if self.asked.is_set():
                raise KeyboardInterrupt
            self.asked.set()

        names = [name for name in ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP") if hasattr(signal, name)]
        before = {name: signal.signal(getattr(signal, name), handle) for name in names}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(getattr(signal, name), handler)


class JobBar:
    """One line: done / total, images a second, time to go, failures."""

    def __init__(self, interrupt: Interrupt) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._interrupt = interrupt
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            console=err,
        )
        self._task = self._bar.add_task("Predicting", total=None, told="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """A line above."""
        self._bar.console.print(escape(line))

    def show(self, progress: Progress) -> None:
        """How far the job is."""
        parts = [f"{progress.images_per_s:.1f} images/s" if progress.images_per_s else "", _time(progress.eta_s)]
        parts += [f"[red]{progress.failed} failed[/red]" if progress.failed else ""]
        parts += [f"[yellow]{escape(progress.note)}[/yellow]" if progress.note else ""]
        self._bar.update(
            self._task,
            description="Storing what is in hand" if self._interrupt.asked.is_set() else "Predicting",
            completed=progress.done,
            total=progress.total,
            told=" · ".join(part for part in parts if part),
        )


def _time(seconds: float | None) -> str:
    if not seconds:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} to go"


def run_job(order: Order, report: FailureFile | None) -> Result:
    """Run a job to its end, here or on a server; or follow the one that works on the project already.

    Raises:
        SpicaError: why it could not be begun, or what ended it.
    """
    with ExitStack() as stack:
        interrupt = Interrupt()
        stack.enter_context(interrupt.caught())
        if order.weights is not None:
            return _run_here(order, report, interrupt, stack)
        server = stack.enter_context(_server(order))
        return _run_there(order, report, interrupt, server)


def look(order: Order) -> dict[str, Any]:
    """What a job would do: ``title``, ``version``, ``total``, ``annotated``.

    Raises:
        SpicaError: why it could not be begun.
    """
    with ExitStack() as stack:
        if order.weights is None:
            server = stack.enter_context(_server(order))
            return server.post("/jobs/prelabel", {**_request(order), "dry_run": True}, _token(order, server))
        work = _prepare_here(order, stack, load=False).work
        return {
            "title": work.project.title,
            "version": work.prediction.version,
            "total": work.total,
            "annotated": work.annotated,
        }


# --- here ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Here:
    client: LabelStudioClient
    service: Any
    work: JobSpec
    settings: Settings


def _prepare_here(order: Order, stack: ExitStack, *, load: bool, interrupt: Interrupt | None = None) -> _Here:
    from spica.labelstudio.label_config import parse_extra_params
    from spica.prelabel.selection import prepare
    from spica.server.build import build_engine, build_service

    settings = _settings_here(order)
    client = stack.enter_context(client_for(settings))
    client.project(order.project)  # before anything is loaded
    models = client.call("GET", "/api/ml/", params={"project": order.project})
    # Label Studio asks the first connected model only, with its extra params: they decide the version.
    extra_params, problems = parse_extra_params(models[0].get("extra_params") if models else None)
    for problem in problems:
        err.print(f"[yellow]Note:[/yellow] {escape(problem)}")
    identity = identify(_weights(order), settings)
    if load:
        _check_bf16(client, order.project, identity, settings, interrupt)
    engine = build_engine(identity, settings)
    if load:
        stack.enter_context(engine)
    service = build_service(engine, identity, settings)
    stack.callback(service.close)

    def spec_for(config: str) -> PredictionSpec:
        return service.predictor.spec(config, extra_params)

    work = prepare(client, order.project, spec_for, order.selection, empty=order.watch)
    return _Here(client, service, work, settings)


def _check_bf16(
    client: LabelStudioClient, project: int, identity: ModelIdentity, settings: Settings, interrupt: Interrupt | None
) -> None:
    """Once for a version: see on some of the project's photographs whether bf16 shows the boxes of f32."""
    from spica.models.serving import wants_check

    if not wants_check(identity, settings):
        return
    from spica.labelstudio.tokens import LabelStudioAuth
    from spica.models.checks import UP_IMAGES
    from spica.models.first_check import FirstCheck
    from spica.prelabel.selection import sample
    from spica.server.build import media_for

    key = settings.label_studio_api_key  # which the client was made with
    auth = LabelStudioAuth(settings.label_studio_url, key.get_secret_value()) if key is not None else None
    with (
        tempfile.TemporaryDirectory(prefix="spica-check-", ignore_cleanup_errors=True) as folder,
        media_for(settings, auth) as media,
    ):
        photographs = sample(client, project, media, Path(folder), count=UP_IMAGES)
        if not photographs:
            return
        err.print("Checking once, on a few of the photographs, whether bf16, which is faster, shows the same boxes")
        with FirstCheck(identity, photographs, settings) as check:
            check.wait(None if interrupt is None else interrupt.asked)


def _weights(order: Order) -> Path:
    if order.weights is None:
        raise ValueError("without weights a job runs on a server")
    return order.weights


def _settings_here(order: Order) -> Settings:
    """With `--data-dir` of a `spica up`, its models and photographs are read where they lie."""
    from spica.labelstudio.instance import RunningState
    from spica.labelstudio.known import LABEL_STUDIO_FOLDER

    settings = label_studio(order.url, order.token, order.data_dir, **order.settings)
    if order.data_dir is None:
        return settings
    folder = order.data_dir / LABEL_STUDIO_FOLDER
    state = RunningState.read(folder)
    update: dict[str, Any] = {"data_dir": order.data_dir, "label_studio_data_dir": folder}
    if state is not None and settings.local_files_document_root is None:
        update["local_files_document_root"] = Path(state.document_root)
    return settings.model_copy(update=update) if folder.is_dir() else settings


def _run_here(order: Order, report: FailureFile | None, interrupt: Interrupt, stack: ExitStack) -> Result:
    from spica.prelabel.claim import Claim, JobRunningError, claims_folder
    from spica.prelabel.job import BulkJob

    here = _prepare_here(order, stack, load=True, interrupt=interrupt)
    for problem in here.work.prediction.problems:
        err.print(f"[yellow]Note:[/yellow] {escape(problem)}")
    try:
        claim = Claim.take(
            claims_folder(here.settings.data_dir),
            here.settings.label_studio_url,
            order.project,
            by="spica prelabel",
            version=here.work.prediction.version,
        )
    except JobRunningError as running:
        err.print(f"[yellow]Note:[/yellow] {escape(running.summary)}")
        return follow_claim(running.folder, interrupt)
    stack.callback(claim.release)
    with JobBar(interrupt) as bar:
        job = BulkJob(
            here.client,
            here.service.predictor,
            here.work,
            claim,
            stop=interrupt.asked,
            watch=order.watch,
            on_failure=(lambda _task, _error: None) if report is None else report.write,
            on_progress=bar.show,
            say=bar.say,
        )
        progress = job.run()
    return Result(progress, job.state, job.version)


def follow_claim(folder: Path, interrupt: Interrupt) -> Result:
    """Watch the job of another process on this machine to its end; Ctrl-C stops watching, not the job.

    Raises:
        SpicaError: it ended early.
    """
    from spica.prelabel.claim import State, is_claimed
    from spica.prelabel.progress import Progress

    with JobBar(interrupt) as bar:
        while is_claimed(folder):
            state = State.read(folder)
            if state is not None:
                bar.show(Progress.from_json(state.progress))
            if interrupt.asked.wait(_POLL_S):
                bar.say("The other process goes on.")
                raise KeyboardInterrupt
        state = State.read(folder)
    if state is None or state.state not in ("done", "stopped"):
        raise SpicaError(
            "the other process ended before it was finished",
            got=state.reason if state is not None else None,
            hint="what it stored stays; run the command again to go on",
        )
    return Result(Progress.from_json(state.progress), state.state, state.version)


# --- on a server -----------------------------------------------------------------------------------------------------


def _server(order: Order) -> RemoteServer:
    settings = label_studio(order.url, order.token, order.data_dir, basic_auth=order.settings.get("basic_auth"))
    secret = settings.basic_auth.get_secret_value() if settings.basic_auth is not None else None
    return RemoteServer(order.model_url or f"http://127.0.0.1:{settings.model_port}", secret)


def settings_there(order: Order, server: RemoteServer) -> Settings:
    """The settings for the Label Studio that a server works for, its token as far as it is known here."""
    return label_studio(order.url or str(server.state()["label_studio"]), order.token, order.data_dir)


def label_studio_of(order: Order) -> Settings:
    """The settings for the Label Studio that a job would work for.

    Raises:
        SpicaError: the server that would know it does not answer.
    """
    if order.weights is not None:
        return label_studio(order.url, order.token, order.data_dir)
    with _server(order) as server:
        return settings_there(order, server)


def _token(order: Order, server: RemoteServer) -> Any:
    return settings_there(order, server).label_studio_api_key


def _request(order: Order) -> dict[str, Any]:
    body: dict[str, Any] = {
        "project": order.project,
        "all": order.selection.annotated,
        "tasks": list(order.selection.tasks),
        "view": order.selection.view,
        "watch": order.watch,
    }
    settings = label_studio(order.url, order.token, order.data_dir)
    if "label_studio_url" in settings.model_fields_set:  # somebody has said which
        body["label_studio_url"] = settings.label_studio_url
    return body


def _run_there(order: Order, report: FailureFile | None, interrupt: Interrupt, server: RemoteServer) -> Result:
    token = _token(order, server)
    try:
        job = server.post("/jobs/prelabel", _request(order), token)
    except RemoteError as error:
        folder = _claim_there(order, server) if error.remote_code == "job_running" else None
        if folder is None:
            raise
        err.print(f"[yellow]Note:[/yellow] {escape(error.summary)}")
        return follow_claim(folder, interrupt)
    if not job["started_now"]:
        err.print(f"[yellow]Note:[/yellow] project {order.project} is being predicted already; following.")
    follower = _Follower(server, job, report, interrupt, order.watch)
    return follower.follow()


def _claim_there(order: Order, server: RemoteServer) -> Path | None:
    """The claim of a process on this machine that keeps a server from working."""
    from spica.prelabel.claim import claim_folder, claims_folder, is_claimed

    settings = settings_there(order, server)
    folder = claim_folder(claims_folder(settings.data_dir), settings.label_studio_url, order.project)
    return folder if folder.is_dir() and is_claimed(folder) else None


class _Follower:
    """Shows a server's job to its end."""

    def __init__(
        self,
        server: RemoteServer,
        job: dict[str, Any],
        report: FailureFile | None,
        interrupt: Interrupt,
        watch: bool,
    ) -> None:
        self._server = server
        self._job = job
        self._report = report
        self._interrupt = interrupt
        self._watch = watch
        self._told = 0

    def follow(self) -> Result:
        from spica.prelabel.progress import Progress

        path = f"/jobs/{self._job['id']}"
        stopping = False
        with JobBar(self._interrupt) as bar:
            while True:
                self._copy_failures(path)
                bar.show(Progress.from_json(self._job))
                self._say_notes(bar)
                if self._job["finished"] is not None:
                    break
                if self._interrupt.asked.is_set() and not stopping:
                    stopping = True
                    if not self._job.get("started_now", True):
                        bar.say("The job goes on; `spica status` shows it.")
                        raise KeyboardInterrupt
                    self._server.post(f"{path}/stop", {})
                self._pause(stopping)
                self._job = {**self._server.get(path), "started_now": self._job.get("started_now", True)}
        if self._job["reason"] is not None:
            raise error_of(self._job["reason"])
        return Result(Progress.from_json(self._job), str(self._job["state"]), str(self._job["version"]))

    def _pause(self, stopping: bool) -> None:
        if stopping:
            time.sleep(_POLL_S)
        else:
            self._interrupt.asked.wait(_POLL_S)

    def _say_notes(self, bar: JobBar) -> None:
        notes = self._job["notes"]
        for note in notes[self._told :]:
            bar.say(note)
        self._told = len(notes)

    def _copy_failures(self, path: str) -> None:
        while self._report is not None and self._report.trouble is None and self._report.lines < self._job["failed"]:
            answer = self._server.get(f"{path}/failures?after={self._report.lines}")
            for line in answer["lines"]:
                self._report.write_line(str(line))
            if not answer["lines"]:
                return


def sum_up(result: Result, project: int, report: FailureFile | None) -> None:
    """Say how a job ended."""
    progress = result.progress
    speed = f", {progress.answered / progress.seconds:.1f} images/s" if progress.answered and progress.seconds else ""
    if result.state == "stopped":
        out.print(f"Stopped after {progress.done} of {progress.total} tasks; run the same command to go on.")
    elif progress.total == 0:
        out.print(f"Nothing to do in project {project}: no task is without a prediction of {escape(result.version)}.")
    else:
        out.print(
            f"{progress.stored} of {progress.total} tasks predicted, {progress.boxes} boxes, "
            f"as {escape(result.version)}{speed}."
        )
    if progress.counted is not None:
        out.print(f"Label Studio counts {progress.counted} predictions of this version in project {project}.")
    if progress.gone:
        out.print(f"{progress.gone} tasks were deleted meanwhile.")
    _print_failures(progress, report)


def _print_failures(progress: Progress, report: FailureFile | None) -> None:
    if progress.failed:
        err.print(
            f"[yellow]{progress.failed} tasks have no prediction[/yellow]; they are tried again with the next run:"
        )
        for task, error in progress.failures[:10]:
            err.print(f"  task {task}: {escape(error.summary)}")
        if progress.failed > 10:
            where = f"all are in {report.path}" if report is not None else "--report FILE writes all of them"
            err.print(f"  … {escape(where)}")
    if report is not None and report.trouble is not None:
        err.print(f"[red]{escape(report.trouble)}[/red]; the predictions themselves are stored.")
