"""Boxes as networks of others put them out, before they are brought into order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spica.boxes import Float32Array, Int64Array, iou_xyxy

_BLOCK = 256
"""So many boxes are compared with each other at once: large enough that Python's loops don't count."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Boxes in no order.

    Attributes:
        boxes_xyxy: float32 (N, 4).
        scores: float32 (N,), in [0, 1].
        class_ids: int64 (N,).
    """

    boxes_xyxy: Float32Array
    scores: Float32Array
    class_ids: Int64Array

    def take(self, which: NDArray[Any]) -> Candidates:
        """Those at the positions ``which``, int (M,), or where it is true, bool (N,)."""
        return Candidates(self.boxes_xyxy[which], self.scores[which], self.class_ids[which])

    def best(self, limit: int) -> Candidates:
        """By descending score, at most ``limit``; equal scores keep their order."""
        return self.take(np.argsort(-self.scores, kind="stable")[:limit])


def xyxy_from_cxcywh(boxes_cxcywh: NDArray[np.floating[Any]]) -> Float32Array:
    """(centre x, centre y, width, height) to (left, top, right, bottom), float32 (N, 4), in the same unit."""
    boxes = boxes_cxcywh.astype(np.float32)
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def suppressed(candidates: Candidates, *, iou: float, limit: int) -> Candidates:
    """Non-maximum suppression, class by class: of boxes that overlap by more than ``iou`` the best alone is left.

    The same boxes as the greedy loop gives (torchvision.ops.batched_nms), computed a block at a time.

    Args:
        candidates: N boxes, finite.
        iou: intersection over union, in [0, 1].
        limit: the best ``limit`` boxes are enough.

    Returns:
        At most ``limit`` boxes by descending score; equal scores keep their order.
    """
    ordered = candidates.best(len(candidates.scores))
    kept: Int64Array = np.zeros(0, np.int64)
    for begin in range(0, len(ordered.scores), _BLOCK):
        block: Int64Array = np.arange(begin, min(begin + _BLOCK, len(ordered.scores)), dtype=np.int64)
        block = block[~(_overlap(ordered, block, kept) > iou).any(axis=1)]
        kept = np.concatenate([kept, block[_greedy(_overlap(ordered, block, block) > iou)]])
        if len(kept) >= limit:
            break
    return ordered.take(kept[:limit])


def _overlap(candidates: Candidates, some: Int64Array, others: Int64Array) -> Float32Array:
    """IoU of every pair, float32 (N, M); 0 where the classes differ."""
    same = candidates.class_ids[some][:, None] == candidates.class_ids[others][None, :]
    return np.where(same, iou_xyxy(candidates.boxes_xyxy[some], candidates.boxes_xyxy[others]), np.float32(0))


def _greedy(clash: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of N boxes, best first, clash with none that is kept before them; bool (N,)."""
    keep = np.ones(len(clash), bool)
    for position in range(len(clash)):
        if keep[position]:
            keep[position + 1 :] &= ~clash[position, position + 1 :]
    return keep
