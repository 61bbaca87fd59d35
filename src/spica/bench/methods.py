"""The methods of computing that are measured against each other, each in a process of its own (:func:`main`).

The first request is a :class:`MethodSpec`, answered by ``{"threads": …}`` when the network is ready; each further one
``{"path": …}``, answered by ``{"seconds", "boxes", "scores", "classes", "memory"}``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spica.boxes import Detections
from spica.detectors.child import answer
from spica.detectors.postprocess import postprocess
from spica.errors import WeightsError
from spica.images import decode
from spica.models import store
from spica.models.load import load_detector
from spica.models.serving import Serving
from spica.models.version import ModelVersion
from spica.training.footprint import peak_memory_bytes

Method = Literal["tutorial", "inference_mode", "f32", "bf16", "int8"]
Detect = Callable[[Path], Detections]

TITLES: dict[Method, str] = {
    "tutorial": "the tutorial's script",
    "inference_mode": "the same, inference mode",
    "f32": "Spica, f32",
    "bf16": "Spica, bf16",
    "int8": "Spica, int8",
}
"""How the methods are called in tables, in their order there."""

TUTORIAL_LIMIT = 100
"""The script leaves torchvision's ``box_detections_per_img`` as it is: at most so many boxes an image."""

_TUTORIAL_FLOOR = 0.05
"""The same of ``box_score_thresh``."""

_ANY_SIZE = 2**31


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """A method and what it needs: the settings of these names, and what ``--weights`` and ``--data-dir`` named."""

    method: Method
    weights: str
    data_dir: str
    score_floor: float
    max_detections: int
    norm_eps: float
    threads: int
    architecture: str | None = None


def load(spec: MethodSpec) -> tuple[Detect, int | None]:
    """From a file to its boxes, everything included, with the network loaded here; and its number of threads."""
    version = store.prepare(
        Path(spec.weights),
        data_dir=Path(spec.data_dir),
        score_floor=spec.score_floor,
        max_detections=spec.max_detections,
        norm_eps=spec.norm_eps,
        architecture=spec.architecture,
    )
    if spec.method == "tutorial" or spec.method == "inference_mode":
        return _tutorial(spec, version)
    serving = Serving(precision=spec.method, why="measured")
    detector = load_detector(version, threads=spec.threads, device="cpu", serving=serving)

    def detect(path: Path) -> Detections:
        image = decode(path.read_bytes(), where=str(path), max_pixels=_ANY_SIZE)
        return detector.detect([image.pixels])[0]

    return detect, getattr(detector, "threads", None)


def tutorial_model(version: ModelVersion, weights: str) -> Any:
    """The network of the published script, in torch."""
    try:
        from spica.detectors.networks import build_from, load_state_dict
    except ModuleNotFoundError as error:
        raise WeightsError("torch is not installed", got=str(error), hint='pip install "spica[train]"') from error
    from spica.detectors.weights import trained_size

    if version.source is None:
        raise WeightsError("torch can't run an exported graph", where=weights)
    return build_from(
        load_state_dict(version.source),
        architecture=version.card.architecture,
        norm_eps=version.card.norm_eps,
        score_floor=_TUTORIAL_FLOOR,
        max_detections=TUTORIAL_LIMIT,
        input_size=trained_size(version.source),
    )


def _tutorial(spec: MethodSpec, version: ModelVersion) -> tuple[Detect, int | None]:
    """What the published script does: torch as it comes, the image opened and decoded twice, one hundred boxes."""
    model = tutorial_model(version, spec.weights)
    import torch
    from PIL import Image
    from torchvision.transforms.functional import to_tensor

    inference_mode = spec.method == "inference_mode"
    torch.set_grad_enabled(not inference_mode)
    if spec.threads:
        torch.set_num_threads(spec.threads)

    def detect(path: Path) -> Detections:
        with Image.open(path) as opened:
            pixels = to_tensor(opened.convert("RGB"))  # (3, H, W)
        with torch.inference_mode(inference_mode):
            (detections,) = model([pixels])
        with Image.open(path) as opened:
            width, height = opened.convert("RGB").size
        boxes, labels, scores = (np.array(detections[name].detach()) for name in ("boxes", "labels", "scores"))
        return postprocess(boxes, labels, scores, width=width, height=height)

    return detect, torch.get_num_threads()


def main() -> int:
    """Answer until the input ends."""
    loaded: list[Detect] = []

    def work(request: dict[str, Any], _: object) -> Mapping[str, Any]:
        if not loaded:
            detect, threads = load(MethodSpec(**request))
            loaded.append(detect)
            return {"threads": threads}
        started = time.perf_counter()
        detections = loaded[0](Path(request["path"]))
        return {
            "seconds": time.perf_counter() - started,
            "boxes": detections.boxes_xyxy.tolist(),
            "scores": detections.scores.tolist(),
            "classes": detections.class_ids.tolist(),
            "memory": peak_memory_bytes() or None,
        }

    return answer(work, repeatedly=True)


if __name__ == "__main__":
    sys.exit(main())
