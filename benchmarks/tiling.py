"""Tiles of a large photograph: ours against ``InferenceSlicer`` of supervision, with the demonstration's detector.

``python -m benchmarks.tiling`` from the root of the repository. supervision (MIT) is no dependency of Spica: install it
aside, ``pip install --target FOLDER supervision``, and put the folder into ``PYTHONPATH``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spica.bench.machine import cores, processor, versions
from spica.boxes import Detections
from spica.demo import model_folder
from spica.demo.field import render_field
from spica.detectors.contract import Detector
from spica.detectors.openvino import OpenVINODetector
from spica.detectors.tiling import tiled, windows
from spica.evaluation.matching import match
from spica.evaluation.truth import Truth
from spica.models.card import read_card

from .report import table

TILE, OVERLAP = 640, 0.2
THRESHOLD = 0.6
_IOU = 0.5
_FIRST_SEED = 520_000
_CELLS = (5, 5)
_ENLARGED = 3

Tiling = Callable[[NDArray[np.uint8]], Detections]


Cell = tuple[int, int, int, int]
"""Left, top, right and bottom of a field in the photograph, in pixels."""


def scene(*, large: bool) -> tuple[NDArray[np.uint8], Truth, list[Cell]]:
    """A photograph of 3200 x 2400 pixels put together of rendered fields; with ``large`` one of them nine times as big.

    Objects of the enlarged field are larger than the overlap of the tiles.
    """
    columns, rows = _CELLS
    pixels = np.zeros((rows * 480, columns * 640, 3), np.uint8)
    boxes, cells = [], []
    for row in range(rows):
        for column in range(columns):
            if large and row < _ENLARGED and column < _ENLARGED:
                continue
            field = render_field(_FIRST_SEED + row * columns + column)
            left, top = column * 640, row * 480
            pixels[top : top + 480, left : left + 640] = field.pixels
            cells.append((left, top, left + 640, top + 480))
            boxes.append(field.boxes_xyxy + np.array([left, top, left, top], np.float32))
    if large:
        import cv2

        field = render_field(_FIRST_SEED)
        side = (640 * _ENLARGED, 480 * _ENLARGED)
        pixels[: side[1], : side[0]] = cv2.resize(field.pixels, side, interpolation=cv2.INTER_CUBIC)
        cells.append((0, 0, *side))
        boxes.append(field.boxes_xyxy * np.float32(_ENLARGED))
    objects = np.concatenate(boxes)
    return pixels, Truth(objects, np.zeros(len(objects), np.int64), pixels.shape[1], pixels.shape[0]), cells


def without_seams(detector: Detector, image: NDArray[np.uint8], cells: Sequence[Cell]) -> Detections:
    """What the detector finds in each field by itself: as good as tiles can be."""
    boxes, scores = [], []
    for left, top, right, bottom in cells:
        (detections,) = detector.detect([np.ascontiguousarray(image[top:bottom, left:right])])
        boxes.append(detections.boxes_xyxy + np.array([left, top, left, top], np.float32))
        scores.append(detections.scores)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return Detections(np.concatenate(boxes)[order], np.concatenate(scores)[order], np.zeros(len(order), np.int64))


def demonstration() -> OpenVINODetector:
    """The demonstration's detector."""
    card = read_card(model_folder())
    return OpenVINODetector(model_folder() / card.graph, card.classes)


def tilings(detector: Detector) -> dict[str, Tiling]:
    """By name; those of supervision only where it is installed."""
    ours = tiled(detector, tile=TILE, overlap=OVERLAP)
    found: dict[str, Tiling] = {"Spica": lambda image: ours.detect([image])[0]}
    if importlib.util.find_spec("supervision") is not None:
        found["supervision, as it comes"] = _sliced(detector)
        found["supervision, suppressing by IOS"] = _sliced(detector, overlap_metric="IOS")
        found["supervision, merging by IOS"] = _sliced(detector, overlap_filter="non_max_merge", overlap_metric="IOS")
    return found


