"""What a run learns from and is judged by, kept in its folder: a run that is taken up goes on with the very same.

People go on submitting while a server is restarted. With what they have submitted meanwhile it would be another
training, and what was learned so far would be lost; what is new waits for the next run, as it would have anyway.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from spica.evaluation.truth import Truth
from spica.files import storage_error, write_text
from spica.training.dataset import DataSet, Example

MATERIAL: Final = "material.json"
"""Name of the file in a run's folder."""

_FORMAT: Final = 1


def write(folder: Path, data: DataSet, *, parent: str | None) -> None:
    """Keep a data set, whole or not at all.

    Args:
        folder: of the run.
        data: all annotated images, those that are held out too.
        parent: id of the version that the training begins with.

    Raises:
        StorageError: it can't be written.
    """
    try:
        examples = [_told(example) for example in data.examples]
    except OSError as error:
        raise storage_error(error, folder) from error
    told = {
        "format": _FORMAT,
        "parent": parent,
        "classes": data.classes,
        "problems": data.problems,
        "left_out": data.left_out,
        "examples": examples,
    }
    write_text(folder / MATERIAL, json.dumps(told, ensure_ascii=False))


def read(folder: Path, *, parent: str | None, classes: Sequence[str]) -> tuple[DataSet | None, str | None]:
    """What was kept, if a training can go on with it.

    Args:
        folder: of the run.
        parent: id of the version that answers now.
        classes: of the project, as they are now.

    Returns:
        The data set; or None, and why it does not serve any more. Both None where nothing was kept.
    """
    try:
        told = json.loads((folder / MATERIAL).read_text("utf-8"))
        if told["format"] != _FORMAT:
            raise ValueError("another format")
        if told["parent"] != parent:
            return None, "another version answers the project now"
        if told["classes"] != list(classes):
            return None, "the labels of the project have changed"
        gone = [each["name"] for each in told["examples"] if not _is_there(each)]
        if gone:
            return None, f"images have gone from the data folder, {gone[0]} the first of {len(gone)}"
        data = DataSet(
            classes=tuple(told["classes"]),
            examples=tuple(_example(each) for each in told["examples"]),
            problems=tuple(told["problems"]),
            left_out=tuple((int(number), str(updated)) for number, updated in told["left_out"]),
        )
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, "the record of its images can't be read"
    return data, None


def _told(example: Example) -> dict[str, Any]:
    return {
        "path": str(example.path),
        "bytes": example.path.stat().st_size,
        "digest": example.digest,
        "boxes_xyxy": example.truth.boxes_xyxy.tolist(),
        "class_ids": example.truth.class_ids.tolist(),
        "size": [example.truth.width, example.truth.height],
        "name": example.name,
        "task": example.task,
        "annotation": example.annotation,
        "updated": example.updated,
        "group": example.group,
    }


def _is_there(told: dict[str, Any]) -> bool:
    try:
        return bool(Path(told["path"]).stat().st_size == told["bytes"])
    except OSError:
        return False


def _example(told: dict[str, Any]) -> Example:
    boxes = np.array(told["boxes_xyxy"], np.float32).reshape(-1, 4)
    width, height = told["size"]
    return Example(
        path=Path(told["path"]),
        digest=told["digest"],
        truth=Truth(boxes, np.array(told["class_ids"], np.int64), int(width), int(height)),
        name=told["name"],
        task=told["task"],
        annotation=told["annotation"],
        updated=told["updated"],
        group=told["group"],
    )
