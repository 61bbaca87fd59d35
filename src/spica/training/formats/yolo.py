"""YOLO, as Ultralytics writes it (https://docs.ultralytics.com/datasets/detect/), CVAT's YOLO 1.1, and Label Studio's.

A text file an image, a line an object: class, centre x, centre y, width, height, the last four as shares of the upright
image. Lines with more points are outlines or turned boxes: the box around them is taken. An image with an empty text
file has no objects; one without a text file is left out. ``data.yaml`` (or Darknet's ``obj.data``) names the classes
and the images of each part; without it ``classes.txt`` names the classes.
"""

from __future__ import annotations

import importlib
import json
import unicodedata
from pathlib import Path
from typing import Any, Final

import numpy as np

from spica.errors import DataSetError
from spica.training.dataset import DataSet
from spica.training.formats.annotated import AnnotatedImage, Annotations, ReadingLog, boxes_array
from spica.training.formats.text import read_lines, read_text
from spica.training.formats.yolo_files import SPLITS, Files, Pairs, find, wanted_images

IMAGE_FOLDER: Final = "images"
_USUAL: Final = ("data", "dataset")  # stems of the description's name
_MAX_YAML: Final = 2**18  # letters; they take seconds, and a thousand names take 2**15
_MAX_DIGITS: Final = 9  # of a class number
_DIGITS: Final = 8  # of a share: 0.001 pixels at a width of 100,000
_MAX_SHARE: Final = 1.01  # tools round shares up to a little over 1


def is_yolo(folder: Path) -> bool:
    """Whether a folder looks like this format."""
    return (
        any((folder / name).is_file() for name in ("obj.data", "obj.names", "classes.txt", "labels/classes.txt"))
        or ((folder / "labels").is_dir() and (folder / "images").is_dir())
        or any((folder / split / "labels").is_dir() for split in SPLITS)
        or any(_is_description(_try_yaml(path) or {}) for path in _yaml_files(folder))
    )


def damaged_yaml(folder: Path) -> list[Path]:
    """The yaml files of a folder that can't be read."""
    return [path for path in _yaml_files(folder) if _try_yaml(path) is None]


def read(data: Path, images: Path | None, split: str | None, log: ReadingLog) -> Annotations:
    """What is in the folder, or beside the yaml file, at ``data``: one split of it, or all.

    Raises:
        DataSetError: names or images are missing, or the yaml file is damaged.
    """
    root = (data.parent if data.is_file() else data).resolve()
    described, body = _describe(root / data.name if data.is_file() else root, log)
    names = _class_names(body, described, root, log)
    files = Files((root,) if images is None else (images.resolve(), root), log)
    wanted = wanted_images(body, root, files, split, log)
    if not wanted.images and not wanted.missing:
        raise DataSetError(
            "there are no images" if split is None else f"there are no images of {split}",
            where=str(root),
            expected="images/ beside labels/, or train: and val: in data.yaml",
            got="; ".join(wanted.lacking) or None,
            hint="give the folder of the images with --images",
        )
    pairs = Pairs(dict.fromkeys((*wanted.images, *wanted.others)), files)
    log.lacking += wanted.lacking
    for name in wanted.missing:
        log.leave_out(name, "its file is not there")
    annotated: list[tuple[AnnotatedImage, Path]] = []
    for path in wanted.images:
        label = pairs.label_of.get(path)
        if path in files.outside:
            log.leave_out(path.name, "a link that leads out of the folder")
        elif label is not None:
            annotated.append((_annotated(path, label, names, is_pose=bool(body.get("kpt_shape"))), path))
        elif path in pairs.ambiguous:
            log.leave_out(path.name, "label files that may be another image's, or several")
        else:
            log.leave_out(path.name, "no label file (an empty one says that nothing is there)")
    for path in filter(_is_label, pairs.left(files)):
        log.correct("{n} label files belong to no image: not used", path.name)
    return tuple(dict.fromkeys(names.values())), annotated


def write(dataset: DataSet, files: tuple[str, ...], folder: Path) -> None:
    """Write ``data.yaml``, and ``labels/`` beside ``images/``, which holds the images under ``files``."""
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
    head = "# train and val are the same images: split them before judging a model by val."
    text = [head, "path: .", "train: images", "val: images", "names:", *names]
    (folder / "data.yaml").write_text("\n".join(text) + "\n", "utf-8")


# --- labels


def _annotated(path: Path, label: Path, names: dict[int, str], *, is_pose: bool) -> AnnotatedImage:
    labels: list[str] = []
    boxes: list[list[float]] = []
    doubt = None
    try:
        lines = [line for line in read_lines(label, ReadingLog()) if line]
    except DataSetError:
        lines, doubt = [], "a label file that can't be read"
    for line in lines:
        parsed = _parse(line, is_pose=is_pose)
        if isinstance(parsed, str):
            doubt = parsed
            break
        labels.append(names.get(parsed[0], ""))
        boxes.append(parsed[1])
    return AnnotatedImage(path.name, tuple(labels), boxes_array(boxes), relative=True, is_upright=True, doubt=doubt)


