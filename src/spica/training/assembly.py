"""From sketches and photographs to a data set: sizes checked, boxes in upright pixels, names unique."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spica.errors import ImageError
from spica.evaluation.truth import Truth
from spica.images import decode, orientation_of
from spica.labelstudio.confinement import printable, read_file
from spica.training.cleaning import Tally, clean
from spica.training.dataset import DataSet, Example
from spica.training.formats.sketch import Sketch

_SAME_SHAPE: Final = 50
"""Two sizes are of one shape if their ratios differ by a 50th at most: scaled copies are rounded to whole pixels."""


@dataclass(frozen=True, slots=True)
class Photo:
    """An image file that was read and decoded once.

    Attributes:
        digest: of the file's bytes.
        width: of the upright image, in pixels.
        height: of the upright image, in pixels.
        orientation: EXIF's, 1 to 8.
    """

    path: Path
    digest: str
    width: int
    height: int
    orientation: int = 1


def photo_of(path: Path, *, max_pixels: int, max_bytes: int) -> Photo:
    """Read an image file and look at its pixels once, so that a damaged one is found before anything is learned.

    Raises:
        ImageError: no image, damaged or too large.
        MediaError: no regular file, or too large a one.
        OSError: it can't be read.
    """
    return inspect(read_file(path, max_bytes=max_bytes), path, where=str(path), max_pixels=max_pixels)


def inspect(data: bytes, path: Path, *, where: str, max_pixels: int) -> Photo:
    """What there is to know of an image's bytes, which lie at ``path``.

    Raises:
        ImageError: no image, damaged or too large.
    """
    image = decode(data, where=where, max_pixels=max_pixels)
    return Photo(path, image.digest, image.width, image.height, orientation_of(data, where=where))


class Assembly:
    """Takes annotated images one after the other, and gives the data set.

    Args:
        classes: names by class id.
        tally: told of everything that is changed or left out.
        narrowed: ``classes`` were chosen from more: objects of others are disregarded, and an image that has none of
            them is a true negative. Otherwise an object of an unknown class puts its image in doubt.
    """

    def __init__(self, classes: Sequence[str], tally: Tally, *, narrowed: bool = False) -> None:
        self.classes = tuple(classes)
        self.tally = tally
        self._ids = {name: number for number, name in enumerate(self.classes)}
        self._narrowed = narrowed
        self._examples: dict[str, tuple[Sketch, Example | None]] = {}
        self._left_out: dict[int, str] = {}

    def add(self, sketch: Sketch, photo: Photo) -> None:
        """Take one image, or leave it out where its labels are in doubt.

        Of two with the same bytes the annotation that ranks higher counts; where none does and they differ, neither.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # absurd numbers become infinities, and those are told
            read = self._truth(sketch, photo)
        if isinstance(read, str):
            self.leave_out(sketch, read)
            return
        example = Example(
            path=photo.path,
            digest=photo.digest,
            truth=read,
            name=printable(sketch.name),
            task=sketch.task,
            annotation=sketch.annotation,
            updated=sketch.updated,
        )
        self._settle(sketch, example)

    def _truth(self, sketch: Sketch, photo: Photo) -> Truth | str:
        """What is in an image, or why that is in doubt."""
        if sketch.doubt is not None:
            return sketch.doubt
        boxes_xyxy = _placed(sketch, photo)
        if boxes_xyxy is None:
            return "another size than when it was annotated"
        unknown = {label for label in sketch.labels if label not in self._ids}
        if "" in unknown:
            return "a box of a class that has no name"
        if unknown and not self._narrowed:
            return f'a box of class "{min(unknown)[:40]}", which is not known'
        if any(not label or label in self._ids for label in sketch.others) or (sketch.others and not sketch.labels):
            return "an object that has no box"
        boxes_xyxy = boxes_xyxy[np.array([label in self._ids for label in sketch.labels], np.bool_)]
        class_ids = np.array([self._ids[label] for label in sketch.labels if label in self._ids], np.int64)
        return clean(boxes_xyxy, class_ids, width=photo.width, height=photo.height, image=sketch.name, tally=self.tally)

    def _settle(self, sketch: Sketch, example: Example) -> None:
        digest = example.digest
        if digest not in self._examples:
            self._examples[digest] = (sketch, example)
            return
        before, known = self._examples[digest]
        if sketch.rank == before.rank and (known is None or not _same(known.truth, example.truth)):
            reason = "the same image is there with other labels"
            if known is not None:
                self.leave_out(before, reason)
                self._examples[digest] = (before, None)
            self.leave_out(sketch, reason)
            return
        lesser = sketch if sketch.rank <= before.rank else before
        if known is not None or lesser is sketch:
            self.leave_out(lesser, "the same image is there once more, which counts", is_doubt=False)
        if lesser is before:
            self._examples[digest] = (sketch, example)

    def leave_out(self, sketch: Sketch, reason: str, *, is_doubt: bool = True) -> None:
        """Leave an image out, as :meth:`spica.training.cleaning.Tally.leave_out`; its annotation counts as read."""
        image = sketch.name if sketch.task is None else f"task {sketch.task}: {sketch.name}"
        self.tally.leave_out(image, reason, is_doubt=is_doubt)
        self.pass_over(sketch.annotation, sketch.updated)

    def pass_over(self, annotation: int | None, updated: str | None) -> None:
        """Remember that an annotation was read, though it gives no example."""
        if annotation is not None:
            self._left_out[annotation] = updated or ""

    def dataset(self, where: str, *, allow_partial: bool = False, notes: Path | None = None) -> DataSet:
        """All that was taken, in the order in which it was first met.

        Args:
            where: the data, for messages.
            allow_partial: even if more than a tenth of the images is left out.
            notes: a file for the names of those.

        Raises:
            DataSetError: more than a tenth is left out.
            UsageError: the notes can't be written.
        """
        taken: set[str] = set()
        examples = tuple(_renamed(example, taken) for _, example in self._examples.values() if example is not None)
        self.tally.settle(len(examples), where=where, allow_partial=allow_partial, notes=notes)
        used = {example.annotation for example in examples}
        passed = tuple((number, updated) for number, updated in self._left_out.items() if number not in used)
        return DataSet(self.classes, examples, self.tally.sentences(), passed)


