"""YOLO, as Ultralytics writes it (https://docs.ultralytics.com/datasets/detect/), and Label Studio's own export.

A text file an image in ``labels/``, a line an object: class, centre x, centre y, width, height, the last four as
shares of the upright image. Lines with more points are outlines or turned boxes: the box around them is taken. An image
without a text file, or with an empty one, has no objects. Names are in ``data.yaml`` or ``classes.txt``.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from spica.errors import ConfinementError, DataSetError
from spica.labelstudio.confinement import ConfinedFolder
from spica.training.dataset import DataSet
from spica.training.formats.sketch import IMAGE_SUFFIXES, Found, Sketch, no_boxes

_SPLITS: Final = ("train", "val", "valid", "test")
_MAX_YAML: Final = 2**20
_DIGITS: Final = 8  # a share: 0.001 pixels at a width of 100,000


class Yolo:
    """Reads and writes YOLO's format."""

    name = "YOLO"
    image_folder = "images"

    def read(self, data: Path, images: Path | None, split: str | None) -> Found:
        """What is in the folder, or beside the yaml file, at ``data``: one split of it, or all.

        Raises:
            DataSetError: names or images are missing, or the yaml file is damaged.
        """
        config = data if data.is_file() else next((each for each in yaml_files(data)), None)
        root = data.parent if data.is_file() else data
        body = _read_yaml(config) if config is not None else {}
        names = _names(body, config) if body.get("names") else _listed_names(root)
        found = Found(tuple(dict.fromkeys(names.values())), [])
        folders = [images] if images is not None else _image_folders(body, root, split)
        for path in _unique(path for folder in folders for path in _image_files(folder, root)):
            found.images.append((_sketch(path, _label_file(path, root), names), path))
        if not found.images:
            raise DataSetError(
                "there are no images",
                where=str(root),
                expected="images/ beside labels/, or train: and val: in data.yaml",
                got=", ".join(str(folder) for folder in folders) or "neither",
                hint="give the folder of the images with --images",
            )
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


def yaml_files(folder: Path) -> list[Path]:
    """The yaml files of a folder, data.yaml first."""
    found = sorted(path for path in folder.iterdir() if path.suffix in (".yaml", ".yml") and path.is_file())
    return sorted(found, key=lambda path: path.stem not in ("data", "dataset"))


def is_yolo(folder: Path) -> bool:
    """Whether a folder looks like this format."""
    if yaml_files(folder) or ((folder / "labels").is_dir() and (folder / "images").is_dir()):
        return True
    return any((folder / split / "labels").is_dir() for split in _SPLITS)


def _read_yaml(path: Path) -> dict[str, Any]:
    yaml = importlib.import_module("yaml")  # heavy for a command that needs none; and it carries no types
    try:
        text = path.read_text("utf-8-sig")
        body = yaml.safe_load(text) if len(text) <= _MAX_YAML else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise DataSetError("the file can't be read", where=str(path), expected="YAML", got=str(error)[:200]) from error
    if not isinstance(body, dict):
        raise DataSetError("this is no data set of YOLO", where=str(path), expected="names:, train: and val:")
    return body


def _names(body: dict[str, Any], config: Path | None) -> dict[int, str]:
    names = body["names"]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(str(number).isdecimal() for number in names):
        raise DataSetError("the names of the classes can't be read", where=str(config), expected="a list, or 0: name …")
    return {int(number): str(name) for number, name in sorted(names.items(), key=lambda each: int(each[0]))}


def _listed_names(root: Path) -> dict[int, str]:
    for name in ("classes.txt", "obj.names", "labels/classes.txt"):
        if (root / name).is_file():
            lines = (root / name).read_text("utf-8-sig").splitlines()
            return dict(enumerate(line.strip() for line in lines if line.strip()))
    raise DataSetError(
        "the names of the classes are missing",
        where=str(root),
        expected="data.yaml with names:, or classes.txt with a name a line",
    )


