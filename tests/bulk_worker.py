"""The command line in a process of its own that may be killed, with a scripted detector instead of a network.

``python bulk_worker.py COST_MS MODEL ARGUMENTS…`` runs ``spica ARGUMENTS…``; with ``--weights`` the detector takes
COST_MS milliseconds an image and serves as MODEL. It says on standard output what it does: ``image`` after each image,
``sending`` before each request that stores predictions.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripted_detector import detections
from spica import cli
from spica.boxes import Detections
from spica.detectors.contract import RGBImage
from spica.inference import Engine
from spica.labelstudio.client import LabelStudioClient
from spica.server import build

CLASSES = ("spike",)


class CostlyDetector:
    """One box an image; computing takes as long as it is told."""

    classes = CLASSES
    input_size = 1333

    def __init__(self, cost_s: float) -> None:
        self._cost_s = cost_s

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        """One box in the corner of each."""
        time.sleep(self._cost_s * len(images))
        say("image")
        return [detections((1, 1, 21, 11, 0.9)) for _ in images]


def say(mark: str) -> None:
    """Tell the test."""
    sys.stdout.write(mark + "\n")
    sys.stdout.flush()


@dataclass(frozen=True)
class Weights:
    """What stands for a weights file."""

    path: Path = field(default_factory=lambda: Path("scripted.pth"))


@dataclass(frozen=True)
class Identity:
    """What stands for a model's identity."""

    id: str
    name: str = "scripted"
    classes: tuple[str, ...] = CLASSES
    weights: Weights = field(default_factory=Weights)
    card: None = None


def main() -> None:
    """Run the command."""
    cost_s, model = float(sys.argv[1]) / 1000, sys.argv[2]

    def load() -> CostlyDetector:
        return CostlyDetector(cost_s)

    def engine(identity: Any, _settings: Any) -> Engine:
        return Engine(identity.id, load, queue_size=100, memory_bytes=1_000_000)

    create = LabelStudioClient.create_predictions

    def create_predictions(self: LabelStudioClient, project: int, items: Sequence[Any]) -> int:
        say("sending")
        return create(self, project, items)

    replaced: list[tuple[Any, str, Any]] = [
        (LabelStudioClient, "create_predictions", create_predictions),
        (build, "build_engine", engine),
        (sys.modules["spica.cli.prelabel"], "identify", lambda _path, _settings: Identity(model)),
    ]
    for owner, name, instead in replaced:
        setattr(owner, name, instead)
    sys.argv = ["spica", *sys.argv[3:]]
    cli.main()


if __name__ == "__main__":
    main()
