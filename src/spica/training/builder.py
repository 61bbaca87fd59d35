"""From annotated images to a data set: sizes checked, boxes in pixels of the upright image, names unique.

An image is a true negative only where its annotation says so. So **any doubt about its labels leaves the whole image
out**: an object that is left unlabelled teaches "nothing here" too. Doubtful are a box with a NaN or an infinity, of a
class that is not known, wholly outside the image, or less than 1 pixel wide or high. Corrected, and noted, are:

* exchanged corners, or a negative size: turned round;
* a box that reaches beyond the image: cut to it (noted from 1 pixel on);
* of boxes of one class with an IoU of at least 0.95 only the first is kept: they were submitted twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spica.boxes import Int64Array, clip_xyxy, iou_xyxy
from spica.errors import ImageError
from spica.evaluation.truth import Truth
from spica.images import decode, orientation_of
from spica.labelstudio.paths import printable, read_file
from spica.training.dataset import DataSet, Example
from spica.training.formats.annotated import AnnotatedImage, ReadingLog

DUPLICATE_IOU: Final = 0.95
MIN_SIDE_PX: Final = 1.0
_ROUNDING_PX: Final = 1e-3
_NOTED_PX: Final = 1.0
_SAME_SHAPE: Final = 50
"""Two sizes are of one shape if their ratios differ by a 50th at most: scaled copies are rounded to whole pixels."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file that was read and decoded once: its size is that of the upright image, ``orientation`` EXIF's."""

    path: Path
    digest: str
    width: int
    height: int
    orientation: int = 1


def inspect_file(path: Path, *, max_pixels: int, max_bytes: int) -> ImageFile:
    """Read and decode an image file once, so that a damaged one is noticed before anything is learned.

    Raises:
        ImageError: no image, damaged or too large.
        MediaError: no regular file, or too large a one.
        OSError: it can't be read.
    """
    return inspect(read_file(path, max_bytes=max_bytes), path, where=str(path), max_pixels=max_pixels)


def inspect(data: bytes, path: Path, *, where: str, max_pixels: int) -> ImageFile:
    """As :func:`inspect_file`, of the bytes of the file at ``path``."""
    image = decode(data, where=where, max_pixels=max_pixels)
    return ImageFile(path, image.digest, image.width, image.height, orientation_of(data, where=where))


def image_problem(error: Exception) -> str:
    """Why an image whose file is not usable is left out."""
    return "it can't be decoded" if isinstance(error, ImageError) else "it is gone or can't be read"


