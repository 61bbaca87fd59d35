"""`spica demo` and `spica up`."""

from __future__ import annotations

import tempfile
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from spica.cli.console import count, err, identify, is_quiet, log_to_file, note, out, read_text, settings_with
from spica.cli.options import (
    AllowedHosts,
    Check,
    Computing,
    Expose,
    Host,
    LabelStudioPort,
    NoBrowser,
    Port,
    Weights,
)
from spica.cli.prelabel import print_failures
from spica.cli.progress import Bar, ctrl_c, duration
from spica.errors import LaunchError, UsageError
from spica.settings import Settings, variable_set

if TYPE_CHECKING:
    from spica.prelabel.progress import Progress
    from spica.up import Ready


def demo(
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the photographs and all data.", show_default="spica-demo; with --check, a new one"
        ),
    ] = None,
    host: Host = None,
    port: Port = None,
    label_studio_port: LabelStudioPort = None,
    expose: Expose = False,
    no_browser: NoBrowser = False,
    check: Check = False,
) -> None:
    """Show it all on 24 rendered photographs of wheat; nothing else is needed.

    [bold]Example[/bold]: spica demo
    """
    from spica.demo import model_folder
    from spica.demo.field import DEMO_FIRST_SEED, write_images
    from spica.up import DATA_FOLDER

    with tempfile.TemporaryDirectory(prefix="spica-demo-", ignore_cleanup_errors=True) as temporary:
        base = (folder or Path(temporary if check else "spica-demo")).resolve()
        settings = settings_with(
            host=host,
            model_port=0 if check and port is None else port,
            label_studio_port=0 if check and label_studio_port is None else label_studio_port,
            data_dir=base / DATA_FOLDER,
        )
        photographs = base / "photographs"
        if not photographs.is_dir() and not is_quiet():
            err.print(f"Rendering 24 photographs of wheat into {escape(str(photographs))}")
        write_images(photographs, 24, first_seed=DEMO_FIRST_SEED)
        _up(settings, photographs, model_folder(), title="spikeDet", expose=expose, browser=not no_browser, check=check)


def up(
    images: Annotated[Path, typer.Argument(help="Folder of photographs, sub-folders included.", show_default=False)],
    weights: Weights,
    computing: Computing,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Names of the labels, separated by commas.", show_default="what the weights call their classes"
        ),
    ] = None,
    label_config: Annotated[
        Path | None, typer.Option(help="File with a labelling configuration (XML), instead of --labels.")
    ] = None,
    project: Annotated[
        str | None,
        typer.Option("--project", help="Title of the project, 3 to 50 characters.", show_default="name of the folder"),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data-dir",
            help="Spica's data folder: everything that is kept is in it. (SPICA_DATA_DIR)",
            show_default="spica-data beside IMAGES",
        ),
    ] = None,
    port: Port = None,
    label_studio_port: LabelStudioPort = None,
    host: Host = None,
    expose: Expose = False,
    allowed_host: AllowedHosts = None,
    no_browser: NoBrowser = False,
    check: Check = False,
) -> None:
    """From a folder of photographs to boxes in Label Studio.

    Starts Label Studio and the model server, makes the project, predicts all photographs. Run it again after adding
    photographs: they are added, nothing is doubled.

    [bold]Example[/bold]: spica up photos --weights gwhd.pth --labels spike
    """
    from spica.labelstudio.client import checked_title
    from spica.up import DATA_FOLDER, label_config_for, project_title

    if labels is not None and label_config is not None:
        raise UsageError("the labels are given twice", where="spica up", expected="either --labels or --label-config")
    if project is not None:
        checked_title(project)
    beside = images.resolve().parent / DATA_FOLDER
    settings = settings_with(
        host=host,
        model_port=port,
        label_studio_port=label_studio_port,
        data_dir=data_dir or (None if variable_set("data_dir") else beside),
        allowed_hosts=allowed_host,
        **computing.given(),
    )
    config = None
    if label_config is not None:
        config = read_text(label_config, "--label-config")
    elif labels is not None:
        config = label_config_for(labels.split(","))
    title = project or project_title(images.resolve())
    _up(settings, images, weights, config, title=title, expose=expose, browser=not no_browser, check=check)


