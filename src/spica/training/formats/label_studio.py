"""Label Studio's tasks: what their annotations say about each image. Its JSON export, and its API, speak so.

One annotation counts for a task (:func:`spica.labelstudio.records.chosen`). Percent relate to the upright
image, as the browser shows it. A turned rectangle becomes the upright box around it; turning the whole image in the
editor changes nothing. A region with several labels is an object of each. A task's further images without regions are
true negatives as long as the annotation was submitted.

Regions of other kinds (outlines, points, strokes) are disregarded beside rectangles, as long as their labels are none
that is learned; else they are objects without a box, and their image is in doubt.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import numpy as np

from spica.errors import DataSetError
from spica.labelstudio.config import RectangleControl
from spica.labelstudio.media import readings
from spica.labelstudio.protocol import Task, image_uris
from spica.labelstudio.records import AnnotatedTask, Annotation, Json, chosen, moment
from spica.training.formats.annotated import (
    IMAGE_SUFFIXES,
    AnnotatedImage,
    Annotations,
    ImageFinder,
    ReadingLog,
    boxes_array,
    numbers,
    read_json,
    size_of,
)

_SHAPES: Final = frozenset(
    f"{shape}{labels}"
    for shape in ("rectangle", "polygon", "ellipse", "brush", "keypoint", "bitmask", "vector")
    for labels in ("", "labels")
)
_NO_OBJECTS: Final = frozenset(
    ("choices", "textarea", "rating", "number", "taxonomy", "datetime", "pairwise", "ranker", "relation", "reactcode")
)
"""Kinds of results that say something about an image, a region or two, and show no object by themselves."""

_WHICH: Final = "one of several addresses of a task, and the export does not tell which one is which (--project does)"
_UPLOADED: Final = re.compile(r"[0-9a-f]{8}-")  # before the name of an uploaded file (data_import/models.py)


@dataclass(slots=True)
class _Regions:
    """What an annotation says about one image."""

    labels: list[str] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    rotations: list[float] = field(default_factory=list)
    size: tuple[int, int] | None = None
    others: list[str] = field(default_factory=list)
    doubt: str | None = None


Places = Mapping[tuple[str, int], str]
"""The address of an image by the name of its tag and its number in a list."""

LabelsFrom = Mapping[str, str | None]
"""For the name of each control tag with rectangles the name of the tag with their labels; None: its own."""


def annotated_images(
    task: AnnotatedTask, annotation: Annotation, controls: Sequence[RectangleControl]
) -> list[tuple[str, AnnotatedImage]]:
    """The images of a task, each once, with their addresses.

    Raises:
        MediaError: the task's data has no address of an image.
    """
    places = {
        (control.to_name, index): uri
        for control in controls
        for index, uri in enumerate(image_uris(Task(id=task.id, data=task.data), control))
    }
    return _by_image(task, annotation, places, {control.from_name: control.labels_from_name for control in controls})


def _by_image(
    task: AnnotatedTask, annotation: Annotation, places: Places, labels_from: LabelsFrom
) -> list[tuple[str, AnnotatedImage]]:
    regions = {uri: _Regions() for uri in places.values()}
    doubt = None if annotation.result is not None else "an annotation without regions, not even none"
    if not all(isinstance(item.get("type"), str) for item in annotation.result or ()):
        doubt = "a region of no kind"
    for item, is_box, labels in _items(annotation.result or (), labels_from):
        uri = places.get((str(item.get("to_name")), _index(item)))
        if uri is not None:
            _take(item, labels, regions[uri], is_box=is_box)
        elif is_box:
            doubt = "a region on an image that the task does not have"
    for on_image in regions.values():
        on_image.doubt = doubt or on_image.doubt
    return [(uri, _annotated(on_image, name_of(uri), task.id, annotation)) for uri, on_image in regions.items()]


def _items(result: Sequence[Json], labels_from: LabelsFrom) -> list[tuple[Json, bool, list[Any]]]:
    """Each drawn region once, whether it is a box of one of the control tags, and its labels."""
    texts = set(filter(None, labels_from.values()))
    labels: dict[tuple[str | None, str], list[Any]] = defaultdict(list)  # by tag and region
    any_labels: dict[str, list[Any]] = defaultdict(list)  # of regions that are not ours
    for item in result:
        any_labels[str(item.get("id"))] += _listed(item, str(item.get("type")))
        if str(item.get("from_name")) in texts:
            labels[(str(item.get("from_name")), str(item.get("id")))] += _listed(item, "labels")
    items: list[tuple[Json, bool, list[Any]]] = []
    for item in result:
        name = str(item.get("from_name"))
        if name in labels_from and item.get("type") in ("rectanglelabels", "rectangle"):
            own, beside = _listed(item, "rectanglelabels"), labels[(labels_from[name], str(item.get("id")))]
            items.append((item, True, own if labels_from[name] is None else beside))
        elif name not in texts and _may_be_object(item, result):
            items.append((item, False, _listed(item, str(item.get("type"))) or any_labels[str(item.get("id"))]))
    return items


def _may_be_object(item: Json, result: Sequence[Json]) -> bool:
    """Whether a result shows an object; what is said about a region has that one's box and number."""
    if str(item.get("type")) not in _NO_OBJECTS:
        return True
    value = item.get("value")
    if not isinstance(value, Mapping) or not {"width", *_SHAPES} & value.keys():
        return False
    about = (other for other in result if other.get("id") == item.get("id") and str(other.get("type")) in _SHAPES)
    return bool(_SHAPES & value.keys()) or not any(about)


