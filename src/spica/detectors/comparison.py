"""How far two answers to the same images agree, where nobody has said what is right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from scipy.optimize import linear_sum_assignment

from spica.boxes import Detections, iou_xyxy
from spica.detectors.contract import RGBImage

IOU: Final = 0.5
"""Boxes of one class that overlap by this IoU are the same object, as in AP50."""

MIN_SHARE: Final = 0.85
MAX_MEDIAN_SCORE: Final = 0.04
"""A faster variant passes that shows this share of the boxes, with scores that differ by no more in the median.

Between what was measured: variants that lost no AP50 agreed on 0.887 to 1 of the boxes, with median differences of 0 to
0.020; the lower ones were of weights that had been trained for minutes, with many scores near the threshold. A network
quantised together with its box arithmetic, which lost 0.27 of AP50, agreed on 0.61, with a median of 0.056."""

MIN_MEDIAN_IOU: Final = 0.9
"""And the median overlap of the pairs: 0.99 was measured for int8, 0.83 to 0.86 for boxes of 50 to 60 pixels on the
grid of 8 pixels that bfloat16 has above 1024."""

LEAST_BOXES: Final = 20
"""With fewer boxes an agreement says little."""

MAX_BOX_PX: Final = 0.5
"""Sides of two boxes that are the same but for rounding differ by no more pixels,"""

MAX_SCORE: Final = 0.005
"""and their scores by no more."""

_MAX_UNMATCHED: Final = 0.02
"""Share of the boxes that may lack a partner, for where two boxes are equally good, rounding decides which of them
suppresses the other. A wrong conversion misses nearly all."""
_SIZES = ((480, 640), (64, 640), (640, 96))
"""Heights and widths in pixels: a photograph's, and two strips, which are shrunk differently and cost little."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the boxes of two answers to the same images meet; medians are None without pairs.

    Attributes:
        threshold: boxes with a lower score were not looked at.
        boxes: of the first, all images together.
        others: of the second.
        matched: pairs of one class with an IoU of ``IOU`` or more.
        images: how many.
        iou_median: of the pairs.
        score_median: of the differences of a pair's scores, without sign.
        score_p95: 95 of 100 of these are not larger.
        box_px_median: of the largest differences of a side of a pair, in pixels.
        box_px_max: the largest of these.
    """

    threshold: float
    boxes: int
    others: int
    matched: int
    images: int
    iou_median: float | None = None
    score_median: float | None = None
    score_p95: float | None = None
    box_px_median: float | None = None
    box_px_max: float | None = None

    @property
    def share(self) -> float:
        """Of the boxes of both that are in a pair, in [0, 1] (their F1 score); 1 if neither has any."""
        return 2 * self.matched / (self.boxes + self.others) if self.boxes + self.others else 1.0

    @property
    def passed(self) -> bool:
        """Whether the second may stand for the first; never where there were no boxes to compare."""
        if self.score_median is None or self.iou_median is None:
            return False
        alike = self.share >= MIN_SHARE and self.iou_median >= MIN_MEDIAN_IOU
        return alike and self.score_median <= MAX_MEDIAN_SCORE

    def as_json(self) -> dict[str, Any]:
        """For cards and reports."""
        numbers = {**asdict(self), "share": self.share}
        return {key: round(value, 5) if isinstance(value, float) else value for key, value in numbers.items()}


def agreement(
    first: Sequence[Detections],
    second: Sequence[Detections],
    *,
    threshold: float,
    least: int = 0,
    limit: int | None = None,
) -> Agreement:
    """Compare what two answers show, image by image; both directions count alike.

    Args:
        first: one answer an image.
        second: to the same images.
        threshold: boxes with a lower score are not shown.
        least: half the threshold is taken, then 0, if fewer boxes of the first reach it.
        limit: of an answer only the best boxes are looked at; None for all.
    """
    reached = [sum(int((answer.scores >= level).sum()) for answer in first) for level in (threshold, threshold / 2)]
    threshold = next((threshold / part for part, count in enumerate(reached, 1) if count >= least), 0.0)
    boxes = others = 0
    overlaps, scores, sides = ([np.zeros(0, np.float32)] for _ in range(3))
    for pair in zip(first, second, strict=True):
        mine, yours = (_shown(answer, threshold, limit) for answer in pair)
        boxes, others = boxes + len(mine), others + len(yours)
        overlap = iou_xyxy(mine.boxes_xyxy, yours.boxes_xyxy)  # (N, M)
        overlap[(overlap < IOU) | (mine.class_ids[:, None] != yours.class_ids)] = 0
        rows, columns = linear_sum_assignment(overlap, maximize=True)
        paired = overlap[rows, columns] > 0
        rows, columns = rows[paired], columns[paired]
        overlaps.append(overlap[rows, columns])
        scores.append(np.abs(mine.scores[rows] - yours.scores[columns]))
        sides.append(np.abs(mine.boxes_xyxy[rows] - yours.boxes_xyxy[columns]).max(axis=1, initial=0))
    iou, score, px = (np.concatenate(parts) for parts in (overlaps, scores, sides))
    if not len(iou):
        return Agreement(threshold, boxes, others, 0, len(first))
    measured = (np.median(iou), np.median(score), np.quantile(score, 0.95), np.median(px), px.max())
    return Agreement(threshold, boxes, others, len(iou), len(first), *map(float, measured))


def _shown(answer: Detections, threshold: float, limit: int | None) -> Detections:
    return answer.where((answer.scores >= threshold) & (np.arange(len(answer)) < (limit or len(answer))))


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two answers to one image differ that should be the same but for rounding.

    Attributes:
        expected: boxes in the first answer.
        got: boxes in the second.
        unmatched: boxes without a partner in the other answer, of both answers together.
        box_px: largest difference of a side between partners, in pixels.
        score: largest difference of the scores of partners.
    """

    expected: int
    got: int
    unmatched: int
    box_px: float
    score: float

    @property
    def same(self) -> bool:
        """Whether the two answers are the same but for rounding."""
        return self.unmatched <= max(2, _MAX_UNMATCHED * (self.expected + self.got))


