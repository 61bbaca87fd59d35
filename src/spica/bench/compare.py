"""How far two ways agree on the same photographs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spica.boxes import Detections
from spica.evaluation.matching import match
from spica.evaluation.truth import Truth

MIN_IOU = 0.5
"""Boxes of one class that overlap by so much are the same object, as in AP50 (COCO's usage)."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the boxes of one way are found again in another's.

    Attributes:
        boxes: shown by the first way, all photographs together.
        others: shown by the second.
        matched: pairs, each box in one at most, the highest score first.
        score: median difference of the scores of a pair; None without pairs.
        box_px: median over the pairs of the largest difference of a side, in pixels; None without pairs.
        worst_px: the largest difference of a side of any pair, in pixels; None without pairs.
    """

    boxes: int
    others: int
    matched: int
    score: float | None
    box_px: float | None
    worst_px: float | None

    @property
    def share(self) -> float:
        """Of the boxes of both that are in a pair: the F1 score of one way taken as the truth; 1 if neither has any."""
        return 2 * self.matched / (self.boxes + self.others) if self.boxes + self.others else 1.0


def agreement(
    first: Mapping[Path, Detections], second: Mapping[Path, Detections], *, threshold: float, limit: int
) -> Agreement:
    """Compare what two ways show.

    Args:
        first: answers by photograph.
        second: answers to the same photographs.
        threshold: boxes with a lower score are not shown.
        limit: only so many boxes of an answer, the best, are looked at: the tutorial's way has no more.
    """
    boxes = others = 0
    scores: list[float] = []
    sides: list[float] = []
    for path, answer in first.items():
        mine, yours = _shown(answer, threshold, limit), _shown(second[path], threshold, limit)
        boxes, others = boxes + len(mine), others + len(yours)
        pairs = match(yours, Truth(mine.boxes_xyxy, mine.class_ids, 1, 1), iou=MIN_IOU)
        hit, own = pairs.hits, pairs.objects[pairs.hits]
        scores.extend(np.abs(yours.scores[hit] - mine.scores[own]).tolist())
        sides.extend(np.abs(yours.boxes_xyxy[hit] - mine.boxes_xyxy[own]).max(axis=1, initial=0).tolist())
    if not sides:
        return Agreement(boxes, others, 0, None, None, None)
    return Agreement(boxes, others, len(sides), float(np.median(scores)), float(np.median(sides)), max(sides))


def _shown(answer: Detections, threshold: float, limit: int) -> Detections:
    best = answer.where(np.arange(len(answer)) < limit)
    return best.where(best.scores >= threshold)
