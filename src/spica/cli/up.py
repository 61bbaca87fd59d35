"""`spica demo` and `spica up`."""

from __future__ import annotations

import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from spica.cli.console import err, identify, log_to_file, out, read_text, settings_with, terminate_like_ctrl_c
from spica.cli.options import (
    AllowedHosts,
    Check,
    ChosenPrecision,
    Eps,
    Expose,
    Host,
    MaxDetections,
    ModelPort,
    NoBrowser,
    Overlap,
    Port,
    Threshold,
    Tile,
    Weights,
)
from spica.errors import LaunchError, UsageError
from spica.settings import Settings

if TYPE_CHECKING:
    from spica.prelabel.progress import Progress
    from spica.up import Ready


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
    from spica.demo.field import DEMO_FIRST_SEED, write_images
    from spica.up import DATA_FOLDER, label_config_for

    with tempfile.TemporaryDirectory(prefix="spica-demo-", ignore_cleanup_errors=True) as temporary:
        base = (data_dir or Path(temporary if check else "spica-demo")).resolve()
        settings = settings_with(
            host=host,
            port=0 if check and port is None else port,
            model_port=0 if check and model_port is None else model_port,
        )
        photographs = base / "photographs"
        write_images(photographs, 24, first_seed=DEMO_FIRST_SEED)
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


def up(
    images: Annotated[Path, typer.Argument(help="Folder of photographs, sub-folders included.", show_default=False)],
    weights: Weights,
    labels: Annotated[str | None, typer.Option(help="Names of the labels, separated by commas.")] = None,
    label_config: Annotated[
        Path | None, typer.Option(help="File with a labelling configuration (XML), instead of --labels.")
    ] = None,
    project: Annotated[
        str | None,
        typer.Option("--project", help="Title of the project, 3 to 50 characters.", show_default="name of the folder"),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder for all data.", show_default="spica-data beside IMAGES")
    ] = None,
    port: Port = None,
    model_port: ModelPort = None,
    host: Host = None,
    expose: Expose = False,
    allowed_host: AllowedHosts = None,
    threshold: Threshold = None,
    norm_eps: Eps = None,
    max_detections: MaxDetections = None,
    precision: ChosenPrecision = None,
    tile: Tile = None,
    overlap: Overlap = None,
    no_browser: NoBrowser = False,
    check: Check = False,
) -> None:
    """From a folder of photographs to boxes in Label Studio.

    Starts Label Studio and the model server, makes the project, predicts all photographs. Run it again after adding
    photographs: they are added, nothing is doubled.

    [bold]Example[/bold]: spica up photos --weights gwhd.pth --labels spike
    """
    from spica.labelstudio.api.projects import checked_title
    from spica.up import DATA_FOLDER, label_config_for, project_title

    if project is not None:
        checked_title(project)
    settings = settings_with(
        host=host,
        port=port,
        model_port=model_port,
        allowed_hosts=allowed_host,
        threshold=threshold,
        norm_eps=norm_eps,
        max_detections=max_detections,
        precision=precision,
        tile=tile,
        overlap=overlap,
    )
    if (labels is None) == (label_config is None):
        raise UsageError(
            "the labels are missing" if labels is None else "labels are given twice",
            where="spica up",
            expected="either --labels or --label-config",
            hint="for example: --labels spike",
        )
    if label_config is not None:
        config = read_text(label_config, "--label-config")
    else:
        config = label_config_for((labels or "").split(","))
    _up(
        settings,
        images=images,
        weights=weights,
        label_config=config,
        title=project or project_title(images.resolve()),
        data_dir=data_dir or images.resolve().parent / DATA_FOLDER,
        expose=expose,
        browser=not no_browser and not check,
        check=check,
    )


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
    from spica.up import Request, find_images, prepare_data_dir, running
    from spica.up import check as check_all_predicted

    found = find_images(images)
    parse_label_config(label_config)
    if found.passed_over:
        err.print(f"[yellow]Note:[/yellow] {escape(found.passed_over)}")
    data_dir = prepare_data_dir(data_dir, images.resolve())
    settings = settings.model_copy(update={"data_dir": data_dir})
    identity = identify(weights, settings)
    log_to_file(data_dir / "logs" / "spica.log")
    request = Request(
        images=images,
        photographs=len(found.photographs),
        identity=identity,
        label_config=label_config,
        title=title,
        data_dir=data_dir,
        host=settings.host,
        port=settings.port,
        model_port=settings.model_port,
        expose=expose,
    )
    terminate_like_ctrl_c()
    with _progress() as bar, running(request, settings, say=bar.say, note=bar.note, on_progress=bar.show) as ready:
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
        print(f"{ready.tasks} tasks, {ready.predicted} predicted, {ready.progress.boxes} new boxes")
    else:
        out.print("Stopped. Everything is kept; run the same command to go on.")


def _wait(ready: Ready) -> None:
    """Until Ctrl-C, or until Label Studio ends by itself."""
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
        self._status = err.status("")

    def say(self, line: str) -> None:
        if not err.is_terminal:
            err.print(escape(line))
            return
        self._status.update(escape(line))
        self._status.start()

    def show(self, progress: Progress) -> None:
        if progress.total == 0:
            return
        if self._task is None:
            self._status.stop()
            self._progress.start()
            self._task = self._progress.add_task("Predicting", total=progress.total, boxes=0)
        self._progress.update(self._task, completed=progress.done, boxes=progress.boxes)

    def note(self, line: str) -> None:
        err.print(f"[yellow]Note:[/yellow] {escape(line)}")

    def stop(self) -> None:
        self._status.stop()
        if self._task is not None:
            self._progress.stop()


@contextmanager
def _progress() -> Iterator[_Bar]:
    bar = _Bar()
    try:
        yield bar
    finally:
        bar.stop()


def _print_failures(progress: Progress) -> None:
    if not progress.failed:
        return
    err.print(f"[yellow]{progress.failed} photographs could not be predicted:[/yellow]")
    for task, error in progress.failures[:10]:
        err.print(f"  task {task}: {escape(error.summary)}")
    if progress.failed > 10:
        err.print("  … the others are in the log")


def _print_frame(ready: Ready, data_dir: Path) -> None:
    from rich.panel import Panel

    lines = [
        f"[bold]Open[/bold]      {escape(ready.url)}",
        f"[bold]Login[/bold]     {escape(ready.email)}",
        f"[bold]Password[/bold]  {escape(ready.password)}",
        "",
        f"[bold]Predicted[/bold] {ready.predicted} of {ready.tasks} photographs, {ready.progress.boxes} new boxes",
        f"[bold]Model[/bold]     {escape(ready.model_url)}",
        f"[bold]Data[/bold]      {escape(str(data_dir))}",
        f"[bold]Stop[/bold]      Ctrl-C{' (Label Studio was running before and goes on)' if ready.adopted else ''}",
        "",
        "[dim]Label Studio is told to accept a model server on this machine, which it refuses otherwise.\n"
        f"{_reach(ready)}[/dim]",
    ]
    out.print(
        Panel("\n".join(lines), title=escape(ready.project.title), title_align="left", expand=False), soft_wrap=False
    )


def _reach(ready: Ready) -> str:
    if ready.local:
        return "Both servers answer to this machine only; nothing is open to the network."
    return "--expose: other machines can reach both servers. Give the password to those who need it only."