def compare(expected: Detections, got: Detections, *, floor: float, limit: int) -> Comparison:
    """Find each box's partner: same class, sides within ``MAX_BOX_PX``, score within ``MAX_SCORE``.

    A box whose score lies that close to the floor, or, in a full answer, to the lowest score, needs no partner:
    rounding decides whether it is there at all.

    Args:
        expected: the first answer.
        got: the second.
        floor: score down to which both answer.
        limit: of boxes in an answer.
    """
    sides = np.abs(expected.boxes_xyxy[:, None] - got.boxes_xyxy).max(axis=2, initial=0)  # (N, M)
    scores = np.abs(expected.scores[:, None] - got.scores)  # (N, M)
    same = (sides <= MAX_BOX_PX) & (scores <= MAX_SCORE) & (expected.class_ids[:, None] == got.class_ids)
    rows, columns = linear_sum_assignment(np.where(same, 1 - sides, 0), maximize=True)
    paired = same[rows, columns]
    rows, columns = rows[paired], columns[paired]
    lowest = MAX_SCORE + max(
        max(floor, float(answer.scores[-1])) if len(answer) >= limit else floor for answer in (expected, got)
    )
    alone = [np.delete(answer.scores, partners) for answer, partners in ((expected, rows), (got, columns))]
    unmatched = sum(int((left > lowest).sum()) for left in alone)
    box_px, score = (float(values[rows, columns].max(initial=0)) for values in (sides, scores))
    return Comparison(len(expected), len(got), unmatched, box_px, score)


def rendered_images() -> Iterator[RGBImage]:
    """Three images of different sizes, always the same: discs of all colours on an uneven ground, with noise."""
    rng = np.random.default_rng(20240501)
    for height, width in _SIZES:
        rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)  # (H, W) each
        ground = 90 + 60 * np.sin(rows / 37)[..., None] * np.cos(columns / 53)[..., None]
        image = np.repeat(ground, 3, axis=2)  # (H, W, 3)
        for _ in range(height * width // 4000):
            y, x, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(4, 40)
            image[(rows - y) ** 2 + ((columns - x) * rng.uniform(0.5, 2)) ** 2 < radius**2] = rng.uniform(0, 255, 3)
        noisy = image + rng.normal(0, 12, image.shape)
        yield np.clip(noisy, 0, 255).astype(np.uint8)
