"""Large photographs in tiles, so that small objects are not shrunk away; and the whole of it, for the large ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Literal

import numpy as np

from spica.boxes import Detections
from spica.detectors.architecture import FULL_TAIL
from spica.detectors.contract import Detector, RGBImage, checked
from spica.detectors.own_networks import FASTER_RCNN_LITE, MAX_SIZE
from spica.detectors.seams import View, Window, merged

AUTO_TILE: Final = 1024
"""Side of the tiles of ``auto`` in pixels, where the network sees as much: what the tutorial's network was trained on,
images of 1024 x 1024 (Global Wheat Head Dataset)."""

USUALLY_SEEN: Final = 1333
"""Longer side in pixels to which torchvision's larger networks shrink an image (``max_size`` of
torchvision.models.detection.transform.GeneralizedRCNNTransform)."""

_SEEN: Final = {
    FASTER_RCNN_LITE: MAX_SIZE,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 640,  # torchvision/models/detection/faster_rcnn.py, max_size
    "ssdlite320_mobilenet_v3_large": 320,  # torchvision/models/detection/ssdlite.py, size
    FULL_TAIL: 320,
    "ssd300_vgg16": 300,  # torchvision/models/detection/ssd.py, size
}
"""The same of networks that see less."""

_LARGE: Final = 2
"""``auto`` begins where a photograph is so many times as long as what the network sees. Below, an object keeps at least
half of its pixels across, which networks are trained to bear, and tiles would cost four times the time and more."""

_VIEWS: Final = 5
"""An object shows in four tiles at most, and in the whole."""

_MARGIN: Final = 0.01
"""Share of a tile that a network errs by at an edge, where it sees half of things: ten pixels of 1024."""


def tiled(
    detector: Detector,
    *,
    tile: int | Literal["auto"],
    overlap: float,
    max_detections: int = 1000,
    sees: int | None = None,
) -> TiledDetector:
    """The detector for large photographs.

    Args:
        detector: for a tile, and for the whole.
        tile: side in pixels; ``auto`` for tiles only where the photograph's longer side is more than twice what the
            network sees, and then of 1024 pixels, or as many as it sees if these are fewer.
        overlap: share of a tile that its neighbour sees too, in [0, 0.5].
        max_detections: at most so many boxes of a photograph, the surest.
        sees: longer side in pixels to which the network shrinks an image, where the detector does not tell it itself
            (``detector.sees``); None for that of torchvision's larger networks, 1333.
    """
    seen = int(getattr(detector, "sees", None) or sees or USUALLY_SEEN)
    side, above = (min(AUTO_TILE, seen), _LARGE * seen) if tile == "auto" else (tile, 0)
    return TiledDetector(detector, tile=side, overlap=overlap, max_detections=max_detections, above=above, sees=seen)


def seen_by(architecture: str) -> int:
    """Longer side in pixels to which a network of torchvision's, or of ours, shrinks an image."""
    return _SEEN.get(architecture, USUALLY_SEEN)


class TiledDetector:
    """A detector that looks at an image tile by tile and once as a whole.

    Objects no larger than the overlap are whole in some tile, and found there. Of larger ones, those that every tile
    cuts off are taken from the whole image, or put together of their parts (:mod:`spica.detectors.seams`). An image
    that fits into one tile is given to the detector as it is.

    Args:
        detector: for a tile, and for the whole.
        tile: side in pixels.
        overlap: share of a tile that its neighbour sees too, in [0, 0.5].
        max_detections: at most so many boxes of an image, the surest.
        above: images whose longer side has at most so many pixels are given to the detector as they are.
        sees: longer side in pixels to which the network shrinks an image; the whole image is given to it no larger than
            twice that, so that memory is bounded.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        tile: int,
        overlap: float,
        max_detections: int = 1000,
        above: int = 0,
        sees: int = USUALLY_SEEN,
    ) -> None:
        self._detector = detector
        self._tile = tile
        self._overlap = overlap
        self._max_detections = max_detections
        self._above = above
        self._whole_side = max(_LARGE * sees, tile)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by class id; empty strings where the weights carry no names."""
        return self._detector.classes

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        """One answer per image, in order, down to the floor score of the detector."""
        return [self._one(image) for image in images]

    def _one(self, image: RGBImage) -> Detections:
        height, width = image.shape[:2]
        places = list(windows(width, height, tile=self._tile, overlap=self._overlap))
        if len(places) == 1 or max(width, height) <= self._above:
            (answer,) = self._detector.detect([image])
            return answer
        views = [self._whole(image), *(self._through(image, window) for window in places)]
        # more would not come through: each of the surest objects has a box among these
        views = _surest(views, _VIEWS * self._max_detections)
        answer = merged(views, width=width, height=height, margin=_MARGIN * self._tile)
        answer = answer.where(np.arange(len(answer)) < self._max_detections)
        return checked(answer, classes=len(self.classes), width=width, height=height, detector="tiles")

    def _through(self, image: RGBImage, window: Window) -> View:
        left, top, right, bottom = window
        (found,) = self._detector.detect([image[top:bottom, left:right]])  # a view: nothing is copied
        boxes = found.boxes_xyxy + np.array([left, top, left, top], np.float32)
        return View(window, Detections(boxes, found.scores, found.class_ids))

    def _whole(self, image: RGBImage) -> View:
        height, width = image.shape[:2]
        small = shrunk(image, self._whole_side)
        (found,) = self._detector.detect([small])
        scale = np.array([width / small.shape[1], height / small.shape[0]] * 2, np.float32)
        boxes = Detections(found.boxes_xyxy * scale, found.scores, found.class_ids)
        return View((0, 0, width, height), boxes, coarse=True)


def _surest(views: Sequence[View], count: int) -> list[View]:
    """The views with their boxes of the highest scores, so many in all."""
    scores = np.concatenate([view.found.scores for view in views])
    keep = np.zeros(len(scores), bool)
    keep[np.argsort(-scores, kind="stable")[:count]] = True
    ends = np.cumsum([len(view.found) for view in views])[:-1]
    parts = np.split(keep, ends)
    return [replace(view, found=view.found.where(part)) for view, part in zip(views, parts, strict=True)]


def windows(width: int, height: int, *, tile: int, overlap: float) -> list[Window]:
    """Windows that cover an image, each of ``tile`` pixels a side or of the image's if that is less, row by row.

    Neighbours overlap by at least ``overlap`` of a tile; the windows are spread evenly, so no narrow rest is left.
    """
    across, down = (_spans(length, tile, overlap) for length in (width, height))
    return [(left, top, right, bottom) for top, bottom in down for left, right in across]


def _spans(length: int, tile: int, overlap: float) -> list[tuple[int, int]]:
    if length <= tile:
        return [(0, length)]
    step = max(1, math.floor(tile * (1 - overlap)))
    count = math.ceil((length - tile) / step) + 1
    starts = [number * (length - tile) // (count - 1) for number in range(count)]  # no step is longer than asked
    return [(start, start + tile) for start in starts]


def shrunk(image: RGBImage, longer_side: int) -> RGBImage:
    """The image with a longer side of at most so many pixels, those that fall together averaged."""
    height, width = image.shape[:2]
    if max(height, width) <= longer_side:
        return image
    import cv2

    ratio = longer_side / max(height, width)
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    return np.asarray(cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA), np.uint8)
