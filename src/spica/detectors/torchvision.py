"""Detectors on CUDA, by torch itself."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from spica.boxes import Detections
from spica.detectors.cleaning import cleaned, widened
from spica.detectors.contract import RGBImage, checked
from spica.detectors.weights import inspect

_BATCH: Final = 4
"""Images that a GPU is given at once: a few keep it busy, and their memory is bounded."""


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
        half: compute the layers in bfloat16, see :mod:`spica.detectors.mixed_precision`. Boxes differ a little.
        batch: at most so many images of one size are computed together; 0 for 4 on a GPU, and one on a CPU, where more
            are not faster.

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
        batch: int = 0,
    ) -> None:
        import torch

        from spica.detectors.mixed_precision import compute_in_bf16
        from spica.detectors.networks import build_from, max_aspect
        from spica.detectors.torchvision_export import load_state_dict

        torch.backends.cudnn.allow_tf32 = False  # its 10 bits of mantissa move boxes by pixels
        info = inspect(weights, architecture)
        self._classes = classes
        self._device = torch.device(device)
        self._batch = batch or (_BATCH if self._device.type == "cuda" else 1)
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
        if half:
            compute_in_bf16(model)
        self._model = model.to(self._device)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by class id; empty strings where the weights carry no names."""
        return self._classes

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        """One answer per image, in order.

        Neighbours of the same size are computed together. Of different sizes torchvision would pad the smaller ones to
        the largest, and what a network sees beyond the edge moves boxes there.
        """
        answers: list[Detections] = []
        for _, same in itertools.groupby(images, key=lambda image: image.shape):
            alike = list(same)
            for first in range(0, len(alike), self._batch):
                answers += self._together(alike[first : first + self._batch])
        return answers

    def _together(self, images: Sequence[RGBImage]) -> list[Detections]:
        """The answers to images of one size; one after the other if they don't fit into the memory together."""
        import torch

        try:
            return [self._told(image, answer) for image, answer in zip(images, self._answers(images), strict=True)]
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise
        torch.cuda.empty_cache()  # does nothing without CUDA
        self._batch = 1
        return [found for image in images for found in self._together([image])]

    def _answers(self, images: Sequence[RGBImage]) -> list[dict[str, Any]]:
        import torch

        given = []
        for image in images:
            pixels = torch.from_numpy(np.array(widened(image, self._aspect)))  # a copy: torch warns of read-only arrays
            given.append(pixels.to(self._device).permute(2, 0, 1).to(torch.float32) / 255)  # (3, H, W)
        with torch.inference_mode():
            answers: list[dict[str, Any]] = self._model(given)
        return answers

    def _told(self, image: RGBImage, answer: dict[str, Any]) -> Detections:
        height, width = image.shape[:2]
        boxes, scores = (answer[name].cpu().numpy() for name in ("boxes", "scores"))
        labels = answer["labels"].cpu().numpy()
        answered = cleaned(boxes, labels, scores, width=width, height=height)
        return checked(answered, classes=len(self._classes), width=width, height=height, detector=self._name)
