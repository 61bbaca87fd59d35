"""Pascal VOC: an XML file an image in ``Annotations/``, images in ``JPEGImages/``.

Corners count from 1, and both belong to the box (VOC2012 development kit, section 4): left 1, right 10 is ten pixels
wide. Label Studio's own export counts from 0, and the right and lower edge don't belong to the box. Sides are whole
pixels, so that a box written here is moved by up to half a pixel. The format has no order of classes: they are by name,
unless ``labels.txt`` (a name a line) tells, which is written here too.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree.ElementTree import Element as NewElement
from xml.etree.ElementTree import SubElement, indent, tostring

import numpy as np
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, iterparse, parse

from spica.errors import DataSetError
from spica.training.dataset import DataSet
from spica.training.formats.sketch import IMAGE_SUFFIXES, Found, ImageFinder, Sketch, no_boxes, size_of
from spica.training.formats.text import read_lines

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_SIDES: Final = ("xmin", "ymin", "xmax", "ymax")
_IMAGE_FOLDERS: Final = ("JPEGImages", "images", "Images")
_UNREADABLE: Final = (OSError, ParseError, DefusedXmlException, ValueError, LookupError)  # the last: unknown encodings


class Voc:
    """Reads and writes Pascal VOC's format."""

    name = "Pascal VOC"
    image_folder = "JPEGImages"

    def read(self, data: Path, images: Path | None, split: str | None) -> Found:
        """What is in the folder at ``data``: what ``ImageSets/Main/<split>.txt`` lists, or all.

        Raises:
            DataSetError: no XML, or none of the images is there.
        """
        found = Found((), [])
        files = annotation_files(data)
        if split is not None:
            files = _listed(data, split, files, found)
        beside = tuple(data / name for name in (*_IMAGE_FOLDERS, "."))
        finder = ImageFinder(*beside, given=images)
        missing = 0
        for path in files:
            sketch, file_name = _sketch(path, found)
            if sketch is None:
                continue
            image = finder.find(file_name)
            own = None if Path(file_name).stem == path.stem else _of_stem(finder, path.stem)
            if image is None and own is None:
                missing += 1
                found.leave_out(file_name, "it is missing")
            elif image is not None and own is not None and image != own:
                found.leave_out(path.name, "an XML file that is called like one image and names another")
            else:
                found.images.append((sketch, image or own or path))
        if missing and missing == len(files):
            raise DataSetError(
                "none of the images is there",
                where=str(data),
                expected=f"the images of {len(files)} XML files in {finder.shown}",
                hint="give the folder of the images with --images",
            )
        if split is None:
            _tell_others(data, files, found)
        used = sorted({label for sketch, _path in found.images for label in sketch.labels if label})
        found.classes = tuple(dict.fromkeys([*_ordered_names(data, found), *used]))
        return found

    def write(self, dataset: DataSet, files: tuple[str, ...], folder: Path) -> None:
        """Write ``Annotations/`` beside ``JPEGImages/``, the list of all images, and ``labels.txt``."""
        annotations, lists = folder / "Annotations", folder / "ImageSets" / "Main"
        annotations.mkdir()
        lists.mkdir(parents=True)
        for example, file in zip(dataset.examples, files, strict=True):
            root = _element(example.truth.width, example.truth.height, file)
            boxes = example.truth.boxes_xyxy
            for box, class_id in zip(boxes, example.truth.class_ids, strict=True):
                _append(root, dataset.classes[int(class_id)], box.tolist(), example.truth.width, example.truth.height)
            indent(root)
            (annotations / f"{Path(file).stem}.xml").write_bytes(tostring(root, encoding="utf-8") + b"\n")
        stems = "".join(f"{Path(file).stem}\n" for file in files)
        (lists / "default.txt").write_text(stems, "utf-8")
        (folder / "labels.txt").write_text("".join(f"{name}\n" for name in dataset.classes), "utf-8")


def annotation_files(folder: Path) -> list[Path]:
    """The XML files of a VOC folder, by name; none if it is not one."""
    inside = next((each for name in ("Annotations", "annotations") if (each := folder / name).is_dir()), folder)
    files = sorted(inside.glob("*.xml"))
    return files if any(root_of(path) == "annotation" for path in files) else []


def root_of(path: Path) -> str | None:
    """The name of an XML file's outermost element; None if it can't be read."""
    try:
        with path.open("rb") as file:
            for _, element in iterparse(file, events=("start",), forbid_dtd=True):
                return str(element.tag)
    except _UNREADABLE:
        pass
    return None


def _listed(data: Path, split: str, files: list[Path], found: Found) -> list[Path]:
    """The annotations of a part; its further images are left out."""
    lists = data / "ImageSets" / "Main"
    path = lists / f"{split}.txt"
    if not path.is_file():
        raise DataSetError(
            f"there is no list of the images of {split}",
            where=str(path),
            got=", ".join(sorted(each.name for each in lists.glob("*.txt"))[:10]) or "no lists",
            hint="leave the split away",
        )
    by_stem = {each.stem: each for each in files}
    wanted: list[Path] = []
    for line in filter(None, read_lines(path, found.tally)):
        # some lists have a 1 or -1 behind each name
        stem = next((name for name in (line, line.split()[0]) if name in by_stem), None)
        if stem is None:
            found.leave_out(line, f"listed in {path.name}, but without an XML file")
        else:
            wanted.append(by_stem[stem])
    return list(dict.fromkeys(wanted))


