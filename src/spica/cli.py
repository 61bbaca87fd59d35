"""The commands: parse, call, print."""

from __future__ import annotations

import json
import logging
import signal
import sys
import tempfile
import threading
import traceback
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from spica import __version__
from spica.errors import SpicaError, UsageError
from spica.settings import Settings, help_for

if TYPE_CHECKING:
    from spica.labelstudio.client import LabelStudioClient
    from spica.models.store import ModelIdentity
    from spica.prelabel import Progress
    from spica.up import Ready

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

app = typer.Typer(
    name="spica",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="A detector proposes boxes, you correct them in Label Studio.\n\n"
    "[bold]Example[/bold]: spica up photos --weights gwhd.pth --labels spike",
)
predictions_app = typer.Typer(
    no_args_is_help=True,
    help="Predictions that Label Studio stores: list, delete, restore.\n\n"
    "[bold]Example[/bold]: spica predictions list --project 1",
)
app.add_typer(predictions_app, name="predictions")

# --- options that several commands share; default None means: from the environment, else the setting's default --------

Weights = Annotated[
    Path,
    typer.Option(
        "--weights",
        "--weight",
        help="Weights file: a state_dict of torchvision's fasterrcnn_resnet50_fpn (.pth, .safetensors), "
        "or what Spica wrote (.onnx, .xml, a version's folder).",
        show_default=False,
    ),
]
Threshold = Annotated[float | None, typer.Option(min=0, max=1, help=help_for("threshold"), show_default="0.6")]
Eps = Annotated[float | None, typer.Option("--norm-eps", min=0, help=help_for("norm_eps"), show_default="0")]
MaxDetections = Annotated[int | None, typer.Option(min=1, help=help_for("max_detections"), show_default="1000")]
Host = Annotated[str | None, typer.Option(help=help_for("host"), show_default="127.0.0.1")]
Expose = Annotated[bool, typer.Option("--expose", help="Allow a --host that other machines can reach.")]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help=help_for("port"), show_default="8080")]
ModelPort = Annotated[int | None, typer.Option(min=0, max=65535, help=help_for("model_port"), show_default="8010")]
NoBrowser = Annotated[bool, typer.Option("--no-browser", help="Do not open the browser.")]
Check = Annotated[
    bool,
    typer.Option("--check", help="Stop when every task has a prediction, say how many; fail if one has none."),
]
Url = Annotated[str | None, typer.Option(help=help_for("label_studio_url"), show_default="http://127.0.0.1:8080")]
Token = Annotated[str | None, typer.Option(help=help_for("label_studio_api_key"), show_default=False)]
LabelStudioDataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", help="Data folder of `spica up`, to take Label Studio's token from.", show_default=False
    ),
]
ProjectNumber = Annotated[int, typer.Option("--project", min=1, help="The project's number, as in its address.")]


def _version(value: bool) -> None:
    if value:
        out.print(f"spica {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the photographs and all data.", show_default="spica-demo; with --check, a new one"
        ),
    ] = None,
    host: Host = None,
    port: Port = None,
    model_port: ModelPort = None,
    expose: Expose = False,
    no_browser: NoBrowser = False,
    check: Check = False,
) -> None:
    """Show it all on 24 rendered photographs of wheat; nothing else is needed.

    [bold]Example[/bold]: spica demo
    """
    from spica.demo import model_folder
    from spica.demo.field import write_images
    from spica.up import DATA_FOLDER, label_config_for

    with tempfile.TemporaryDirectory(prefix="spica-demo-", ignore_cleanup_errors=True) as temporary:
        base = (data_dir or Path(temporary if check else "spica-demo")).resolve()
        settings = _settings(
            host=host,
            port=0 if check and port is None else port,
            model_port=0 if check and model_port is None else model_port,
        )
        photographs = base / "photographs"
        write_images(photographs, 24, first_seed=1)
        _up(
            settings,
            images=photographs,
            weights=model_folder(),
            label_config=label_config_for(["spike"]),
            title="spikeDet",
            data_dir=base / DATA_FOLDER,
            expose=expose,
            browser=not no_browser and not check,
            check=check,
        )


