"""The detector for a model version on this machine."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Literal, Protocol

from spica.detectors.card import Card
from spica.detectors.contract import Detector
from spica.detectors.openvino import OpenVINODetector

logger = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda"]


class Servable(Protocol):
    """What must be known of a model version to run it (:class:`spica.models.version.ModelVersion` is one)."""

    @property
    def folder(self) -> Path:
        """Where the files are."""
        ...

    @property
    def card(self) -> Card:
        """What the files are."""
        ...

    @property
    def cache_dir(self) -> Path | None:
        """Where the compiled graph may be kept."""
        ...

    @property
    def source(self) -> Path | None:
        """The weights file that torch can load, if it is at hand."""
        ...


def load_detector(version: Servable, *, threads: int = 0, device: Device = "auto") -> Detector:
    """The detector for a version: torch where there is CUDA and the weights file is at hand, else OpenVINO.

    The choice of CUDA has not been tried on a machine that has it. Torch is not imported where no driver is found.

    Args:
        version: whose files have been checked.
        threads: of the network on a CPU; 0 lets the runtime choose.
        device: ``auto`` looks for CUDA.

    Raises:
        WeightsError: the files can't be run.
    """
    card = version.card
    wanted = device == "cuda" or (device == "auto" and cuda_available())
    if wanted and version.source is not None and card.norm is not None:
        from spica.detectors.torchvision import TorchvisionDetector

        logger.info("model %s runs on CUDA", card.id)
        return TorchvisionDetector(
            version.source,
            card.classes,
            norm="batch" if card.norm == "batch" else "frozen",
            norm_eps=card.norm_eps or 0.0,
            score_floor=card.score_floor,
            max_detections=card.max_detections or 1000,
        )
    return OpenVINODetector(version.folder / card.graph, card.classes, threads=threads, cache_dir=version.cache_dir)


def cuda_available() -> bool:
    """Whether torch can compute on a GPU here; torch is imported only if a driver of NVIDIA's is found."""
    if not _nvidia_driver() or importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def _nvidia_driver() -> bool:
    if sys.platform == "win32":
        return Path(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "nvcuda.dll").exists()
    if sys.platform == "darwin":
        return False
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None  # the latter in WSL
