"""Labels as people and tools leave them, made fit to learn from; everything changed is counted and told.

An image is a true negative only where its annotation says so. So **any doubt about its labels leaves the whole image
out**: an object that is left unlabelled teaches "nothing here" too. Doubtful are a box with a NaN or an infinity, of a
class that is not known, wholly outside the image, or less than 1 pixel wide or high. Mended, and told, are:

* exchanged corners, or a negative size: turned round;
* a box that reaches beyond the image: cut to it (told from 1 pixel on);
* of boxes of one class with an IoU of at least 0.95 only the first is kept: they were submitted twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spica.boxes import Int64Array, clip_xyxy, iou_xyxy
from spica.errors import DataSetError, UsageError
from spica.evaluation.truth import Truth
from spica.labelstudio.confinement import printable
from spica.training.dataset import DataSet

DOUBLE_IOU: Final = 0.95
MIN_SIDE_PX: Final = 1.0
MAX_LEFT_OUT: Final = 0.1
"""A larger share of the images is left out only where the caller has said that it may be."""
_ROUNDING_PX: Final = 1e-3
_TOLD_PX: Final = 1.0
_NAMED: Final = 3


class LeftOut(NamedTuple):
    """An image that gives no example, and why: a phrase such as "no label file".

    Attributes:
        is_doubt: False where nothing is lost by it, as with a copy of another image.
    """

    image: str
    reason: str
    is_doubt: bool


class Tally:
    """Counts what was mended, and knows every image that was left out.

    Attributes:
        left_out: in the order in which they were met.
        lacking: parts of the data that are described and not there, so that nobody knows how many images they have.
    """

    def __init__(self) -> None:
        self.left_out: list[LeftOut] = []
        self.lacking: list[str] = []
        self._mended: Counter[str] = Counter()
        self._images: dict[str, list[str]] = {}

    def add(self, sentence: str, image: str, count: int = 1) -> None:
        """Count something that was mended in an image. ``sentence`` has a ``{n}`` where the number goes."""
        if count:
            self._mended[sentence] += count
            self._images.setdefault(sentence, []).append(printable(image))

    def leave_out(self, image: str, reason: str, *, is_doubt: bool = True) -> None:
        """An image gives no example.

        Args:
            image: its name, for people.
            reason: a phrase that says what is wrong with it, such as "no label file"; equal ones are told together.
            is_doubt: False where nothing is lost by it, as with a copy of another image.
        """
        self.left_out.append(LeftOut(printable(image), printable(reason), is_doubt))

    def sentences(self) -> tuple[str, ...]:
        """One for each kind, with three of its images: first what was left out, then what was mended."""
        by_reason: dict[str, list[str]] = {}
        for image, reason, _ in self.left_out:
            by_reason.setdefault(reason, []).append(image)
        out = (f"{_images(len(names))} left out: {reason} ({_named(names)})" for reason, names in by_reason.items())
        mended = (f"{sentence.format(n=n)} ({_named(self._images[sentence])})" for sentence, n in self._mended.items())
        lacking = (f"a part is not there: {printable(part)}" for part in self.lacking)
        return (*out, *lacking, *mended)

    def settle(self, examples: int, *, where: str, allow_partial: bool, notes: Path | None) -> None:
        """Once all is read: write the notes, and ask where more than a tenth of the images is in doubt.

        Args:
            examples: images that were not left out.
            where: the data, for messages.
            allow_partial: go on without those in doubt, however many they are.
            notes: a file to which every image that was left out is added, a line each: its name, a tab, the reason.

        Raises:
            DataSetError: too many are left out, or a part is not there.
            UsageError: the notes can't be written.
        """
        if notes is not None:
            append(notes, (f"{image}\t{reason}\n" for image, reason, _ in self.left_out))
        if self.lacking and examples and not allow_partial:
            raise DataSetError(
                "a part of the data set is not there",
                where=where,
                got="; ".join(map(printable, self.lacking)),
                hint="mend where it is said to be, or go on without it with --allow-partial",
            )
        doubtful = sum(each.is_doubt for each in self.left_out)
        there = examples + doubtful
        if allow_partial or not examples or doubtful <= MAX_LEFT_OUT * there:
            return
        told = self.sentences()
        raise DataSetError(
            f"{doubtful} of {there} images would be left out, for their labels are in doubt",
            where=where,
            expected=f"at most {MAX_LEFT_OUT:.0%}",
            got="; ".join(told[:5]) + ("; …" if len(told) > 5 else ""),
            hint="mend what is named (--notes FILE lists every image), or go on without these with --allow-partial",
        )


def append(notes: Path, lines: Iterable[str] = ()) -> None:
    """Add lines to a file in UTF-8, which is made where it is missing.

    Raises:
        UsageError: it can't be written.
    """
    try:
        with notes.open("a", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
    except OSError as error:
        raise UsageError("the notes can't be written", where=f"--notes {notes}", got=error.strerror) from error


def _images(count: int) -> str:
    return f"{count} image" if count == 1 else f"{count} images"


def _named(images: Iterable[str]) -> str:
    different = list(dict.fromkeys(images))
    more = len(different) - _NAMED
    return ", ".join(different[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def clean(
    boxes_xyxy: NDArray[np.float64], class_ids: Int64Array, *, width: int, height: int, image: str, tally: Tally
) -> Truth | str:
    """The boxes that can be learned from, by the rules above, in their order; or why the image is in doubt.

    Args:
        boxes_xyxy: float64 (M, 4), pixels of the upright image.
        class_ids: int64 (M,).
        width: of the upright image, in pixels.
        height: of the upright image, in pixels.
        image: its name, for the tally.
        tally: told of everything that is mended.

    Returns:
        What is in the image; or a reason, as :meth:`Tally.leave_out` takes it.
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
    doubles = _doubles(cut, class_ids)
    tally.add("{n} boxes had exchanged corners: turned round", image, int((turned != boxes_xyxy).any(axis=1).sum()))
    beyond = (np.abs(turned - cut) >= _TOLD_PX).any(axis=1)
    tally.add("{n} boxes reached beyond their image: cut to it", image, int(beyond.sum()))
    tally.add("{n} boxes were there twice: one of each kept", image, int(doubles.sum()))
    return Truth(clip_xyxy(cut[~doubles].astype(np.float32), width, height), class_ids[~doubles], width, height)


