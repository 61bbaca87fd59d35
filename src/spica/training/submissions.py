"""What people have submitted in a project of Label Studio, as a data set; and how much of it is new.

* A task counts if it has an annotation that is submitted: not skipped, and more than a draft.
* One annotation counts for a task: ground truth before others, then the one that was changed last. What several people
  said is not mixed. Imported annotations are ground truth to Label Studio.
* Regions of every ``<RectangleLabels>``, and ``<Rectangle>`` with ``<Labels>``, are objects. One with a label that the
  configuration no longer has leaves its image out, and so does any other doubt (:mod:`spica.training.builder`). An
  image whose submitted annotation has no region is a true negative.
* An image that can't be read is left out. Where Label Studio itself gives no answer, nothing is: that is an error.
* A task with several images gives one example for each; the same image in several tasks gives one, by the same rule.

Images are kept by digest in the folder of an :class:`ImageCache`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

from spica.errors import DataSetError, ImageError, MediaError, TrainingError
from spica.files import replacing, storage_error
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.config import RectangleControl, parse_label_config
from spica.labelstudio.records import AnnotatedTask, chosen, moment
from spica.predictor import Media
from spica.settings import Settings
from spica.training.builder import DataSetBuilder, ImageFile, image_problem, inspect
from spica.training.dataset import DataSet
from spica.training.formats.annotated import ReadingLog
from spica.training.formats.label_studio import annotated_images, class_names

_OVERLAP: Final = timedelta(hours=1)
"""Before the newest known annotation, from which on changes are asked for: reading a large project takes a while."""
_INDEX: Final = "index.jsonl"
_FACTS: Final = frozenset({"bytes", "width", "height", "orientation"})
_SUFFIXES: Final = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"II*\x00", ".tif"),
    (b"MM\x00*", ".tif"),
    (b"BM", ".bmp"),
    (b"GIF8", ".gif"),
)


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
        folder: of the :class:`ImageCache`; may be shared by all projects.
        progress: called with the tasks done and the tasks there are.
        stop: when set, the reading ends with an error; what was read is kept.
        allow_partial: as for :meth:`spica.training.formats.annotated.ReadingLog.check`.
        notes: likewise.

    Returns:
        Examples by ascending task, with classes as :func:`class_names` orders them.

    Raises:
        DataSetError: no annotation is submitted, none can be used, or more than a tenth of the images is left out.
        LabelConfigError: the project has no control tag with rectangles.
        LabelStudioError: Label Studio failed.
        StorageError: an image can't be kept.
        TrainingError: it was stopped.
    """
    controls = parse_label_config(client.project(project).label_config).controls
    total = client.annotated_count(project)
    cache = ImageCache(folder, scope=client.url, max_pixels=Settings().max_pixels)
    builder = DataSetBuilder(class_names(controls), ReadingLog())
    for done, task in enumerate(client.annotated_tasks(project), start=1):
        if stop is not None and stop.is_set():
            raise TrainingError("the reading of the annotations was stopped", hint="run it again: it goes on there")
        _add(task, controls, client, media, cache, builder)
        if progress is not None:
            progress(done, max(total, done))
    dataset = builder.dataset(f"project {project}", allow_partial=allow_partial, notes=notes)
    if not dataset.examples:
        raise DataSetError(
            "there is no annotated image to learn from",
            where=f"project {project}",
            expected="submitted annotations; skipped tasks and drafts don't count",
            got="; ".join(dataset.problems) or "none",
            hint="label some tasks and submit them",
        )
    return dataset


def _add(
    task: AnnotatedTask,
    controls: Sequence[RectangleControl],
    client: LabelStudioClient,
    media: Media,
    cache: ImageCache,
    builder: DataSetBuilder,
) -> None:
    annotation = chosen(task.annotations)
    if annotation is None:
        return
    try:
        images = annotated_images(task, annotation, controls)
    except MediaError:
        builder.log.leave_out(f"task {task.id}", "no address of an image")
        builder.skip(annotation.id, annotation.updated)
        return
    for uri, image in images:
        try:
            builder.add(image, cache.get(uri, partial(media.read, uri, task_id=task.id)))
        except (ImageError, MediaError) as error:
            if isinstance(error, MediaError):
                client.whoami()  # raises where it is Label Studio that gives no answer
            builder.leave_out(image, image_problem(error))