def _listed(item: Json, key: str) -> list[Any]:
    value = item.get("value")
    labels = value.get(key) if isinstance(value, Mapping) else None
    return labels if isinstance(labels, list) else []


def _index(item: Json) -> int:
    index = item.get("item_index") or 0
    return index if isinstance(index, int) else -1


def _take(item: Json, labels: Sequence[Any], into: _Regions, *, is_box: bool) -> None:
    size = size_of(item.get("original_width"), item.get("original_height"))
    if into.size is not None and size not in (None, into.size):
        into.doubt = "regions that were drawn on images of several sizes"
    into.size = size or into.size
    if not is_box:
        into.others += [str(label) for label in labels] or [""]
        return
    box = _box(item.get("value"))
    if box is None or not labels or not all(isinstance(label, str) and label for label in labels):
        into.doubt = "a region without numbers" if box is None else "a region without a label"
        return
    for label in labels:
        into.labels.append(label)
        into.boxes.append(box[:4])
        into.rotations.append(box[4])


def _box(value: Any) -> list[float] | None:
    """Shares of left, top, right, bottom, and degrees; None where numbers are missing."""
    if not isinstance(value, Mapping):
        return None
    percent = numbers([*(value.get(key) for key in ("x", "y", "width", "height")), value.get("rotation") or 0])
    if percent is None:
        return None
    x, y, width, height = (number / 100 for number in percent[:4])
    return [x, y, x + width, y + height, percent[4]]


def _annotated(regions: _Regions, name: str, task: int, annotation: Annotation) -> AnnotatedImage:
    rotations = np.array(regions.rotations, np.float64)
    return AnnotatedImage(
        name=name,
        labels=tuple(regions.labels),
        boxes_xyxy=boxes_array(regions.boxes),
        relative=True,
        rotations=rotations if rotations.any() else None,
        size=regions.size,
        is_upright=True,
        others=tuple(regions.others),
        doubt=regions.doubt,
        rank=(int(annotation.ground_truth), moment(annotation.updated)),
        task=task,
        annotation=annotation.id,
        updated=annotation.updated,
    )


def name_of(uri: str) -> str:
    """The file's own name in an address of a task's, without the eight digits that an upload gets."""
    if uri[:5].lower() == "data:":
        return "embedded"
    path = _paths(uri)[0]
    last = path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return (_UPLOADED.sub("", last, count=1) if _is_upload(uri) else last) or "image"


def _paths(uri: str) -> tuple[str, ...]:
    """The paths that an address may mean, the likeliest first."""
    try:
        parts = urlsplit(uri)
        paths = readings(uri, parts, "d") or readings(uri, parts, "filepath")
    except ValueError:
        return (unquote(uri),)
    return paths or (unquote(parts.path),)


def _is_upload(uri: str) -> bool:
    return "data/upload/" in uri or "filepath=upload" in uri


def class_names(controls: Sequence[RectangleControl]) -> tuple[str, ...]:
    """All labels of the controls, as Label Studio stores them, by class id.

    In the order of the configuration; labels with a ``category="…"`` come first, by that number, so that ids agree with
    Label Studio's own exports where those are numbered from 0 without gaps.
    """
    labels = {label.value: label.category for control in reversed(controls) for label in control.labels}
    ordered = dict.fromkeys(label.value for control in controls for label in control.labels)
    numbered = sorted((name for name in ordered if labels[name] is not None), key=lambda name: labels[name] or 0)
    return (*numbered, *(name for name in ordered if labels[name] is None))


# --- the JSON export


