"""YOLO, as Ultralytics writes it (https://docs.ultralytics.com/datasets/detect/), CVAT's YOLO 1.1, and Label Studio's.

A text file an image, a line an object: class, centre x, centre y, width, height, the last four as shares of the upright
image. Lines with more points are outlines or turned boxes: the box around them is taken. An image with an empty text
file has no objects; one without a text file is left out. Names are in ``data.yaml`` or ``classes.txt``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import numpy as np

from spica.errors import DataSetError
from spica.training.cleaning import Tally
from spica.training.dataset import DataSet
from spica.training.formats.sketch import Found, Sketch, no_boxes
from spica.training.formats.text import read_lines
from spica.training.formats.yolo_description import class_names, describe
from spica.training.formats.yolo_folder import Files, wanted_images
from spica.training.formats.yolo_labels import pair

_DIGITS: Final = 8  # a share: 0.001 pixels at a width of 100,000
_NO_LABELS: Final = "no label file (an empty one says that nothing is there)"
_MOST: Final = 1.01  # tools round shares up to a little over 1


class Yolo:
    """Reads and writes YOLO's format."""

    name = "YOLO"
    image_folder = "images"

    def read(self, data: Path, images: Path | None, split: str | None) -> Found:
        """What is in the folder, or beside the yaml file, at ``data``: one split of it, or all.

        Raises:
            DataSetError: names or images are missing, or the yaml file is damaged.
        """
        found = Found((), [])
        root = (data.parent if data.is_file() else data).resolve()
        described, body = describe(root / data.name if data.is_file() else root, found.tally)
        names = class_names(body, described, root, found.tally)
        found.classes = tuple(dict.fromkeys(names.values()))
        files = Files((root,) if images is None else (images.resolve(), root), found.tally)
        wanted = wanted_images(body, root, files, split, found.tally)
        if not wanted.images and not wanted.missing:
            raise DataSetError(
                "there are no images" if split is None else f"there are no images of {split}",
                where=str(root),
                expected="images/ beside labels/, or train: and val: in data.yaml",
                got="; ".join(wanted.lacking) or None,
                hint="give the folder of the images with --images",
            )
        pairs = pair(dict.fromkeys((*wanted.images, *wanted.others)), files)
        found.tally.lacking += wanted.lacking
        for name in wanted.missing:
            found.leave_out(name, "its file is not there")
        for path in wanted.images:
            label = pairs.label_of.get(path)
            if path in files.outside:
                found.leave_out(path.name, "a link that leads out of the folder")
            elif label is None:
                shared = "label files that may be another image's, or several"
                found.leave_out(path.name, shared if path in pairs.shared else _NO_LABELS)
            else:
                found.images.append((_sketch(path, label, names, is_pose=bool(body.get("kpt_shape"))), path))
        for path in pairs.spare:
            if _is_label(path):
                found.tally.add("{n} label files belong to no image: not used", path.name)
        return found

    def write(self, dataset: DataSet, files: tuple[str, ...], folder: Path) -> None:
        """Write ``data.yaml``, and ``labels/`` beside ``images/``."""
        labels = folder / "labels"
        labels.mkdir()
        for example, file in zip(dataset.examples, files, strict=True):
            truth = example.truth
            scale = np.array([truth.width, truth.height], np.float64)
            boxes = truth.boxes_xyxy.astype(np.float64)
            centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2 / scale, (boxes[:, 2:] - boxes[:, :2]) / scale
            lines = [
                " ".join([str(int(class_id)), *(f"{number:.{_DIGITS}f}" for number in (*centre, *side))])
                for class_id, centre, side in zip(truth.class_ids, centres, sides, strict=True)
            ]
            (labels / Path(file).with_suffix(".txt").name).write_text("".join(f"{line}\n" for line in lines), "utf-8")
        # JSON's strings are YAML's too, so that no name can break out of its line.
        names = [f"  {number}: {json.dumps(name, ensure_ascii=False)}" for number, name in enumerate(dataset.classes)]
        text = [
            "# train and val are the same images: split them before judging a model by val.",
            "path: .",
            "train: images",
            "val: images",
            "names:",
            *names,
        ]
        (folder / "data.yaml").write_text("\n".join(text) + "\n", "utf-8")


def _sketch(path: Path, label: Path, names: dict[int, str], *, is_pose: bool) -> Sketch:
    labels: list[str] = []
    boxes: list[list[float]] = []
    doubt = None
    try:
        lines = [line for line in read_lines(label, Tally()) if line]
    except DataSetError:
        lines, doubt = [], "a label file that can't be read"
    for line in lines:
        read = _object(line, is_pose=is_pose)
        if isinstance(read, str):
            doubt = read
            break
        labels.append(names.get(read[0], ""))
        boxes.append(read[1])
    return Sketch(
        name=path.name,
        labels=tuple(labels),
        boxes_xyxy=np.array(boxes, np.float64) if boxes else no_boxes(),
        relative=True,
        is_upright=True,
        doubt=doubt,
    )


def _object(line: str, *, is_pose: bool) -> tuple[int, list[float]] | str:
    """Class number and box as shares; or why a line is neither a box nor an outline."""
    not_understood = "a line of labels that is not understood"
    try:
        number, *values = (float(word) for word in line.split())
    except ValueError:
        return not_understood
    if is_pose:  # key points follow
        values = values[:4]
    is_box = len(values) in (4, 5)  # the fifth is a score
    if not number.is_integer() or not (is_box or (len(values) >= 6 and len(values) % 2 == 0)):
        return not_understood
    if max(values[:4] if is_box else values) > _MOST:
        return "coordinates over 1, perhaps in pixels, where shares of the image are meant"
    if is_box:
        x, y, width, height = values[:4]
        return int(number), [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    return int(number), [min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]


def _is_label(path: Path) -> bool:
    """Whether a text file holds labels, not names or a licence."""
    try:
        first = next((line for line in read_lines(path, Tally()) if line), "")
    except DataSetError:
        return False
    return not isinstance(_object(first, is_pose=False), str)
