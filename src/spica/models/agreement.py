"""How far two answers to the same photographs show a person the same boxes, where nobody has said what is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from spica.boxes import Detections, iou_xyxy
from spica.evaluation.matching import match
from spica.evaluation.truth import Truth

IOU: Final = 0.5
"""Boxes of one class that overlap by so much are the same object, as in AP50."""

MIN_SHARE: Final = 0.85
MAX_MEDIAN_SCORE: Final = 0.04
"""A form passes that shows at least this share of the boxes, with scores that differ by no more in the middle.

Between what was measured: forms that lost no AP50 agreed on 0.887 to 1 of the boxes, with median differences of 0 to
0.020; the lower ones were of weights that had been trained for minutes, with many scores near the threshold. A network
quantised together with its box arithmetic, which lost 0.27 of AP50, agreed on 0.61, with a median of 0.056."""

MIN_MEDIAN_IOU: Final = 0.9
"""And the pairs overlap by at least so much in the middle: 0.99 was measured for an int8 form, 0.83 to 0.86 for boxes
of 50 to 60 pixels on the grid of 8 pixels that bfloat16 has above 1024."""

_LEAST_BOXES: Final = 20
"""With fewer boxes an agreement says little; then it is made at a lower threshold."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the boxes of two answers meet.

    Attributes:
        threshold: boxes with a lower score were not looked at.
        boxes: of the first, all photographs together.
        others: of the second.
        matched: pairs of one class with an IoU of ``IOU`` or more.
        iou_median: of the pairs, the middle one; None without pairs.
        score_median: difference of the scores of a pair, without its sign, the middle one; None without pairs.
        score_p95: 95 of 100 are not larger; None without pairs.
        images: how many photographs.
    """

    threshold: float
    boxes: int
    others: int
    matched: int
    iou_median: float | None
    score_median: float | None
    score_p95: float | None
    images: int

    @property
    def share(self) -> float:
        """Of the boxes of both that are in a pair, in [0, 1]; 1 if neither shows any."""
        return 2 * self.matched / (self.boxes + self.others) if self.boxes + self.others else 1.0

    @property
    def passed(self) -> bool:
        """Whether the second may stand for the first; never where there were no boxes to compare."""
        if self.score_median is None or self.iou_median is None:
            return False
        alike = self.share >= MIN_SHARE and self.iou_median >= MIN_MEDIAN_IOU
        return alike and self.score_median <= MAX_MEDIAN_SCORE

    def as_json(self) -> dict[str, Any]:
        """For the card."""
        told = (self.iou_median, self.score_median, self.score_p95)
        rounded = [None if value is None else round(value, 5) for value in told]
        return {
            "threshold": self.threshold,
            "boxes": self.boxes,
            "others": self.others,
            "share": round(self.share, 5),
            "iou_median": rounded[0],
            "score_median": rounded[1],
            "score_p95": rounded[2],
            "images": self.images,
        }


def agreement(first: Sequence[Detections], second: Sequence[Detections], *, threshold: float) -> Agreement:
    """Compare what two answers show, image by image; both directions count alike.

    Args:
        first: of f32.
        second: to the same images.
        threshold: of what is shown, in [0, 1]; lower if fewer than 20 boxes of the first reach it.
    """
    usable = next((level for level in (threshold, threshold / 2) if _count(first, level) >= _LEAST_BOXES), 0.0)
    boxes, others = 0, 0
    overlaps: list[NDArray[Any]] = [np.zeros(0)]
    differences: list[NDArray[Any]] = [np.zeros(0)]
    for one, other in zip(first, second, strict=True):
        mine, yours = one.where(one.scores >= usable), other.where(other.scores >= usable)
        boxes, others = boxes + len(mine), others + len(yours)
        pairs = match(yours, Truth(mine.boxes_xyxy, mine.class_ids, 1, 1), iou=IOU)
        partners = pairs.objects[pairs.hits]
        overlaps.append(np.diag(iou_xyxy(yours.boxes_xyxy[pairs.hits], mine.boxes_xyxy[partners])))
        differences.append(np.abs(yours.scores[pairs.hits] - mine.scores[partners]))
    scores, ious = np.concatenate(differences), np.concatenate(overlaps)
    found = (np.median(ious), np.median(scores), np.quantile(scores, 0.95)) if scores.size else (None, None, None)
    iou, median, p95 = (None if value is None else float(value) for value in found)
    return Agreement(usable, boxes, others, len(scores), iou, median, p95, len(first))


def _count(answers: Sequence[Detections], threshold: float) -> int:
    return sum(int((answer.scores >= threshold).sum()) for answer in answers)
