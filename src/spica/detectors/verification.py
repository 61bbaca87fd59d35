"""Whether a converted network gives torch's answers: test images, and the comparison of two answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from spica.boxes import Detections
from spica.detectors.contract import RGBImage

MAX_BOX_PX = 0.5
"""Sides of two boxes that are the same differ by no more pixels."""

MAX_SCORE = 0.005
"""Their scores differ by no more."""

_MAX_UNMATCHED = 0.02
"""So large a share of the boxes may lack a partner, for where two boxes are equally good, rounding decides which one
suppresses the other. A wrong conversion misses nearly all."""

_SIZES = ((480, 640), (64, 640), (640, 96))
"""Heights and widths in pixels: a photograph's, and two strips, which are shrunk differently and cost little."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two answers to the same image differ.

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


def rendered_images() -> Iterator[RGBImage]:
    """Three images of different sizes, the same each time: discs of all colours on an uneven ground, with noise."""
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


def compare(expected: Detections, got: Detections, *, floor: float, limit: int) -> Comparison:
    """Find each box's partner: same class, sides within ``MAX_BOX_PX``, score within ``MAX_SCORE``.

    A box whose score lies that close to the floor, or, in a full answer, to the lowest score, needs no partner:
    rounding decides whether it is there at all.

    Args:
        expected: the first answer.
        got: the second.
        floor: score down to which both answer.
        limit: at most so many boxes are in an answer.
    """
    free = np.ones(len(got), bool)
    alone, box_px, score = [], 0.0, 0.0
    for box, own, class_id in zip(expected.boxes_xyxy, expected.scores, expected.class_ids, strict=True):
        sides = np.abs(got.boxes_xyxy - box).max(axis=1, initial=0)  # (M,)
        scores = np.abs(got.scores - own)  # (M,)
        fits = free & (got.class_ids == class_id) & (sides <= MAX_BOX_PX) & (scores <= MAX_SCORE)
        if not fits.any():
            alone.append(own)
            continue
        partner = int(np.argmin(np.where(fits, sides, np.inf)))
        free[partner] = False
        box_px, score = max(box_px, float(sides[partner])), max(score, float(scores[partner]))
    alone.extend(got.scores[free])
    lowest = max(_lowest(expected, floor, limit), _lowest(got, floor, limit))
    unmatched = sum(1 for own in alone if own > lowest + MAX_SCORE)
    return Comparison(len(expected), len(got), unmatched, box_px, score)


def _lowest(answer: Detections, floor: float, limit: int) -> float:
    return max(floor, float(answer.scores[-1])) if len(answer) >= limit else floor
