"""Pascal VOC: an XML file an image in ``Annotations/``, images in ``JPEGImages/``.

Corners count from 1, and both belong to the box (VOC2012 development kit, section 4): left 1, right 10 is ten pixels
wide. Label Studio's own export counts from 0, and the right and lower edge don't belong to the box. Sides are whole
pixels, so that a box written here is moved by up to half a pixel. The format has no order of classes: they are by name,
unless ``labels.txt`` (a name a line) gives one, which is written here too.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree.ElementTree import Element as NewElement
from xml.etree.ElementTree import SubElement, indent, tostring

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, iterparse, parse

from spica.errors import DataSetError
from spica.training.dataset import DataSet
from spica.training.formats.annotated import (
    IMAGE_SUFFIXES,
    AnnotatedImage,
    Annotations,
    ImageFinder,
    ReadingLog,
    boxes_array,
    size_of,
)
from spica.training.formats.text import read_lines

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

IMAGE_FOLDER: Final = "JPEGImages"
_SIDES: Final = ("xmin", "ymin", "xmax", "ymax")
_IMAGE_FOLDERS: Final = (IMAGE_FOLDER, "images", "Images")
_UNREADABLE: Final = (OSError, ParseError, DefusedXmlException, ValueError, LookupError)  # the last: unknown encodings


def read(data: Path, images: Path | None, split: str | None, log: ReadingLog) -> Annotations:
    """What is in the folder at ``data``: what ``ImageSets/Main/<split>.txt`` lists, or all.

    Raises:
        DataSetError: no XML, or none of the images is there.
    """
    files = annotation_files(data)
    if split is not None:
        files = _listed(data, split, files, log)
    finder = ImageFinder(*(data / name for name in (*_IMAGE_FOLDERS, ".")), given=images)
    annotated: list[tuple[AnnotatedImage, Path]] = []
    missing = 0
    for path in files:
        root = _root(path, log)
        if root is None:
            continue
        image = _annotated(root, path.stem)
        named = finder.find(image.name)
        own = None if Path(image.name).stem == path.stem else _of_stem(finder, path.stem)
        if named is None and own is None:
            missing += 1
            log.leave_out(image.name, "it is missing")
        elif named is not None and own is not None and named != own:
            log.leave_out(path.name, "an XML file that is called like one image and names another")
        else:
            annotated.append((image, named or own or path))
    finder.require_some(missing, len(files), f"the images of {len(files)} XML files", data)
    if split is None:
        _log_others(data, files, {path.resolve() for _, path in annotated}, log)
    order = data / "labels.txt"
    names = [line for line in read_lines(order, log) if line] if order.is_file() else []
    used = sorted({label for image, _ in annotated for label in image.labels if label})
    return tuple(dict.fromkeys([*names, *used])), annotated


def write(dataset: DataSet, files: tuple[str, ...], folder: Path) -> None:
    """Write ``Annotations/`` beside ``JPEGImages/``, the list of all images, and ``labels.txt``."""
    annotations, lists = folder / "Annotations", folder / "ImageSets" / "Main"
    annotations.mkdir()
    lists.mkdir(parents=True)
    for example, file in zip(dataset.examples, files, strict=True):
        truth = example.truth
        root = _new_root(truth.width, truth.height, file)
        for box, class_id in zip(truth.boxes_xyxy, truth.class_ids, strict=True):
            _append(root, dataset.classes[int(class_id)], box.tolist(), truth.width, truth.height)
        indent(root)
        (annotations / f"{Path(file).stem}.xml").write_bytes(tostring(root, encoding="utf-8") + b"\n")
    (lists / "default.txt").write_text("".join(f"{Path(file).stem}\n" for file in files), "utf-8")
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in dataset.classes), "utf-8")


def annotation_files(folder: Path) -> list[Path]:
    """The XML files of a VOC folder, by name; none if it is not one."""
    inside = next((path for name in ("Annotations", "annotations") if (path := folder / name).is_dir()), folder)
    files = sorted(inside.glob("*.xml"))
    return files if any(root_tag(path) == "annotation" for path in files) else []


def root_tag(path: Path) -> str | None:
    """The name of an XML file's outermost element; None if it can't be read."""
    try:
        with path.open("rb") as file:
            for _, element in iterparse(file, events=("start",), forbid_dtd=True):
                return str(element.tag)
    except _UNREADABLE:
        pass
    return None


def _listed(data: Path, split: str, files: list[Path], log: ReadingLog) -> list[Path]:
    """The annotations of a part; its further images are left out."""
    lists = data / "ImageSets" / "Main"
    path = lists / f"{split}.txt"
    if not path.is_file():
        raise DataSetError(
            f"there is no list of the images of {split}",
            where=str(path),
            got=", ".join(sorted(other.name for other in lists.glob("*.txt"))[:10]) or "no lists",
            hint="leave the split away",
        )
    by_stem = {file.stem: file for file in files}
    wanted: list[Path] = []
    for line in filter(None, read_lines(path, log)):
        # some lists have a 1 or -1 behind each name
        stem = next((name for name in (line, line.split()[0]) if name in by_stem), None)
        if stem is None:
            log.leave_out(line, f"listed in {path.name}, but without an XML file")
        else:
            wanted.append(by_stem[stem])
    return list(dict.fromkeys(wanted))


def _log_others(data: Path, files: list[Path], known: set[Path], log: ReadingLog) -> None:
    """Images beside the annotations that have none: not part of the data set, as many exports leave empty ones."""
    stems = {path.stem for path in files}
    folder = next((path for name in _IMAGE_FOLDERS if (path := data / name).is_dir()), None)
    for path in sorted(folder.rglob("*")) if folder is not None else ():
        is_annotated = path.resolve() in known or (path.parent == folder and path.stem in stems)
        if path.suffix.lower() in IMAGE_SUFFIXES and not is_annotated:
            log.leave_out(path.name, "no XML file", is_doubt=False)
    for path in sorted(files[0].parent.rglob("*.xml")) if files else ():
        if path.parent != files[0].parent and root_tag(path) == "annotation":
            log.correct("{n} XML files lie in sub-folders: not read", path.name)


def _of_stem(finder: ImageFinder, stem: str) -> Path | None:
    """Where the XML names no file, or another machine's."""
    names = (stem + spelled for suffix in sorted(IMAGE_SUFFIXES) for spelled in (suffix, suffix.upper()))
    return next((path for name in names if (path := finder.find(name)) is not None), None)


