"""Boxes as people and tools leave them, made fit to learn from; everything changed is counted and told.

The rules, in their order:

* a box with a NaN or an infinity is dropped;
* one of a class that is not known is dropped;
* one that reaches beyond the image is cut to it (told from 1 pixel on), one wholly outside is dropped;
* one of less than 1 pixel in width or height is dropped;
* of boxes of one class with an IoU of at least 0.95 only the first is kept: they were submitted twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spica.boxes import Float32Array, Int64Array, clip_xyxy, iou_xyxy
from spica.errors import DataSetError
from spica.training.dataset import DataSet

DOUBLE_IOU: Final = 0.95
MIN_SIDE_PX: Final = 1.0
_ROUNDING_PX: Final = 1e-3
_TOLD_PX: Final = 1.0
_NAMED: Final = 3


class Tally:
    """Counts what was changed, by its sentence, with a few of the images it happened in."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._images: dict[str, dict[str, None]] = {}

    def add(self, sentence: str, image: str, count: int = 1) -> None:
        """Count something that happened in an image. ``sentence`` has a ``{n}`` where the number goes."""
        if count:
            self._counts[sentence] += count
            self._images.setdefault(sentence, {})[image] = None

    def sentences(self) -> tuple[str, ...]:
        """One for each kind, in the order of their first happening."""
        return tuple(
            f"{sentence.format(n=count)} ({_named(list(self._images[sentence]))})"
            for sentence, count in self._counts.items()
        )


def _named(images: Sequence[str]) -> str:
    more = len(images) - _NAMED
    return ", ".join(images[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def clean(
    boxes_xyxy: NDArray[np.float64], class_ids: Int64Array, *, width: int, height: int, image: str, tally: Tally
) -> tuple[Float32Array, Int64Array]:
    """The boxes that can be learned from, by the rules above, in their order.

    Args:
        boxes_xyxy: float64 (M, 4), pixels of the upright image.
        class_ids: int64 (M,), -1 for an unknown class.
        width: of the upright image, in pixels.
        height: of the upright image, in pixels.
        image: its name, for the tally.
        tally: told of everything that is changed.

    Returns:
        float32 (K, 4) and int64 (K,).
    """

    def keep(mask: NDArray[np.bool_], sentence: str) -> None:
        nonlocal boxes_xyxy, class_ids
        tally.add(sentence, image, int((~mask).sum()))
        boxes_xyxy, class_ids = boxes_xyxy[mask], class_ids[mask]

    keep(np.asarray(np.isfinite(boxes_xyxy).all(axis=1)), "{n} boxes were no numbers: dropped")
    keep(class_ids >= 0, "{n} boxes of an unknown class: dropped")
    limits = np.array([width, height, width, height], np.float64)
    cut = np.clip(boxes_xyxy, 0.0, limits)
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    inside = cut[:, 2:] - cut[:, :2]
    outside = np.asarray((sides > 0).all(axis=1) & (inside <= 0).any(axis=1))
    beyond = np.asarray((np.abs(boxes_xyxy - cut) >= _TOLD_PX).any(axis=1) & (sides > 0).all(axis=1)) & ~outside
    tally.add("{n} boxes reached beyond their image: cut to it", image, int(beyond.sum()))
    boxes_xyxy = np.where(outside[:, None], boxes_xyxy, cut)
    keep(~outside, "{n} boxes lay outside their image: dropped")
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    keep(
        np.asarray((sides >= MIN_SIDE_PX - _ROUNDING_PX).all(axis=1)),
        "{n} boxes were less than a pixel wide or high: dropped",
    )
    keep(~_doubles(boxes_xyxy, class_ids), "{n} boxes were there twice: one of each kept")
    return clip_xyxy(boxes_xyxy.astype(np.float32), width, height), class_ids


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