@app.command()
def up(
    images: Annotated[Path, typer.Argument(help="Folder of photographs, sub-folders included.", show_default=False)],
    weights: Weights,
    labels: Annotated[str | None, typer.Option(help="Names of the labels, separated by commas.")] = None,
    label_config: Annotated[
        Path | None, typer.Option(help="File with a labelling configuration (XML), instead of --labels.")
    ] = None,
    project: Annotated[
        str | None, typer.Option("--project", help="Title of the project.", show_default="name of the folder")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder for all data.", show_default="spica-data beside IMAGES")
    ] = None,
    port: Port = None,
    model_port: ModelPort = None,
    host: Host = None,
    expose: Expose = False,
    threshold: Threshold = None,
    norm_eps: Eps = None,
    max_detections: MaxDetections = None,
    no_browser: NoBrowser = False,
    check: Check = False,
) -> None:
    """From a folder of photographs to boxes in Label Studio.

    Starts Label Studio and the model server, makes the project, predicts all photographs. Run it again after adding
    photographs: they are added, nothing is doubled.

    [bold]Example[/bold]: spica up photos --weights gwhd.pth --labels spike
    """
    from spica.up import DATA_FOLDER, find_images, label_config_for

    settings = _settings(
        host=host,
        port=port,
        model_port=model_port,
        threshold=threshold,
        norm_eps=norm_eps,
        max_detections=max_detections,
    )
    if (labels is None) == (label_config is None):
        raise UsageError(
            "the labels are missing" if labels is None else "labels are given twice",
            where="spica up",
            expected="either --labels or --label-config",
            hint="for example: --labels spike",
        )
    config = _read_text(label_config, "--label-config") if label_config is not None else ""
    find_images(images)
    _up(
        settings,
        images=images,
        weights=weights,
        label_config=config or label_config_for((labels or "").split(",")),
        title=project or images.resolve().name,
        data_dir=data_dir or images.resolve().parent / DATA_FOLDER,
        expose=expose,
        browser=not no_browser and not check,
        check=check,
    )


@app.command()
def serve(
    weights: Weights,
    host: Host = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help=help_for("model_port"), show_default="8010")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help=help_for("data_dir"), show_default="the user's")] = None,
    expose: Expose = False,
    threshold: Threshold = None,
    norm_eps: Eps = None,
    max_detections: MaxDetections = None,
    basic_auth: Annotated[str | None, typer.Option(help=help_for("basic_auth"), show_default=False)] = None,
) -> None:
    """The model server alone, for a Label Studio that runs already.

    Enter its address in Label Studio under Settings > Model > Connect Model, or use `spica connect`.

    [bold]Example[/bold]: spica serve --weights gwhd.pth
    """
    from spica.server.build import build_service
    from spica.server.run import refuse_exposed
    from spica.server.run import serve as serve_forever

    settings = _settings(
        host=host,
        model_port=port,
        data_dir=data_dir,
        threshold=threshold,
        norm_eps=norm_eps,
        max_detections=max_detections,
        basic_auth=basic_auth,
    )
    refuse_exposed(settings.host, expose=expose)
    _log_to_console()
    identity = _identify(weights, settings)
    service = build_service(identity, settings)
    logging.getLogger(__name__).info(
        "serving %s on http://%s:%d, stop with Ctrl-C", identity.id, settings.host, settings.model_port
    )
    serve_forever(service, settings, host=settings.host, port=settings.model_port)


