"""What every detector promises, and the check of that promise at the border."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from spica.boxes import Detections
from spica.errors import DetectorContractError

RGBImage = NDArray[np.uint8]
"""uint8 (H, W, 3), RGB, already oriented."""

Precision = Literal["f32", "bf16", "int8"]
"""``f32`` gives torch's own boxes. ``bf16`` keeps 8 of its 24 significant bits. ``int8`` computes the layers that have
weights in 8-bit integers, in a graph of its own, and the rest in f32, or in bf16 where that was clearly faster when
the graph was made. Box arithmetic is float32 throughout."""

USUAL_INPUT_SIZE: Final = 1333
"""Longer side in pixels to which torchvision's larger networks shrink an image (``max_size`` of
torchvision.models.detection.transform.GeneralizedRCNNTransform)."""

_INPUT_SIZES: Final = {
    "fasterrcnn_efficientnet_lite0_fpn": 853,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 640,  # torchvision/models/detection/faster_rcnn.py, max_size
    "ssdlite320_mobilenet_v3_large": 320,  # torchvision/models/detection/ssdlite.py, size
    "ssdlite320_mobilenet_v3_large_full_tail": 320,
    "ssd300_vgg16": 300,  # torchvision/models/detection/ssd.py, size
}


def input_size_of(architecture: str) -> int:
    """Longer side in pixels to which a network of torchvision's, or of ours, shrinks an image."""
    return _INPUT_SIZES.get(architecture, USUAL_INPUT_SIZE)


class Detector(Protocol):
    """A network that finds boxes. No I/O, no HTTP, no Label Studio.

    Not thread-safe: one caller at a time (:mod:`spica.inference` sees to that).
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by class id; empty strings where the weights carry no names."""
        ...

    @property
    def input_size(self) -> int:
        """Longer side in pixels to which the network shrinks an image: what is smaller there is not seen."""
        ...

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        """One answer per image, in order, down to the floor score of the detector."""
        ...


def checked(detections: Detections, *, classes: int, width: int, height: int, detector: str) -> Detections:
    """The detections themselves, if they keep the contract for an image of ``width`` x ``height`` pixels.

    Boxes may lie outside the image by a pixel (arithmetic), never more.

    Raises:
        DetectorContractError: wrong shape or type, a score that is not in [0, 1] or not in descending order,
            a box that is not finite, inverted or outside the image, a class that does not exist.
    """
    n = detections.scores.shape[0] if detections.scores.ndim == 1 else -1
    boxes, scores, class_ids = detections.boxes_xyxy, detections.scores, detections.class_ids

    def broken(expected: str, got: object) -> DetectorContractError:
        return DetectorContractError(
            "a detector gave an answer that breaks its contract", where=detector, expected=expected, got=str(got)
        )

    if n < 0 or boxes.shape != (n, 4) or class_ids.shape != (n,):
        raise broken("boxes (N, 4), scores (N,), class ids (N,)", f"{boxes.shape}, {scores.shape}, {class_ids.shape}")
    if boxes.dtype != np.float32 or scores.dtype != np.float32 or class_ids.dtype != np.int64:
        raise broken("float32, float32, int64", f"{boxes.dtype}, {scores.dtype}, {class_ids.dtype}")
    if n == 0:
        return detections
    if not np.isfinite(boxes).all():
        raise broken("finite boxes", "a box with NaN or infinity")
    if not ((scores >= 0) & (scores <= 1)).all():  # NaN fails too
        raise broken("scores in [0, 1]", f"{scores.min()} to {scores.max()}")
    if (np.diff(scores) > 0).any():
        raise broken("descending scores", "an ascending pair")
    if (boxes[:, 2:] < boxes[:, :2]).any():
        raise broken("left <= right and top <= bottom", "an inverted box")
    if (boxes < -1).any() or (boxes > np.array([width, height, width, height]) + 1).any():
        raise broken(f"boxes inside {width} x {height}", f"{boxes.min()} to {boxes.max()}")
    if class_ids.min() < 0 or class_ids.max() >= classes:
        raise broken(f"class ids in [0, {classes - 1}]", f"{class_ids.min()} to {class_ids.max()}")
    return detections
