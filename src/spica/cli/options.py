"""Options that several commands share, and what every command has: ``-h``, ``-v``, ``-q``, names of the release before.

Default None means: from the environment, else the setting's default.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from spica.cli.console import label_studio, model_server_of, note, set_verbosity, settings_with
from spica.settings import OLD_VARIABLES, Precision, Settings, help_for

if TYPE_CHECKING:
    from spica.connect import RemoteServer

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


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelStudioOptions:
    """Where Label Studio is; None for what is not said."""

    url: Url = None
    token: Token = None
    data_dir: DataDir = None

    def settings(self, url: str | None = None, **others: Any) -> Settings:
        """With address, token and folders of Label Studio as far as they are known; ``url`` stands in for --url."""
        return label_studio(self.url or url, self.token, self.data_dir, **others)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions(LabelStudioOptions):
    """Where Label Studio and the model server are; None for what is not said."""

    model_url: ModelUrl = None
    basic_auth: BasicAuth = None

    def settings(self, url: str | None = None, **others: Any) -> Settings:
        """With address, token and folders of Label Studio as far as they are known; ``url`` stands in for --url."""
        return label_studio(self.url or url, self.token, self.data_dir, basic_auth=self.basic_auth, **others)

    def server(self) -> RemoteServer:
        """The model server, to be used in a ``with`` block."""
        from spica.connect import RemoteServer

        return RemoteServer(*model_server_of(settings_with(basic_auth=self.basic_auth), self.model_url))


@dataclass(frozen=True, slots=True, kw_only=True)
class Computing:
    """How the network computes, and what is shown of it; None for the settings' own."""

    threshold: Threshold = None
    norm_eps: Eps = None
    max_detections: MaxDetections = None
    precision: ChosenPrecision = None
    tile: Tile = None
    overlap: Overlap = None

    def given(self) -> dict[str, Any]:
        """The settings that were given, by name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def add_commands(app: typer.Typer, *functions: Callable[..., None]) -> None:
    """Commands, each named by the first word of its function."""
    for function in functions:
        app.command(function.__name__.partition("_")[0], cls=Command, context_settings=HELP)(expanded(function))


def expanded(function: Callable[..., None]) -> Callable[..., None]:
    """A command in which each parameter that is a dataclass of options is these options."""
    hints = get_type_hints(function, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[Any, list[str]]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind = hints[name]
        if not dataclasses.is_dataclass(kind):
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=kind))
            continue
        options = get_type_hints(kind, include_extras=True)
        groups[name] = (kind, [each.name for each in dataclasses.fields(kind)])
        parameters += [
            inspect.Parameter(each.name, parameter.KEYWORD_ONLY, default=each.default, annotation=options[each.name])
            for each in dataclasses.fields(kind)
        ]

    def command(**values: Any) -> None:
        for name, (kind, names) in groups.items():
            values[name] = kind(**{each: values.pop(each) for each in names})
        function(**values)

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command