def _parse(line: str, *, is_pose: bool = False) -> tuple[int, list[float]] | str:
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
    if max(values[:4] if is_box else values) > _MAX_SHARE:
        return "coordinates over 1, perhaps in pixels, where shares of the image are meant"
    if is_box:
        x, y, width, height = values[:4]
        return int(number), [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    return int(number), [min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]


def _is_label(path: Path) -> bool:
    """Whether a text file holds labels, not names or a licence."""
    try:
        first = next((line for line in read_lines(path, ReadingLog()) if line), "")
    except DataSetError:
        return False
    return not isinstance(_parse(first), str)


# --- the description and the names of the classes


def _yaml_files(folder: Path) -> list[Path]:
    """The yaml files of a folder, data.yaml first."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".yaml", ".yml") and path.is_file())
    return sorted(files, key=lambda path: path.stem not in _USUAL)


def _describe(data: Path, log: ReadingLog) -> tuple[Path, dict[str, Any]]:
    """The description at or in ``data``, and the file it is from; empty if there is none.

    Other yaml files may lie there, such as ``args.yaml`` of a training: the one that names classes and images counts.
    """
    if data.is_file():
        return data, _read_yaml(data, log)
    files = _yaml_files(data)
    if files and files[0].stem in _USUAL and (body := _read_yaml(files[0], log)).get("names"):
        return files[0], body
    bodies = {path: body for path in files if _is_description(body := _try_yaml(path) or {})}
    best = max(map(_rank, bodies.values()), default=0)
    meant = [path for path, body in bodies.items() if _rank(body) == best]
    if len(meant) > 1 and meant[0].stem not in _USUAL:
        raise DataSetError(
            "there are several data sets in the folder",
            where=str(data),
            got=", ".join(path.name for path in meant[:10]),
            hint="give one of these files",
        )
    if meant:
        return meant[0], bodies[meant[0]]
    darknet = data / "obj.data"
    if not darknet.is_file():
        return data, {}
    pairs = (line.partition("=") for line in read_lines(darknet, log))
    return darknet, {key.strip(): value.strip().removeprefix("data/") for key, _, value in pairs if value.strip()}


def _is_description(body: dict[str, Any]) -> bool:
    return bool(body.get("names")) or isinstance(body.get("train"), str | list)


def _rank(body: dict[str, Any]) -> int:
    return 2 * bool(body.get("names")) + any(body.get(key) for key in ("train", "val", "valid", "path"))


def _try_yaml(path: Path) -> dict[str, Any] | None:
    try:
        return _read_yaml(path, ReadingLog())
    except DataSetError:
        return None


def _read_yaml(path: Path, log: ReadingLog) -> dict[str, Any]:
    """A yaml file in which every value is text, or null: a class may be called "no", "1e3" or "2026-01-01"."""
    yaml = importlib.import_module("yaml")  # heavy for a command that needs none; and it carries no types

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        yaml_implicit_resolvers: Final = {
            first: [resolver for resolver in resolvers if resolver[0] == "tag:yaml.org,2002:null"]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):  # a few lines may stand for gigabytes
                raise yaml.YAMLError(f"aliases and tags are not read, line {event.start_mark.line + 1}")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [str(key.value) for key, _ in node.value]
            if len(set(keys)) < len(keys):
                raise yaml.YAMLError(f"a key is there twice, from line {node.start_mark.line + 1} on")
            return super().construct_mapping(node, deep)

    text = read_text(path, log)
    try:
        if len(text) > _MAX_YAML:
            raise ValueError(f"{len(text)} letters")
        body = yaml.load(text, Loader)
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:  # the last two for "\UFFFFFFFF"
        got, expected = str(error)[:200], "YAML, without aliases (*) and tags (!)"
        raise DataSetError("the file can't be read", where=str(path), expected=expected, got=got) from error
    if not isinstance(body, dict):
        raise DataSetError("this is no data set of YOLO", where=str(path), expected="names:, train: and val:")
    return body


def _class_names(body: dict[str, Any], described: Path, root: Path, log: ReadingLog) -> dict[int, str]:
    """Names by the number that stands in label files, without numbers that have none."""
    names: Any = body.get("names") or _listed_names(root, log)
    if isinstance(names, str):
        place = find(names, (root,))
        names = read_lines(place, log) if place is not None and place.is_file() else None
    if isinstance(names, list):
        names = {str(number): name for number, name in enumerate(names)}
    unreadable = "the names of the classes can't be read"
    if not isinstance(names, dict) or not all(_is_name(number, name) for number, name in names.items()):
        raise DataSetError(unreadable, where=str(described), expected="a list of texts, or 0: name …")
    numbered = {int(number): (name or "").strip() for number, name in names.items()}
    if len(numbered) < len(names) or not any(numbered.values()):
        raise DataSetError(unreadable, where=str(described), got="one number twice" if any(names) else "blank names")
    return {number: numbered[number] for number in sorted(numbered) if numbered[number]}


def _is_name(number: Any, name: Any) -> bool:
    if not (isinstance(number, str) and number.isdecimal() and len(number) <= _MAX_DIGITS):
        return False
    is_text = isinstance(name, str) and not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)
    return name is None or is_text


def _listed_names(root: Path, log: ReadingLog) -> list[str] | dict[str, str]:
    """The names that lie beside the images, a line each; the number of a Label Studio label is its category."""
    for name in ("classes.txt", "obj.names", "labels/classes.txt", "images/classes.txt"):
        if (root / name).is_file():
            lines = read_lines(root / name, log)
            numbers = _label_studio_numbers(root / "notes.json")
            if len(numbers) != len(list(filter(None, lines))):
                return lines
            numbered = zip(numbers, lines, strict=False)  # the last end of line gives a line more
            return {number: name if numbers.count(number) == 1 else "" for number, name in numbered}
    raise DataSetError(
        "the names of the classes are missing",
        where=str(root),
        expected="data.yaml with names:, or classes.txt with a name a line",
    )


def _label_studio_numbers(notes: Path) -> list[str]:
    """The class numbers of the lines of ``classes.txt``, by Label Studio's export; none where it does not say."""
    try:
        body = json.loads(notes.read_text("utf-8"))
        return [str(row["id"]) for row in body["categories"]] if body["info"]["contributor"] == "Label Studio" else []
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
