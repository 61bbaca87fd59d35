"""`spica prelabel`: predictions for a whole project, by a running server or in this process.

`spica predictions refresh` runs the same job.
"""

from __future__ import annotations

import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from spica.cli.console import client_for, count, err, identify, note, out
from spica.cli.options import (
    Computing,
    DryRun,
    IncludeAnnotated,
    JobWeights,
    ProjectNumber,
    Report,
    ServerOptions,
)
from spica.cli.progress import Bar, ctrl_c, duration, working
from spica.connect import RemoteError, RemoteServer, error_of
from spica.errors import SpicaError, UsageError
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


def prelabel(
    project: ProjectNumber,
    servers: ServerOptions,
    computing: Computing,
    include_annotated: IncludeAnnotated = False,
    task: Annotated[
        list[int] | None, typer.Option(min=1, help="Only this task; may be given several times.", show_default=False)
    ] = None,
    tab: Annotated[
        int | None,
        typer.Option(
            min=1, help="Only what this tab of the Data Manager shows (tab=N in its address).", show_default=False
        ),
    ] = None,
    dry_run: DryRun = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Stay, and predict tasks as they are added; Ctrl-C ends it.")
    ] = False,
    report: Report = None,
    weights: JobWeights = None,
) -> None:
    """Predict every task of a project that has no prediction of the model's version, and store the predictions.

    The running model server does it (`spica serve`, `spica up`); with --weights, this process does. What is left to do
    is asked from Label Studio: stop it when you like, run it again, and it goes on; nothing is doubled. Images that
    people open meanwhile come first.

    [bold]Example[/bold]: spica prelabel --project 1

    [bold]Exit status[/bold]: 0 all stored, 3 some tasks failed, 4 none could be stored, 2 wrong usage, 1 other errors,
    130 stopped by Ctrl-C.
    """
    from spica.prelabel.progress import FailureFile
    from spica.prelabel.selection import Selection

    selection = Selection(annotated=include_annotated, tasks=tuple(task or ()), view=tab)
    options = JobOptions(project, selection, servers, weights, computing.given(), watch)
    if dry_run:
        found = look(options)
        out.print(
            f"Project {project} ({escape(str(found['title']))}): {count(found['total'], 'task')} would be predicted "
            f"as {escape(str(found['version']))}. Nothing was changed."
        )
        if found["annotated"]:
            left = count(found["annotated"], "task")
            out.print(f"Left alone, since annotated: {left}; --include-annotated takes them too.")
        return
    file = FailureFile(report) if report is not None else None
    result = run_job(options, file)
    print_result(result, project, file)
    if result.exit_code:
        raise typer.Exit(result.exit_code)


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What a command was asked for.

    Attributes:
        project: its number.
        selection: which tasks.
        servers: where Label Studio and the model server are.
        weights: run here with these weights; None asks the server.
        computing: settings of how the network computes, by name; for a job that runs here.
        watch: stay for tasks that are added.

    Raises:
        UsageError: a server computes by its own settings, and others were asked for.
    """

    project: int
    selection: Selection
    servers: ServerOptions
    weights: Path | None
    computing: dict[str, Any]
    watch: bool = False

    def __post_init__(self) -> None:
        if self.weights is None and self.computing:
            raise UsageError(
                "a running model server computes by the options that it was started with",
                where=", ".join(f"--{name.replace('_', '-')}" for name in self.computing),
                hint="start the server with them, or predict in this process with --weights FILE",
            )

    def label_studio(self) -> Settings:
        """The settings for the Label Studio that a job works for.

        Raises:
            SpicaError: the server that knows it does not answer.
        """
        if self.weights is not None:
            return self.servers.settings(**self.computing)
        with self.servers.server() as server:
            return self.servers.settings(str(server.state()["label_studio"]))


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


def look(options: JobOptions) -> dict[str, Any]:
    """What a job would do: ``title``, ``version``, ``total``, ``annotated``.

    Raises:
        SpicaError: why it could not be begun.
    """
    if options.weights is None:
        with options.servers.server() as server:
            request, token = _request(options, server)
            return server.post("/jobs/prelabel", {**request, "dry_run": True}, token)
    with ExitStack() as stack:
        work = _prepare_here(options, options.weights, stack, load=False).work
        return {
            "title": work.project.title,
            "version": work.prediction.version,
            "total": work.total,
            "annotated": work.annotated,
        }


def run_job(options: JobOptions, report: FailureFile | None) -> Result:
    """Run a job to its end, here or on a server; or follow the one that works on the project already.

    The first Ctrl-C lets the job store what it has predicted, the second one stops at once.

    Raises:
        SpicaError: why it could not be begun, or what ended it.
    """
    with ctrl_c(lambda: None) as stop:
        if options.weights is not None:
            with ExitStack() as stack:
                return _run_here(options, options.weights, report, stop, stack)
        with options.servers.server() as server:
            return _run_there(options, report, stop, server)


def _show(bar: Bar, progress: Progress, stop: threading.Event) -> None:
    """Done / total, images a second, time to go, failures."""
    parts = [f"{progress.images_per_s:.1f} images/s" if progress.images_per_s else "", duration(progress.eta_s)]
    parts += [f"[red]{progress.failed} failed[/red]" if progress.failed else ""]
    parts += [f"[yellow]{escape(progress.note)}[/yellow]" if progress.note else ""]
    what = "Storing what is predicted" if stop.is_set() else "Predicting"
    bar.show(progress.done, progress.total, rest=" · ".join(filter(None, parts)), what=what)


# --- here ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Here:
    client: LabelStudioClient
    service: Any
    work: JobSpec
    settings: Settings


def _prepare_here(
    options: JobOptions, weights: Path, stack: ExitStack, *, load: bool, stop: threading.Event | None = None
) -> _Here:
    from spica.labelstudio.config import parse_extra_params
    from spica.prelabel.selection import prepare
    from spica.server.build import build_engine, build_service

    settings = options.label_studio()
    client = stack.enter_context(client_for(settings))
    client.project(options.project)  # before anything is loaded
    models = client.backends(options.project)
    # Label Studio asks the first connected model only, with its extra params: they decide the version.
    extra_params, problems = parse_extra_params(models[0].extra_params if models else None)
    for problem in problems:
        note(problem)
    identity = identify(weights, settings)
    if load:
        _check_bf16(client, options.project, identity, settings, stop)
    engine = build_engine(identity, settings)
    if load:
        stack.enter_context(engine)
    service = build_service(engine, identity, settings)
    stack.callback(service.close)

    def spec_for(config: str) -> PredictionSpec:
        return service.predictor.spec(config, extra_params)

    work = prepare(client, options.project, spec_for, options.selection, empty=options.watch)
    return _Here(client, service, work, settings)


def _check_bf16(
    client: LabelStudioClient, project: int, identity: ModelIdentity, settings: Settings, stop: threading.Event | None
) -> None:
    """Once for a version: see on some of the project's photographs whether bf16 shows the boxes of f32."""
    from spica.models.serving import wants_check

    if not wants_check(identity, settings):
        return
    from spica.labelstudio.auth import LabelStudioAuth
    from spica.labelstudio.media import media_for
    from spica.models.checks import UP_IMAGES, FirstCheck
    from spica.prelabel.selection import sample

    key = settings.label_studio_api_key  # which the client was made with
    auth = LabelStudioAuth(settings.label_studio_url, key.get_secret_value()) if key is not None else None
    with (
        tempfile.TemporaryDirectory(prefix="spica-check-", ignore_cleanup_errors=True) as folder,
        media_for(settings, auth) as media,
    ):
        photographs = sample(client, project, media, Path(folder), count=UP_IMAGES)
        if not photographs:
            return
        with (
            working("Checking once, on a few photographs, whether bf16, which is faster, shows the same boxes"),
            FirstCheck(identity, photographs, settings) as check,
        ):
            check.wait(stop)