def read(data: Path, images: Path | None, log: ReadingLog) -> Annotations:
    """What Label Studio's JSON export (``exportType=JSON``) at ``data`` holds.

    Images are looked for below ``images``, which may be Label Studio's document root or a flat folder, and beside the
    JSON. The export does not hold the labelling configuration: classes are the labels used, by name. Of a task with
    several addresses it is known which one a region is on where they are called alike, else it is left out.

    Raises:
        DataSetError: it is no such JSON, or none of the images is there.
    """
    body = read_json(data)
    if not is_label_studio(body):
        raise DataSetError("this is no JSON export of Label Studio", where=str(data), expected="a list of tasks")
    tasks: list[tuple[AnnotatedTask, Annotation]] = []
    for number, row in enumerate(body, start=1):
        task = AnnotatedTask.read({**row, "id": _number(row.get("id"), number), "annotations": _annotations(row)})
        annotation = chosen(task.annotations)
        if annotation is None:
            log.leave_out(f"task {task.id}", "no submitted annotation", is_doubt=False)
        else:
            tasks.append((task, annotation))
    usual = {tag for _, annotation in tasks for tag in _tags(annotation)}
    pairs = [pair for task, annotation in tasks for pair in _pairs(task, annotation, usual, log)]
    names = (f"{_paths(uri)[0]}/{name_of(uri)}" for uri, _ in pairs)
    finder = ImageFinder(data.parent, data.parent / "images", given=images, names=names)
    missing: list[str] = []
    annotated: list[tuple[AnnotatedImage, Path]] = []
    for uri, image in pairs:
        path = _locate(uri, finder)
        if path is None:
            missing.append(uri)
            log.leave_out(f"task {image.task}: {image.name}", "it is missing")
        else:
            annotated.append((image, path))
    if missing and not annotated:
        doubtful = sum(image.is_doubt for image in log.left_out)
        finder.require_some(len(missing), doubtful, missing[0][:200], data)
    return tuple(sorted({label for image, _ in annotated for label in image.labels})), annotated


def is_label_studio(body: Any) -> bool:
    """Whether a JSON's content is of this format."""
    return (
        isinstance(body, list)
        and bool(body)
        and all(isinstance(row, dict) and isinstance(row.get("data"), dict) for row in body)
        and any(isinstance(row.get("annotations"), list) for row in body)
    )


def _annotations(task: Json) -> list[Json]:
    """With a number, which those written by hand lack."""
    listed = task.get("annotations")
    rows = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
    return [{**row, "id": _number(row.get("id"), number)} for number, row in enumerate(rows, start=1)]


def _number(value: Any, otherwise: int) -> int:
    """An id as Label Studio counts them; what others write instead serves for nothing but messages."""
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise


def _tags(annotation: Annotation) -> set[str]:
    """The names of the image tags that an annotation has regions on, by kinds that images have; else by all kinds."""
    result = annotation.result or ()
    sure = {str(item.get("to_name")) for item in result if str(item.get("type")) in _SHAPES}
    return sure or {str(item.get("to_name")) for item in result if _may_be_object(item, result)}


def _pairs(
    task: AnnotatedTask, annotation: Annotation, usual: set[str], log: ReadingLog
) -> list[tuple[str, AnnotatedImage]]:
    """The images of a task; those of which it is not known what is on them are left out.

    Args:
        task: with at least this annotation.
        annotation: the one that counts.
        usual: image tags that tasks of this export have regions on.
        log: gets what is left out.
    """
    tags = _tags(annotation)
    keys = [key for key, value in task.data.items() if _is_address(value)]
    if not keys:
        log.leave_out(f"task {task.id}", "no address of an image")
        return []
    if len(keys) == 1 and len(tags) < 2:
        image_keys = dict.fromkeys(tags or usual or {""}, keys[0])
    elif (tags or usual) <= set(keys):
        image_keys = {tag: tag for tag in keys if tag in tags | usual}
    else:
        image_keys = {}
    for key in keys:
        if key not in image_keys.values():
            reason = "no region is on it, only on others of its task" if image_keys else _WHICH
            for uri in _uris(task.data[key]):
                log.leave_out(f"task {task.id}: {name_of(uri)}", reason, is_doubt=not image_keys)
    if not image_keys:
        return []
    places = {(tag, at): uri for tag, key in image_keys.items() for at, uri in enumerate(_uris(task.data[key]))}
    return _by_image(task, annotation, places, _labels_from(annotation.result or ()))


def _labels_from(result: Sequence[Json]) -> dict[str, str | None]:
    """The control tags that gave such regions, since the export does not hold the labelling configuration."""
    texts = {str(item.get("id")): str(item.get("from_name")) for item in result if item.get("type") == "labels"}
    labels_from: dict[str, str | None] = {}
    for item in result:
        name = str(item.get("from_name"))
        if item.get("type") == "rectanglelabels":
            labels_from[name] = None
        elif item.get("type") == "rectangle":
            labels_from[name] = texts.get(str(item.get("id"))) or labels_from.get(name) or ""
    return labels_from


def _uris(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def _is_address(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(_is_address, value))
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        path = urlsplit(value).path
    except ValueError:
        path = value
    return "/data/" in value or any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in (name_of(value), path))


def _locate(uri: str, finder: ImageFinder) -> Path | None:
    """The file of an address; that of an upload may also be called as the photograph was, if only one was called so."""
    path = next((path for name in _paths(uri) if (path := finder.find(name)) is not None), None)
    if path is not None or not _is_upload(uri):
        return path
    last, own = _paths(uri)[0].rsplit("/", 1)[-1], name_of(uri)
    return finder.find(last) or (None if own in finder.shared else finder.find(own))
