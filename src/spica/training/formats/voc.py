"""Pascal VOC: an XML file an image in ``Annotations/``, images in ``JPEGImages/``.

Corners count from 1, and both belong to the box (VOC2012 development kit, section 4): left 1, right 10 is ten pixels
wide. Sides are whole pixels, so that a box written here is moved by up to half a pixel. The format has no order of
classes: they are by name, unless ``labels.txt`` (a name a line) tells, which is written here too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree.ElementTree import Element as NewElement
from xml.etree.ElementTree import SubElement, indent, tostring

import numpy as np
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, parse

from spica.errors import DataSetError
from spica.training.dataset import DataSet
from spica.training.formats.sketch import Found, ImageFinder, Sketch, no_boxes

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_SIDES: Final = ("xmin", "ymin", "xmax", "ymax")


class Voc:
    """Reads and writes Pascal VOC's format."""

    name = "Pascal VOC"
    image_folder = "JPEGImages"

    def read(self, data: Path, images: Path | None, split: str | None) -> Found:
        """What is in the folder at ``data``: what ``ImageSets/Main/<split>.txt`` lists, or all.

        Raises:
            DataSetError: no XML, or none of the images is there.
        """
        files = annotation_files(data)
        if split is not None:
            wanted = _listed(data, split)
            files = [path for path in files if path.stem in wanted]
        beside = tuple(data / name for name in ("JPEGImages", "images", "Images", "."))
        finder = ImageFinder(*(() if images is None else (images,)), *beside)
        found = Found((), [])
        for path in files:
            sketch, file_name = _sketch(path, found)
            if sketch is None:
                continue
            image = finder.find(file_name) or _of_stem(finder, path.stem)
            if image is None:
                found.leave_out(file_name, "it is missing")
                continue
            found.images.append((sketch, image))
        if not found.images:
            raise DataSetError(
                "none of the images is there",
                where=str(data),
                expected=f"the images of {len(files)} XML files in {finder.shown}",
                hint="give the folder of the images with --images",
            )
        used = sorted({label for sketch, _path in found.images for label in sketch.labels if label})
        found.classes = tuple(dict.fromkeys([*_ordered_names(data), *used]))
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
    inside = folder / "Annotations"
    return sorted((inside if inside.is_dir() else folder).glob("*.xml"))


def _listed(data: Path, split: str) -> set[str]:
    path = data / "ImageSets" / "Main" / f"{split}.txt"
    try:
        return {line.split()[0] for line in path.read_text("utf-8-sig").splitlines() if line.strip()}
    except OSError as error:
        raise DataSetError("the list of images is missing", where=str(path), hint="leave the split away") from error


def _ordered_names(data: Path) -> list[str]:
    path = data / "labels.txt"
    if not path.is_file():
        return []
    return [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]


def _of_stem(finder: ImageFinder, stem: str) -> Path | None:
    """Where the XML names no file, or another machine's."""
    names = (stem + suffix for suffix in (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".bmp", ".tif", ".webp"))
    return next((found for name in names if (found := finder.find(name)) is not None), None)


def _sketch(path: Path, found: Found) -> tuple[Sketch | None, str]:
    try:
        root: Element = parse(path, forbid_dtd=True).getroot()
    except (OSError, ParseError, DefusedXmlException, ValueError):
        found.leave_out(path.name, "an XML file that can't be read")
        return None, path.stem
    if root.tag != "annotation":
        found.leave_out(path.name, "an XML file that is no annotation")
        return None, path.stem
    name = (root.findtext("filename") or "").strip().replace("\\", "/").rsplit("/", 1)[-1] or f"{path.stem}.jpg"
    boxes: list[list[float]] = []
    labels: list[str] = []
    doubt = None
    for each in root.iter("object"):
        box = _box(each)
        if box is None:
            doubt = "an object without a bndbox of four numbers"
            continue
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


def _box(each: Element) -> list[float] | None:
    try:
        left, top, right, bottom = (float(each.findtext(f"bndbox/{side}") or "") for side in _SIDES)
    except ValueError:
        return None
    return [left - 1, top - 1, right, bottom]


def _size(root: Element) -> tuple[int, int] | None:
    try:
        width, height = (int(float(root.findtext(f"size/{side}") or "")) for side in ("width", "height"))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


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
