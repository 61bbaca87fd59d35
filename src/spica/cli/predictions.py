"""`spica predictions`: list, delete, restore, refresh."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from spica.cli.console import client_for, confirm, count, err, note, out
from spica.cli.options import (
    HELP,
    AsJson,
    DryRun,
    IncludeAnnotated,
    JobWeights,
    LabelStudioOptions,
    ProjectNumber,
    Report,
    ServerOptions,
    Threshold,
    Yes,
    add_commands,
)
from spica.cli.prelabel import JobOptions, look, print_result, run_job
from spica.errors import UsageError
from spica.settings import Settings

if TYPE_CHECKING:
    from spica.prelabel.removal import Removal

Now = Annotated[
    bool,
    typer.Option(
        "--now", help="Also those of tasks that may be open: whoever has one open loses what they submit of it."
    ),
]
Backup = Annotated[
    Path | None,
    typer.Option(
        "--backup",
        help="Where to write what is deleted.",
        show_default="backups/predictions-PROJECT-TIME.jsonl in the data folder",
    ),
]

predictions_app = typer.Typer(
    no_args_is_help=True,
    context_settings=HELP,
    help="Predictions that Label Studio stores: list, delete, restore, refresh.\n\n"
    "[bold]Example[/bold]: spica predictions list --project 1",
)


def list_predictions(project: ProjectNumber, place: LabelStudioOptions, as_json: AsJson = False) -> None:
    """How many predictions are stored, by version.

    [bold]Example[/bold]: spica predictions list --project 1
    """
    with client_for(place.settings()) as client:
        versions = client.prediction_versions(project)
    if as_json:
        print(json.dumps({"project": project, "versions": versions}, ensure_ascii=False))
        return
    if not versions:
        out.print(f"Project {project} has no predictions.")
        return
    from rich.table import Table

    table = Table("Version", "Predictions", title=f"Project {project}", title_justify="left")
    for version, number in versions.items():
        table.add_row(escape(version), str(number))
    out.print(table, soft_wrap=False)


def delete_predictions(
    project: ProjectNumber,
    place: LabelStudioOptions,
    version: Annotated[str | None, typer.Option(help="Only this version.", show_default="all versions")] = None,
    backup: Backup = None,
    now: Now = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Delete predictions, after writing them to a file. Annotations stay. It asks before; --yes answers for you.

    Spared, and counted: what was shown in the last 24 hours to whoever opened its task (the version that Label Studio
    shows is shown now), and what an annotation was made from.

    [bold]Example[/bold]: spica predictions delete --project 1 --version gwhd-1f2e3d4c
    """
    from spica.labelstudio.tasks_query import version_filter
    from spica.prelabel.removal import remove

    settings = place.settings()
    with client_for(settings) as client:
        known = client.prediction_versions(project)
        if version is not None and version not in known:
            raise UsageError(
                "the project has no predictions of this version",
                where=f"project {project}",
                expected=", ".join(known) or "none are stored",
                got=version,
            )
        path = _backup_path(backup, settings, project)
        removal = remove(
            client,
            project,
            lambda each, _: version is None or each.model_version == version,
            backup=path,
            filters=(version_filter("contains", version),) if version else (),
            now=now,
            confirm=_asking(project, "prediction", path, yes=yes, dry_run=dry_run),
        )
    _print_removal(removal, "predictions", dry_run=dry_run)


def restore_predictions(
    file: Annotated[Path, typer.Argument(help="What `delete` has written.", show_default=False)],
    place: LabelStudioOptions,
) -> None:
    """Put deleted predictions back; those that are there already are left alone.

    [bold]Example[/bold]: spica predictions restore predictions-1-20261123T101500Z.jsonl
    """
    from spica.labelstudio.backup import restore

    with client_for(place.settings()) as client:
        report = restore(client, file)
    out.print(f"Restored {count(report.restored, 'prediction')}; {report.present} were there already.")
    if report.gone_tasks:
        note(f"these tasks are gone: {', '.join(map(str, report.gone_tasks))}")
    for line in report.refused[:10]:
        err.print(f"[yellow]Refused by Label Studio:[/yellow] {escape(line)}")
    if not report.is_complete:
        raise typer.Exit(1)


