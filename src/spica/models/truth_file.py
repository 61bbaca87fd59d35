"""A COCO file as the truth about the photographs in a folder."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spica.errors import DataSetError
from spica.evaluation.truth import Truth

_EXPECTED = 'a COCO file: a JSON object with "images", "annotations" and "categories"'


@dataclass(frozen=True, slots=True, eq=False)
class KnownImage:
    """A photograph, and what is in it."""

    path: Path
    truth: Truth


@dataclass(frozen=True, slots=True, eq=False)
class TruthFile:
    """What a COCO file says about the photographs of a folder.

    Attributes:
        images: that are in the folder, in the file's order.
        missing: names in the file that are not in the folder.
    """

    images: tuple[KnownImage, ...]
    missing: tuple[str, ...]


def read_truth(path: Path, photographs: Sequence[Path], folder: Path, classes: Sequence[str]) -> TruthFile:
    """Read a COCO file (https://cocodataset.org/#format-data); crowds are left out.

    A photograph is found by its path below ``folder``, else by its name alone, if only one has it. Categories are met
    by name; where the model's classes have no names, by their order, and there must be as many.

    Args:
        path: of the COCO file.
        photographs: in the folder.
        folder: of the photographs.
        classes: of the model, by class id.

    Raises:
        DataSetError: no COCO file, other images, other classes, or a box that is none.
    """
    told = _read(path)
    try:
        categories = {int(each["id"]): str(each["name"]) for each in told["categories"]}
        names = {int(each["id"]): str(each["file_name"]) for each in told["images"]}
        sizes = {int(each["id"]): (int(each["width"]), int(each["height"])) for each in told["images"]}
        rows: dict[int, list[tuple[int, list[float]]]] = {number: [] for number in names}
        for each in told["annotations"]:
            if not each.get("iscrowd"):
                box = [float(value) for value in each["bbox"]]
                rows[int(each["image_id"])].append((int(each["category_id"]), box))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataSetError(
            "the truth file has a wrong or missing entry",
            where=str(path),
            expected=_EXPECTED,
            got=f"{type(error).__name__}: {error}",
        ) from error
    class_ids = _class_ids(path, categories, {category for row in rows.values() for category, _ in row}, classes)
    found = _find(photographs, folder)
    images, missing = [], []
    for number, name in names.items():
        photograph = found.get(name.replace("\\", "/")) or found.get(name.replace("\\", "/").rpartition("/")[2])
        if photograph is None:
            missing.append(name)
        else:
            images.append(KnownImage(photograph, _truth(path, name, rows[number], class_ids, sizes[number])))
    if not images:
        raise DataSetError(
            "the truth file names other images than those in the folder",
            where=str(path),
            expected=f"names of files in {folder}, such as {photographs[0].relative_to(folder).as_posix()}",
            got=f"{', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}" if missing else "no images at all",
            hint="give the folder that these annotations were made for",
        )
    return TruthFile(tuple(images), tuple(missing))


def _read(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataSetError(
            "the truth file can't be read", where=str(path), expected=_EXPECTED, got=error.strerror
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataSetError(
            "the truth file is no JSON", where=str(path), expected=_EXPECTED, got=str(error).splitlines()[0]
        ) from error
    if not isinstance(told, dict):
        raise DataSetError(
            "the truth file is no COCO file", where=str(path), expected=_EXPECTED, got=f"a {type(told).__name__}"
        )
    return told


def _class_ids(path: Path, categories: dict[int, str], used: set[int], classes: Sequence[str]) -> dict[int, int]:
    """Class ids by category id, of the categories that have boxes."""
    if not used <= set(categories):
        raise _other_classes(path, classes, f"boxes of the category {min(used - set(categories))}, which has no name")
    named = {name: class_id for class_id, name in enumerate(classes) if name}
    if named:
        unknown = sorted(categories[number] for number in used if categories[number] not in named)
        if unknown:
            raise _other_classes(path, classes, ", ".join(unknown))
        return {number: named[categories[number]] for number in used}
    for numbers in (sorted(categories), sorted(used)):  # some tools add a category without boxes above the others
        if len(numbers) == len(classes):
            return {number: class_id for class_id, number in enumerate(numbers)}
    raise _other_classes(path, classes, f"{len(categories)}: {', '.join(categories.values())}")


def _other_classes(path: Path, classes: Sequence[str], got: str) -> DataSetError:
    names = ", ".join(name for name in classes if name)
    return DataSetError(
        "the truth file has other classes than the model",
        where=str(path),
        expected=names or f"{len(classes)} {'category' if len(classes) == 1 else 'categories'}",
        got=got,
        hint="rename the categories in the file to the model's classes" if names else None,
    )


def _find(photographs: Sequence[Path], folder: Path) -> dict[str, Path]:
    """By path below the folder, and by name where only one has it."""
    found: dict[str, Path] = {}
    twice: set[str] = set()
    for photograph in photographs:
        if photograph.name in found:
            twice.add(photograph.name)
        found[photograph.name] = photograph
    for name in twice:
        del found[name]
    return found | {photograph.relative_to(folder).as_posix(): photograph for photograph in photographs}


def _truth(
    path: Path, name: str, rows: list[tuple[int, list[float]]], class_ids: dict[int, int], size: tuple[int, int]
) -> Truth:
    for _, box in rows:
        if len(box) != 4 or not all(map(math.isfinite, box)) or box[2] <= 0 or box[3] <= 0:
            raise DataSetError(
                "the truth file has a box that is none",
                where=f"{path}, image {name}",
                expected="left, top, width, height in pixels, the latter two above 0",
                got=str(box),
            )
    xywh = np.array([box for _, box in rows], np.float64).reshape(-1, 4)
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1).astype(np.float32)
    return Truth(boxes, np.array([class_ids[category] for category, _ in rows], np.int64), *size)
