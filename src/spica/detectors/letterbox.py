"""A photograph of any size as a network's input of one size, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from spica.boxes import Float32Array
from spica.detectors.contract import RGBImage

BORDER: Final = 114
"""Grey of the border (ultralytics/data/augment.py, ``LetterBox.padding_value``; yolov5/utils/augmentations.py)."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Where a photograph lies in a network's input: a pixel's place there is ``place * scale + offset``.

    Attributes:
        scale_x: pixels of the input by pixel of the photograph, across.
        scale_y: the same, down.
        left: pixels of border on the left.
        top: pixels of border on the top.
    """

    scale_x: float
    scale_y: float
    left: int = 0
    top: int = 0

    def back(self, boxes_xyxy: Float32Array) -> Float32Array:
        """Boxes (N, 4) in pixels of the input, in pixels of the photograph; what lies on the border is outside it."""
        offset = np.array([self.left, self.top] * 2, np.float32)
        scale = np.array([self.scale_x, self.scale_y] * 2, np.float32)
        return np.asarray((boxes_xyxy - offset) / scale, np.float32)


def letterboxed(image: RGBImage, *, height: int, width: int) -> tuple[RGBImage, Fit]:
    """The photograph as large as fits, in the middle, on grey.

    As Ultralytics' ``LetterBox(auto=False, center=True)`` does it: sides rounded to whole pixels, at least one, and an
    odd row or column of border more at the bottom and on the right.

    Args:
        image: uint8 (H, W, 3).
        height: of the input in pixels.
        width: of the input in pixels.

    Returns:
        uint8 (height, width, 3), and where the photograph lies in it.
    """
    rows, columns = image.shape[:2]
    ratio = min(height / rows, width / columns)
    inner_height, inner_width = max(round(rows * ratio), 1), max(round(columns * ratio), 1)
    top, left = round((height - inner_height) / 2 - 0.1), round((width - inner_width) / 2 - 0.1)
    canvas = np.full((height, width, 3), BORDER, np.uint8)
    canvas[top : top + inner_height, left : left + inner_width] = _linear(image, inner_height, inner_width)
    return canvas, Fit(inner_width / columns, inner_height / rows, left, top)


def stretched(image: RGBImage, *, height: int, width: int, antialias: bool) -> tuple[RGBImage, Fit]:
    """The photograph stretched to the input's size, whatever its shape.

    Args:
        image: uint8 (H, W, 3).
        height: of the input in pixels.
        width: of the input in pixels.
        antialias: average all pixels that fall together when shrinking, as Pillow does, and not the nearest four, as
            OpenCV and ``torch.nn.functional.interpolate`` do.

    Returns:
        uint8 (height, width, 3), and where the photograph lies in it: everywhere.
    """
    fit = Fit(width / image.shape[1], height / image.shape[0])
    if not antialias:
        return _linear(image, height, width), fit
    resized = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized), fit


def _linear(image: RGBImage, height: int, width: int) -> RGBImage:
    """Linear between the four nearest pixels, uint8 (height, width, 3)."""
    import cv2  # 20 times as fast as numpy or Pillow at this; label-studio-sdk brings it along

    if image.shape[:2] == (height, width):
        return image
    resized = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, np.uint8)
