"""Conversion of a weights file in a process of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from spica.detectors.architecture import Norm
from spica.detectors.child import run

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be converted.

    Attributes:
        weights: the file, a state_dict.
        sha256: of its bytes, in hex; another file is refused.
        folder: an existing folder, where ``model.xml``, ``model.bin`` and ``model.safetensors`` are written.
        architecture: torchvision's name, or Spica's own.
        classes: names by class id.
        norm: the kind of batch norm the weights were trained with.
        norm_eps: eps of the batch norm where it is a setting; it changes nothing elsewhere.
        score_floor: boxes with a score not above it are dropped by the graph.
        max_detections: the graph answers at most so many boxes.
        input_size: in pixels the sides to which the shorter side is scaled, and which the longer one does not exceed;
            None for the network's own.
    """

    weights: str
    sha256: str
    folder: str
    architecture: str
    classes: tuple[str, ...]
    norm: Norm
    norm_eps: float | None
    score_floor: float
    max_detections: int
    input_size: tuple[int, int] | None = None


def convert(
    request: Request, *, progress: Callable[[str], None] | None = None, stop: threading.Event | None = None
) -> dict[str, Any]:
    """Convert in a child process, and return what its comparison with torch measured.

    Takes five to thirty seconds and up to three gigabytes, by the network.

    Args:
        request: what is to be converted.
        progress: told what is being done, in a few words.
        stop: when set, the child is ended.

    Raises:
        WeightsError: torch is missing, the weights are not usable, or the converted network answers differently.
        StorageError: the folder can't be written.
        ModelUnavailableError: ``stop`` was set.
    """

    def told(text: str) -> None:
        logger.info("converting %s: %s", request.weights, text)
        if progress is not None:
            progress(text)

    return run(
        "spica.detectors.convert",
        asdict(request),
        what="conversion",
        where=request.weights,
        needs="3 GB",
        progress=told,
        stop=stop,
    )
