"""`spica predictions`: list, delete, restore, refresh."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from spica.prelabel.removal import Removal

Now = Annotated[
    bool,
    typer.Option(
        "--now", help="Also those of tasks that may be open: whoever has one open loses what they submit of it."
    ),
]

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
    now: Now = False,
    url: Url = None,
    token: Token = None,
    data_dir: LabelStudioDataDir = None,
) -> None:
    """Delete predictions, after writing them to a file. Annotations stay.

    Spared, and counted: what was shown in the last 24 hours to whoever opened its task (the version that Label Studio
    shows is shown now), and what an annotation was made from.

    [bold]Example[/bold]: spica predictions delete --project 1 --version gwhd-1f2e3d4c
    """
    from spica.labelstudio.api.predictions import version_filter
    from spica.prelabel.removal import remove

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
        removal = remove(
            client,
            project,
            lambda each, _: version is None or each.model_version == version,
            backup=path,
            filters=(version_filter("contains", version),) if version else (),
            now=now,
        )
    _tell(removal, "predictions")


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
    now: Now = False,
    report: Report = None,
    model_url: ModelUrl = None,
    weights: JobWeights = None,
    url: Url = None,
    token: Token = None,
    data_dir: LabelStudioDataDir = None,
    basic_auth: ServerAuth = None,
    threshold: Threshold = None,
) -> None:
    """After a change of the model: the new version's predictions, which Label Studio shows from then on.

    Older ones go when nobody can have them open any more: 24 hours after the new one was stored. What is spared is
    counted, also what an annotation was made from; a task that could not be predicted keeps what it has. What is
    deleted is written to a file before; `spica predictions restore` puts it back.

    [bold]Example[/bold]: spica predictions refresh --project 1

    [bold]Exit status[/bold]: as that of `spica prelabel`.
    """
    from contextlib import ExitStack

    from spica.labelstudio.api.predictions import version_filter
    from spica.labelstudio.api.worklist import UNLABELLED
    from spica.prelabel.progress import FailureFile
    from spica.prelabel.removal import remove
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
            version = result.version
            for warning in client.show_version(project, version, basic_auth=basic_auth):
                err.print(f"[yellow]Note:[/yellow] {escape(warning)}")
            having = (version_filter("contains", version),)
            removal = remove(
                client,
                project,
                lambda each, stored: each.model_version != version and any(e.model_version == version for e in stored),
                backup=path,
                filters=having if annotated else (*having, UNLABELLED),
                now=now,
            )
            _tell(removal, "older predictions")
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _tell(removal: Removal, what: str) -> None:
    if removal.path is not None:
        path = escape(str(removal.path))
        out.print(f"Deleted {removal.deleted} {what}; they are kept in {path}.")
        out.print(f"To put them back: spica predictions restore {path}")
    elif not removal.shown and not removal.open and not removal.named:
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


def _backup_path(project: int) -> Path:
    from datetime import UTC, datetime

    return Path(f"predictions-{project}-{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}.jsonl")
