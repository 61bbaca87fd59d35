"""Which detections hit which objects, and AP50 computed from that: fast enough for a thousand resamples.

The rules are COCO's (pycocotools ``cocoeval.py``, ``evaluateImg`` and ``accumulate``): in descending score each
detection takes, among the objects of its class that nobody has taken, the one with the highest IoU, if that reaches the
level; precision is made monotonic and read at 101 levels of recall.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spica.boxes import Detections
from spica.evaluation.truth import Truth

RECALLS: Final = np.linspace(0.0, 1.0, 101)
"""At which the precision is read (pycocotools ``Params.recThrs``)."""


def match(detections: Detections, truth: Truth, *, iou: float = 0.5) -> NDArray[np.int64]:
    """Give each detection at most one object of its class, and each object at most one detection.

    To compare two lists of detections, make a :class:`Truth` of the boxes and class ids of one.

    Args:
        detections: in descending score; among equal scores the first comes first.
        truth: among objects of equal IoU the last is taken, as COCO does.
        iou: at least so much overlap is a hit, in (0, 1].

    Returns:
        int64 (N,), for each detection the index of the object that it hit, -1 for none.
    """
    objects = np.full(len(detections), -1, np.int64)
    for class_id in np.intersect1d(detections.class_ids, truth.class_ids):
        rows = np.flatnonzero(detections.class_ids == class_id)
        columns = np.flatnonzero(truth.class_ids == class_id)
        overlap = iou_float64(detections.boxes_xyxy[rows], truth.boxes_xyxy[columns])  # (n, m)
        overlap[overlap < iou] = 0.0
        for row in np.flatnonzero(overlap.any(axis=1)):
            best = overlap.shape[1] - 1 - int(overlap[row, ::-1].argmax())
            if overlap[row, best] > 0:
                objects[rows[row]] = columns[best]
                overlap[:, best] = 0.0
    return objects


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """What became of all detections of all images.

    Attributes:
        scores: float64 (D,), of all images, descending; equal ones in the order of the images.
        class_ids: int64 (D,).
        images: int64 (D,), the index of each one's image.
        hits: bool (D,).
        objects: int64 (images, classes), how many there really are.
    """

    scores: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    images: NDArray[np.int64]
    hits: NDArray[np.bool_]
    objects: NDArray[np.int64]

    def curve(
        self, class_id: int | None = None, weights: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Recall, precision and score, float64 (D',) each, after each detection in descending score.

        Args:
            class_id: None for all classes together.
            weights: int64 (images,), how often each image counts; None for once.

        Without objects the recall is NaN.
        """
        chosen = slice(None) if class_id is None else self.class_ids == class_id
        objects = self.objects if class_id is None else self.objects[:, class_id]
        counts = np.ones(len(objects), np.int64) if weights is None else weights
        weight = counts[self.images[chosen]]
        true = np.cumsum(weight * self.hits[chosen])
        every = np.cumsum(weight)
        total = int(counts @ objects.reshape(len(objects), -1).sum(axis=1))
        recall = true / total if total else np.full(len(true), np.nan)
        return recall, true / np.maximum(every, 1), self.scores[chosen]

    def class_ap(self, class_id: int, weights: NDArray[np.int64] | None = None) -> float:
        """Average precision of a class, in [0, 1]; NaN without objects of it. ``weights`` as in :meth:`curve`."""
        objects = self.objects[:, class_id]
        if not (objects.sum() if weights is None else objects @ weights):
            return float("nan")
        recall, precision, _ = self.curve(class_id, weights)
        highest_after = np.maximum.accumulate(precision[::-1])[::-1]
        reached = np.searchsorted(recall, RECALLS, side="left")
        return float(np.append(highest_after, 0.0)[reached].mean())

    def ap(self, weights: NDArray[np.int64] | None = None) -> float:
        """The mean over the classes that have objects, in [0, 1]; NaN without any object."""
        values = np.array([self.class_ap(class_id, weights) for class_id in range(self.objects.shape[1])])
        known = values[~np.isnan(values)]
        return float(known.mean()) if known.size else float("nan")


def match_all(
    truths: Sequence[Truth],
    detections: Sequence[Detections],
    classes: int,
    *,
    iou: float = 0.5,
    max_detections: int = 1000,
) -> Matches:
    """Match every image's detections.

    Args:
        truths: one an image.
        detections: of the same images.
        classes: how many there are.
        iou: as in :func:`match`.
        max_detections: of each image and class only the best so many count.
    """
    check_pairs(truths, detections, classes)
    kept = [_best(image, max_detections) for image in detections]
    hits = [match(image, truth, iou=iou) >= 0 for image, truth in zip(kept, truths, strict=True)]
    scores = np.concatenate([np.zeros(0), *(image.scores.astype(np.float64) for image in kept)])
    order = np.argsort(-scores, kind="stable")
    counts = [np.bincount(truth.class_ids, minlength=classes) for truth in truths]
    return Matches(
        scores=scores[order],
        class_ids=np.concatenate([np.zeros(0, np.int64), *(image.class_ids for image in kept)])[order],
        images=np.repeat(np.arange(len(kept)), [len(image) for image in kept])[order],
        hits=np.concatenate([np.zeros(0, np.bool_), *hits])[order],
        objects=np.array(counts, np.int64).reshape(len(truths), classes),
    )


def check_pairs(truths: Sequence[Truth], detections: Sequence[Detections], classes: int) -> None:
    """Check that truths and detections belong together.

    Raises:
        ValueError: not as many detections as truths, or a class id outside [0, ``classes``).
    """
    if len(truths) != len(detections):
        raise ValueError(f"detections of {len(detections)} images for {len(truths)} truths")
    for class_ids in [*(truth.class_ids for truth in truths), *(image.class_ids for image in detections)]:
        if len(class_ids) and not 0 <= class_ids.min() <= class_ids.max() < classes:
            raise ValueError(f"class ids {class_ids.min()} to {class_ids.max()}, but {classes} classes")


def iou_float64(a_xyxy: NDArray[np.float32], b_xyxy: NDArray[np.float32]) -> NDArray[np.float64]:
    """Intersection over union of every pair, float64 (N, M); 0 where both areas are 0.

    In double precision as COCO's own: in single precision pairs at the very level fall on its other side.
    """
    a, b = a_xyxy.astype(np.float64), b_xyxy.astype(np.float64)
    touching = (a[:, None, 0] < b[None, :, 2]) & (a[:, None, 2] > b[None, :, 0])
    touching &= (a[:, None, 1] < b[None, :, 3]) & (a[:, None, 3] > b[None, :, 1])
    rows, columns = np.nonzero(touching)  # (P,) pairs: few, so the rest is computed for them alone
    sides = np.minimum(a[rows, 2:], b[columns, 2:]) - np.maximum(a[rows, :2], b[columns, :2])  # (P, 2)
    shared = np.clip(sides, 0, None).prod(axis=1)
    area_a, area_b = (np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (a, b))
    union = area_a[rows] + area_b[columns] - shared
    iou = np.zeros(touching.shape)  # (N, M)
    iou[rows, columns] = np.divide(shared, union, out=np.zeros_like(union), where=union > 0)
    return iou


def _best(detections: Detections, most: int) -> Detections:
    """The first ``most`` of each class."""
    if len(detections) <= most:
        return detections
    keep = np.zeros(len(detections), np.bool_)
    for class_id in np.unique(detections.class_ids):
        keep[np.flatnonzero(detections.class_ids == class_id)[:most]] = True
    return detections.where(keep)