@app.command()
def connect(
    project: ProjectNumber,
    url: Url = None,
    token: Token = None,
    data_dir: LabelStudioDataDir = None,
    model_url: Annotated[
        str | None,
        typer.Option(
            help="Address of the model server, as Label Studio reaches it.", show_default="http://127.0.0.1:8010"
        ),
    ] = None,
    basic_auth: Annotated[str | None, typer.Option(help=help_for("basic_auth"), show_default=False)] = None,
    no_interactive: Annotated[
        bool, typer.Option("--no-interactive", help="Without interactive pre-annotations.")
    ] = False,
) -> None:
    """Register a running model server with a project of Label Studio; twice is once.

    [bold]Example[/bold]: spica connect --project 1
    """
    from spica.connect import connect as connect_project

    settings = _label_studio(url, token, data_dir, basic_auth=basic_auth)
    with _client(settings) as client:
        report = connect_project(
            client,
            project,
            model_url=model_url or f"http://127.0.0.1:{settings.model_port}",
            basic_auth=settings.basic_auth.get_secret_value() if settings.basic_auth is not None else None,
            interactive=not no_interactive,
        )
    out.print(f"Project {project} is connected to {report.url} as {report.version}.")
    for problem in report.problems:
        err.print(f"[yellow]Note:[/yellow] {escape(problem)}")


@predictions_app.command("list")
def list_predictions(
    project: ProjectNumber,
    url: Url = None,
    token: Token = None,
    data_dir: LabelStudioDataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """How many predictions are stored, by version.

    [bold]Example[/bold]: spica predictions list --project 1
    """
    with _client(_label_studio(url, token, data_dir)) as client:
        versions = client.prediction_versions(project)
    if as_json:
        print(json.dumps({"project": project, "versions": versions}, ensure_ascii=False))
        return
    if not versions:
        out.print(f"Project {project} has no predictions.")
        return
    from rich.table import Table

    table = Table("Version", "Predictions", title=f"Project {project}", title_justify="left")
    for version, count in versions.items():
        table.add_row(escape(version), str(count))
    out.print(table)


@predictions_app.command("delete")
def delete_predictions(
    project: ProjectNumber,
    version: Annotated[str | None, typer.Option(help="Only this version.", show_default="all versions")] = None,
    backup: Annotated[
        Path | None,
        typer.Option(help="Where to write what is deleted.", show_default="predictions-PROJECT-TIME.jsonl"),
    ] = None,
    url: Url = None,
    token: Token = None,
    data_dir: LabelStudioDataDir = None,
) -> None:
    """Delete predictions, after writing them to a file. Annotations stay.

    [bold]Example[/bold]: spica predictions delete --project 1
    """
    from datetime import UTC, datetime

    from spica.labelstudio.predictions_backup import delete_with_backup

    path = backup or Path(f"predictions-{project}-{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}.jsonl")
    with _client(_label_studio(url, token, data_dir)) as client:
        known = client.prediction_versions(project)
        if version is not None and version not in known:
            raise UsageError(
                "the project has no predictions of this version",
                where=f"project {project}",
                expected=", ".join(known) or "none are stored",
                got=version,
            )
        report = delete_with_backup(client, project, version, path)
    if report.path is None:
        out.print(f"Project {project} has no predictions; nothing to delete.")
        return
    out.print(f"Deleted {report.deleted} predictions; {report.backed_up} are kept in {escape(str(report.path))}.")
    out.print(f"To put them back: spica predictions restore {escape(str(report.path))}")


@predictions_app.command("restore")
def restore_predictions(
    file: Annotated[Path, typer.Argument(help="What `delete` has written.", show_default=False)],
    url: Url = None,
    token: Token = None,
    data_dir: LabelStudioDataDir = None,
) -> None:
    """Put deleted predictions back; those that are there already are left alone.

    [bold]Example[/bold]: spica predictions restore predictions-1-20261123T101500Z.jsonl
    """
    from spica.labelstudio.predictions_backup import restore

    with _client(_label_studio(url, token, data_dir)) as client:
        report = restore(client, file)
    out.print(f"Restored {report.restored} predictions; {report.present} were there already.")
    if report.gone_tasks:
        err.print(f"[yellow]Note:[/yellow] these tasks are gone: {', '.join(map(str, report.gone_tasks))}")
    for line in report.refused[:10]:
        err.print(f"[yellow]Note:[/yellow] refused by Label Studio: {escape(line)}")
    if not report.is_complete:
        raise typer.Exit(1)


@app.command()
def doctor(
    url: Url = None,
    token: Token = None,
    project: Annotated[int | None, typer.Option(min=1, help="Look at this project.", show_default="all")] = None,
    model_url: Annotated[
        str | None, typer.Option(help="Address of the model server.", show_default="http://127.0.0.1:8010")
    ] = None,
    data_dir: LabelStudioDataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Name what is wrong, and the line that mends it.

    [bold]Example[/bold]: spica doctor --project 1
    """
    from spica.doctor import examine, print_findings

    settings = _label_studio(url, token, data_dir)
    findings = examine(settings, project=project, model_url=model_url or f"http://127.0.0.1:{settings.model_port}")
    if as_json:
        print(json.dumps([finding.as_json() for finding in findings], ensure_ascii=False, indent=2))
    else:
        print_findings(findings, out)
    if any(not finding.ok for finding in findings):
        raise typer.Exit(1)


# --- helpers of the commands ----------------------------------------------------------------------------------------


def _settings(**given: Any) -> Settings:
    """The settings with what the command line says; the command line wins over the environment."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            "a setting has no usable value",
            where=str(first["loc"][0]) if first["loc"] else None,
            expected=first["msg"],
            hint="see `spica --help` for the settings and their environment variables",
        ) from None


def _read_text(path: Path, option: str) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "the file can't be read",
            where=f"{option} {path}",
            expected="a text file in UTF-8",
            got=getattr(error, "strerror", None) or str(error),
        ) from None


