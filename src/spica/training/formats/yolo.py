"""YOLO, as Ultralytics writes it (https://docs.ultralytics.com/datasets/detect/), CVAT's YOLO 1.1, and Label Studio's.

A text file an image, a line an object: class, centre x, centre y, width, height, the last four as shares of the upright
image. Lines with more points are outlines or turned boxes: the box around them is taken. An image with an empty text
file has no objects; one without a text file is left out. ``data.yaml`` (or Darknet's ``obj.data``) names the classes
and the images of each part; without it ``classes.txt`` names the classes. Paths are often those of another machine:
what lies in the folder under the last parts of such a path is meant.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import numpy as np

from spica.errors import DataSetError
from spica.labelstudio.confinement import ConfinedFolder
from spica.training.dataset import DataSet
from spica.training.formats.annotated import (
    IMAGE_SUFFIXES,
    AnnotatedImage,
    Annotations,
    ReadingLog,
    boxes_array,
    matches_below,
)
from spica.training.formats.text import read_lines, read_text

IMAGE_FOLDER: Final = "images"
_SPLITS: Final = {"train": ("train",), "val": ("val", "valid"), "valid": ("val", "valid"), "test": ("test",)}
"""The keys by which a part is described, by the name it is asked for."""
_USUAL: Final = ("data", "dataset")  # stems of the description's name
_MAX_YAML: Final = 2**18  # letters; they take seconds, and a thousand names take 2**15
_MAX_DIGITS: Final = 9  # of a class number
_DIGITS: Final = 8  # of a share: 0.001 pixels at a width of 100,000
_MAX_SHARE: Final = 1.01  # tools round shares up to a little over 1
_CACHED: Final = re.compile(r"[0-9a-f]{8}__")
_UPLOADED: Final = re.compile(r"[0-9a-f]{8}-")
_NEUTRAL: Final = re.compile(r"images|labels|obj_\w+_data", re.IGNORECASE)
"""Folders that tell labels from images and nothing else: also CVAT's ``obj_train_data``."""


def is_yolo(folder: Path) -> bool:
    """Whether a folder looks like this format."""
    return (
        any((folder / name).is_file() for name in ("obj.data", "obj.names", "classes.txt", "labels/classes.txt"))
        or ((folder / "labels").is_dir() and (folder / "images").is_dir())
        or any((folder / split / "labels").is_dir() for split in _SPLITS)
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
    files = _Files((root,) if images is None else (images.resolve(), root), log)
    wanted = _wanted_images(body, root, files, split, log)
    if not wanted.images and not wanted.missing:
        raise DataSetError(
            "there are no images" if split is None else f"there are no images of {split}",
            where=str(root),
            expected="images/ beside labels/, or train: and val: in data.yaml",
            got="; ".join(wanted.lacking) or None,
            hint="give the folder of the images with --images",
        )
    pairs = _Pairs(dict.fromkeys((*wanted.images, *wanted.others)), files)
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
        place = _find(names, (root,))
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


# --- the images of a part


class _Files:
    """The images and text files below a few resolved folders. Symbolic links are followed where they stay there.

    Attributes:
        images: all of them.
        texts: all of them.
        outside: images that are links to somewhere else.
    """

    def __init__(self, bases: tuple[Path, ...], log: ReadingLog) -> None:
        self.bases = bases
        self.outside: set[Path] = set()
        self._log = log
        self._noted: set[Path] = set()
        paths = dict.fromkeys(path for base in bases for path in self._walk(base, set()))
        self.images = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
        self.texts = [path for path in paths if path.suffix.lower() == ".txt"]

    def images_in(self, folder: Path) -> list[Path]:
        """The images of one folder below, and of its sub-folders, by name."""
        return [path for path in self._walk(folder, set()) if path.suffix.lower() in IMAGE_SUFFIXES]

    def parts(self, path: Path) -> tuple[str, ...]:
        """The parts of a path below its folder."""
        base = next(base for base in self.bases if path.is_relative_to(base))
        return path.relative_to(base).parts

    def _walk(self, folder: Path, seen: set[Path]) -> Iterator[Path]:
        real = Path(os.path.realpath(folder))
        if real in seen:
            return
        seen.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            self._note("{n} folders can't be read: passed over", folder)
            return
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):  # macOS leaves such beside each file of an archive
                continue
            leads_out = entry.is_symlink() and not self._holds(Path(os.path.realpath(path)))
            if entry.is_dir() and leads_out:
                self._note("{n} folders are links that lead elsewhere: passed over", path)
            elif entry.is_dir():
                yield from self._walk(path, seen)
            elif path.suffix.lower() in IMAGE_SUFFIXES or (entry.is_file() and not leads_out):
                self.outside |= {path} if leads_out else set()
                yield path

    def _holds(self, path: Path) -> bool:
        return any(path.is_relative_to(base) for base in self.bases)

    def _note(self, sentence: str, folder: Path) -> None:
        if folder not in self._noted:
            self._noted.add(folder)
            self._log.correct(sentence, folder.name)


