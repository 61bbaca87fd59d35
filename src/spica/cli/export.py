"""`spica export`: annotated images as COCO, YOLO or Pascal VOC."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from spica.cli.console import client_for, err, label_studio, out
from spica.cli.options import AnnotatedData, AnnotatedProject, LabelStudioDataDir, Token, Url
from spica.errors import UsageError

if TYPE_CHECKING:
    from spica.settings import Settings
    from spica.training.dataset import DataSet


def export(
    data: AnnotatedData = None,
    project: AnnotatedProject = None,
    format_name: Annotated[Literal["coco", "yolo", "voc"], typer.Option("--format", help="What to write.")] = "coco",
    folder: Annotated[
        Path | None, typer.Option("--out", help="The new folder.", show_default="project-N-FORMAT or DATA-FORMAT")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Where the images of DATA are, if not beside it.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    url: Url = None,
    token: Token = None,
    data_dir: LabelStudioDataDir = None,
) -> None:
    """Write annotated images as COCO, YOLO or Pascal VOC, with stable class ids and upright images.

    What is written is what `spica train` learns from: of a project the submitted annotations, one a task (ground truth,
    else the latest), images without objects too.

    [bold]Example[/bold]: spica export --project 1 --format yolo --out field-yolo
    """
    from spica.training import export as exports

    if (data is None) == (project is None):
        raise UsageError(
            "tell what to export",
            expected="either DATA or --project",
            got="both" if data is not None else "neither",
        )
    target = folder or _default_folder(data, project, format_name)
    exports.check_free(target, force=force)  # before an hour of reading
    dataset = (
        _read(data, images) if data is not None else fetch_project(project or 0, label_studio(url, token, data_dir))
    )
    for problem in dataset.problems:
        err.print(f"[yellow]Note:[/yellow] {escape(problem)}")
    done = exports.export(dataset, format_name, target, force=force)
    out.print(
        f"Wrote {done.images} images with {done.boxes} boxes to {escape(str(done.folder))}"
        + (f"; {done.turned} of them were turned upright." if done.turned else ".")
    )
    classes = ", ".join(f"{number} {escape(name)}" for number, name in enumerate(dataset.classes, 1))
    out.print(f"Classes: {classes}" if format_name == "coco" else f"Classes: {escape(', '.join(dataset.classes))}")


def _default_folder(data: Path | None, project: int | None, format_name: str) -> Path:
    return Path(f"project-{project}-{format_name}" if data is None else f"{data.resolve().stem}-{format_name}")


def _read(data: Path, images: Path | None) -> DataSet:
    from spica.training.sources import load

    with err.status(f"Reading {escape(str(data))} …"):
        return load(data, images=images)


def fetch_project(project: int, settings: Settings) -> DataSet:
    """A project's data set, its images kept in Spica's own folder."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from spica.labelstudio.media import MediaReader
    from spica.labelstudio.tokens import LabelStudioAuth
    from spica.training.annotations import fetch
    from spica.training.photos import photos_in

    key = settings.label_studio_api_key
    with ExitStack() as stack:
        client = stack.enter_context(client_for(settings))
        media = stack.enter_context(
            MediaReader(
                label_studio_url=settings.label_studio_url,
                auth=None if key is None else LabelStudioAuth(settings.label_studio_url, key.get_secret_value()),
                document_root=settings.local_files_document_root,
                media_dir=settings.label_studio_data_dir / "media",
                max_bytes=settings.max_image_bytes,
                timeout_s=settings.media_timeout_s,
            )
        )
        columns = (TextColumn("Reading annotations"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        bar = stack.enter_context(Progress(*columns, console=err, transient=True))
        row = bar.add_task("", total=None)
        return fetch(
            client,
            media,
            project,
            photos_in(settings.data_dir),
            progress=lambda done, total: bar.update(row, completed=done, total=total),
        )