def _root(path: Path, log: ReadingLog) -> Element | None:
    try:
        root: Element = parse(path, forbid_dtd=True).getroot()
        if root.tag == "annotation":
            return root
        log.leave_out(path.name, "an XML file that is no annotation")
    except _UNREADABLE:
        log.leave_out(path.name, "an XML file that can't be read")
    return None


def _annotated(root: Element, stem: str) -> AnnotatedImage:
    name = (root.findtext("filename") or "").strip().replace("\\", "/").rsplit("/", 1)[-1] or f"{stem}.jpg"
    first_pixel = 0 if root.findtext("owner/name") == "Label Studio" else 1
    boxes: list[list[float]] = []
    labels: list[str] = []
    tags = {str(element.tag) for element in root.iter()}
    alike = any(tag.rpartition("}")[2].casefold() == known != tag for tag in tags for known in ("object", "bndbox"))
    doubt = "an element that may be an object and is not called so" if alike else None
    for element in root.iter("object"):
        box = _box(element, first_pixel)
        if box is None:
            doubt = "an object without one bndbox of four numbers"
            continue
        if len(element.findall("name")) > 1:
            doubt = "an object with several names"
        boxes.append(box)
        labels.append((element.findtext("name") or "").strip())
    size = size_of(*(_number(root.findtext(f"size/{side}")) for side in ("width", "height")))
    return AnnotatedImage(name, tuple(labels), boxes_array(boxes), size=size, doubt=doubt)


def _box(element: Element, first_pixel: int) -> list[float] | None:
    """Left, top, right and lower edge; ``first_pixel`` is the number of the first one."""
    if any(len(element.findall(f"bndbox/{side}")) != 1 for side in _SIDES):
        return None
    sides = [_number(element.findtext(f"bndbox/{side}")) for side in _SIDES]
    left, top, right, bottom = (math.nan if side is None else side for side in sides)
    if math.isnan(left + top + right + bottom):
        return None
    return [min(left, right) - first_pixel, min(top, bottom) - first_pixel, max(left, right), max(top, bottom)]


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _new_root(width: int, height: int, file: str) -> Element:
    root = NewElement("annotation")
    _add(root, folder=IMAGE_FOLDER, filename=file)
    _add(SubElement(root, "size"), width=width, height=height, depth=3)
    _add(root, segmented=0)
    return root


def _append(root: Element, name: str, box: list[float], width: int, height: int) -> None:
    left, top = min(round(box[0]), width - 1), min(round(box[1]), height - 1)
    right, bottom = max(left + 1, round(box[2])), max(top + 1, round(box[3]))
    element = SubElement(root, "object")
    _add(element, name=name, pose="Unspecified", truncated=0, difficult=0)
    _add(SubElement(element, "bndbox"), xmin=left + 1, ymin=top + 1, xmax=right, ymax=bottom)


def _add(parent: Element, **texts: object) -> None:
    for tag, text in texts.items():
        SubElement(parent, tag).text = str(text)