def _same(one: Truth, other: Truth) -> bool:
    """Whether two annotations of one image say the same."""
    rows = [
        sorted(map(tuple, np.column_stack([each.class_ids, each.boxes_xyxy.round(2)]).tolist()))
        for each in (one, other)
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


def _placed(sketch: Sketch, photo: Photo) -> NDArray[np.float64] | None:
    """The boxes in pixels of the upright image, float64 (M, 4); None if they are of an image of another shape."""
    width, height = photo.width, photo.height
    boxes_xyxy = sketch.boxes_xyxy.reshape(-1, 4)
    if sketch.relative:
        # A tool that overlooked the orientation wrote the stored size; what a person saw and corrected was upright.
        shapes = [(width, height), *([(height, width)] if photo.orientation >= 5 else [])]
        if sketch.size is not None and not any(_same_shape(sketch.size, shape) for shape in shapes):
            return None
        pixels = boxes_xyxy * np.array([width, height, width, height], np.float64)
        return pixels if sketch.rotations is None else hulls(pixels, sketch.rotations)
    if sketch.size is None or _agrees(sketch.size, (width, height)):
        return boxes_xyxy
    if photo.orientation >= 5 and _agrees(sketch.size, (height, width)):
        return boxes_xyxy if sketch.is_upright else upright(boxes_xyxy, photo.orientation, height, width)
    return None


def _agrees(told: tuple[int, int], size: tuple[int, int]) -> bool:
    return all(side in (0, pixels) for side, pixels in zip(told, size, strict=True))


def _same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    if 0 in one:
        return True
    ratio, wanted = one[0] * other[1], one[1] * other[0]
    return abs(ratio - wanted) * _SAME_SHAPE <= wanted


def hulls(boxes_xyxy: NDArray[np.float64], rotations: NDArray[np.float64]) -> NDArray[np.float64]:
    """The upright boxes around boxes that are turned about their left upper corner, float64 (M, 4), in pixels.

    Args:
        boxes_xyxy: float64 (M, 4), before they are turned.
        rotations: float64 (M,), degrees clockwise, as Label Studio's ``value.rotation``.
    """
    angle = np.deg2rad(rotations)
    cos, sin = np.cos(angle), np.sin(angle)
    cos, sin = np.where(rotations == 0, 1.0, cos), np.where(rotations == 0, 0.0, sin)
    left, top = boxes_xyxy[:, 0], boxes_xyxy[:, 1]
    width, height = boxes_xyxy[:, 2] - left, boxes_xyxy[:, 3] - top
    x = np.stack([left, left + width * cos, left + width * cos - height * sin, left - height * sin])  # (4, M)
    y = np.stack([top, top + width * sin, top + width * sin + height * cos, top + height * cos])
    return np.stack([x.min(axis=0), y.min(axis=0), x.max(axis=0), y.max(axis=0)], axis=1)


def upright(boxes_xyxy: NDArray[np.float64], orientation: int, width: int, height: int) -> NDArray[np.float64]:
    """Boxes in the stored pixels, to where they lie once the image is turned by its EXIF orientation.

    Args:
        boxes_xyxy: float64 (M, 4).
        orientation: 5 to 8 (EXIF 2.32, 4.6.4.A): those that exchange the sides.
        width: of the stored image, in pixels.
        height: of the stored image, in pixels.
    """
    left, top, right, bottom = boxes_xyxy.T
    x = (height - bottom, height - top) if orientation in (6, 7) else (top, bottom)
    y = (width - right, width - left) if orientation in (7, 8) else (left, right)
    return np.stack([x[0], y[0], x[1], y[1]], axis=1)


def left_out_image(error: Exception) -> str:
    """The tally's reason for an image that could not be used."""
    return "it can't be decoded" if isinstance(error, ImageError) else "it is gone or can't be read"
