"""Boxes and detections: pure functions on arrays.

Formats are named at every use: ``xyxy`` is (left, top, right, bottom) in pixels of the oriented image,
``xywh_percent`` is (left, top, width, height) in percent of the oriented image's width and height, as Label Studio
stores it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """A detector's boxes in one image. Zero boxes is a normal answer.

    Attributes:
        boxes_xyxy: float32 (N, 4), pixels of the oriented image.
        scores: float32 (N,), in [0, 1], descending.
        class_ids: int64 (N,), indices into the detector's ``classes``.
    """

    boxes_xyxy: Float32Array
    scores: Float32Array
    class_ids: Int64Array

    def __len__(self) -> int:
        return int(self.scores.shape[0])

    @classmethod
    def empty(cls) -> Detections:
        """No boxes at all."""
        return cls(
            boxes_xyxy=np.zeros((0, 4), np.float32),
            scores=np.zeros((0,), np.float32),
            class_ids=np.zeros((0,), np.int64),
        )

    def where(self, keep: NDArray[np.bool_] | NDArray[np.integer[Any]]) -> Detections:
        """The detections at which ``keep``, bool (N,), is true, or at the positions ``keep``, int (M,)."""
        return Detections(self.boxes_xyxy[keep], self.scores[keep], self.class_ids[keep])

    def best(self, limit: int) -> Detections:
        """By descending score, at most ``limit``; equal scores keep their order."""
        return self.where(np.argsort(-self.scores, kind="stable")[:limit])

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        return int(self.boxes_xyxy.nbytes + self.scores.nbytes + self.class_ids.nbytes)


def area_xyxy(boxes_xyxy: Float32Array) -> Float32Array:
    """Areas of boxes (N, 4) in square pixels, float32 (N,); an inverted box has area 0."""
    sides = np.clip(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 0, None)
    return np.asarray(sides[:, 0] * sides[:, 1], np.float32)


def clip_xyxy(boxes_xyxy: Float32Array, width: int, height: int) -> Float32Array:
    """Boxes (N, 4) cut to an image of ``width`` x ``height`` pixels, as a new array."""
    limits = np.array([width, height, width, height], np.float32)
    return np.clip(boxes_xyxy, np.float32(0), limits)


def iou_xyxy(a_xyxy: Float32Array, b_xyxy: Float32Array) -> Float32Array:
    """Intersection over union of every pair, float32 (N, M) in [0, 1]; 0 where both areas are 0."""
    top_left = np.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])  # (N, M, 2)
    bottom_right = np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])  # (N, M, 2)
    sides = np.clip(bottom_right - top_left, 0, None)
    intersection = sides[..., 0] * sides[..., 1]  # (N, M)
    union = area_xyxy(a_xyxy)[:, None] + area_xyxy(b_xyxy)[None, :] - intersection
    return np.asarray(np.divide(intersection, union, out=np.zeros_like(union), where=union > 0), np.float32)


def xyxy_to_xywh_percent(boxes_xyxy: Float32Array, width: int, height: int) -> NDArray[np.float64]:
    """Pixels to Label Studio's percent, float64 (N, 4), clamped to the image: all values in [0, 100], and
    left + width and top + height at most 100.

    Args:
        boxes_xyxy: (N, 4) in pixels of the oriented image.
        width: of the oriented image, in pixels, at least 1.
        height: of the oriented image, in pixels, at least 1.
    """
    scale = np.array([width, height, width, height], np.float64)
    corners = np.clip(boxes_xyxy.astype(np.float64) / scale * 100.0, 0.0, 100.0)
    top_left = corners[:, :2]
    sides = np.clip(corners[:, 2:] - top_left, 0.0, None)
    return np.concatenate([top_left, sides], axis=1)


def xywh_percent_to_xyxy(boxes_xywh_percent: NDArray[np.float64], width: int, height: int) -> Float32Array:
    """Label Studio's percent to pixels of the oriented image, float32 (N, 4)."""
    scale = np.array([width, height], np.float64) / 100.0
    top_left = boxes_xywh_percent[:, :2] * scale
    bottom_right = top_left + boxes_xywh_percent[:, 2:] * scale
    return np.concatenate([top_left, bottom_right], axis=1).astype(np.float32)