def _up(
    settings: Settings,
    images: Path,
    weights: Path,
    label_config: str | None = None,
    *,
    title: str,
    expose: bool,
    browser: bool,
    check: bool,
) -> None:
    from spica.labelstudio.config import parse_label_config
    from spica.labelstudio.data_folder import LABEL_STUDIO_FOLDER
    from spica.up import Request, check_labels, find_images, label_config_for, labels_of, prepare_data_dir, running

    photographs, passed_over = find_images(images)
    if label_config is not None:
        parse_label_config(label_config)
    identity = identify(weights, settings)
    label_config = label_config or label_config_for(labels_of(identity))
    if not (settings.data_dir / LABEL_STUDIO_FOLDER).exists():  # else the project may have labels of its own by now
        check_labels(identity.classes, label_config)
    if passed_over is not None:
        note(passed_over)
    data_dir = prepare_data_dir(settings.data_dir, images.resolve())
    settings = settings.model_copy(update={"data_dir": data_dir})
    log_to_file(data_dir / "logs" / "spica.log")
    request = Request(images.resolve(), photographs, identity, label_config, title, expose)
    with ctrl_c():
        display = _Display()
        try:
            with running(request, settings, say=display.say, note=note, on_progress=display.show) as ready:
                display.close()
                print_failures(ready.progress, "the others go on", "the others are in the log")
                if check:
                    ready.check()
                else:
                    _print_frame(ready, settings)
                    if browser:
                        webbrowser.open(ready.url)
                    _wait(ready)
        finally:
            display.close()
    if check:
        boxes = count(ready.progress.boxes, "new box")
        print(f"{count(ready.tasks, 'task')}, {ready.predicted} predicted, {boxes}")
    else:
        out.print("Stopped. Everything is kept; run the same command to go on.")


def _wait(ready: Ready) -> None:
    """Until Ctrl-C, or until Label Studio ends by itself."""
    pause = threading.Event()
    try:
        while ready.label_studio.is_running:
            pause.wait(0.5)
    except KeyboardInterrupt:
        out.print("\nStopping …")
        return
    raise LaunchError(
        "Label Studio has ended by itself", where=ready.url, hint=f"see its log in {ready.label_studio.log_file}"
    )


class _Display:
    """What is being done, a line each where there is no terminal; then a bar of the predictions."""

    def __init__(self) -> None:
        self._status = err.status("")
        self._bar: Bar | None = None

    def say(self, line: str) -> None:
        if is_quiet():
            return
        if err.is_terminal:
            self._status.update(escape(line))
            self._status.start()
        else:
            err.print(escape(line))

    def show(self, progress: Progress) -> None:
        if progress.total == 0:
            return
        if self._bar is None:
            self._status.stop()
            self._bar = Bar("Predicting").__enter__()
        rest = " · ".join(filter(None, (count(progress.boxes, "box"), duration(progress.eta_s))))
        self._bar.show(progress.done, progress.total, rest=rest)

    def close(self) -> None:
        self._status.stop()
        if self._bar is not None:
            self._bar.__exit__()


def _print_frame(ready: Ready, settings: Settings) -> None:
    from rich.panel import Panel

    from spica.http import is_local

    process = ready.label_studio
    predicted = f"{ready.predicted} of {count(ready.tasks, 'photograph')}, {count(ready.progress.boxes, 'new box')}"
    stop = "Ctrl-C" + (" (Label Studio was running before and goes on)" if process.adopted else "")
    reach = (
        "Both servers answer to this machine only; nothing is open to the network."
        if is_local(settings.host)
        else "--expose: other machines can reach both servers. Give the password to those who need it only."
    )
    rows = {
        "Open": ready.url,
        "Login": process.credentials.email,
        "Password": process.credentials.password,
        "": "",
        "Predicted": predicted,
        "Model": ready.model_url,
        "Data": str(settings.data_dir),
        "Stop": stop,
    }
    lines = [f"[bold]{name}[/bold]{' ' * (10 - len(name))}{escape(value)}" for name, value in rows.items()]
    lines += [
        "",
        "[dim]Label Studio is set to accept a model server on this machine, which it refuses by default.\n"
        f"{reach}[/dim]",
    ]
    panel = Panel("\n".join(lines), title=escape(ready.project.title), title_align="left", expand=False)
    out.print(panel, soft_wrap=False)
