"""What earlier versions of Spica kept under a project's number alone, and which project it is of.

They kept the active version, the trainings and the record of held-out images so. A project that was created after the
first of it is another one, in a Label Studio that was set up anew; else it is the project's, and is renamed. A choice
by ``spica models activate`` is kept so too where Label Studio can't be asked.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

from spica.errors import StorageError
from spica.files import storage_error
from spica.models import active
from spica.models.locks import writing
from spica.project import ProjectKey
from spica.training import holdout
from spica.training.runs import Runs, started

logger = logging.getLogger(__name__)

_WAIT_S = 1.0
"""For whoever is changing the store; with the next question it is tried again."""


def take_over(data_dir: Path, project: ProjectKey) -> None:
    """Put what is kept under a project's number alone under its number and creation.

    What the project has already stays, and so does what is of another one. Several servers may do it at a time.

    Raises:
        StorageError: what is kept is not this project's, or it can't be told whose it is, or it can't be moved now. It
            is left where it is, and nothing is served by it.
    """
    left = _left(data_dir, project)
    if not project.created or not left:
        return
    begun = _begun(data_dir, ProjectKey(project.number))
    if begun is None or begun.timestamp() < project.created:
        raise StorageError(
            f"what was kept of a project {project} is left alone: it is not known to be this one's",
            where=", ".join(str(old) for old, _ in left),
            expected=f"begun after this project was created, {project.date}",
            got="unknown when it was begun" if begun is None else f"begun {begun.isoformat(timespec='seconds')}",
            hint=f"if it is this one's, `spica models activate VERSION --project {project} --token TOKEN` serves it; "
            "if it is of a Label Studio that is gone, delete it",
        )
    with writing(data_dir, _WAIT_S):
        for old, new in _left(data_dir, project):
            try:
                old.rename(new)
            except OSError as error:
                raise storage_error(error, old) from error
            logger.info("%s is of the project %s created %s, and is named %s now", old, project, project.date, new.name)


def _left(data_dir: Path, project: ProjectKey) -> list[tuple[Path, Path]]:
    """What there is to move, and to where; last what tells whose it is, so that a kill in between does not hide it."""
    old, runs = ProjectKey(project.number), Runs(data_dir)
    pairs = [
        (holdout.path_of(data_dir, old), holdout.path_of(data_dir, project)),
        (runs.project_folder(old), runs.project_folder(project)),
        (active.pointer_path(data_dir, old), active.pointer_path(data_dir, project)),
    ]
    return [(old_path, new_path) for old_path, new_path in pairs if old_path.exists() and not new_path.exists()]


def _begun(data_dir: Path, old: ProjectKey) -> datetime | None:
    """When the first of what is kept was made; None if that can't be told.

    Raises:
        StorageError: the record of the active version is damaged.
    """
    pointer = active.read(data_dir, old)
    times = [started(folder.name) for folder in Runs(data_dir).project_folder(old).glob("*Z-????")]
    try:
        times += [datetime.fromisoformat(step.when) for step in ((pointer.now, *pointer.previous) if pointer else ())]
        return min((when.astimezone(UTC) for when in times if when is not None), default=None)
    except (ValueError, OverflowError):
        return None
