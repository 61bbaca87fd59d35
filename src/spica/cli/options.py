"""Options that several commands share, and what every command has: ``-h``, ``-v``, ``-q``, names of the release before.

Default None means: from the environment, else the setting's default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from spica.cli.console import note, set_verbosity
from spica.settings import OLD_VARIABLES, Precision, help_for

HELP = {"help_option_names": ["-h", "--help"]}

RENAMED = {
    "up": {"--model-port": "--port"},
    "demo": {"--model-port": "--port", "--data-dir": "--folder"},
    "prelabel": {"--all": "--include-annotated", "--filter": "--tab"},
    "refresh": {"--all": "--include-annotated"},
}
"""Options that were renamed, by command; the old name works for one release."""


def _verbose(value: bool) -> None:
    if value:
        set_verbosity(verbose=True)


def _quiet(value: bool) -> None:
    if value:
        set_verbosity(quiet=True)


Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Log what is done.", callback=_verbose, expose_value=False, is_eager=True),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="No notes, no progress.", callback=_quiet, expose_value=False, is_eager=True),
]


_common = typer.Typer(add_completion=False)


@_common.command()
def _everywhere(verbose: Verbose = False, quiet: Quiet = False) -> None:
    pass


class Command(TyperCommand):
    """A command with ``-v`` and ``-q``, that takes renamed options, and whose help wraps to the terminal's width."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params = [*self.params, *typer.main.get_command(_common).params]
        self.help = re.sub(r"(?<!\n)\n(?!\n)", " ", self.help or "")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The same, with old names replaced by their new ones."""
        return super().parse_args(ctx, with_new_names(self.name or "", args))


def with_new_names(command: str, args: list[str]) -> list[str]:
    """A command's arguments, old names of options replaced by the new ones; each is noted."""
    renamed = dict(RENAMED.get(command, {}))
    names = {arg.partition("=")[0] for arg in args}
    if command in ("up", "demo") and "--port" in names and "--label-studio-port" not in names:
        if "--model-port" in names:  # as it was: Label Studio's port, and the model server's
            renamed["--port"] = "--label-studio-port"
        else:
            note("--port is the model server's port now; that of Label Studio is --label-studio-port")
    changed = []
    for arg in args:
        old, equals, value = arg.partition("=")
        if old in renamed:
            note(f"{old} is called {renamed[old]} now; the old name goes with the next release")
        changed.append(renamed.get(old, old) + equals + value)
    return changed


def note_old_variables() -> None:
    """Say which environment variables have another name now."""
    for old, new in OLD_VARIABLES.items():
        if os.environ.get(old):
            note(f"the environment variable {old} is called {new} now; the old name goes with the next release")


def add_commands(app: typer.Typer, *functions: Callable[..., None]) -> None:
    """Commands, each named by the first word of its function."""
    for function in functions:
        app.command(function.__name__.partition("_")[0], cls=Command, context_settings=HELP)(function)


Weights = Annotated[
    Path,
    typer.Option(
        "--weights",
        "--weight",
        help="Weights file: a state_dict of a detection network of torchvision's or Spica's (.pth, .safetensors), an "
        "ONNX export of YOLO, RT-DETR, D-FINE or RF-DETR, or what Spica wrote (.onnx, .xml, a version's folder).",
        show_default=False,
    ),
]
AnyWeights = Annotated[
    str,
    typer.Argument(help="Weights file, folder of a model version, or id of one in the store.", show_default=False),
]
JobWeights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        "--weight",
        help="Without a server: predict in this process, with these weights.",
        show_default=False,
    ),
]
Threshold = Annotated[float | None, typer.Option(min=0, max=1, help=help_for("threshold"), show_default="0.6")]
Eps = Annotated[float | None, typer.Option("--norm-eps", min=0, help=help_for("norm_eps"), show_default="0")]
MaxDetections = Annotated[int | None, typer.Option(min=1, help=help_for("max_detections"), show_default="1000")]
ChosenPrecision = Annotated[
    Precision | None, typer.Option("--precision", help=help_for("precision"), show_default="auto")
]
Tile = Annotated[
    str | None, typer.Option("--tile", metavar="off|auto|PIXELS", help=help_for("tile"), show_default="off")
]
Overlap = Annotated[
    float | None, typer.Option("--overlap", min=0, max=0.5, help=help_for("overlap"), show_default="0.2")
]
Host = Annotated[str | None, typer.Option(help=help_for("host"), show_default="127.0.0.1")]
Expose = Annotated[bool, typer.Option("--expose", help="Allow a --host that other machines can reach.")]
AllowedHosts = Annotated[
    list[str] | None,
    typer.Option("--allowed-host", help=help_for("allowed_hosts") + " May be given several times.", show_default=False),
]
Port = Annotated[int | None, typer.Option("--port", min=0, max=65535, help=help_for("model_port"), show_default="8010")]
LabelStudioPort = Annotated[
    int | None, typer.Option(min=0, max=65535, help=help_for("label_studio_port"), show_default="8080")
]
NoBrowser = Annotated[bool, typer.Option("--no-browser", help="Do not open the browser.")]
Check = Annotated[
    bool,
    typer.Option("--check", help="Stop when every task has a prediction, say how many; fail if one has none."),
]
Url = Annotated[str | None, typer.Option(help=help_for("label_studio_url"), show_default="http://127.0.0.1:8080")]
Token = Annotated[str | None, typer.Option(help=help_for("label_studio_api_key"), show_default=False)]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help=help_for("data_dir"), show_default="the user's data folder")
]
ProjectNumber = Annotated[int, typer.Option("--project", min=1, help="The project's number, as in its address.")]
ModelUrl = Annotated[
    str | None,
    typer.Option(
        "--model-url",
        help="Address of the model server, as Label Studio reaches it.",
        show_default="http://127.0.0.1:8010",
    ),
]
BasicAuth = Annotated[str | None, typer.Option("--basic-auth", help=help_for("basic_auth"), show_default=False)]
IncludeAnnotated = Annotated[
    bool, typer.Option("--include-annotated", help="Tasks that already carry annotations too.")
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
Report = Annotated[
    Path | None,
    typer.Option(help="Write each failed task with its reason to this file, a JSON object a line.", show_default=False),
]
AnnotatedData = Annotated[
    Path | None,
    typer.Argument(
        help="A COCO json, a YOLO or Pascal VOC folder, or a JSON export of Label Studio.", show_default=False
    ),
]
AnnotatedProject = Annotated[
    int | None,
    typer.Option(
        "--project", min=1, help="The submitted annotations of this project of Label Studio.", show_default=False
    ),
]
ImagesOfData = Annotated[
    Path | None,
    typer.Option("--images", help="Where the images of DATA are, if not beside it.", show_default=False),
]
AllowPartial = Annotated[
    bool,
    typer.Option("--allow-partial", help="Go on even if the labels of more than a tenth of the images are in doubt."),
]
NotesFile = Annotated[
    Path | None,
    typer.Option(
        "--notes",
        metavar="FILE",
        help="Write each image that is left out to this file, with the reason.",
        show_default=False,
    ),
]