@dataclass(slots=True)
class _Wanted:
    """The images that are asked for, and those of other parts, which label files may belong to as well.

    Attributes:
        missing: what a list of images names that is not there.
        lacking: parts that are described and are not there.
    """

    images: dict[Path, None] = field(default_factory=dict)
    others: dict[Path, None] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)


def _wanted_images(body: dict[str, Any], root: Path, files: _Files, split: str | None, log: ReadingLog) -> _Wanted:
    """The images of one part of a data set, or of all of it.

    Without parts in the description those of a split lie in folders that are called so; where none of its parts is in
    the folder that was given for the images, all of that is meant.
    """
    keys = tuple(_SPLITS) if split is None else _SPLITS.get(split, (split,))
    described = {key: body[key] for key in dict.fromkeys((*_SPLITS, *keys)) if body.get(key)}
    wanted = _Wanted()
    for key, value in described.items():
        into = wanted.images if key in keys else wanted.others
        for entry in map(str, value if isinstance(value, list) else [value]):
            images, missing = _of_entry(key, entry, str(body.get("path") or ""), root, files, log)
            into.update(dict.fromkeys(images))
            if key not in keys:
                continue
            wanted.missing += missing
            if key == "test" and split is None and not (images or missing):  # many name one that was never given away
                log.correct("{n} parts are not there: nothing is read of them", f"{key}: {entry}")
            elif not (images or missing):
                wanted.lacking.append(f"{key}: {entry}")
    is_elsewhere = files.bases[0] != root and not (wanted.images or wanted.others or wanted.missing)
    if not described or (is_elsewhere and split is None):
        wanted = _Wanted()
        for path in _undescribed(root, files, log):
            folders = (part.casefold().rstrip("0123456789") for part in files.parts(path)[:-1])  # also train2017
            is_wanted = split is None or any(folder in keys for folder in folders)
            (wanted.images if is_wanted else wanted.others)[path] = None
    return wanted


def _undescribed(root: Path, files: _Files, log: ReadingLog) -> list[Path]:
    """The images where nothing describes them: in images/, and the splits' images/; else all."""
    paths = [path for path in files.images if path.is_relative_to(files.bases[0])]
    usual = [path for path in paths if any(part.casefold() == "images" for part in files.parts(path)[:2])]
    if files.bases[0] != root or not usual:
        return paths
    for path in sorted(set(paths) - set(usual)):
        log.correct("{n} images lie elsewhere than in images/: passed over", path.name)
    return usual


def _of_entry(
    key: str, entry: str, prefix: str, root: Path, files: _Files, log: ReadingLog
) -> tuple[list[Path], list[str]]:
    """The images of a folder, or those that a text file lists and what it lists in vain."""
    bases = (*files.bases, root)
    place = _find(f"{prefix}/{entry}", bases)
    if place is None:
        return [], []
    parts = _parts(entry)
    if place.parts[-len(parts) :] != parts and not any(base.joinpath(*parts).exists() for base in bases):
        log.correct("{n} parts are not where it is said: what is called so in the folder is taken", f"{key}: {entry}")
    if place.is_dir():
        return files.images_in(place), []
    by_name = {_nfc("/".join(files.parts(path))): path for path in files.images}
    beside = "/".join(files.parts(place)[:-1])
    images: list[Path] = []
    missing: list[str] = []
    for line in filter(None, read_lines(place, log)):
        names = (name for tail in _tails(line) for name in (f"{beside}/{tail}", tail))
        path = next((by_name[name] for name in names if name in by_name), None)
        if path is None:
            missing.append(line)
        else:
            images.append(path)
    return images, missing


def _find(entry: str, bases: tuple[Path, ...]) -> Path | None:
    """What lies below one of the folders under a path, or else under its last parts; links resolved."""
    folders = [ConfinedFolder(base, setting="the folder of the data") for base in bases]
    return next((path for name in _tails(entry) for path in matches_below(name, folders)), None)


def _parts(entry: str) -> tuple[str, ...]:
    """A path's parts without those that say where it begins, and without steps up."""
    return tuple(part for part in re.split(r"[/\\]+", entry) if part not in ("", ".", ".."))


def _tails(entry: str) -> Iterator[str]:
    parts = _parts(_nfc(entry))
    for start in range(max(len(parts), 1)):
        yield "/".join(parts[start:])


# --- which label file belongs to which image


Keys = Callable[[str], set[str]]