def _image_folders(body: dict[str, Any], root: Path, split: str | None) -> list[Path]:
    """The folders, or files with lists, that the yaml file names and that lie below its own folder."""
    wanted = _SPLITS if split is None else {"val": ("val", "valid"), "valid": ("val", "valid")}.get(split, (split,))
    confined = ConfinedFolder(root, setting="the folder of data.yaml")
    found: list[Path] = []
    for key in wanted:
        value = body.get(key)
        for entry in value if isinstance(value, list) else [value]:
            place = _place(str(entry), str(body.get("path") or ""), confined) if entry else None
            if place is not None:
                found.append(place)
    if found:
        return found
    plain = [root / split / "images" for split in wanted]
    joined = [root / "images" / split for split in wanted]
    there = [folder for folder in (*plain, *joined) if folder.is_dir()]
    return there if there or (split is not None) else [root / "images"]


def _place(entry: str, prefix: str, confined: ConfinedFolder) -> Path | None:
    # Where a download was unpacked elsewhere than its author thought ("../train/images"), its own folder counts.
    shortened = entry.replace("\\", "/")
    while shortened.startswith("../"):
        shortened = shortened[3:]
    for name in dict.fromkeys((f"{prefix}/{entry}" if prefix not in ("", ".") else entry, entry, shortened)):
        try:
            found = confined.find(name.removeprefix("./"))
        except ConfinementError:
            continue
        if found is not None:
            return found
    return None


def _image_files(place: Path, root: Path) -> Iterator[Path]:
    """The images in a folder and its sub-folders, by name; or those that a text file lists, below ``root``."""
    if place.is_file():
        confined = ConfinedFolder(root, setting="the folder of data.yaml")
        for line in place.read_text("utf-8-sig").splitlines():
            found = _place(line.strip(), "", confined) if line.strip() else None
            if found is not None and found.is_file():
                yield found
    elif place.is_dir():
        inside = place.resolve()
        for path in sorted(place.rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and path.resolve().is_relative_to(inside):
                yield path


def _unique(paths: Iterator[Path]) -> list[Path]:
    return list(dict.fromkeys(paths))


def _label_file(image: Path, root: Path) -> Path:
    """The same path with the last ``images`` in it as ``labels``, as Ultralytics finds it; else beside the image."""
    parts = list(image.parts)
    lowest = len(root.parts) - 1
    for index in range(len(parts) - 2, lowest, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            return Path(*parts).with_suffix(".txt")
    there = root / "labels" / image.with_suffix(".txt").name
    return there if there.is_file() else image.with_suffix(".txt")


def _sketch(path: Path, labels_file: Path, names: dict[int, str]) -> Sketch:
    boxes: list[list[float]] = []
    labels: list[str] = []
    doubt = None
    try:
        lines = labels_file.read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        lines = []
    except (OSError, UnicodeDecodeError):
        lines = ["unreadable"]
    for line in lines:
        if not line.strip():
            continue
        read = _box(line)
        if read is None:
            doubt = "a line of labels that is not understood"
            continue
        boxes.append(read[1])
        labels.append(names.get(read[0], ""))
    return Sketch(
        name=path.name,
        labels=tuple(labels),
        boxes_xyxy=np.array(boxes, np.float64) if boxes else no_boxes(),
        relative=True,
        is_upright=True,
        doubt=doubt,
    )


def _box(line: str) -> tuple[int, list[float]] | None:
    """Class number and box as shares, or None for a line that is neither a box nor an outline."""
    try:
        number, *values = (float(word) for word in line.split())
    except ValueError:
        return None
    if not number.is_integer():  # neither are NaN and infinities
        return None
    if len(values) in (4, 5):  # the fifth is a score
        x, y, width, height = values[:4]
        return int(number), [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    if len(values) >= 6 and len(values) % 2 == 0:
        return int(number), [min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]
    return None
