"""COCO: one JSON with images, annotations and categories (https://cocodataset.org/#format-data).

``bbox`` is left, top, width, height in pixels. Crowds (``iscrowd``) are no single objects: their image is left out.
Images lie beside the JSON, in ``images``, or in a folder called like the last word of the JSON's name
(``instances_train2017.json``: ``train2017``, ``images/train2017``); those of ``annotations`` beside that folder too.
Ids of classes are those of the categories' order by id, so that they stay when images come and go. Written: categories
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
from spica.training.formats.sketch import Found, ImageFinder, Sketch, no_boxes, numbers, size_of

_DIGITS: Final = 6  # of a pixel's coordinates: finer than float32


class Coco:
    """Reads and writes COCO's object detection format."""

    name = "COCO"
    image_folder = "images"
    file_name = "annotations.json"

    def read(self, data: Path, images: Path | None, split: str | None) -> Found:
        """What the JSON at ``data`` holds; it has no splits.

        Raises:
            DataSetError: it is no such JSON.
        """
        del split
        body = read_json(data)
        if not is_coco(body):
            raise _damaged(data, "images, annotations and categories", f"keys {sorted(body)[:10]}")
        names = _categories(body["categories"], data)
        found = Found(tuple(dict.fromkeys(names.values())), [])
        listed = _objects(body["images"], data, "images")
        file_names = (str(image.get("file_name") or "") for image in listed)
        finder = ImageFinder(*_beside(data), given=images, names=file_names)
        by_image: dict[int | str | None, list[dict[str, Any]]] = defaultdict(list)
        for annotation in _objects(body["annotations"], data, "annotations"):
            by_image[_id(annotation.get("image_id"))].append(annotation)
        doubts = _doubts([_id(image.get("id")) for image in listed], by_image, found)
        info = body.get("info")
        # Label Studio's own export writes the stored size beside boxes that lie in the upright image.
        is_upright = isinstance(info, dict) and info.get("contributor") == "Label Studio"
        missing = 0
        for image, doubt in zip(listed, doubts, strict=True):
            name = str(image.get("file_name") or "")
            shown = name.replace("\\", "/").rsplit("/", 1)[-1] or "an image without file_name"
            path = finder.find(name)
            if path is None or doubt is not None:
                missing += path is None
                found.leave_out(shown, doubt or "it is missing")
                continue
            sketch = _sketch(shown, image, by_image[_id(image.get("id"))], names, is_upright=is_upright)
            found.images.append((sketch, path))
        if listed and missing == len(listed):
            raise DataSetError(
                "none of the images is there",
                where=str(data),
                expected=f"{listed[0].get('file_name')} in {finder.shown}",
                hint="give the folder of the images with --images",
            )
        return found

    def write(self, dataset: DataSet, files: tuple[str, ...], folder: Path) -> None:
        """Write ``annotations.json`` beside ``images/``."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, (example, file) in enumerate(zip(dataset.examples, files, strict=True), start=1):
            truth = example.truth
            images.append({"id": number, "file_name": file, "width": truth.width, "height": truth.height})
            for box, class_id in zip(truth.boxes_xyxy.astype(np.float64), truth.class_ids, strict=True):
                left, top, right, bottom = (float(side) for side in box)
                width, height = right - left, bottom - top
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": int(class_id) + 1,
                        "bbox": [round(side, _DIGITS) for side in (left, top, width, height)],
                        "area": round(width * height, _DIGITS),
                        "iscrowd": 0,
                    }
                )
        categories = [{"id": number, "name": name} for number, name in enumerate(dataset.classes, start=1)]
        body = {"images": images, "annotations": annotations, "categories": categories}
        (folder / self.file_name).write_text(json.dumps(body, ensure_ascii=False), "utf-8")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        DataSetError: it can't be read.
    """
    try:
        data = path.read_bytes()
        text = data.decode(json.detect_encoding(data))
        body = json.loads(text, object_pairs_hook=_once)
        if "\\ud" in text or "\\uD" in text:  # half a letter, which no file takes
            body = json.loads(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"))
    except (OSError, ValueError, RecursionError) as error:
        told = getattr(error, "strerror", None) or str(error)[:200]
        raise DataSetError("the file can't be read", where=str(path), expected="JSON in UTF-8", got=told) from error
    return body


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) < len(pairs):
        twice = next(key for key, number in Counter(key for key, _ in pairs).items() if number > 1)
        raise ValueError(f"the key {json.dumps(twice)[:40]} twice in one object")
    return body


def is_coco(body: Any) -> bool:
    """Whether a JSON's content is of this format."""
    return isinstance(body, dict) and all(
        isinstance(body.get(key), list) for key in ("images", "annotations", "categories")
    )


def _beside(data: Path) -> list[Path]:
    """Where the images of a JSON may be."""
    roots = [data.parent, *([data.parent.parent] if data.parent.name.lower() == "annotations" else [])]
    part = data.stem.rpartition("_")[2]
    return [root / folder for root in roots for folder in (f"images/{part}", part, ".", "images")]


def _id(value: Any) -> int | str | None:
    """What an id meets by; None where it is none: a list, null, a truth value, a fraction."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _doubts(
    ids: Sequence[int | str | None], by_image: Mapping[int | str | None, list[dict[str, Any]]], found: Found
) -> list[str | None]:
    """Why it is not known which annotations are an image's, for each image's id; None where it is known."""
    times = Counter(ids)
    strays = {number: rows for number, rows in by_image.items() if number is None or number not in times}
    for number, rows in strays.items():
        shown = json.dumps(rows[0].get("image_id") if number is None else number, ensure_ascii=False)[:40]
        found.tally.add("{n} annotations have an image_id that no image has", f"image_id {shown}", len(rows))
    alike = {str(number) for number in strays}

    def doubt(number: int | str | None) -> str | None:
        if number is None:
            return "an id that is neither a number nor a text"
        if times[number] > 1:
            return "an id that another image has too"
        if str(number) in alike or (strays and number not in by_image):
            return "annotations that meet no image, and may be its own"
        return None

    return [doubt(number) for number in ids]


def _categories(body: list[Any], data: Path) -> dict[int | str | None, str]:
    listed = _objects(body, data, "categories")
    named = [(_id(each.get("id")), str(each.get("name") or "")) for each in listed]
    numbers_only = [number for number, name in named if isinstance(number, int) and name]
    if not named or len(set(numbers_only)) < len(named):
        raise _damaged(data, "categories, each with a number of its own as id and a name", f"{body[:2]}"[:200])
    return dict(sorted(named, key=lambda each: int(each[0] or 0)))


def _objects(body: list[Any], data: Path, key: str) -> list[dict[str, Any]]:
    if not all(isinstance(each, dict) for each in body):
        raise _damaged(data, f"objects in {key}", "something else")
    return body


def _sketch(
    name: str,
    image: dict[str, Any],
    annotations: list[dict[str, Any]],
    names: Mapping[int | str | None, str],
    *,
    is_upright: bool,
) -> Sketch:
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
    return Sketch(
        name=name,
        labels=tuple(labels),
        boxes_xyxy=np.array(boxes, np.float64) if boxes else no_boxes(),
        size=size_of(image.get("width"), image.get("height")),
        is_upright=is_upright,
        doubt=doubt,
    )


def _damaged(data: Path, expected: str, got: str) -> DataSetError:
    return DataSetError("this is no COCO file, or it is damaged", where=str(data), expected=expected, got=got)
