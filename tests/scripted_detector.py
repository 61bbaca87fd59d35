"""A detector that answers what a test tells it, and remembers how often it was asked."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from spica.boxes import Detections
from spica.detectors.contract import RGBImage

WAIT_S = 30


def detections(*boxes: tuple[float, float, float, float, float], class_id: int = 0) -> Detections:
    """Detections from (left, top, right, bottom, score) in pixels, in descending score."""
    rows = sorted(boxes, key=lambda row: -row[4])
    return Detections(
        np.array([row[:4] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[4] for row in rows], np.float32),
        np.full((len(rows),), class_id, np.int64),
    )


class ScriptedDetector:
    """The same answer for every image; a wholly black image makes it fail; ``go`` can hold it."""

    def __init__(self, answer: Detections, classes: tuple[str, ...] = ("spike",), input_size: int = 1333) -> None:
        self.classes = classes
        self.input_size = input_size
        self.answer = answer
        self.calls = 0
        self.begun = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        """The scripted answer, once it may go."""
        self.begun.set()
        assert self.go.wait(WAIT_S)
        self.calls += len(images)
        if not images[0].any():
            raise ZeroDivisionError("black")
        return [self.answer for _ in images]
