"""A few of a project's photographs, as files, to try something out on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from spica.errors import SpicaError
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.label_config import LabelConfig, parse_label_config
from spica.labelstudio.protocol import Task, image_places
from spica.predictor import Media

logger = logging.getLogger(__name__)

_TASKS = 100
"""Among so many first tasks, evenly spread; a large project is not read through for it."""


def sample(client: LabelStudioClient, project: int, media: Media, folder: Path, *, count: int) -> list[Path]:
    """Copy at most ``count`` photographs of a project into ``folder``; those that can't be had are passed over.

    Raises:
        LabelConfigError: the project has nothing that a detector could fill.
        LabelStudioError: no such project, no permission, no answer.
    """
    config = parse_label_config(client.project(project).label_config)
    rows = list(islice(client.iter_tasks(project, page_size=_TASKS), _TASKS))
    step = max(1, len(rows) // count)
    found: list[Path] = []
    for row in rows[::step][:count]:
        for uri in islice(_addresses(Task(id=row.id, data=row.data), config), 1):
            try:
                content = media.read(uri, task_id=row.id)
            except SpicaError as error:
                logger.info("task %d is not looked at: %s", row.id, error.summary)
                continue
            path = folder / f"{row.id}.image"
            path.write_bytes(content)
            found.append(path)
    return found


def _addresses(task: Task, config: LabelConfig) -> Iterator[str]:
    for control in config.controls:
        try:
            yield from (uri for uri in image_places(task, control) if uri is not None)
        except SpicaError:  # no address; the job will say so
            continue
