"""Annotated images from files: which format it is, is told by looking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spica.errors import DataSetError, ImageError, MediaError
from spica.settings import Settings
from spica.training.assembly import Assembly, left_out_image, photo_of
from spica.training.dataset import DataSet
from spica.training.formats.coco import Coco, is_coco, read_json
from spica.training.formats.label_studio import LabelStudioJson, is_label_studio
from spica.training.formats.sketch import Reader
from spica.training.formats.voc import Voc, annotation_files, root_of
from spica.training.formats.yolo import Yolo
from spica.training.formats.yolo_description import damaged_yaml, is_yolo

_EXPECTED = (
    "a COCO json with its images, a YOLO folder (data.yaml, or images/ and labels/), a Pascal VOC folder "
    "(Annotations/ and JPEGImages/), or a JSON export of Label Studio"
)

_NO_PARTS = "leave the split away, and give the file of that part where there is one for each"


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
    :mod:`spica.training.cleaning`) or mended is told in the data set's ``problems``; no file outside the folder of the
    data, or ``images``, is read.

    Args:
        data: a COCO json, a folder with one, a YOLO folder or its yaml file, a Pascal VOC folder, or a JSON export of
            Label Studio.
        images: folder of the images, where they are elsewhere; for Label Studio its document root will do.
        classes: names by class id; objects of others are disregarded. None: as the format orders them.
        split: only this part (train, val, test) of a YOLO or VOC folder; all of them if None.
        allow_partial: go on even if more than a tenth of the images is left out.
        notes: a file to which the name of every image that is left out is added, with the reason.

    Raises:
        DataSetError: nothing of these formats is there, it is damaged, no image is left, or more than a tenth is left
            out.
        UsageError: the notes can't be written.
    """
    path = Path(data)
    kind, place = recognise(path)
    if split is not None and not isinstance(kind, Yolo | Voc):
        raise DataSetError(
            "this data set has no parts", where=str(place), got=f"{kind.name}, and --split {split}", hint=_NO_PARTS
        )
    found = kind.read(place, images, split)
    for each in _damaged(path) if path.is_dir() else ():
        found.tally.add("{n} files beside the data can't be read: passed over", each.name)
    limits = Settings()
    names = tuple(classes) if classes is not None else found.classes
    if not names and found.images:
        raise DataSetError(
            "there is not a single class", where=str(path), got=f"{len(found.images)} images without objects"
        )
    assembly = Assembly(names, found.tally, narrowed=classes is not None)
    for sketch, image in found.images:
        try:
            photo = photo_of(image, max_pixels=limits.max_pixels, max_bytes=limits.max_image_bytes)
        except (ImageError, MediaError, OSError) as error:
            found.leave_out(sketch.name, left_out_image(error))
            continue
        assembly.add(sketch, photo)
    dataset = assembly.dataset(str(path), allow_partial=allow_partial, notes=notes)
    if not dataset.examples:
        raise DataSetError(
            "no annotated image is left",
            where=str(path),
            got="; ".join(dataset.problems) or f"a {kind.name} data set without images",
            hint="mend what is named, or give other data",
        )
    return dataset


def recognise(path: Path) -> tuple[Reader, Path]:
    """Which format is at ``path``, and what of it is to be read.

    Raises:
        DataSetError: none of those that are known.
    """
    if path.is_file():
        return _file(path), path
    if not path.is_dir():
        raise DataSetError("there is no such file or folder", where=str(path), expected=_EXPECTED)
    files = _jsons(path)
    found: list[tuple[Reader, Path]] = [(kind, each) for each in files if (kind := _data_set(each)) is not None]
    found += [(Voc(), path)] if annotation_files(path) else []
    found += [(Yolo(), path)] if is_yolo(path) else []
    if len(found) == 1:
        return found[0]
    if found:
        raise DataSetError(
            "there are several data sets in the folder",
            where=str(path),
            got=", ".join(each.name if each != path else kind.name for kind, each in found[:10]),
            hint="give one of the files, or move what is not meant into a folder of its own",
        )
    for each in path.glob("*.xml"):
        _refuse_cvat(each)
    there = sorted(each.name + ("/" if each.is_dir() else "") for each in path.iterdir())
    raise DataSetError(
        "there is no data set in the folder",
        where=str(path),
        expected=_EXPECTED,
        got=", ".join(there[:8]) + (" …" if len(there) > 8 else "") if there else "an empty folder",
    )


def _file(path: Path) -> Reader:
    if path.suffix.lower() in (".yaml", ".yml"):
        return Yolo()
    if path.suffix.lower() == ".xml":
        _refuse_cvat(path)
    if path.suffix.lower() != ".json":
        raise DataSetError(
            "this is no data set", where=str(path), expected=_EXPECTED, got=f"a file {path.suffix or 'without suffix'}"
        )
    found = _json_format(path)
    if found is not None:
        return found
    body = read_json(path)
    if isinstance(body, list) and body and isinstance(body[0], dict) and "annotation_id" in body[0]:
        got, hint = "Label Studio's JSON_MIN", "export the project as JSON instead"
    elif isinstance(body, list) and not body:
        got, hint = "an empty list", "submit annotations and export again"
    else:
        got = f"an object with {', '.join(sorted(body)[:8])}" if isinstance(body, dict) else f"a {type(body).__name__}"
        hint = None
    raise DataSetError("this JSON is no data set", where=str(path), expected=_EXPECTED, got=got, hint=hint)


def _refuse_cvat(path: Path) -> None:
    if root_of(path) == "annotations":
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
    return [path for path in _jsons(folder) if not _is_readable(path)] + damaged_yaml(folder)


def _is_readable(path: Path) -> bool:
    try:
        read_json(path)
    except DataSetError:
        return False
    return True


def _data_set(path: Path) -> Reader | None:
    try:
        return _json_format(path)
    except DataSetError:  # some other tool's file, or a damaged one beside the one that is meant
        return None


def _json_format(path: Path) -> Reader | None:
    body = read_json(path)
    if is_coco(body):
        return Coco()
    return LabelStudioJson() if is_label_studio(body) else None
