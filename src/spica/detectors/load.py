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
from spica.detectors.contract import Detector, Precision
from spica.detectors.openvino import Machine, OpenVINODetector, machine
from spica.detectors.weights import inspect
from spica.errors import WeightsError

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


class Manner(Protocol):
    """How a version is to be computed (:class:`spica.models.serving.Serving` is one)."""

    @property
    def precision(self) -> Precision:
        """The arithmetic."""
        ...

    @property
    def text(self) -> str:
        """Precision and tiles, and why, for the log."""
        ...

    @property
    def tile(self) -> int | Literal["auto"] | None:
        """Side of a tile in pixels, ``auto`` for tiles in large images only, None for none."""
        ...

    @property
    def overlap(self) -> float:
        """Share of a tile that its neighbour sees too."""
        ...


def load_detector(
    version: Servable, *, threads: int = 0, device: Device = "auto", serving: Manner | None = None
) -> Detector:
    """The detector for a version: torch where there is CUDA and the weights file is at hand, else OpenVINO.

    The choice of CUDA has not been tried on a machine that has it. Torch is not imported where no driver is found.

    Args:
        version: whose files have been checked.
        threads: of the network on a CPU; 0 lets the runtime choose.
        device: ``auto`` looks for CUDA, for what is to be computed in f32 or bf16; int8 is the processor's.
        serving: arithmetic and tiles; None for f32 and whole images.

    Raises:
        WeightsError: the files can't be run, or the version has no int8 form.
    """
    precision = serving.precision if serving is not None else "f32"
    if serving is not None:
        logger.info("model %s is computed in %s", version.card.id, serving.text)
    detector = _load(version, threads=threads, device=device, precision=precision)
    if serving is None or serving.tile is None:
        return detector
    from spica.detectors.tiling import tiled

    return tiled(
        detector,
        tile=serving.tile,
        overlap=serving.overlap,
        max_detections=version.card.max_detections or 1000,
    )


def _load(version: Servable, *, threads: int, device: Device, precision: Precision) -> Detector:
    card = version.card
    wanted = device == "cuda" or (device == "auto" and precision != "int8" and cuda_available())
    if wanted and version.source is not None and card.norm is not None:
        from spica.detectors.torch_gpu import TorchDetector

        logger.info("model %s runs on CUDA in %s", card.id, precision)
        info = inspect(version.source, card.architecture)
        return TorchDetector(
            version.source,
            card.classes,
            architecture=info.architecture,
            norm_eps=card.norm_eps,
            score_floor=card.score_floor,
            max_detections=card.max_detections or 1000,
            input_size=info.input_size,
            bf16=precision == "bf16",
        )
    graph = version.folder / _graph(version, precision)
    if card.graph.endswith(".onnx"):
        from spica.detectors.foreign import is_foreign, open_foreign

        if is_foreign(card):
            return open_foreign(graph, card, threads=threads, cache_dir=version.cache_dir, precision=precision)
    return OpenVINODetector(
        graph,
        card.classes,
        threads=threads,
        cache_dir=version.cache_dir,
        precision=precision,
    )


def _graph(version: Servable, precision: Precision) -> str:
    """The file that is run in an arithmetic."""
    if precision != "int8":
        return version.card.graph
    form = version.card.precisions.get("int8")
    if form is None or form.graph is None:
        raise WeightsError(
            "this model version has no int8 form (any more)",
            where=str(version.folder),
            hint="make one with `spica models optimise`, or serve it with --precision f32",
        )
    return form.graph


def computed_by(version: Servable) -> Machine:
    """What computes a version here in f32 or bf16: the GPU where torch runs it, else the processor."""
    here = gpu() if version.source is not None and version.card.norm is not None else None
    return here or machine()


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