def refresh_predictions(
    project: ProjectNumber,
    servers: ServerOptions,
    include_annotated: IncludeAnnotated = False,
    backup: Backup = None,
    now: Now = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    report: Report = None,
    weights: JobWeights = None,
    threshold: Threshold = None,
) -> None:
    """After a change of the model: the new version's predictions, which Label Studio shows from then on.

    Older ones are deleted when nobody can have them open any more: 24 hours after the new one was stored. It asks
    before; --yes answers for you. What is spared is counted, also what an annotation was made from; a task that could
    not be predicted keeps what it has. What is deleted is written to a file before; `spica predictions restore` puts
    it back.

    [bold]Example[/bold]: spica predictions refresh --project 1

    [bold]Exit status[/bold]: as that of `spica prelabel`; 2 also if older ones are left because nobody could be asked.
    """
    from spica.labelstudio.tasks_query import UNLABELLED, version_filter
    from spica.prelabel.progress import FailureFile
    from spica.prelabel.removal import remove
    from spica.prelabel.selection import Selection

    computing = {} if threshold is None else {"threshold": threshold}
    options = JobOptions(project, Selection(annotated=include_annotated), servers, weights, computing)
    with ExitStack() as stack:
        settings = options.label_studio()
        client = stack.enter_context(client_for(settings))
        exit_code = 0
        if dry_run:
            work = look(options)
            version = str(work["version"])
            out.print(f"{count(work['total'], 'task')} would be predicted as {escape(version)}.")
        else:
            file = FailureFile(report) if report is not None else None
            result = run_job(options, file)
            print_result(result, project, file)
            version, exit_code = result.version, result.exit_code
            if result.state == "stopped":
                raise typer.Exit(exit_code)
            for warning in client.show_version(project, version, basic_auth=servers.basic_auth):
                note(warning)
        having = (version_filter("contains", version),)
        path = _backup_path(backup, settings, project)
        removal = remove(
            client,
            project,
            lambda each, stored: each.model_version != version and any(e.model_version == version for e in stored),
            backup=path,
            filters=having if include_annotated else (*having, UNLABELLED),
            now=now,
            confirm=_asking(project, "older prediction", path, yes=yes, dry_run=dry_run),
        )
        _print_removal(removal, "older predictions", dry_run=dry_run)
    if exit_code:
        raise typer.Exit(exit_code)


def _asking(project: int, noun: str, path: Path, *, yes: bool, dry_run: bool) -> Callable[[int], bool]:
    """Told how many would be deleted, whether they are to be."""

    def ask(number: int) -> bool:
        if dry_run:
            out.print(f"{count(number, noun)} would be deleted. Nothing was changed.")
            return False
        if number == 0:
            return False
        confirm(
            f"Delete {count(number, noun)} of project {project}? They are kept in {path}.",
            yes=yes,
            refusal=f"{count(number, noun)} of project {project} would be deleted, and nobody can be asked",
        )
        return True

    return ask


def _print_removal(removal: Removal, what: str, *, dry_run: bool) -> None:
    if removal.path is not None:
        path = escape(str(removal.path))
        out.print(f"Deleted {count(removal.deleted, what.removesuffix('s'))}; they are kept in {path}.")
        out.print(f"To put them back: spica predictions restore {path}")
    elif not dry_run and not removal.shown and not removal.open and not removal.named:
        out.print(f"There are no {what} to delete.")
    if removal.shown:
        out.print(
            f"Spared {removal.shown}: Label Studio shows them, and their tasks may be open in a browser. --now "
            "deletes them too: do that when nobody is labelling."
        )
    if removal.open:
        out.print(
            f"Spared {removal.open}: they were shown in the last 24 hours, and their tasks may be open in a browser. "
            "Run it again later, or with --now if nobody is labelling."
        )
    if removal.named:
        out.print(f"Kept {removal.named}, which annotations were made from.")


def _backup_path(backup: Path | None, settings: Settings, project: int) -> Path:
    if backup is not None:
        return backup
    folder = settings.data_dir / "backups"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"predictions-{project}-{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}.jsonl"


add_commands(predictions_app, list_predictions, delete_predictions, restore_predictions, refresh_predictions)
