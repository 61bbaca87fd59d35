"""A data set written as COCO, YOLO or Pascal VOC, with its images: whole or not at all.

Class ids are the data set's own, so they stay as long as the labels do (COCO counts them from 1, YOLO from 0). Images
with an EXIF orientation are written upright, without it: many trainers overlook the orientation, and so sizes, boxes
and pixels agree for all of them. That stores a JPEG anew (quality 95), other formats as PNG; all other images are
copied byte for byte.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image as PILImage

from spica.errors import DataSetError, UsageError
from spica.files import discard, put_in_place, scratch, storage_error
from spica.images import decode, orientation_of
from spica.settings import Settings
from spica.training.dataset import DataSet, Example
from spica.training.formats import coco, voc, yolo

FORMATS: Final = {"coco": coco, "yolo": yolo, "voc": voc}
"""What can be written, by the name on the command line."""
MARKER: Final = "spica-export.json"
"""Says that Spica wrote a folder: only such a folder is ever replaced."""
_RESERVED: Final = re.compile(r'[<>:"/\\|?*\x00-\x1f]')  # learn.microsoft.com/windows/win32/fileio/naming-a-file
_DEVICE: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)
_LONGEST: Final = 120
_QUALITY: Final = 95


@dataclass(frozen=True, slots=True)
class Export:
    """What was written, in ``folder``; ``turned`` images of it upright, without their EXIF orientation."""

    folder: Path
    images: int
    boxes: int
    turned: int


def export(dataset: DataSet, format_name: str, out: Path, *, force: bool = False) -> Export:
    """Write a data set with its images into a new folder.

    Args:
        dataset: what to write.
        format_name: a key of ``FORMATS``.
        out: the folder; it must not exist, or be empty.
        force: replace the folder if Spica wrote it; the old one goes when the new one is complete.

    Raises:
        UsageError: no such format; the folder is there already, or is not one that Spica wrote.
        DataSetError: there is nothing to write, or an image is gone.
        StorageError: it can't be written; then nothing is left behind.
    """
    if format_name not in FORMATS:
        raise UsageError("there is no such format", expected=", ".join(FORMATS), got=format_name)
    if not dataset.examples:
        raise DataSetError("there is no annotated image to export", hint="label some tasks and submit them")
    out = out.absolute()
    check_free(out, force=force)
    with scratch(out.parent) as folder:
        try:
            images = folder / FORMATS[format_name].IMAGE_FOLDER
            images.mkdir()
            files, turned = _write_images(dataset.examples, images)
            FORMATS[format_name].write(dataset, files, folder)
            marker = {
                "format": format_name,
                "images": len(files),
                "boxes": dataset.boxes,
                "classes": dataset.classes,
                "fingerprint": dataset.fingerprint,
                "problems": dataset.problems,
            }
            (folder / MARKER).write_text(json.dumps(marker, ensure_ascii=False, indent=2) + "\n", "utf-8")
            if out.exists():
                check_free(out, force=force)  # once more: much time may have passed
                discard(out)
        except OSError as error:
            raise storage_error(error, out) from error
        if not put_in_place(folder, out):
            raise UsageError("the folder has appeared meanwhile", where=str(out), hint="give another --out")
    return Export(out, len(files), dataset.boxes, turned)


def check_free(out: Path, *, force: bool) -> None:
    """Raise :class:`UsageError` if something is there that is not to be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError("--out is a file", where=str(out), expected="a new folder")
    is_export = (out / MARKER).is_file()
    if not any(out.iterdir()) or (force and is_export):
        return
    raise UsageError(
        "the folder is not empty; nothing was written",
        where=str(out),
        expected="a new folder" if not force else f"a new folder, or one with {MARKER}: no other is replaced",
        hint="give another --out" + (", or --force to replace this export" if is_export else ""),
    )


def _write_images(examples: Iterable[Example], folder: Path) -> tuple[tuple[str, ...], int]:
    """The names under which the images were written, and how many were turned."""
    taken: set[str] = set()
    files: list[str] = []
    turned = 0
    for example in examples:
        try:
            data = example.path.read_bytes()
        except FileNotFoundError as error:
            got = f"no file for {example.name}"
            raise DataSetError("an image is gone", where=str(example.path), got=got, hint="run it again") from error
        name, suffix = example.name, example.path.suffix
        if orientation_of(data, where=str(example.path)) != 1:
            suffix, data = _upright(data, example)
            name = str(Path(name).with_suffix(suffix))
            turned += 1
        files.append(_free_name(name, suffix, taken))
        (folder / files[-1]).write_bytes(data)
    return tuple(files), turned


def _upright(data: bytes, example: Example) -> tuple[str, bytes]:
    """The pixels as they are shown, in a file of their own without EXIF, and its suffix."""
    image = PILImage.fromarray(decode(data, where=str(example.path), max_pixels=Settings().max_pixels).pixels)
    written = io.BytesIO()
    if data.startswith(b"\xff\xd8\xff"):
        image.save(written, "JPEG", quality=_QUALITY, subsampling=0)
        suffix = example.path.suffix
        return suffix if suffix.lower() in (".jpg", ".jpeg") else ".jpg", written.getvalue()
    image.save(written, "PNG")
    return ".png", written.getvalue()


def _free_name(name: str, suffix: str, taken: set[str]) -> str:
    """A file name that every system takes, with a stem that no other has: annotation files are called by it."""
    path = Path(_RESERVED.sub("_", name))
    stem = path.stem[:_LONGEST].rstrip(" .") or "image"
    if _DEVICE.fullmatch(stem):
        stem = f"_{stem}"
    free, count = stem, 1
    while free.casefold() in taken:
        count += 1
        free = f"{stem}~{count}"
    taken.add(free.casefold())
    return free + (path.suffix or suffix)