class _Pairs:
    """Which label file belongs to which image; where that is in doubt, none does.

    In this order: as Ultralytics finds it (the last ``images`` in the path read as ``labels``) or beside the image; of
    the same name in folders of the same names, or of fewer of them, so that ``labels/`` may be flat; as Label Studio's
    export names it. No file is given to two images; an image that a further file fits, which says something else, gets
    none.

    Label Studio 1.23 names a label file like the last part of its image's address (``converter.py``,
    ``get_local_path``): percent-encoded where that holds more than ASCII, with ``<8 hex digits>__`` before it unless
    the image was found on its disk. An upload has ``<8 hex digits>-`` before its name from the start.

    Args:
        images: those of all parts, each once: a label file is theirs too.
        files: what is there.

    Attributes:
        label_of: label files by image.
        ambiguous: images with a label file that may be another image's, or with several; and those label files.
    """

    def __init__(self, images: Iterable[Path], files: _Files) -> None:
        self.label_of: dict[Path, Path] = {}
        self.ambiguous: set[Path] = set()
        images = list(images)
        self._pair_by_path(images, files)
        for of_image, of_label in _KEYS:
            self._pair_by_keys(images, files, of_image, of_label)

    def left(self, files: _Files) -> list[Path]:
        """Text files that belong to no image."""
        used = {*self.label_of.values(), *self.ambiguous}
        return [path for path in files.texts if path not in used]

    def _pair_by_path(self, images: list[Path], files: _Files) -> None:
        texts = {path.with_suffix(".txt"): path for path in files.texts}
        claims: dict[Path, list[Path]] = defaultdict(list)
        for image in images:
            label = next((texts[path] for path in _usual_labels(image, files) if path in texts), None)
            if label is not None:
                claims[label].append(image)
        for label, owners in claims.items():
            if len(owners) == 1:
                self.label_of[owners[0]] = label
            else:
                self.ambiguous.update((label, *owners))

    def _pair_by_keys(self, images: list[Path], files: _Files, of_image: Keys, of_label: Keys) -> None:
        """Pair those whose keys match nobody else's, among images and label files that are left."""
        left = self.left(files)
        if not left:
            return
        owners: dict[str, list[Path]] = defaultdict(list)
        for image in images:
            for key in of_image(image.name):
                owners[key].append(image)
        together = {image.parent for image in images}
        flat = {*files.bases, *(together if len(together) == len(files.bases) == 1 else ())}
        options: dict[Path, list[Path]] = defaultdict(list)  # label files by image
        for label in left:
            folders = _folders(label, files)
            named = _address(Path(label.name).stem)[:-1]  # an image in a folder must be in the one that is named
            candidates = {
                image
                for key in of_label(label.name)
                for image in owners.get(key, ())
                if folders <= _folders(image, files)
                and (not named or image.parent in flat or _nfc(image.parent.name) == named[-1])
            }
            for image in candidates:
                options[image].append(label)
            if len(candidates) > 1:
                self.ambiguous |= {label, *candidates} - self.label_of.keys()
        for image, labels in options.items():
            own = self.label_of.get(image)
            if own is not None:
                others = [label for label in labels if not _say_the_same(own, label)]
                if others:
                    del self.label_of[image]
                    self.ambiguous.update((image, own, *others))
            elif len(labels) > 1:
                self.ambiguous.update((image, *labels))
            elif image not in self.ambiguous:
                self.label_of[image] = labels[0]


def _usual_labels(image: Path, files: _Files) -> list[Path]:
    parts = files.parts(image)
    base = Path(*image.parts[: len(image.parts) - len(parts)])
    last = max((index for index, part in enumerate(parts[:-1]) if part == "images"), default=None)
    swapped = [] if last is None else [base.joinpath(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt")]
    return [*swapped, image.with_suffix(".txt")]


def _say_the_same(one: Path, other: Path) -> bool:
    try:
        return read_text(one, ReadingLog()).split() == read_text(other, ReadingLog()).split()
    except DataSetError:
        return False


def _folders(path: Path, files: _Files) -> frozenset[str]:
    return frozenset(part for part in files.parts(path)[:-1] if not _NEUTRAL.fullmatch(part))


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _address(name: str) -> list[str]:
    """The parts of a path that Label Studio made a name of."""
    return re.split(r"[/\\]", _nfc(unquote(_CACHED.sub("", name, count=1))).rpartition("?d=")[2])


def _plain(name: str) -> str:
    """A name without what Label Studio's cache and addresses add, its last part alone; letters' case is disregarded."""
    return _address(name)[-1].casefold()


def _plain_image(name: str) -> set[str]:
    """With its suffix too: some tools write ``a.jpg.txt``."""
    return {_plain(Path(name).stem), _plain(name)}


def _plain_label(name: str) -> set[str]:
    return {_plain(Path(name).stem)}


def _uploaded(names: Iterable[str]) -> set[str]:
    return {_UPLOADED.sub("", name, count=1) for name in names if _UPLOADED.match(name)}


_KEYS: Final[tuple[tuple[Keys, Keys], ...]] = (
    (lambda name: {Path(name).stem}, lambda name: {Path(name).stem}),
    (_plain_image, _plain_label),
    (_plain_image, lambda name: _uploaded(_plain_label(name))),
    (lambda name: _uploaded(_plain_image(name)), _plain_label),
)
"""By which names images and label files are compared, the surest first."""
