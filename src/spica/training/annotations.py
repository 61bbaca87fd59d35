"""What people have submitted in a project of Label Studio, as a data set; and how much of it is new.

* A task counts if it has an annotation that is submitted: not skipped, and more than a draft.
* One annotation counts for a task: ground truth before others, then the one that was changed last. What several people
  said is not mixed. Imported annotations are ground truth to Label Studio.
* Regions of every ``<RectangleLabels>``, and ``<Rectangle>`` with ``<Labels>``, are objects. One with a label that the
  configuration no longer has leaves its image out, and so does any other doubt
  (:mod:`spica.training.cleaning`). An image whose submitted annotation has no region is a true negative.
* An image that can't be read is left out. Where Label Studio itself gives no answer, nothing is: that is an error.
* A task with several images gives one example for each; the same image in several tasks gives one, by the same rule.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

from spica.errors import DataSetError, ImageError, MediaError, TrainingError
from spica.labelstudio.api.annotations import AnnotatedTask, chosen, moment
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.control_tags import RectangleControl, parse_label_config
from spica.predictor import Media
from spica.settings import Settings
from spica.training.assembly import Assembly, left_out_image
from spica.training.cleaning import Tally
from spica.training.dataset import DataSet
from spica.training.formats.label_studio import class_names, sketches
from spica.training.photos import PhotoFolder

_OVERLAP: Final = timedelta(hours=1)
"""Looked at again before the newest known annotation: a reading of a large project is no single moment."""


@dataclass(frozen=True, slots=True)
class News:
    """Submitted annotations that were not learned from yet, the one that counts for each task.

    Attributes:
        new: never learned from.
        changed: learned from, and changed since.
    """

    new: int
    changed: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.new + self.changed


def fetch(
    client: LabelStudioClient,
    media: Media,
    project: int,
    folder: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    stop: threading.Event | None = None,
    allow_partial: bool = False,
    notes: Path | None = None,
) -> DataSet:
    """Everything that a project's submitted annotations teach, by the rules above.

    Args:
        client: Label Studio.
        media: reads the images of tasks.
        project: its number.
        folder: keeps the images by digest; may be shared by all projects. A second run reads only what is new.
        progress: told of the tasks done and the tasks there are.
        stop: when set, the reading ends with an error; what was read is kept.
        allow_partial: go on even if more than a tenth of the images is left out.
        notes: a file to which the name of every image that is left out is added, with the reason.

    Returns:
        Examples by ascending task, with classes as :func:`spica.training.formats.label_studio.class_names` orders them.

    Raises:
        DataSetError: no annotation is submitted, none can be used, or more than a tenth of the images is left out.
        LabelConfigError: the project has no control tag with rectangles.
        LabelStudioError: Label Studio failed.
        StorageError: an image can't be kept.
        TrainingError: it was stopped.
        UsageError: the notes can't be written.
    """
    controls = parse_label_config(client.project(project).label_config).controls
    total = client.annotated_count(project)
    photos = PhotoFolder(folder, scope=client.url, max_pixels=Settings().max_pixels)
    reading = _Reading(client, media, controls, photos)
    for done, task in enumerate(client.annotated_tasks(project), start=1):
        if stop is not None and stop.is_set():
            raise TrainingError("the reading of the annotations was stopped", hint="run it again: it goes on there")
        reading.take(task)
        if progress is not None:
            progress(done, max(total, done))
    dataset = reading.assembly.dataset(f"project {project}", allow_partial=allow_partial, notes=notes)
    if not dataset.examples:
        raise DataSetError(
            "there is no annotated image to learn from",
            where=f"project {project}",
            expected="submitted annotations; skipped tasks and drafts don't count",
            got="; ".join(dataset.problems) or "none",
            hint="label some tasks and submit them",
        )
    return dataset


class _Reading:
    """Reads task after task."""

    def __init__(
        self, client: LabelStudioClient, media: Media, controls: tuple[RectangleControl, ...], photos: PhotoFolder
    ) -> None:
        self.assembly = Assembly(class_names(controls), Tally())
        self._client = client
        self._media = media
        self._controls = controls
        self._photos = photos

    def take(self, task: AnnotatedTask) -> None:
        annotation = chosen(task.annotations)
        if annotation is None:
            return
        try:
            found = sketches(task, annotation, self._controls)
        except MediaError:
            self.assembly.tally.leave_out(f"task {task.id}", "no address of an image")
            self.assembly.pass_over(annotation.id, annotation.updated)
            return
        for uri, sketch in found:
            try:
                photo = self._photos.get(uri, partial(self._media.read, uri, task_id=task.id))
            except (ImageError, MediaError) as error:
                if isinstance(error, MediaError):
                    self._client.whoami()  # raises where it is Label Studio that gives no answer
                self.assembly.leave_out(sketch, left_out_image(error))
                continue
            self.assembly.add(sketch, photo)


def learned(dataset: DataSet) -> dict[int, str]:
    """What a version's card says it has seen: number and time of change of every annotation that was read.

    Of the whole data set, the hold-out included, and of what was left out: neither is new any more.
    """
    seen = dict(dataset.left_out)
    seen |= {
        example.annotation: example.updated or "" for example in dataset.examples if example.annotation is not None
    }
    return seen


def count_new(client: LabelStudioClient, project: int, learned: Mapping[int, str]) -> News:
    """How many submitted annotations are new, or changed since they were learned from.

    Neither images nor regions are read. Label Studio is asked for the tasks with an annotation of a higher number than
    all known ones, and for those changed since an hour before the newest known one: two short requests where little
    has happened, whatever the size of the project. An annotation from before that hour which was never read is not
    found; none is left unread by :func:`fetch`.

    Args:
        client: Label Studio.
        project: its number.
        learned: what :func:`learned` gave; empty if nothing was learned yet.
    """
    if not learned:
        return News(client.annotated_count(project), 0)
    newest = max(moment(updated) for updated in learned.values())
    since = datetime.fromtimestamp(newest, UTC) - _OVERLAP
    new = changed = 0
    for task in client.annotations_since(project, newest=max(learned), since=since):
        annotation = chosen(task.annotations)
        if annotation is None:
            continue
        known = learned.get(annotation.id)
        if known is None:
            new += 1
        elif moment(known) != moment(annotation.updated):
            changed += 1
    return News(new, changed)
