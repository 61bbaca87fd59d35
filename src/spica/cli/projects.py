"""Which project a number on the command line means, and what is kept of it."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from spica.cli.console import client_for, err
from spica.errors import LabelStudioError, StorageError, UsageError
from spica.project import ProjectKey
from spica.settings import Settings


def project_here(number: int, data_dir: Path, settings: Settings) -> ProjectKey:
    """The project of a number, as Label Studio tells it; where that can't be asked, the one that something is kept of.

    With neither, the number alone: the model server gives what is kept under it to the project it turns out to be.

    Raises:
        UsageError: Label Studio can't be asked, and several are known.
        LabelStudioError: Label Studio has no such project.
    """
    from spica.errors import LabelStudioRefusedError
    from spica.models import active

    why = "there is no token for Label Studio"
    if settings.label_studio_api_key is not None:
        try:
            with client_for(settings) as client:
                found = client.project(number).key
        except LabelStudioRefusedError:
            raise
        except LabelStudioError as error:
            why = error.summary
        else:
            with_old_state(data_dir, found)
            return found
    known = [key for key in active.projects(data_dir) if key.number == number]
    if len(known) > 1:
        raise UsageError(
            f"there are several projects {number}, each of another Label Studio",
            where=str(data_dir / "active"),
            expected="a Label Studio that says which one is meant",
            got=f"{why}; known are those created {', '.join(key.date or 'at an unknown time' for key in known)}",
            hint="give the address and token of the one that is meant with --url and --token, or --data-dir of its "
            "`spica up`",
        )
    return known[0] if known else ProjectKey(number)


def with_old_state(data_dir: Path, project: ProjectKey) -> None:
    """Give what an older Spica has kept of a project its name; say what is left."""
    from spica.training.takeover import take_over

    try:
        take_over(data_dir, project)
    except StorageError as error:
        err.print(f"[yellow]Note:[/yellow] {escape(error.summary)}")