class DataSetBuilder:
    """Takes annotated images one after the other, and gives the data set.

    Args:
        classes: names by class id.
        log: of everything that is corrected or left out.
        narrowed: ``classes`` were chosen from more: objects of others are disregarded, and an image that has none of
            them is a true negative. Otherwise an object of an unknown class puts its image in doubt.
    """

    def __init__(self, classes: Sequence[str], log: ReadingLog, *, narrowed: bool = False) -> None:
        self.classes = tuple(classes)
        self.log = log
        self._ids = {name: number for number, name in enumerate(self.classes)}
        self._narrowed = narrowed
        self._by_digest: dict[str, tuple[AnnotatedImage, Example | None]] = {}
        self._skipped: dict[int, str] = {}

    def add(self, image: AnnotatedImage, file: ImageFile) -> None:
        """Take one image, or leave it out where its labels are in doubt.

        Of two with the same bytes the annotation that ranks higher counts; where none does and they differ, neither.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # absurd numbers become infinities, which are in doubt
            truth = self._truth(image, file)
        if isinstance(truth, str):
            self.leave_out(image, truth)
            return
        name, task = printable(image.name), image.task
        example = Example(file.path, file.digest, truth, name, task, image.annotation, image.updated)
        if file.digest not in self._by_digest:
            self._by_digest[file.digest] = (image, example)
            return
        before, known = self._by_digest[file.digest]
        if image.rank == before.rank and (known is None or not _same(known.truth, truth)):
            reason = "the same image is there with other labels"
            if known is not None:
                self.leave_out(before, reason)
                self._by_digest[file.digest] = (before, None)
            self.leave_out(image, reason)
            return
        lesser = image if image.rank <= before.rank else before
        if known is not None or lesser is image:
            self.leave_out(lesser, "the same image is there once more, which counts", is_doubt=False)
        if lesser is before:
            self._by_digest[file.digest] = (image, example)

    def _truth(self, image: AnnotatedImage, file: ImageFile) -> Truth | str:
        """What is in an image, or why that is in doubt."""
        if image.doubt is not None:
            return image.doubt
        boxes_xyxy = _in_pixels(image, file)
        if boxes_xyxy is None:
            return "another size than when it was annotated"
        unknown = {label for label in image.labels if label not in self._ids}
        if "" in unknown:
            return "a box of a class that has no name"
        if unknown and not self._narrowed:
            return f'a box of class "{min(unknown)[:40]}", which is not known'
        if any(not label or label in self._ids for label in image.others) or (image.others and not image.labels):
            return "an object that has no box"
        boxes_xyxy = boxes_xyxy[np.array([label in self._ids for label in image.labels], np.bool_)]
        class_ids = np.array([self._ids[label] for label in image.labels if label in self._ids], np.int64)
        return correct(boxes_xyxy, class_ids, width=file.width, height=file.height, image=image.name, log=self.log)

    def leave_out(self, image: AnnotatedImage, reason: str, *, is_doubt: bool = True) -> None:
        """Leave an image out, as :meth:`ReadingLog.leave_out`; its annotation counts as read."""
        name = image.name if image.task is None else f"task {image.task}: {image.name}"
        self.log.leave_out(name, reason, is_doubt=is_doubt)
        self.skip(image.annotation, image.updated)

    def skip(self, annotation: int | None, updated: str | None) -> None:
        """Remember that an annotation was read, though it gives no example."""
        if annotation is not None:
            self._skipped[annotation] = updated or ""

    def dataset(self, where: str, *, allow_partial: bool = False, notes: Path | None = None) -> DataSet:
        """All that was taken, in the order they were met; arguments and errors as `ReadingLog.check`."""
        taken: set[str] = set()
        examples = tuple(_renamed(example, taken) for _, example in self._by_digest.values() if example is not None)
        self.log.check(len(examples), where=where, allow_partial=allow_partial, notes=notes)
        used = {example.annotation for example in examples}
        skipped = tuple((number, updated) for number, updated in self._skipped.items() if number not in used)
        return DataSet(self.classes, examples, self.log.sentences(), skipped)


def _same(one: Truth, other: Truth) -> bool:
    """Whether two annotations of one image say the same."""
    rows = [
        sorted(map(tuple, np.column_stack([truth.class_ids, truth.boxes_xyxy.round(2)]).tolist()))
        for truth in (one, other)
    ]
    return rows[0] == rows[1]


def _renamed(example: Example, taken: set[str]) -> Example:
    """With a name that no other has, whatever the case of letters. ``~`` can't be read as a tile's number."""
    path = Path(example.name)
    name, count = example.name, 1
    while name.casefold() in taken:
        count += 1
        name = f"{path.stem}~{count}{path.suffix}"
    taken.add(name.casefold())
    return replace(example, name=name)


# --- boxes


def correct(
    boxes_xyxy: NDArray[np.float64], class_ids: Int64Array, *, width: int, height: int, image: str, log: ReadingLog
) -> Truth | str:
    """The boxes that can be learned from, by the rules above, in their order; or why the image is in doubt.

    Args:
        boxes_xyxy: float64 (M, 4), pixels of the upright image.
        class_ids: int64 (M,).
        width: of the upright image, in pixels.
        height: likewise.
        image: its name.
        log: gets everything that is corrected.
    """
    if not np.isfinite(boxes_xyxy).all():
        return "a box that is no numbers"
    low, high = np.minimum(boxes_xyxy[:, :2], boxes_xyxy[:, 2:]), np.maximum(boxes_xyxy[:, :2], boxes_xyxy[:, 2:])
    turned = np.concatenate([low, high], axis=1)
    cut = np.clip(turned, 0.0, np.array([width, height, width, height], np.float64))
    if (high - low < MIN_SIDE_PX - _ROUNDING_PX).any():
        return "a box less than a pixel wide or high"
    if (cut[:, 2:] - cut[:, :2] < MIN_SIDE_PX - _ROUNDING_PX).any():
        return "a box outside the image"
    duplicates = _duplicates(cut, class_ids)
    log.correct("{n} boxes had exchanged corners: turned round", image, int((turned != boxes_xyxy).any(axis=1).sum()))
    beyond = (np.abs(turned - cut) >= _NOTED_PX).any(axis=1)
    log.correct("{n} boxes reached beyond their image: cut to it", image, int(beyond.sum()))
    log.correct("{n} boxes were there twice: one of each kept", image, int(duplicates.sum()))
    kept = ~duplicates
    return Truth(clip_xyxy(cut[kept].astype(np.float32), width, height), class_ids[kept], width, height)


def _duplicates(boxes_xyxy: NDArray[np.float64], class_ids: Int64Array) -> NDArray[np.bool_]:
    """Which boxes, bool (M,), repeat one before them that is kept."""
    duplicate = np.zeros(len(class_ids), np.bool_)
    boxes = boxes_xyxy.astype(np.float32)
    alike = (iou_xyxy(boxes, boxes) >= DUPLICATE_IOU) & (class_ids[:, None] == class_ids[None, :])  # (M, M)
    for index in np.flatnonzero(np.triu(alike, 1).any(axis=0)):
        duplicate[index] = bool((alike[index, :index] & ~duplicate[:index]).any())
    return duplicate


def _in_pixels(image: AnnotatedImage, file: ImageFile) -> NDArray[np.float64] | None:
    """The boxes in pixels of the upright image, float64 (M, 4); None if they are of an image of another shape."""
    width, height = file.width, file.height
    boxes_xyxy = image.boxes_xyxy.reshape(-1, 4)
    if image.relative:
        # A tool that overlooked the orientation wrote the stored size; what a person saw and corrected was upright.
        shapes = [(width, height), *([(height, width)] if file.orientation >= 5 else [])]
        if image.size is not None and not any(_same_shape(image.size, shape) for shape in shapes):
            return None
        pixels = boxes_xyxy * np.array([width, height, width, height], np.float64)
        return pixels if image.rotations is None else enclosing_boxes(pixels, image.rotations)
    if image.size is None or _agrees(image.size, (width, height)):
        return boxes_xyxy
    if file.orientation >= 5 and _agrees(image.size, (height, width)):
        return boxes_xyxy if image.is_upright else upright(boxes_xyxy, file.orientation, height, width)
    return None


def _agrees(declared: tuple[int, int], size: tuple[int, int]) -> bool:
    return all(side in (0, pixels) for side, pixels in zip(declared, size, strict=True))


def _same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    if 0 in one:
        return True
    ratio, wanted = one[0] * other[1], one[1] * other[0]
    return abs(ratio - wanted) * _SAME_SHAPE <= wanted


def enclosing_boxes(boxes_xyxy: NDArray[np.float64], rotations: NDArray[np.float64]) -> NDArray[np.float64]:
    """The upright boxes around boxes, all float64 (M, 4) in pixels, that are turned about their left upper corner.

    ``rotations`` are float64 (M,), degrees clockwise, as Label Studio's ``value.rotation``.
    """
    angle = np.deg2rad(rotations)
    cos, sin = np.where(rotations == 0, 1.0, np.cos(angle)), np.where(rotations == 0, 0.0, np.sin(angle))
    left, top = boxes_xyxy[:, 0], boxes_xyxy[:, 1]
    width, height = boxes_xyxy[:, 2] - left, boxes_xyxy[:, 3] - top
    x = np.stack([left, left + width * cos, left + width * cos - height * sin, left - height * sin])  # (4, M)
    y = np.stack([top, top + width * sin, top + width * sin + height * cos, top + height * cos])
    return np.stack([x.min(axis=0), y.min(axis=0), x.max(axis=0), y.max(axis=0)], axis=1)


def upright(boxes_xyxy: NDArray[np.float64], orientation: int, width: int, height: int) -> NDArray[np.float64]:
    """Boxes, float64 (M, 4), where they lie once the stored image is turned by its EXIF orientation.

    Only for orientations 5 to 8 (EXIF 2.32, 4.6.4.A), which exchange the sides; ``width`` and ``height`` are those of
    the stored image, in pixels.
    """
    left, top, right, bottom = boxes_xyxy.T
    x = (height - bottom, height - top) if orientation in (6, 7) else (top, bottom)
    y = (width - right, width - left) if orientation in (7, 8) else (left, right)
    return np.stack([x[0], y[0], x[1], y[1]], axis=1)