def _tell_others(data: Path, files: list[Path], found: Found) -> None:
    """Images beside the annotations that have none: not part of the data set, as many exports leave empty ones."""
    known = {path.resolve() for _, path in found.images}
    stems = {path.stem for path in files}
    folder = next((each for name in _IMAGE_FOLDERS if (each := data / name).is_dir()), None)
    for path in sorted(folder.rglob("*")) if folder is not None else ():
        is_met = path.resolve() in known or (path.parent == folder and path.stem in stems)
        if path.suffix.lower() in IMAGE_SUFFIXES and not is_met:
            found.tally.leave_out(path.name, "no XML file", is_doubt=False)
    for path in sorted(files[0].parent.rglob("*.xml")) if files else ():
        if path.parent != files[0].parent and root_of(path) == "annotation":
            found.tally.add("{n} XML files lie in sub-folders: not read", path.name)


def _ordered_names(data: Path, found: Found) -> list[str]:
    path = data / "labels.txt"
    return [line for line in read_lines(path, found.tally) if line] if path.is_file() else []


def _of_stem(finder: ImageFinder, stem: str) -> Path | None:
    """Where the XML names no file, or another machine's."""
    names = (stem + suffix for each in sorted(IMAGE_SUFFIXES) for suffix in (each, each.upper()))
    return next((found for name in names if (found := finder.find(name)) is not None), None)


def _sketch(path: Path, found: Found) -> tuple[Sketch | None, str]:
    try:
        root: Element = parse(path, forbid_dtd=True).getroot()
    except _UNREADABLE:
        found.leave_out(path.name, "an XML file that can't be read")
        return None, path.stem
    if root.tag != "annotation":
        found.leave_out(path.name, "an XML file that is no annotation")
        return None, path.stem
    name = (root.findtext("filename") or "").strip().replace("\\", "/").rsplit("/", 1)[-1] or f"{path.stem}.jpg"
    is_label_studio = root.findtext("owner/name") == "Label Studio"
    boxes: list[list[float]] = []
    labels: list[str] = []
    tags = {str(each.tag) for each in root.iter()}
    alike = any(tag.rpartition("}")[2].casefold() == known != tag for tag in tags for known in ("object", "bndbox"))
    doubt = "an element that may be an object and is not called so" if alike else None
    for each in root.iter("object"):
        box = _box(each, first=0 if is_label_studio else 1)
        if box is None:
            doubt = "an object without one bndbox of four numbers"
            continue
        if len(each.findall("name")) > 1:
            doubt = "an object with several names"
        boxes.append(box)
        labels.append((each.findtext("name") or "").strip())
    sketch = Sketch(
        name=name,
        labels=tuple(labels),
        boxes_xyxy=np.array(boxes, np.float64) if boxes else no_boxes(),
        size=_size(root),
        doubt=doubt,
    )
    return sketch, name


def _box(each: Element, *, first: int) -> list[float] | None:
    """Left, top, right and lower edge; ``first`` is the number of the first pixel."""
    if any(len(each.findall(f"bndbox/{side}")) != 1 for side in _SIDES):
        return None
    sides = [_number(each.findtext(f"bndbox/{side}")) for side in _SIDES]
    left, top, right, bottom = (math.nan if side is None else side for side in sides)
    if math.isnan(left + top + right + bottom):
        return None
    return [min(left, right) - first, min(top, bottom) - first, max(left, right), max(top, bottom)]


def _size(root: Element) -> tuple[int, int] | None:
    return size_of(*(_number(root.findtext(f"size/{side}")) for side in ("width", "height")))


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _element(width: int, height: int, file: str) -> Element:
    root = NewElement("annotation")
    SubElement(root, "folder").text = Voc.image_folder
    SubElement(root, "filename").text = file
    size = SubElement(root, "size")
    for side, pixels in (("width", width), ("height", height), ("depth", 3)):
        SubElement(size, side).text = str(pixels)
    SubElement(root, "segmented").text = "0"
    return root


def _append(root: Element, name: str, box: list[float], width: int, height: int) -> None:
    left, top = min(round(box[0]), width - 1), min(round(box[1]), height - 1)
    right, bottom = max(left + 1, round(box[2])), max(top + 1, round(box[3]))
    each = SubElement(root, "object")
    for tag, text in (("name", name), ("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
        SubElement(each, tag).text = text
    bounds = SubElement(each, "bndbox")
    for tag, pixels in zip(_SIDES, (left + 1, top + 1, right, bottom), strict=True):
        SubElement(bounds, tag).text = str(pixels)
