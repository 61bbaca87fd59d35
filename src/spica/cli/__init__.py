"""The commands: parse, call, print."""

from __future__ import annotations

import sys
import tempfile
import traceback
from typing import Annotated

import typer
from rich.markup import escape

from spica import __version__
from spica.cli.bench import bench
from spica.cli.console import err, out, set_verbosity
from spica.cli.data import export
from spica.cli.evaluate import evaluate
from spica.cli.models import models_app
from spica.cli.options import HELP, add_commands, note_old_variables
from spica.cli.predictions import predictions_app
from spica.cli.prelabel import prelabel
from spica.cli.server import connect, doctor, serve, settings_command, status
from spica.cli.train import train
from spica.cli.up import demo, up
from spica.errors import SpicaError

app = typer.Typer(
    name="spica",
    no_args_is_help=True,
    context_settings=HELP,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="A detector proposes boxes, you correct them in Label Studio.\n\n"
    "[bold]Example[/bold]: spica up photos --weights gwhd.pth --labels spike",
    epilog="Every option that names an environment variable can be set by it; `spica settings` lists all settings.",
)
add_commands(app, demo, up, serve, connect, prelabel, status, doctor, train, evaluate, export, bench, settings_command)
app.add_typer(predictions_app, name="predictions")
app.add_typer(models_app, name="models")


def _version(value: bool) -> None:
    if value:
        out.print(f"spica {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No notes, no progress.")] = False,
) -> None:
    set_verbosity(verbose=verbose, quiet=quiet)
    note_old_variables()


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
    except OSError as error:  # a name that is too long, a folder that is gone: nobody's fault but the path's
        err.print("[red]Error:[/red] the system refused a file or folder")
        err.print(f"  where:    {escape(str(error.filename or 'the current folder'))}")
        err.print(f"  got:      {escape(error.strerror or type(error).__name__)}")
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - the border of the program: the traceback goes to a file
        with tempfile.NamedTemporaryFile(
            "w", prefix="spica-failure-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            traceback.print_exc(file=file)
        err.print(f"[red]Error:[/red] Spica failed unexpectedly: {escape(type(error).__name__)}")
        err.print(f"  to do:    please report it, with the file {escape(file.name)}")
        sys.exit(70)