def _identify(weights: Path, settings: Settings) -> ModelIdentity:
    from spica.models import store

    return store.identify(
        weights,
        score_floor=settings.score_floor,
        max_detections=settings.max_detections,
        norm_eps=settings.norm_eps,
        data_dir=settings.data_dir,
    )


def _label_studio(url: str | None, token: str | None, data_dir: Path | None, **others: Any) -> Settings:
    """The settings, with address and token of the Label Studio that `spica up` started, where none are given."""
    from spica.labelstudio.known import stored_token, stored_url

    if url is None and data_dir is not None:
        url = stored_url(data_dir)
    settings = _settings(label_studio_url=url, label_studio_api_key=token, **others)
    if settings.label_studio_api_key is not None:
        return settings
    stored = stored_token(settings.label_studio_url, data_dir)
    return settings if stored is None else settings.model_copy(update={"label_studio_api_key": stored})


@contextmanager
def _client(settings: Settings) -> Iterator[LabelStudioClient]:
    from spica.labelstudio.client import LabelStudioClient

    if settings.label_studio_api_key is None:
        raise UsageError(
            "the access token of Label Studio is missing",
            where=settings.label_studio_url,
            expected="--token, LABEL_STUDIO_API_KEY, or --data-dir of a `spica up`",
            hint="copy it from Label Studio's page Account & Settings > Personal Access Token",
        )
    with LabelStudioClient(settings.label_studio_url, settings.label_studio_api_key.get_secret_value()) as client:
        yield client


def _up(
    settings: Settings,
    *,
    images: Path,
    weights: Path,
    label_config: str,
    title: str,
    data_dir: Path,
    expose: bool,
    browser: bool,
    check: bool,
) -> None:
    from spica.labelstudio.label_config import parse_label_config
    from spica.up import Request, prepare_data_dir, running
    from spica.up import check as check_all_predicted

    parse_label_config(label_config)
    data_dir = prepare_data_dir(data_dir, images.resolve())
    settings = settings.model_copy(update={"data_dir": data_dir})
    identity = _identify(weights, settings)
    _log_to_file(data_dir / "logs" / "spica.log")
    request = Request(
        images=images,
        identity=identity,
        label_config=label_config,
        title=title,
        data_dir=data_dir,
        host=settings.host,
        port=settings.port,
        model_port=settings.model_port,
        expose=expose,
    )
    _terminate_like_ctrl_c()
    with _progress() as bar, running(request, settings, say=bar.say, on_progress=bar.show) as ready:
        bar.stop()
        _print_failures(ready.progress)
        if check:
            check_all_predicted(ready)
        else:
            _print_frame(ready, data_dir)
            if browser:
                webbrowser.open(ready.url)
            _wait(ready)
    if check:
        print(f"{ready.tasks} tasks, {ready.predicted} predicted, {ready.boxes} boxes")
    else:
        out.print("Stopped. Everything is kept; run the same command to go on.")


