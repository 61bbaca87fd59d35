"""The detector for a model version on this machine."""

from __future__ import annotations

import logging
from typing import Literal

from spica.detectors.contract import Detector, Precision
from spica.detectors.exported import ARCHITECTURES, ExportedModel
from spica.detectors.openvino import Machine, OpenVINODetector, machine
from spica.detectors.torch_gpu import cuda_available, gpu
from spica.detectors.weights import trained_size
from spica.errors import WeightsError
from spica.models.serving import Serving
from spica.models.version import ModelVersion

logger = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda"]


def load_detector(
    version: ModelVersion, *, threads: int = 0, device: Device = "auto", serving: Serving | None = None
) -> Detector:
    """The detector for a version: torch where there is CUDA and the weights file is at hand, else OpenVINO.

    The choice of CUDA has not been tried on a machine that has it. Torch is not imported where no driver is found.

    Args:
        version: whose files have been checked.
        threads: of the network on a CPU; 0 lets the runtime choose.
        device: ``auto`` looks for CUDA, for what is to be computed in f32 or bf16; int8 is the processor's.
        serving: precision and tiles; None for f32 and whole images.

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


def _load(version: ModelVersion, *, threads: int, device: Device, precision: Precision) -> Detector:
    card = version.card
    wanted = device == "cuda" or (device == "auto" and precision != "int8" and cuda_available())
    if wanted and version.source is not None and card.norm is not None:
        from spica.detectors.torch_gpu import TorchDetector

        logger.info("model %s runs on CUDA in %s", card.id, precision)
        return TorchDetector(
            version.source,
            card.classes,
            architecture=card.architecture,
            norm_eps=card.norm_eps,
            score_floor=card.score_floor,
            max_detections=card.max_detections or 1000,
            input_size=trained_size(version.source),
            bf16=precision == "bf16",
        )
    graph = version.folder / _graph(version, precision)
    if card.architecture in ARCHITECTURES:
        return ExportedModel(
            graph,
            card.classes,
            score_floor=card.score_floor,
            max_detections=card.max_detections,
            threads=threads,
            cache_dir=version.cache_dir,
            precision=precision,
        )
    return OpenVINODetector(
        graph,
        card.classes,
        threads=threads,
        cache_dir=version.cache_dir,
        precision=precision,
    )


def _graph(version: ModelVersion, precision: Precision) -> str:
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


def computed_by(version: ModelVersion) -> Machine:
    """What computes a version here in f32 or bf16: the GPU where torch runs it, else the processor."""
    here = gpu() if version.source is not None and version.card.norm is not None else None
    return here or machine()
