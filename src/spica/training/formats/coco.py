"""COCO: one JSON with images, annotations and categories (https://cocodataset.org/#format-data).

``bbox`` is left, top, width, height in pixels. Crowds (``iscrowd``) are no single objects: their image is left out.
Images lie beside the JSON, in ``images``, or in a folder called like the last word of the JSON's name
(``instances_train2017.json``: ``train2017``, ``images/train2017``); those of ``annotations`` beside that folder too.
Class ids follow the order of the categories' ids, so that they stay when images come and go. Written are categories
from 1.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from spica.errors import DataSetError
from spica.training.dataset import DataSet
from spica.training.formats.annotated import (
    AnnotatedImage,
    Annotations,
    ImageFinder,
    ReadingLog,
    boxes_array,
    numbers,
    read_json,
    size_of,
)

IMAGE_FOLDER: Final = "images"
FILE_NAME: Final = "annotations.json"
_DIGITS: Final = 6  # of a pixel's coordinates: finer than float32

Id = int | str | None
"""What an id is compared by; None where it is none: a list, null, a truth value, a fraction."""


def is_coco(body: Any) -> bool:
    """Whether a JSON's content is of this format."""
    return isinstance(body, dict) and all(
        isinstance(body.get(key), list) for key in ("images", "annotations", "categories")
    )


def read(data: Path, images: Path | None, log: ReadingLog) -> Annotations:
    """What the JSON at ``data`` holds.

    Raises:
        DataSetError: it is no such JSON, or none of the images is there.
    """
    body = read_json(data)
    if not is_coco(body):
        raise _damaged(data, "images, annotations and categories", f"keys {sorted(body)[:10]}")
    names = _categories(body["categories"], data)
    listed = _objects(body["images"], data, "images")
    file_names = [str(image.get("file_name") or "") for image in listed]
    finder = ImageFinder(*_beside(data), given=images, names=file_names)
    by_image: dict[Id, list[dict[str, Any]]] = defaultdict(list)
    for annotation in _objects(body["annotations"], data, "annotations"):
        by_image[_id(annotation.get("image_id"))].append(annotation)
    ids = [_id(image.get("id")) for image in listed]
    info = body.get("info")
    # Label Studio's own export writes the stored size beside boxes that lie in the upright image.
    is_upright = isinstance(info, dict) and info.get("contributor") == "Label Studio"
    annotated: list[tuple[AnnotatedImage, Path]] = []
    missing = 0
    for image, number, name, doubt in zip(listed, ids, file_names, _doubts(ids, by_image, log), strict=True):
        last = name.replace("\\", "/").rsplit("/", 1)[-1] or "an image without file_name"
        path = finder.find(name)
        if path is None or doubt is not None:
            missing += path is None
            log.leave_out(last, doubt or "it is missing")
        else:
            annotated.append((_annotated(last, image, by_image[number], names, is_upright=is_upright), path))
    finder.require_some(missing, len(listed), str(listed[0].get("file_name")) if listed else "", data)
    return tuple(dict.fromkeys(names.values())), annotated


def write(dataset: DataSet, files: tuple[str, ...], folder: Path) -> None:
    """Write ``annotations.json`` beside ``images/``, which holds the images under ``files``."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (example, file) in enumerate(zip(dataset.examples, files, strict=True), start=1):
        truth = example.truth
        images.append({"id": number, "file_name": file, "width": truth.width, "height": truth.height})
        for box, class_id in zip(truth.boxes_xyxy.astype(np.float64).tolist(), truth.class_ids.tolist(), strict=True):
            left, top, right, bottom = box
            sides = [round(side, _DIGITS) for side in (left, top, right - left, bottom - top)]
            place = {"id": len(annotations) + 1, "image_id": number, "category_id": class_id + 1}
            area = round((right - left) * (bottom - top), _DIGITS)
            annotations.append({**place, "bbox": sides, "area": area, "iscrowd": 0})
    categories = [{"id": number, "name": name} for number, name in enumerate(dataset.classes, start=1)]
    body = {"images": images, "annotations": annotations, "categories": categories}
    (folder / FILE_NAME).write_text(json.dumps(body, ensure_ascii=False), "utf-8")


def _beside(data: Path) -> list[Path]:
    """Where the images of a JSON may be."""
    roots = [data.parent, *([data.parent.parent] if data.parent.name.lower() == "annotations" else [])]
    part = data.stem.rpartition("_")[2]
    return [root / folder for root in roots for folder in (f"images/{part}", part, ".", "images")]


def _id(value: Any) -> Id:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _doubts(ids: Sequence[Id], by_image: Mapping[Id, list[dict[str, Any]]], log: ReadingLog) -> list[str | None]:
    """Why it is not known which annotations are an image's, for each image's id; None where it is known."""
    times = Counter(ids)
    strays = {number: rows for number, rows in by_image.items() if number is None or number not in times}
    for number, rows in strays.items():
        shown = json.dumps(rows[0].get("image_id") if number is None else number, ensure_ascii=False)[:40]
        log.correct("{n} annotations have an image_id that no image has", f"image_id {shown}", len(rows))
    alike = {str(number) for number in strays}

    def doubt(number: Id) -> str | None:
        if number is None:
            return "an id that is neither a number nor a text"
        if times[number] > 1:
            return "an id that another image has too"
        if str(number) in alike or (strays and number not in by_image):
            return "annotations that match no image, and may be its own"
        return None

    return [doubt(number) for number in ids]


def _categories(body: list[Any], data: Path) -> dict[Id, str]:
    named = [(_id(row.get("id")), str(row.get("name") or "")) for row in _objects(body, data, "categories")]
    sound = {number for number, name in named if isinstance(number, int) and name}
    if not named or len(sound) < len(named):
        raise _damaged(data, "categories, each with a number of its own as id and a name", f"{body[:2]}"[:200])
    return dict(sorted(named, key=lambda row: int(row[0] or 0)))


def _objects(body: list[Any], data: Path, key: str) -> list[dict[str, Any]]:
    if not all(isinstance(row, dict) for row in body):
        raise _damaged(data, f"objects in {key}", "something else")
    return body


def _annotated(
    name: str, image: dict[str, Any], annotations: list[dict[str, Any]], names: Mapping[Id, str], *, is_upright: bool
) -> AnnotatedImage:
    boxes: list[list[float]] = []
    labels: list[str] = []
    doubt = None
    for annotation in annotations:
        if annotation.get("iscrowd"):
            doubt = "a crowd (iscrowd), which is no single object"
            continue
        bbox = annotation.get("bbox")
        box = numbers(bbox) if isinstance(bbox, list) and len(bbox) == 4 else None
        if box is None:
            doubt = "an annotation without a bbox of four numbers"
            continue
        left, top, width, height = box
        boxes.append([left, top, left + width, top + height])
        labels.append(names.get(_id(annotation.get("category_id")), ""))
    size = size_of(image.get("width"), image.get("height"))
    return AnnotatedImage(name, tuple(labels), boxes_array(boxes), size=size, is_upright=is_upright, doubt=doubt)


def _damaged(data: Path, expected: str, got: str) -> DataSetError:
    return DataSetError("this is no COCO file, or it is damaged", where=str(data), expected=expected, got=got)
