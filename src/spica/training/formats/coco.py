"""COCO: one JSON with images, annotations and categories (https://cocodataset.org/#format-data).

``bbox`` is left, top, width, height in pixels. Crowds (``iscrowd``) are no single objects and are left out. Ids of
classes are those of the categories' order by id, so that they stay when images come and go. Written: categories from 1.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from spica.errors import DataSetError
from spica.training.dataset import DataSet
from spica.training.formats.sketch import Found, ImageFinder, Sketch, no_boxes

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
        beside = (data.parent, data.parent / "images")
        finder = ImageFinder(*(() if images is None else (images, images / "images")), *beside)
        found = Found(tuple(dict.fromkeys(names.values())), [])
        by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for annotation in _objects(body["annotations"], data, "annotations"):
            by_image[annotation.get("image_id")].append(annotation)
        contributor = (body.get("info") or {}).get("contributor") if isinstance(body.get("info"), dict) else None
        for image in _objects(body["images"], data, "images"):
            name = str(image.get("file_name") or "")
            path = finder.find(name)
            shown = name.replace("\\", "/").rsplit("/", 1)[-1]
            if path is None:
                found.leave_out(shown or "an image without file_name", "it is missing")
                continue
            # Label Studio's own export writes the stored size beside boxes that lie in the upright image.
            is_upright = contributor == "Label Studio"
            sketch = _sketch(shown, image, by_image[image.get("id")], names, is_upright=is_upright)
            found.images.append((sketch, path))
        if not found.images and body["images"]:
            raise DataSetError(
                "none of the images is there",
                where=str(data),
                expected=f"{body['images'][0].get('file_name')} in {finder.shown}",
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
        return json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        told = getattr(error, "strerror", None) or str(error)[:200]
        raise DataSetError("the file can't be read", where=str(path), expected="JSON in UTF-8", got=told) from error


def is_coco(body: Any) -> bool:
    """Whether a JSON's content is of this format."""
    return isinstance(body, dict) and all(
        isinstance(body.get(key), list) for key in ("images", "annotations", "categories")
    )


def _categories(body: list[Any], data: Path) -> dict[Any, str]:
    listed = _objects(body, data, "categories")
    named = [(each.get("id"), str(each.get("name") or "")) for each in listed]
    if not named or not all(isinstance(number, int) and name for number, name in named):
        raise _damaged(data, "categories, each with a number as id and a name", f"{body[:2]}"[:200])
    return dict(sorted(named, key=lambda each: int(each[0] or 0)))


def _objects(body: list[Any], data: Path, key: str) -> list[dict[str, Any]]:
    if not all(isinstance(each, dict) for each in body):
        raise _damaged(data, f"objects in {key}", "something else")
    return body


def _sketch(
    name: str,
    image: dict[str, Any],
    annotations: list[dict[str, Any]],
    names: dict[Any, str],
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
        box = annotation.get("bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(isinstance(side, int | float) for side in box)):
            doubt = "an annotation without a bbox of four numbers"
            continue
        left, top, width, height = (float(side) for side in box)
        boxes.append([left, top, left + width, top + height])
        labels.append(names.get(annotation.get("category_id"), ""))
    size = image.get("width"), image.get("height")
    known = isinstance(size[0], int) and isinstance(size[1], int) and min(size[0], size[1]) > 0
    return Sketch(
        name=name,
        labels=tuple(labels),
        boxes_xyxy=np.array(boxes, np.float64) if boxes else no_boxes(),
        size=(int(size[0] or 0), int(size[1] or 0)) if known else None,
        is_upright=is_upright,
        doubt=doubt,
    )


def _damaged(data: Path, expected: str, got: str) -> DataSetError:
    return DataSetError("this is no COCO file, or it is damaged", where=str(data), expected=expected, got=got)
