"""The ways of computing that run against each other, each in a process of its own: :mod:`spica.bench.worker`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from spica.boxes import Detections
from spica.detectors.postprocess import postprocess
from spica.detectors.weights import inspect
from spica.errors import WeightsError
from spica.images import decode
from spica.models import store
from spica.models.load import load_detector
from spica.models.serving import Serving
from spica.models.version import ModelVersion

Way = Literal["tutorial", "inference_mode", "f32", "bf16", "int8"]

TITLES: dict[Way, str] = {
    "tutorial": "the tutorial's script",
    "inference_mode": "the same, inference mode",
    "f32": "Spica, f32",
    "bf16": "Spica, bf16",
    "int8": "Spica, int8",
}
"""How the ways are called in tables, in their order there."""

TUTORIAL_LIMIT = 100
"""The script leaves torchvision's ``box_detections_per_img`` as it is: at most so many boxes an image."""

_TUTORIAL_FLOOR = 0.05
"""The same of ``box_score_thresh``."""

_ANY_SIZE = 2**31


@dataclass(frozen=True, slots=True)
class Start:
    """What a contestant needs to know.

    Attributes:
        way: of computing.
        weights: what ``--weights`` named.
        data_dir: the folder with the store.
        score_floor: as in the settings.
        max_detections: as in the settings.
        norm_eps: as in the settings.
        threads: as in the settings; 0 lets the runtime choose.
        architecture: as in the settings.
    """

    way: Way
    weights: str
    data_dir: str
    score_floor: float
    max_detections: int
    norm_eps: float
    threads: int
    architecture: str | None = None

    def as_json(self) -> dict[str, Any]:
        """For the child."""
        return asdict(self)


class Contestant(Protocol):
    """From a file to its boxes."""

    @property
    def threads(self) -> int | None:
        """That the network is computed with; None where the runtime does not tell."""
        ...

    def detect(self, path: Path) -> Detections:
        """Everything that is done for an image, reading the file included."""


def prepare(start: Start) -> Contestant:
    """Load the network in this process."""
    return _Tutorial(start) if start.way in ("tutorial", "inference_mode") else _Spica(start)


class _Spica:
    """The served path: decoded once, computed by the runtime."""

    def __init__(self, start: Start) -> None:
        version = _version(start)
        if start.way not in ("f32", "bf16", "int8"):
            raise ValueError(start.way)
        serving = Serving(precision=start.way, why="measured")
        self._detector = load_detector(version, threads=start.threads, device="cpu", serving=serving)

    @property
    def threads(self) -> int | None:
        """OpenVINO's."""
        threads: int | None = getattr(self._detector, "threads", None)
        return threads

    def detect(self, path: Path) -> Detections:
        image = decode(path.read_bytes(), where=str(path), max_pixels=_ANY_SIZE)
        (found,) = self._detector.detect([image.pixels])
        return found


def _version(start: Start) -> ModelVersion:
    return store.prepare(
        Path(start.weights),
        data_dir=Path(start.data_dir),
        score_floor=start.score_floor,
        max_detections=start.max_detections,
        norm_eps=start.norm_eps,
        architecture=start.architecture,
    )


class _Tutorial:
    """What the published script does: torch as it comes, the image opened and decoded twice, one hundred boxes."""

    def __init__(self, start: Start) -> None:
        import torch

        from spica.detectors.networks import build_from, load_state_dict

        self._torch = torch
        self._inference_mode = start.way == "inference_mode"
        version = _version(start)
        if version.source is None:
            raise WeightsError("torch can't run an exported graph", where=start.weights)
        self._model = build_from(
            load_state_dict(version.source),
            architecture=version.card.architecture,
            norm_eps=version.card.norm_eps,
            score_floor=_TUTORIAL_FLOOR,
            max_detections=TUTORIAL_LIMIT,
            input_size=inspect(version.source, version.card.architecture).input_size,  # where the weights tell it
        )
        torch.set_grad_enabled(not self._inference_mode)
        if start.threads:
            torch.set_num_threads(start.threads)

    @property
    def threads(self) -> int | None:
        """Torch's."""
        threads: int = self._torch.get_num_threads()
        return threads

    def detect(self, path: Path) -> Detections:
        from PIL import Image
        from torchvision.transforms.functional import to_tensor

        with Image.open(path) as opened:
            pixels = to_tensor(opened.convert("RGB"))  # (3, H, W)
        with self._torch.inference_mode(self._inference_mode):
            (answer,) = self._model([pixels])
        with Image.open(path) as opened:
            width, height = opened.convert("RGB").size
        boxes, labels, scores = (np.array(answer[name].detach()) for name in ("boxes", "labels", "scores"))
        return postprocess(boxes, labels, scores, width=width, height=height)
