"""Annotated images from files of any format that is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from spica.errors import DataSetError, ImageError, MediaError
from spica.settings import Settings
from spica.training.builder import DataSetBuilder, image_problem, inspect_file
from spica.training.dataset import DataSet
from spica.training.formats import coco, label_studio, voc, yolo
from spica.training.formats.annotated import Annotations, ReadingLog, read_json

Format = Literal["COCO", "YOLO", "Pascal VOC", "Label Studio JSON"]

_EXPECTED: Final = (
    "a COCO json with its images, a YOLO folder (data.yaml, or images/ and labels/), a Pascal VOC folder "
    "(Annotations/ and JPEGImages/), or a JSON export of Label Studio"
)


def load(
    data: str | Path,
    *,
    images: Path | None = None,
    classes: Sequence[str] | None = None,
    split: str | None = None,
    allow_partial: bool = False,
    notes: Path | None = None,
) -> DataSet:
    """Read annotated images.

    Every image is decoded once, so that a damaged one is found now. What is left out (by the rule at the top of
    :mod:`spica.training.builder`) or corrected stands in the data set's ``problems``; no file outside the folder of the
    data, or ``images``, is read.

    Args:
        data: a COCO json, a folder with one, a YOLO folder or its yaml file, a Pascal VOC folder, or a JSON export of
            Label Studio.
        images: folder of the images, where they are elsewhere; for Label Studio its document root will do.
        classes: names by class id; objects of others are disregarded. None: as the format orders them.
        split: only this part (train, val, test) of a YOLO or VOC folder; all of them if None.
        allow_partial: as for :meth:`spica.training.formats.annotated.ReadingLog.check`.
        notes: likewise.

    Raises:
        DataSetError: nothing of these formats is there, it is damaged, no image is left, or more than a tenth is left
            out.
        UsageError: the notes can't be written.
    """
    path = Path(data)
    kind, place = recognise(path)
    log = ReadingLog()
    names, annotated = _read(kind, place, images, split, log)
    for damaged in _damaged(path) if path.is_dir() else ():
        log.correct("{n} files beside the data can't be read: passed over", damaged.name)
    names = tuple(classes) if classes is not None else names
    if not names and annotated:
        raise DataSetError(
            "there is not a single class", where=str(path), got=f"{len(annotated)} images without objects"
        )
    limits = Settings()
    builder = DataSetBuilder(names, log, narrowed=classes is not None)
    for image, image_path in annotated:
        try:
            file = inspect_file(image_path, max_pixels=limits.max_pixels, max_bytes=limits.max_image_bytes)
        except (ImageError, MediaError, OSError) as error:
            log.leave_out(image.name, image_problem(error))
            continue
        builder.add(image, file)
    dataset = builder.dataset(str(path), allow_partial=allow_partial, notes=notes)
    if not dataset.examples:
        raise DataSetError(
            "no annotated image is left",
            where=str(path),
            got="; ".join(dataset.problems) or f"a {kind} data set without images",
            hint="correct what is named, or give other data",
        )
    return dataset


def _read(kind: Format, place: Path, images: Path | None, split: str | None, log: ReadingLog) -> Annotations:
    if kind == "YOLO":
        return yolo.read(place, images, split, log)
    if kind == "Pascal VOC":
        return voc.read(place, images, split, log)
    if split is not None:
        hint = "leave the split away, and give the file of that part where there is one for each"
        got = f"{kind}, and --split {split}"
        raise DataSetError("this data set has no parts", where=str(place), got=got, hint=hint)
    return coco.read(place, images, log) if kind == "COCO" else label_studio.read(place, images, log)


def recognise(path: Path) -> tuple[Format, Path]:
    """Which format is at ``path``, and what of it is to be read.

    Raises:
        DataSetError: none of those that are known.
    """
    if path.is_file():
        return _file_format(path), path
    if not path.is_dir():
        raise DataSetError("there is no such file or folder", where=str(path), expected=_EXPECTED)
    known: list[tuple[Format, Path]] = [
        (kind, file) for file in _jsons(path) if (kind := _json_format(_attempt(file))) is not None
    ]
    known += [("Pascal VOC", path)] if voc.annotation_files(path) else []
    known += [("YOLO", path)] if yolo.is_yolo(path) else []
    if len(known) == 1:
        return known[0]
    if known:
        raise DataSetError(
            "there are several data sets in the folder",
            where=str(path),
            got=", ".join(file.name if file != path else kind for kind, file in known[:10]),
            hint="give one of the files, or move what is not meant into a folder of its own",
        )
    for file in path.glob("*.xml"):
        _refuse_cvat(file)
    entries = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in path.iterdir())
    raise DataSetError(
        "there is no data set in the folder",
        where=str(path),
        expected=_EXPECTED,
        got=", ".join(entries[:8]) + (" …" if len(entries) > 8 else "") if entries else "an empty folder",
    )


def _file_format(path: Path) -> Format:
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return "YOLO"
    if suffix == ".xml":
        _refuse_cvat(path)
    if suffix != ".json":
        kind = f"a file {path.suffix or 'without suffix'}"
        raise DataSetError("this is no data set", where=str(path), expected=_EXPECTED, got=kind)
    body = read_json(path)
    known = _json_format(body)
    if known is not None:
        return known
    got, hint = f"a {type(body).__name__}", None
    if isinstance(body, dict):
        got = f"an object with {', '.join(sorted(body)[:8])}"
    elif isinstance(body, list) and not body:
        got, hint = "an empty list", "submit annotations and export again"
    elif isinstance(body, list) and isinstance(body[0], dict) and "annotation_id" in body[0]:
        got, hint = "Label Studio's JSON_MIN", "export the project as JSON instead"
    raise DataSetError("this JSON is no data set", where=str(path), expected=_EXPECTED, got=got, hint=hint)


def _json_format(body: object) -> Format | None:
    if coco.is_coco(body):
        return "COCO"
    return "Label Studio JSON" if label_studio.is_label_studio(body) else None


def _refuse_cvat(path: Path) -> None:
    if voc.root_tag(path) == "annotations":
        raise DataSetError(
            "this is CVAT's own format (CVAT for images), which is not read",
            where=str(path),
            expected=_EXPECTED,
            hint='export the task again as "COCO 1.0", with images',
        )


def _jsons(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.json"), *folder.glob("annotations/*.json")])


def _damaged(folder: Path) -> list[Path]:
    """What may be half of a data set: JSON, and yaml files, that can't be read."""
    return [path for path in _jsons(folder) if _attempt(path) is None] + yolo.damaged_yaml(folder)


def _attempt(path: Path) -> object:
    """What a JSON file holds; None if it can't be read: some other tool's, or a damaged one."""
    try:
        return read_json(path)
    except DataSetError:
        return None
