"""Detectors on CUDA, by torch itself; and bfloat16 for the layers of torchvision's detectors, not for their boxes."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from spica.boxes import Detections
from spica.detectors.contract import Precision, RGBImage, checked, input_size_of
from spica.detectors.openvino import Machine
from spica.detectors.postprocess import pad_extreme_aspect, postprocess

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

_BATCH: Final = 4
"""Images that a GPU is given at once: a few keep it busy, and their memory is bounded."""

_LAYERS: Final = ("backbone", "head", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor")
"""Parts of torchvision's detectors that have layers with weights; a detector has two or four of them. What is between
them is arithmetic on boxes."""


class TorchDetector:
    """The weights file itself in torch, whatever network it belongs to.

    The answers on a CPU are tested; on CUDA it has not been tried for want of such a machine.

    Args:
        weights: a state_dict, ``.pth`` or ``.safetensors``.
        classes: names by class id.
        architecture: decides where the shapes fit more than one; None takes the first.
        norm_eps: eps of the batch norm where it is a setting.
        score_floor: boxes with a score not above it are dropped.
        max_detections: at most so many boxes an image.
        input_size: in pixels the sides to which the shorter side is scaled, and which the longer one does not exceed;
            None for the network's own.
        device: torch's name of the device.
        bf16: compute the layers in bfloat16. Boxes differ a little.
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
        input_size: tuple[int, int] | None = None,
        device: str = "cuda",
        bf16: bool = False,
        batch: int = 0,
    ) -> None:
        import torch

        from spica.detectors.networks import build_from, load_state_dict, max_aspect

        torch.backends.cudnn.allow_tf32 = False  # its 10 bits of mantissa move boxes by pixels
        self.classes = classes
        self.input_size = input_size_of(architecture or "")
        self._device = torch.device(device)
        self._batch = batch or (_BATCH if self._device.type == "cuda" else 1)
        self._name = f"torch on {device}, {weights.name}"
        model = build_from(
            load_state_dict(weights),
            architecture=architecture,
            norm_eps=norm_eps,
            score_floor=score_floor,
            max_detections=max_detections,
            input_size=input_size,
        )
        self._aspect = max_aspect(model)
        if bf16:
            compute_in_bf16(model)
        self._model = model.to(self._device)

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        """One answer per image, in order.

        Neighbours of the same size are computed together. Of different sizes torchvision would pad the smaller ones to
        the largest, and what a network sees beyond the edge moves boxes there.
        """
        answers: list[Detections] = []
        for _, group in itertools.groupby(images, key=lambda image: image.shape):
            alike = list(group)
            for first in range(0, len(alike), self._batch):
                answers += self._detect_batch(alike[first : first + self._batch])
        return answers

    def _detect_batch(self, images: Sequence[RGBImage]) -> list[Detections]:
        """The answers to images of one size; one after the other if they don't fit into the memory together."""
        import torch

        try:
            return [self._checked(*pair) for pair in zip(images, self._forward(images), strict=True)]
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise
        torch.cuda.empty_cache()  # does nothing without CUDA
        self._batch = 1
        return [detections for image in images for detections in self._detect_batch([image])]

    def _forward(self, images: Sequence[RGBImage]) -> list[dict[str, Any]]:
        import torch

        tensors = []
        for image in images:
            padded = np.array(pad_extreme_aspect(image, self._aspect))  # a copy: torch warns of read-only arrays
            pixels = torch.from_numpy(padded)
            tensors.append(pixels.to(self._device).permute(2, 0, 1).to(torch.float32) / 255)  # (3, H, W)
        with torch.inference_mode():
            answers: list[dict[str, Any]] = self._model(tensors)
        return answers

    def _checked(self, image: RGBImage, answer: dict[str, Any]) -> Detections:
        height, width = image.shape[:2]
        boxes, labels, scores = (answer[name].cpu().numpy() for name in ("boxes", "labels", "scores"))
        detections = postprocess(boxes, labels, scores, width=width, height=height)
        return checked(detections, classes=len(self.classes), width=width, height=height, detector=self._name)


def compute_in_bf16(network: nn.Module) -> None:
    """Have the layers of a detector compute in bfloat16, as far as torch's autocast deems it safe; for good.

    Weights, what the parts hand on, boxes, and losses stay float32: autocast around a whole detector would make
    anchors, proposals, decoded boxes and training targets bfloat16 too, with steps of 2 pixels above 256 and of 8 above
    1024.
    """
    parts = dict(network.named_modules())
    for name in _LAYERS:
        if name in parts:
            parts[name].forward = _in_bf16(parts[name].forward, next(parts[name].parameters()))


def _in_bf16(forward: Callable[..., Any], weight: nn.Parameter) -> Callable[..., Any]:
    import torch

    def autocast_forward(*inputs: Any) -> Any:
        with torch.autocast(weight.device.type, torch.bfloat16):
            return _float32(forward(*inputs))

    return autocast_forward


def _float32(value: Any) -> Any:
    """Tensors, or lists, tuples and dicts of them, as float32."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.float()
    if isinstance(value, dict):
        return {key: _float32(item) for key, item in value.items()}
    return type(value)(map(_float32, value))


def gpu() -> Machine | None:
    """The GPU that torch computes on here, with bf16 where it multiplies bfloat16 itself; None without one."""
    if not cuda_available():
        return None
    import torch

    has: set[Precision] = {"f32"}
    if torch.cuda.is_bf16_supported(including_emulation=False):
        has.add("bf16")
    return Machine(torch.cuda.get_device_name(), frozenset(has), "cuda")


def cuda_available() -> bool:
    """Whether torch can compute on a GPU here; torch is imported only if a driver of NVIDIA's is found."""
    return _nvidia_driver() and importlib.util.find_spec("torch") is not None and _gpu_computes()


@functools.cache
def _gpu_computes() -> bool:
    """Whether one operation succeeds: a GPU may be too old for this torch, or its memory full."""
    import torch

    if not torch.cuda.is_available():
        return False
    try:
        (torch.ones(1, device="cuda") + 1).item()
    except RuntimeError as error:
        logger.warning("the GPU can't compute, so the processor is used: %s", error)
        return False
    return True


def _nvidia_driver() -> bool:
    if sys.platform == "win32":
        return Path(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "nvcuda.dll").exists()
    if sys.platform == "darwin":
        return False
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None  # the latter in WSL
