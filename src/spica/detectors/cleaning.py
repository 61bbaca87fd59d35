"""From what a network puts out to what the contract promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spica.boxes import Detections, clip_xyxy
from spica.detectors.contract import RGBImage

MAX_ASPECT = 1000
"""Networks of torchvision shrink the longer side to 1333 pixels; what is left of the shorter must be one pixel.
A network with smaller images says its own limit in its graph."""


def cleaned(
    boxes_xyxy: NDArray[Any], labels: NDArray[Any], scores: NDArray[Any], *, width: int, height: int
) -> Detections:
    """Detections within the contract from a network's own: clipped to the image, by descending score.

    Boxes that are not finite or have no area, and those labelled background, are dropped. Equal scores keep their
    order.

    Args:
        boxes_xyxy: float (N, 4), pixels of the image.
        labels: int (N,), 0 is the background.
        scores: float (N,).
        width: of the image in pixels.
        height: of the image in pixels.
    """
    finite = np.isfinite(boxes_xyxy).all(axis=1) & np.isfinite(scores)
    boxes = clip_xyxy(np.where(finite[:, None], boxes_xyxy, 0).astype(np.float32), width, height)
    keep = finite & (labels > 0) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    kept_scores = np.clip(scores[keep].astype(np.float32), 0, 1)
    order = np.argsort(-kept_scores, kind="stable")
    return Detections(
        boxes_xyxy=np.ascontiguousarray(boxes[keep][order]),
        scores=kept_scores[order],
        class_ids=labels[keep][order].astype(np.int64) - 1,
    )


def widened(image: RGBImage, aspect: int = MAX_ASPECT) -> RGBImage:
    """The image itself, or, if it is more than ``aspect`` times as long as wide, with its last row or column repeated.

    Without that such a strip would be shrunk to nothing, at which torchvision's networks fail. What is added lies
    right of or below the image, so boxes keep their coordinates.
    """
    height, width = image.shape[:2]
    wide, high = widened_size(width, height, aspect)
    if (wide, high) == (width, height):
        return image
    return np.pad(image, ((0, high - height), (0, wide - width), (0, 0)), mode="edge")


def widened_size(width: int, height: int, aspect: int) -> tuple[int, int]:
    """Width and height of such an image in pixels after :func:`widened`."""
    least = math.ceil(max(height, width) / aspect)
    return max(width, least), max(height, least)