def _run_here(
    options: JobOptions, weights: Path, report: FailureFile | None, stop: threading.Event, stack: ExitStack
) -> Result:
    from spica.prelabel.claim import Claim, JobRunningError, claims_folder
    from spica.prelabel.job import BulkJob

    here = _prepare_here(options, weights, stack, load=True, stop=stop)
    for problem in here.work.prediction.problems:
        note(problem)
    try:
        claim = Claim.take(
            claims_folder(here.settings.data_dir),
            here.settings.label_studio_url,
            options.project,
            by="spica prelabel",
            version=here.work.prediction.version,
        )
    except JobRunningError as running:
        note(running.summary)
        return _follow_claim(running.folder, stop)
    stack.callback(claim.release)
    with Bar("Predicting") as bar:
        job = BulkJob(
            here.client,
            here.service.predictor,
            here.work,
            claim,
            stop=stop,
            watch=options.watch,
            on_failure=(lambda _task, _error: None) if report is None else report.write,
            on_progress=lambda progress: _show(bar, progress, stop),
            say=bar.line,
        )
        progress = job.run()
    return Result(progress, job.state, job.version)


def _follow_claim(folder: Path, stop: threading.Event) -> Result:
    """Watch the job of another process on this machine to its end; Ctrl-C stops watching, not the job.

    Raises:
        SpicaError: it ended early.
    """
    from spica.prelabel.claim import State, is_claimed
    from spica.prelabel.progress import Progress

    with Bar("Predicting") as bar:
        while is_claimed(folder):
            state = State.read(folder)
            if state is not None:
                _show(bar, Progress.from_json(state.progress), stop)
            if stop.wait(_POLL_S):
                bar.line("The other process goes on.")
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


