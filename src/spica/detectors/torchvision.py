"""Detectors on CUDA, by torch itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spica.boxes import Detections
from spica.detectors.architecture import Norm
from spica.detectors.cleaning import cleaned, widened
from spica.detectors.contract import RGBImage, checked


class TorchvisionDetector:
    """The weights file itself in torchvision's ``fasterrcnn_resnet50_fpn``.

    The answers on a CPU are tested; on CUDA it has not been tried for want of such a machine.

    Args:
        weights: a state_dict, ``.pth`` or ``.safetensors``.
        classes: names by class id.
        norm: the kind of batch norm the weights were trained with.
        norm_eps: eps of the batch norm.
        score_floor: boxes with a score not above it are dropped.
        max_detections: at most so many boxes an image.
        device: torch's name of the device.

    Raises:
        WeightsError: the weights don't fit.
    """

    def __init__(
        self,
        weights: Path,
        classes: tuple[str, ...],
        *,
        norm: Norm,
        norm_eps: float,
        score_floor: float,
        max_detections: int,
        device: str = "cuda",
    ) -> None:
        import torch

        from spica.detectors.torchvision_export import build, load_state_dict

        torch.backends.cudnn.allow_tf32 = False  # its 10 bits of mantissa move boxes by pixels
        self._classes = classes
        self._device = torch.device(device)
        self._name = f"torch on {device}, {weights.name}"
        model = build(
            load_state_dict(weights),
            norm=norm,
            norm_eps=norm_eps,
            score_floor=score_floor,
            max_detections=max_detections,
        )
        self._model = model.to(self._device)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by class id; empty strings where the weights carry no names."""
        return self._classes

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        """One answer per image, in order. Images are computed one after the other: they differ in size."""
        return [self._one(image) for image in images]

    def _one(self, image: RGBImage) -> Detections:
        import torch

        height, width = image.shape[:2]
        pixels = torch.from_numpy(np.array(widened(image))).to(self._device)  # a copy: torch warns of read-only arrays
        with torch.inference_mode():
            (answer,) = self._model([pixels.permute(2, 0, 1).to(torch.float32) / 255])  # (3, H, W)
        boxes, labels, scores = (answer[name].cpu().numpy() for name in ("boxes", "labels", "scores"))
        answered = cleaned(boxes, labels, scores, width=width, height=height)
        return checked(answered, classes=len(self._classes), width=width, height=height, detector=self._name)
