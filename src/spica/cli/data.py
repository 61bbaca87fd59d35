"""Annotated images for the commands that learn from them, judge by them or write them; and `spica export`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from spica.cli.console import client_for, count, note, out, settings_with
from spica.cli.options import LabelStudioOptions
from spica.cli.progress import Bar, working
from spica.errors import StorageError, UsageError
from spica.project import ProjectKey

if TYPE_CHECKING:
    from spica.settings import Settings
    from spica.training.dataset import DataSet

_NOTES = "image\treason\n"
"""First line of the notes, by which they are known again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions(LabelStudioOptions):
    """Which annotated images, and what becomes of those in doubt."""

    data: Annotated[
        Path | None,
        typer.Argument(
            help="A COCO json, a YOLO or Pascal VOC folder, or a JSON export of Label Studio.", show_default=False
        ),
    ] = None
    project: Annotated[
        int | None,
        typer.Option(
            "--project", min=1, help="The submitted annotations of this project of Label Studio.", show_default=False
        ),
    ] = None
    images: Annotated[
        Path | None,
        typer.Option("--images", help="Where the images of DATA are, if not beside it.", show_default=False),
    ] = None
    allow_partial: Annotated[
        bool,
        typer.Option(
            "--allow-partial", help="Go on even if the labels of more than a tenth of the images are in doubt."
        ),
    ] = False
    notes: Annotated[
        Path | None,
        typer.Option(
            "--notes",
            metavar="FILE",
            help="Write each image that is left out to this file, with the reason.",
            show_default=False,
        ),
    ] = None

    def settings(self, url: str | None = None, **others: Any) -> Settings:
        """With Label Studio's address, token and folders where a project is named."""
        if self.project is None:
            return settings_with(data_dir=self.data_dir, **others)
        return LabelStudioOptions.settings(self, url, **others)

    def check(self, purpose: str) -> None:
        """See that either data or a project is named, and begin the file of the notes.

        Raises:
            UsageError: neither, or both; or the notes can't be written, or would overwrite something else.
        """
        if (self.data is None) == (self.project is None):
            raise UsageError(
                f"say what to {purpose}",
                expected="either DATA or --project",
                got="both" if self.data is not None else "neither",
            )
        path = self.notes
        if path is None:
            return
        try:
            if path.is_file() and path.stat().st_size and not path.read_bytes().startswith(_NOTES.encode()):
                raise UsageError("the file is there already, and holds no such notes", where=f"--notes {path}")
            path.write_text(_NOTES, "utf-8", newline="\n")  # before an hour of reading
        except OSError as error:
            raise UsageError("the notes can't be written", where=f"--notes {path}", got=error.strerror) from error

    def read(
        self, settings: Settings, *, split: str | None = None, classes: Sequence[str] | None = None
    ) -> tuple[DataSet, ProjectKey | None]:
        """The annotated images, and the project that they are of, if any."""
        if self.data is not None:
            return self.read_file(self.data, images=self.images, split=split, classes=classes), None
        dataset, project = fetch_project(self.project or 0, settings, self)
        with_old_state(settings.data_dir, project)
        return dataset, project

    def read_file(
        self,
        path: Path,
        *,
        images: Path | None = None,
        split: str | None = None,
        classes: Sequence[str] | None = None,
    ) -> DataSet:
        """A data set from files, whatever --project says."""
        from spica.training.sources import load

        with working(f"Reading {path} …"):
            return load(
                path, images=images, split=split, classes=classes, allow_partial=self.allow_partial, notes=self.notes
            )


def fetch_project(number: int, settings: Settings, options: DataOptions) -> tuple[DataSet, ProjectKey]:
    """A project's data set, its images kept in Spica's own folder; and which project it is."""
    from spica.labelstudio.auth import LabelStudioAuth
    from spica.labelstudio.media import media_for
    from spica.training.submissions import fetch, image_cache

    key = settings.label_studio_api_key
    with ExitStack() as stack:
        client = stack.enter_context(client_for(settings))
        auth = None if key is None else LabelStudioAuth(settings.label_studio_url, key.get_secret_value())
        media = stack.enter_context(media_for(settings, auth))
        bar = stack.enter_context(Bar("Reading annotations", transient=True))
        dataset = fetch(
            client,
            media,
            number,
            image_cache(settings.data_dir),
            progress=bar.show,
            allow_partial=options.allow_partial,
            notes=options.notes,
        )
        return dataset, client.project(number).key


def with_old_state(data_dir: Path, project: ProjectKey) -> None:
    """Give what an older Spica has kept of a project its name; say what is left."""
    from spica.training.takeover import take_over

    try:
        take_over(data_dir, project)
    except StorageError as error:
        note(error.summary)


def note_problems(dataset: DataSet) -> None:
    """Say what was left out or corrected."""
    for problem in dataset.problems:
        note(problem)


def export(
    data: DataOptions,
    format_name: Annotated[Literal["coco", "yolo", "voc"], typer.Option("--format", help="What to write.")] = "coco",
    folder: Annotated[
        Path | None, typer.Option("--out", help="The new folder.", show_default="project-N-FORMAT or DATA-FORMAT")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Write annotated images as COCO, YOLO or Pascal VOC, with stable class ids and upright images.

    What is written is what `spica train` learns from: of a project the submitted annotations, one a task (ground truth,
    else the latest), images without objects too.

    [bold]Example[/bold]: spica export --project 1 --format yolo --out field-yolo
    """
    from spica.training import export as exports

    data.check("export")
    stem = f"project-{data.project}" if data.data is None else data.data.resolve().stem
    target = folder or Path(f"{stem}-{format_name}")
    exports.check_free(target, force=force)  # before an hour of reading
    dataset, _ = data.read(data.settings())
    note_problems(dataset)
    done = exports.export(dataset, format_name, target, force=force)
    out.print(
        f"Wrote {count(done.images, 'image')} with {count(done.boxes, 'box')} to {escape(str(done.folder))}"
        + (f"; {done.turned} of them were turned upright." if done.turned else ".")
    )
    names = [f"{number} {name}" if format_name == "coco" else name for number, name in enumerate(dataset.classes, 1)]
    out.print(f"Classes: {escape(', '.join(names))}")
