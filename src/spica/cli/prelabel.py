"""`spica prelabel`: predictions for a whole project."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer
from rich.markup import escape

from spica.cli.console import out
from spica.cli.jobs import Order, look, run_job, sum_up
from spica.cli.options import (
    ChosenPrecision,
    Eps,
    JobWeights,
    LabelStudioDataDir,
    MaxDetections,
    ModelUrl,
    Overlap,
    ProjectNumber,
    Report,
    ServerAuth,
    Threshold,
    Tile,
    Token,
    Url,
)


def prelabel(
    project: ProjectNumber,
    annotated: Annotated[bool, typer.Option("--all", help="Tasks that already carry annotations too.")] = False,
    task: Annotated[
        list[int] | None, typer.Option(min=1, help="Only this task; may be given several times.", show_default=False)
    ] = None,
    view: Annotated[
        int | None,
        typer.Option(
            "--filter",
            min=1,
            help="Only what this tab of the Data Manager shows (tab=N in its address).",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what there is to do.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Stay, and predict tasks as they are added; Ctrl-C ends it.")
    ] = False,
    report: Report = None,
    model_url: ModelUrl = None,
    weights: JobWeights = None,
    url: Url = None,
    token: Token = None,
    data_dir: LabelStudioDataDir = None,
    basic_auth: ServerAuth = None,
    threshold: Threshold = None,
    norm_eps: Eps = None,
    max_detections: MaxDetections = None,
    precision: ChosenPrecision = None,
    tile: Tile = None,
    overlap: Overlap = None,
) -> None:
    """Predict every task of a project that has no prediction of the model's version, and store the predictions.

    The running model server does it (`spica serve`, `spica up`); with --weights, this process does. What is done is
    asked from Label Studio: stop it when you like, run it again, and it goes on; nothing is doubled. Images that people
    open meanwhile come first.

    [bold]Example[/bold]: spica prelabel --project 1

    [bold]Exit status[/bold]: 0 all stored, 3 some tasks failed, 4 none could be stored, 2 wrong usage, 1 other errors,
    130 stopped by Ctrl-C.
    """
    from spica.prelabel.progress import FailureFile
    from spica.prelabel.selection import Selection

    order = Order(
        project=project,
        selection=Selection(annotated=annotated, tasks=tuple(task or ()), view=view),
        watch=watch,
        weights=weights,
        model_url=model_url,
        url=url,
        token=token,
        data_dir=data_dir,
        settings={
            "threshold": threshold,
            "norm_eps": norm_eps,
            "max_detections": max_detections,
            "precision": precision,
            "tile": tile,
            "overlap": overlap,
            "basic_auth": basic_auth,
        },
    )
    if dry_run:
        _say(look(order), project)
        return
    with ExitStack() as stack:
        file = stack.enter_context(FailureFile(report)) if report is not None else None
        result = run_job(order, file)
        sum_up(result, project, file)
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _say(found: dict[str, object], project: int) -> None:
    out.print(
        f"Project {project} ({escape(str(found['title']))}): {found['total']} tasks would be predicted "
        f"as {escape(str(found['version']))}. Nothing was changed."
    )
    if found["annotated"]:
        out.print(f"{found['annotated']} tasks that carry annotations are left alone; --all takes them too.")
