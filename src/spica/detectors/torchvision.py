"""Detectors on CUDA, by torch itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spica.boxes import Detections
from spica.detectors.cleaning import cleaned, widened
from spica.detectors.contract import RGBImage, checked
from spica.detectors.weights import inspect


class TorchvisionDetector:
    """The weights file itself in torch, whatever network it belongs to.

    The answers on a CPU are tested; on CUDA it has not been tried for want of such a machine.

    Args:
        weights: a state_dict, ``.pth`` or ``.safetensors``.
        classes: names by class id.
        architecture: decides where the shapes fit more than one; None takes what the file says, or the first.
        norm_eps: eps of the batch norm where it is a setting.
        score_floor: boxes with a score not above it are dropped.
        max_detections: at most so many boxes an image.
        device: torch's name of the device.
        half: compute in 16 bits where torch's autocast deems it safe: float16 on CUDA, bfloat16 on a CPU. Boxes differ
            from those of float32 a little.

    Raises:
        WeightsError: the weights don't fit.
    """

    def __init__(
        self,
        weights: Path,
        classes: tuple[str, ...],
        *,
        architecture: str | None = None,
        norm_eps: float | None,
        score_floor: float,
        max_detections: int,
        device: str = "cuda",
        half: bool = False,
    ) -> None:
        import torch

        from spica.detectors.networks import build_from, max_aspect
        from spica.detectors.torchvision_export import load_state_dict

        torch.backends.cudnn.allow_tf32 = False  # its 10 bits of mantissa move boxes by pixels
        info = inspect(weights, architecture)
        self._classes = classes
        self._device = torch.device(device)
        self._dtype = (torch.float16 if self._device.type == "cuda" else torch.bfloat16) if half else None
        self._name = f"torch on {device}, {weights.name}"
        model = build_from(
            load_state_dict(weights),
            architecture=info.architecture,
            norm_eps=norm_eps,
            score_floor=score_floor,
            max_detections=max_detections,
            input_size=info.input_size,
        )
        self._aspect = max_aspect(model)
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
        pixels = torch.from_numpy(np.array(widened(image, self._aspect)))  # a copy: torch warns of read-only arrays
        pixels = pixels.to(self._device)
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None),
        ):
            (answer,) = self._model([pixels.permute(2, 0, 1).to(torch.float32) / 255])  # (3, H, W)
        boxes, scores = (answer[name].float().cpu().numpy() for name in ("boxes", "scores"))
        labels = answer["labels"].cpu().numpy()
        answered = cleaned(boxes, labels, scores, width=width, height=height)
        return checked(answered, classes=len(self._classes), width=width, height=height, detector=self._name)