def _request(options: JobOptions, server: RemoteServer) -> tuple[dict[str, Any], Any]:
    """The request for a job, and the token of the Label Studio that the server works for, if it is known here."""
    body: dict[str, Any] = {
        "project": options.project,
        "all": options.selection.annotated,
        "tasks": list(options.selection.tasks),
        "view": options.selection.view,
        "watch": options.watch,
    }
    settings = options.servers.settings()
    if "label_studio_url" in settings.model_fields_set:  # somebody has said which
        body["label_studio_url"] = settings.label_studio_url
    return body, options.servers.settings(str(server.state()["label_studio"])).label_studio_api_key


def _run_there(options: JobOptions, report: FailureFile | None, stop: threading.Event, server: RemoteServer) -> Result:
    try:
        job = server.post("/jobs/prelabel", *_request(options, server))
    except RemoteError as error:
        folder = _claim_there(options, server) if error.remote_code == "job_running" else None
        if folder is None:
            raise
        note(error.summary)
        return _follow_claim(folder, stop)
    is_ours = bool(job["started_now"])
    if not is_ours:
        note(f"project {options.project} is being predicted already; following.")
    return _follow_server(server, job, report, stop, is_ours=is_ours)


def _claim_there(options: JobOptions, server: RemoteServer) -> Path | None:
    """The claim of a process on this machine that keeps a server from working."""
    from spica.prelabel.claim import claim_folder, claims_folder, is_claimed

    settings = options.servers.settings(str(server.state()["label_studio"]))
    folder = claim_folder(claims_folder(settings.data_dir), settings.label_studio_url, options.project)
    return folder if folder.is_dir() and is_claimed(folder) else None


def _follow_server(
    server: RemoteServer, job: dict[str, Any], report: FailureFile | None, stop: threading.Event, *, is_ours: bool
) -> Result:
    """Show a server's job to its end. The first Ctrl-C ends a job that this command began, and leaves another's."""
    from spica.prelabel.progress import Progress

    path, notes, stopping = f"/jobs/{job['id']}", 0, False
    with Bar("Predicting") as bar:
        while True:
            if report is not None:
                _copy_failures(server, path, job["failed"], report)
            _show(bar, Progress.from_json(job), stop)
            for line in job["notes"][notes:]:
                bar.line(line)
            notes = len(job["notes"])
            if job["finished"] is not None:
                break
            if stop.is_set() and not stopping:
                stopping = True
                if not is_ours:
                    bar.line("The job goes on; `spica status` shows it.")
                    raise KeyboardInterrupt
                server.post(f"{path}/stop", {})
            (time.sleep if stopping else stop.wait)(_POLL_S)
            job = server.get(path)
    if job["reason"] is not None:
        raise error_of(job["reason"])
    return Result(Progress.from_json(job), str(job["state"]), str(job["version"]))


def _copy_failures(server: RemoteServer, path: str, failed: int, report: FailureFile) -> None:
    while report.trouble is None and report.lines < failed:
        answer = server.get(f"{path}/failures?after={report.lines}")
        for line in answer["lines"]:
            report.write_line(str(line))
        if not answer["lines"]:
            return


def print_result(result: Result, project: int, report: FailureFile | None) -> None:
    """Say how a job ended."""
    progress, version = result.progress, escape(result.version)
    speed = f", {progress.answered / progress.seconds:.1f} images/s" if progress.answered and progress.seconds else ""
    if result.state == "stopped":
        out.print(f"Stopped after {progress.done} of {progress.total} tasks; run the same command to go on.")
    elif progress.total == 0:
        out.print(f"Nothing to do in project {project}: no task is without a prediction of {version}.")
    else:
        boxes = count(progress.boxes, "box")
        out.print(f"{progress.stored} of {count(progress.total, 'task')} predicted, {boxes}, as {version}{speed}.")
    if progress.counted is not None:
        counted = count(progress.counted, "prediction")
        out.print(f"Label Studio counts {counted} of this version in project {project}.")
    if progress.gone:
        out.print(f"{count(progress.gone, 'task')} deleted meanwhile.")
    rest = "--report FILE writes all of them" if report is None else f"all are in {report.path}"
    print_failures(progress, "they are tried again with the next run", rest)
    if report is not None and report.trouble is not None:
        err.print(f"[red]{escape(report.trouble)}[/red]; the predictions themselves are stored.")


def print_failures(progress: Progress, more: str, rest: str) -> None:
    """The tasks without a prediction, each with its reason; ``rest`` says where those beyond ten are."""
    if not progress.failed:
        return
    verb = "has" if progress.failed == 1 else "have"
    err.print(f"[yellow]{count(progress.failed, 'task')} {verb} no prediction[/yellow]; {more}:")
    for task, error in progress.failures[:10]:
        err.print(f"  task {task}: {escape(error.summary)}")
    if progress.failed > 10:
        err.print(f"  … {escape(rest)}")