# --- what is new


@dataclass(frozen=True, slots=True)
class NewSubmissions:
    """Submitted annotations that were never learned from, or changed since; the one that counts for each task."""

    new: int
    changed: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.new + self.changed


def learned(dataset: DataSet) -> dict[int, str]:
    """Number and time of change of every annotation that was read, for a version's card.

    Of the whole data set, the hold-out included, and of what was left out: neither is new any more.
    """
    return dict(dataset.left_out) | {
        example.annotation: example.updated or "" for example in dataset.examples if example.annotation is not None
    }


def count_new(client: LabelStudioClient, project: int, learned: Mapping[int, str]) -> NewSubmissions:
    """How many submitted annotations are new, or changed since they were learned from.

    Label Studio is asked for the tasks with an annotation of a higher number than all that are ``learned`` (see
    :func:`learned`; empty if nothing was), and for those changed since an hour before the newest of these: two short
    requests where little has happened. An annotation from before that hour which was never read is not counted; none is
    left unread by :func:`fetch`.
    """
    if not learned:
        return NewSubmissions(client.annotated_count(project), 0)
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
    return NewSubmissions(new, changed)


# --- images that were read once


def image_cache(data_dir: Path) -> Path:
    """The folder of the :class:`ImageCache` in a data folder; a training and an export share it."""
    return data_dir / "cache" / "images"


class ImageCache:
    """Images by digest, found again by address; delete the folder, and they are read anew.

    ``index.jsonl`` has a line an address: its SHA-256 (addresses may hold signatures), the file and its size. An
    address is taken to keep its image; a changed image needs a new name, as Label Studio's own uploads get. ``scope``
    tells apart what may have the same addresses, such as two Label Studios.
    """

    def __init__(self, folder: Path, *, scope: str, max_pixels: int) -> None:
        self.folder = folder
        self._scope = scope
        self._max_pixels = max_pixels
        self._index = _read_index(folder / _INDEX)

    def get(self, uri: str, read: Callable[[], bytes]) -> ImageFile:
        """The image at an address; ``read`` is called where it is not there yet, and may raise.

        Raises:
            ImageError: no image, damaged or too large.
            StorageError: it can't be written.
        """
        key = hashlib.sha256(f"{self._scope}\n{uri}".encode("utf-8", "surrogatepass")).hexdigest()
        known = self._known(key)
        if known is not None:
            return known
        data = read()
        image = inspect(data, Path(), where=uri[:200], max_pixels=self._max_pixels)
        path = self.folder / f"{image.digest}{_suffix(data)}"
        facts = {"width": image.width, "height": image.height, "orientation": image.orientation}
        entry = {"key": key, "file": path.name, "bytes": len(data), **facts}
        try:
            if not (path.exists() and path.stat().st_size == len(data)):
                with replacing(path) as aside:
                    aside.write_bytes(data)
            with (self.folder / _INDEX).open("a", encoding="utf-8", newline="\n") as lines:
                lines.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise storage_error(error, path) from error
        self._index[key] = entry
        return ImageFile(path, image.digest, **facts)

    def _known(self, key: str) -> ImageFile | None:
        """What is known of an image whose file is still there, whole."""
        entry = self._index.get(key)
        if entry is None:
            return None
        path = self.folder / str(entry["file"])
        try:
            if path.stat().st_size != entry["bytes"]:
                return None
        except OSError:
            return None
        return ImageFile(path, path.stem, int(entry["width"]), int(entry["height"]), int(entry["orientation"]))


def _read_index(path: Path) -> dict[str, dict[str, Any]]:
    index: dict[str, dict[str, Any]] = {}
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return index
    for line in lines:
        try:
            entry = json.loads(line)
            if Path(str(entry["file"])).name == entry["file"] and entry.keys() >= _FACTS:
                index[str(entry["key"])] = entry
        except (ValueError, KeyError, TypeError, AttributeError):  # a line that a killed process left half written
            continue
    return index


def _suffix(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for begin, suffix in _SUFFIXES if data.startswith(begin)), "")