def _wait(ready: Ready) -> None:
    """Until Ctrl-C, or until Label Studio ends by itself."""
    from spica.errors import LaunchError

    pause = threading.Event()
    try:
        while ready.alive():
            pause.wait(0.5)
    except KeyboardInterrupt:
        out.print("\nStopping …")
        return
    raise LaunchError("Label Studio has ended by itself", where=ready.url, hint=f"see its log in {ready.log}")


class _Bar:
    """Lines of what is being done, then a progress bar of the predictions."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[boxes]} boxes"),
            TimeRemainingColumn(),
            console=err,
        )
        self._task: Any = None

    def say(self, line: str) -> None:
        err.print(escape(line))

    def show(self, progress: Progress) -> None:
        if progress.total == 0:
            return
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("Predicting", total=progress.total, boxes=0)
        self._progress.update(self._task, completed=progress.done, boxes=progress.boxes)

    def stop(self) -> None:
        self._progress.stop()


@contextmanager
def _progress() -> Iterator[_Bar]:
    bar = _Bar()
    try:
        yield bar
    finally:
        bar.stop()


def _print_failures(progress: Progress) -> None:
    if not progress.failures:
        return
    err.print(f"[yellow]{len(progress.failures)} photographs could not be predicted:[/yellow]")
    for task, error in progress.failures[:10]:
        err.print(f"  task {task}: {escape(error.one_line)}")
    if len(progress.failures) > 10:
        err.print("  … the others are in the log")


def _print_frame(ready: Ready, data_dir: Path) -> None:
    from rich.panel import Panel

    lines = [
        f"[bold]Open[/bold]      {escape(ready.url)}",
        f"[bold]Login[/bold]     {escape(ready.email)}",
        f"[bold]Password[/bold]  {escape(ready.password)}",
        "",
        f"[bold]Boxes[/bold]     {ready.boxes} on {ready.predicted} of {ready.tasks} photographs",
        f"[bold]Model[/bold]     {escape(ready.model_url)}",
        f"[bold]Data[/bold]      {escape(str(data_dir))}",
        f"[bold]Stop[/bold]      Ctrl-C{' (Label Studio was running before and goes on)' if ready.adopted else ''}",
        "",
        "[dim]Label Studio is told to accept a model server on this machine, which it refuses otherwise.\n"
        f"{_reach(ready)}[/dim]",
    ]
    out.print(Panel("\n".join(lines), title=escape(ready.project.title), title_align="left", expand=False))


def _reach(ready: Ready) -> str:
    if ready.local:
        return "Both servers answer to this machine only; nothing is open to the network."
    return "--expose: other machines can reach both servers. Give the password to those who need it only."


def _log_to_console() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    _log_to(handler)


def _log_to_file(path: Path) -> None:
    from logging.handlers import RotatingFileHandler

    path.parent.mkdir(parents=True, exist_ok=True)
    handler = RotatingFileHandler(path, maxBytes=5 * 2**20, backupCount=2, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s %(message)s"))
    _log_to(handler)


def _log_to(handler: logging.Handler) -> None:
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("spica", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.INFO)


def _terminate_like_ctrl_c() -> None:
    """Being asked to end by the system stops everything in order, as Ctrl-C does."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    for name in ("SIGTERM", "SIGBREAK", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), interrupt)


def main() -> None:
    """Run the command line; every foreseen failure is a sentence and an exit status, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # Windows consoles default to a code page without Japanese
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        app()
    except SpicaError as error:
        err.print(f"[red]Error:[/red] {escape(str(error))}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        err.print("Stopped.")
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - the border of the program: the traceback goes to a file
        with tempfile.NamedTemporaryFile(
            "w", prefix="spica-failure-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            traceback.print_exc(file=file)
        err.print(f"[red]Error:[/red] Spica failed unexpectedly: {escape(type(error).__name__)}")
        err.print(f"  to do:    please report it, with the file {escape(file.name)}")
        sys.exit(70)
