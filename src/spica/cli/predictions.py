"""`spica predictions`: list, delete, restore, refresh."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from spica.cli.console import client_for, err, label_studio, out
from spica.cli.jobs import Order, label_studio_of, run_job, sum_up
from spica.cli.options import (
    JobWeights,
    LabelStudioDataDir,
    ModelUrl,
    ProjectNumber,
    Report,
    ServerAuth,
    Threshold,
    Token,
    Url,
)
from spica.errors import UsageError

predictions_app = typer.Typer(
    no_args_is_help=True,
    help="Predictions that Label Studio stores: list, delete, restore, refresh.\n\n"
    "[bold]Example[/bold]: spica predictions list --project 1",
)


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
    with client_for(label_studio(url, token, data_dir)) as client:
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
    out.print(table, soft_wrap=False)


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
    from spica.labelstudio.predictions_backup import delete_with_backup

    path = backup or _backup_path(project)
    with client_for(label_studio(url, token, data_dir)) as client:
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

    with client_for(label_studio(url, token, data_dir)) as client:
        report = restore(client, file)
    out.print(f"Restored {report.restored} predictions; {report.present} were there already.")
    if report.gone_tasks:
        err.print(f"[yellow]Note:[/yellow] these tasks are gone: {', '.join(map(str, report.gone_tasks))}")
    for line in report.refused[:10]:
        err.print(f"[yellow]Note:[/yellow] refused by Label Studio: {escape(line)}")
    if not report.is_complete:
        raise typer.Exit(1)


@predictions_app.command("refresh")
def refresh_predictions(
    project: ProjectNumber,
    annotated: Annotated[
        bool, typer.Option("--all", help="Tasks that already carry annotations too; they are left alone otherwise.")
    ] = False,
    backup: Annotated[
        Path | None,
        typer.Option(help="Where to write what is deleted.", show_default="predictions-PROJECT-TIME.jsonl"),
    ] = None,
    report: Report = None,
    model_url: ModelUrl = None,
    weights: JobWeights = None,
    url: Url = None,
    token: Token = None,
    data_dir: LabelStudioDataDir = None,
    basic_auth: ServerAuth = None,
    threshold: Threshold = None,
) -> None:
    """After a change of the model: the new version's predictions first, then the older ones go, task by task.

    A task that could not be predicted keeps what it has. What is deleted is written to a file before;
    `spica predictions restore` puts it back.

    [bold]Example[/bold]: spica predictions refresh --project 1

    [bold]Exit status[/bold]: as that of `spica prelabel`.
    """
    from contextlib import ExitStack

    from spica.prelabel.failures import FailureFile
    from spica.prelabel.refresh import remove_older
    from spica.prelabel.selection import Selection

    order = Order(
        project=project,
        selection=Selection(annotated=annotated),
        watch=False,
        weights=weights,
        model_url=model_url,
        url=url,
        token=token,
        data_dir=data_dir,
        settings={"threshold": threshold, "basic_auth": basic_auth},
    )
    path = backup or _backup_path(project)
    with ExitStack() as stack:
        client = stack.enter_context(client_for(label_studio_of(order)))
        file = stack.enter_context(FailureFile(report)) if report is not None else None
        result = run_job(order, file)
        sum_up(result, project, file)
        if result.state != "stopped":
            removal = remove_older(client, project, result.version, annotated=annotated, backup=path)
            if removal.path is None:
                out.print("There are no older predictions beside the new ones.")
            else:
                out.print(f"Deleted {removal.deleted} older predictions; they are kept in {escape(str(removal.path))}.")
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _backup_path(project: int) -> Path:
    from datetime import UTC, datetime

    return Path(f"predictions-{project}-{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}.jsonl")
