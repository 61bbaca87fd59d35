"""Annotated images for the commands that learn from them, judge by them or write them: one way to read each kind."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from spica.cli.console import client_for, note
from spica.cli.progress import Bar, working
from spica.errors import UsageError

if TYPE_CHECKING:
    from spica.project import ProjectKey
    from spica.settings import Settings
    from spica.training.dataset import DataSet


_NOTES = "image\treason\n"
"""First line of the notes, by which they are known again."""


def require_one(data: Path | None, project: int | None, what: str, notes: Path | None) -> None:
    """Check that either data or a project is named, and begin the file of the notes.

    Raises:
        UsageError: neither, or both; or the notes can't be written, or would overwrite something else.
    """
    if (data is None) == (project is None):
        raise UsageError(
            f"tell what to {what}",
            expected="either DATA or --project",
            got="both" if data is not None else "neither",
        )
    if notes is not None:
        try:
            if notes.is_file() and notes.stat().st_size and not notes.read_bytes().startswith(_NOTES.encode()):
                raise UsageError("the file is there already, and holds no such notes", where=f"--notes {notes}")
            notes.write_text(_NOTES, "utf-8", newline="\n")  # before an hour of reading
        except OSError as error:
            raise UsageError("the notes can't be written", where=f"--notes {notes}", got=error.strerror) from error


def read_data(
    data: Path,
    images: Path | None,
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    allow_partial: bool,
    notes: Path | None,
) -> DataSet:
    """A data set from files."""
    from spica.training.sources import load

    with working(f"Reading {data} …"):
        return load(data, images=images, split=split, classes=classes, allow_partial=allow_partial, notes=notes)


def fetch_project(
    project: int, settings: Settings, *, allow_partial: bool, notes: Path | None
) -> tuple[DataSet, ProjectKey]:
    """A project's data set, its images kept in Spica's own folder; and which project it is."""
    from spica.labelstudio.auth import LabelStudioAuth
    from spica.labelstudio.media import MediaReader
    from spica.training.submissions import fetch, image_cache

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
        bar = stack.enter_context(Bar("Reading annotations", transient=True))
        found = fetch(
            client,
            media,
            project,
            image_cache(settings.data_dir),
            progress=bar.show,
            allow_partial=allow_partial,
            notes=notes,
        )
        return found, client.project(project).key


def tell_problems(dataset: DataSet) -> None:
    """What was left out or corrected, on screen."""
    for problem in dataset.problems:
        note(problem)