def _doubles(boxes_xyxy: NDArray[np.float64], class_ids: Int64Array) -> NDArray[np.bool_]:
    """Which boxes, bool (M,), say again what one before them says that is kept."""
    double = np.zeros(len(class_ids), np.bool_)
    if len(class_ids) < 2:
        return double
    small = boxes_xyxy.astype(np.float32)
    alike = (iou_xyxy(small, small) >= DOUBLE_IOU) & (class_ids[:, None] == class_ids[None, :])  # (M, M)
    for index in np.flatnonzero(np.triu(alike, 1).any(axis=0)):
        double[index] = bool((alike[index, :index] & ~double[:index]).any())
    return double


def require_learnable(dataset: DataSet) -> tuple[str, ...]:
    """Check that something can be learned from a data set at all.

    Returns:
        A sentence for each class without a single object: nothing can be learned about it.

    Raises:
        DataSetError: no image, no object, or one image only, which leaves none to judge by.
    """
    hint = "label some more tasks and submit them"
    if not dataset.examples:
        raise DataSetError("there is no annotated image to learn from", hint=hint)
    if dataset.boxes == 0:
        raise DataSetError(
            "no object to learn from: all annotated images are empty",
            got=f"{len(dataset.examples)} images without boxes",
            expected=f"boxes of {', '.join(dataset.classes)}",
            hint=hint,
        )
    if len(dataset.examples) == 1:
        raise DataSetError(
            "one annotated image is not enough: one is learned from, another is to judge by",
            got="1 image",
            expected="at least 2, better 20",
            hint=hint,
        )
    return _absent(dataset, "no image has an object of class {name}: nothing can be learned about it")


def unjudged(holdout: DataSet) -> tuple[str, ...]:
    """A sentence for each class without a single object in the hold-out: no version is judged by it."""
    return _absent(holdout, "no held-out image has an object of class {name}: new versions are not judged by it")


def _absent(dataset: DataSet, sentence: str) -> tuple[str, ...]:
    present = {int(class_id) for example in dataset.examples for class_id in example.truth.class_ids}
    return tuple(
        sentence.format(name=f'"{name}"') for number, name in enumerate(dataset.classes) if number not in present
    )
