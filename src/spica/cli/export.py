"""`spica export`: annotated images as COCO, YOLO or Pascal VOC."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from spica.cli.annotated import fetch_project, read_data, require_one, tell_problems
from spica.cli.console import label_studio, out
from spica.cli.options import (
    AllowPartial,
    AnnotatedData,
    AnnotatedProject,
    DataDir,
    ImagesOfData,
    NotesFile,
    Token,
    Url,
)


def export(
    data: AnnotatedData = None,
    project: AnnotatedProject = None,
    format_name: Annotated[Literal["coco", "yolo", "voc"], typer.Option("--format", help="What to write.")] = "coco",
    folder: Annotated[
        Path | None, typer.Option("--out", help="The new folder.", show_default="project-N-FORMAT or DATA-FORMAT")
    ] = None,
    images: ImagesOfData = None,
    allow_partial: AllowPartial = False,
    notes: NotesFile = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Write annotated images as COCO, YOLO or Pascal VOC, with stable class ids and upright images.

    What is written is what `spica train` learns from: of a project the submitted annotations, one a task (ground truth,
    else the latest), images without objects too.

    [bold]Example[/bold]: spica export --project 1 --format yolo --out field-yolo
    """
    from spica.training import export as exports

    require_one(data, project, "export", notes)
    target = folder or _default_folder(data, project, format_name)
    exports.check_free(target, force=force)  # before an hour of reading
    if data is not None:
        dataset = read_data(data, images, allow_partial=allow_partial, notes=notes)
    else:
        settings = label_studio(url, token, data_dir)
        dataset, _ = fetch_project(project or 0, settings, allow_partial=allow_partial, notes=notes)
    tell_problems(dataset)
    done = exports.export(dataset, format_name, target, force=force)
    out.print(
        f"Wrote {done.images} images with {done.boxes} boxes to {escape(str(done.folder))}"
        + (f"; {done.turned} of them were turned upright." if done.turned else ".")
    )
    classes = ", ".join(f"{number} {escape(name)}" for number, name in enumerate(dataset.classes, 1))
    out.print(f"Classes: {classes}" if format_name == "coco" else f"Classes: {escape(', '.join(dataset.classes))}")


def _default_folder(data: Path | None, project: int | None, format_name: str) -> Path:
    return Path(f"project-{project}-{format_name}" if data is None else f"{data.resolve().stem}-{format_name}")
