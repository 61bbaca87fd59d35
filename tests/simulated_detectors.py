"""Scenes with known objects, and detectors as good as a test says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spica.boxes import Detections
from spica.evaluation.truth import Truth

SIDE = 600


def scenes(rng: np.random.Generator, images: int, *, objects: float = 12, classes: int = 1) -> list[Truth]:
    """Images with objects of 25 to 60 pixels anywhere, ``objects`` of them in the mean."""
    made = []
    for _ in range(images):
        count = int(rng.poisson(objects))
        corners = rng.uniform(0, SIDE - 60, (count, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(25, 60, (count, 2))], axis=1)
        made.append(Truth(boxes.astype(np.float32), rng.integers(0, classes, count), SIDE, SIDE))
    return made


def detect(
    rng: np.random.Generator, truths: Sequence[Truth], *, recall: float, blur: float = 2.0, false: float = 2.0
) -> list[Detections]:
    """Answers that find a share ``recall`` of the objects, ``blur`` pixels off, with ``false`` boxes more an image."""
    answers = []
    for truth in truths:
        seen = rng.random(len(truth)) < recall
        near = truth.boxes_xyxy[seen] + rng.normal(0, blur, (int(seen.sum()), 4))
        extra = int(rng.poisson(false))
        corners = rng.uniform(0, SIDE - 60, (extra, 2))
        boxes = np.concatenate([near, np.concatenate([corners, corners + rng.uniform(25, 60, (extra, 2))], axis=1)])
        scores = np.concatenate([rng.beta(6, 2, len(near)), rng.beta(3, 4, extra)])
        class_ids = np.concatenate([truth.class_ids[seen], np.zeros(extra, np.int64)])
        order = np.argsort(-scores)
        answers.append(Detections(boxes[order].astype(np.float32), scores[order].astype(np.float32), class_ids[order]))
    return answers


def random_answers(rng: np.random.Generator, objects: int, answers: int, classes: int) -> tuple[Truth, Detections]:
    """A crowded image in whole pixels with scores in twentieths: full of ties and of overlaps of exactly a half."""
    corners = rng.integers(0, 300, (objects, 2))
    boxes = np.concatenate([corners, corners + rng.integers(5, 120, (objects, 2))], axis=1).astype(np.float32)
    count = answers if objects else 0
    found = (boxes[rng.integers(0, max(objects, 1), count)] + rng.integers(-6, 7, (count, 4))).astype(np.float32)
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2])
    scores = np.sort(rng.integers(0, 20, count) / 20)[::-1].astype(np.float32)
    return (
        Truth(boxes, rng.integers(0, classes, objects), 420, 420),
        Detections(found, scores, rng.integers(0, classes, count)),
    )