def _sliced(detector: Detector, **options: Any) -> Tiling:
    supervision: Any = importlib.import_module("supervision")

    def look(tile: NDArray[np.uint8]) -> Any:
        (found,) = detector.detect([np.ascontiguousarray(tile)])
        return supervision.Detections(found.boxes_xyxy, confidence=found.scores, class_id=found.class_ids)

    side = round(TILE * OVERLAP)
    slicer = supervision.InferenceSlicer(look, slice_wh=TILE, overlap_wh=side, **options)

    def through(image: NDArray[np.uint8]) -> Detections:
        found = slicer(image)
        order = np.argsort(-found.confidence, kind="stable")
        return Detections(found.xyxy[order].astype(np.float32), found.confidence[order], found.class_id[order])

    return through


def judged(answer: Detections, truth: Truth) -> dict[str, int]:
    """What of the truth was found, lost and shown twice.

    Returns:
        ``found`` and ``lost`` objects; ``lost_at_seams``, of the latter those that an edge of a tile cuts; ``doubled``,
        further boxes that lie on an object by half of their area or of its; ``made_up``, all other boxes.
    """
    shown = answer.where(answer.scores >= THRESHOLD)
    objects = match(shown, truth, iou=_IOU)
    hits = objects >= 0
    missed = np.ones(len(truth), bool)
    missed[objects[hits]] = False
    further = shown.boxes_xyxy[~hits]
    doubled = int((_shares(further, truth.boxes_xyxy) > _IOU).any(axis=1).sum())
    return {
        "found": int(hits.sum()),
        "lost": int(missed.sum()),
        "lost_at_seams": int((missed & _cut(truth)).sum()),
        "doubled": doubled,
        "made_up": len(further) - doubled,
    }


def _shares(boxes: NDArray[np.float32], objects: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over the smaller area, (N, M)."""
    low = np.maximum(boxes[:, None, :2], objects[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], objects[None, :, 2:])
    inside = (high - low).clip(0).prod(axis=2)
    first, second = ((each[:, 2:] - each[:, :2]).prod(axis=1) for each in (boxes, objects))
    return np.asarray(inside / np.minimum(first[:, None], second[None]).clip(1e-6), np.float32)


def _cut(truth: Truth) -> NDArray[np.bool_]:
    """Whether an edge of one of our tiles goes through an object, (N,)."""
    left, top, right, bottom = truth.boxes_xyxy.T
    cut = np.zeros(len(truth), bool)
    for x0, y0, x1, y1 in windows(truth.width, truth.height, tile=TILE, overlap=OVERLAP):
        across = (bottom > y0) & (top < y1) & (((left < x0) & (right > x0)) | ((left < x1) & (right > x1)))
        down = (right > x0) & (left < x1) & (((top < y0) & (bottom > y0)) | ((top < y1) & (bottom > y1)))
        cut |= across | down
    return cut


def main() -> None:
    """Measure, and print a table for each photograph."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiling", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    detector = demonstration()
    methods = tilings(detector)
    if len(methods) == 1:
        print("supervision is not installed: only Spica's tiles are measured (--help tells how).", file=sys.stderr)
    print(f"{processor()}, {cores()} logical cores; {versions(('openvino', 'supervision', 'numpy'))}; photographs of ")
    print(f"3200 x 2400, tiles of {TILE}, overlap {OVERLAP:g}, score {THRESHOLD:g} and more, {rounds} rounds in turn\n")
    head = ("method", "time ÷ Spica's (median / min)", "found", "lost", "of these cut by a tile's edge", "doubled")
    for title, large in (("small objects", False), ("small objects, and some larger than the overlap", True)):
        image, truth, cells = scene(large=large)
        seconds: dict[str, list[float]] = {name: [] for name in methods}
        answers = {name: method(image) for name, method in methods.items()}
        for _ in range(rounds):
            for name, method in methods.items():
                started = time.perf_counter()
                method(image)
                seconds[name].append(time.perf_counter() - started)
        ours = seconds["Spica"]
        rows: list[tuple[object, ...]] = [
            ("each field by itself, no tiles", "–", *judged(without_seams(detector, image, cells), truth).values())
        ]
        for name, answer in answers.items():
            ratio = f"{median(seconds[name]) / median(ours):.2f} / {min(seconds[name]) / min(ours):.2f}"
            rows.append((name, ratio, *judged(answer, truth).values()))
        print(f"{title}, {len(truth)} in all\n\n{table((*head, 'made up'), rows)}")


if __name__ == "__main__":
    main()
