"""Which answers hit which objects."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripted_detector import detections
from simulated_detectors import random_answers
from spica.boxes import Detections, iou_xyxy
from spica.evaluation.matching import iou_float64, match, match_all
from spica.evaluation.truth import Truth


def truth(*boxes: tuple[float, float, float, float], class_ids: tuple[int, ...] | None = None) -> Truth:
    ids = np.array(class_ids if class_ids is not None else [0] * len(boxes), np.int64)
    return Truth(np.array(boxes, np.float32).reshape(-1, 4), ids, 400, 400)


HALF = (0.0, 0.0, 10.0, 10.0)


@pytest.mark.parametrize(
    ("answer", "objects", "expected"),
    [
        (Detections.empty(), truth(), []),
        (Detections.empty(), truth(HALF), []),
        (detections((*HALF, 0.9)), truth(), [-1]),
        (detections((0, 0, 10, 5, 0.9)), truth(HALF), [0]),
        (detections((0, 0, 10, 4.99, 0.9)), truth(HALF), [-1]),
        (detections((*HALF, 0.9), (*HALF, 0.8)), truth(HALF), [0, -1]),
        (detections((0, 0, 10, 9, 0.9), (*HALF, 0.8)), truth(HALF, (0, 0, 10, 8)), [0, 1]),
        (detections((*HALF, 0.9)), truth(HALF, class_ids=(1,)), [-1]),
        (detections((5, 5, 5, 5, 0.9)), truth((5, 5, 5, 5)), [-1]),
    ],
    ids=["nothing", "no answers", "no objects", "at the level", "under it", "one object once", "best score first",
         "another class", "no area"],
)  # fmt: skip
def test_match(answer: Detections, objects: Truth, expected: list[int]) -> None:
    """An answer takes the free object of its class that it overlaps most, from half on; better scores choose first."""
    assert match(answer, objects).tolist() == expected


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_one_to_one(seed: int) -> None:
    """No object is hit twice, none by another class, and none is left over that a missing answer could have hit."""
    rng = np.random.default_rng(seed)
    objects, answer = random_answers(rng, int(rng.integers(0, 10)), int(rng.integers(0, 20)), 2)
    found = match(answer, objects)
    hits = found >= 0
    hit = found[hits]
    assert len(set(hit.tolist())) == len(hit)
    assert (objects.class_ids[hit] == answer.class_ids[hits]).all()
    overlap = iou_float64(answer.boxes_xyxy, objects.boxes_xyxy)
    overlap[:, hit] = 0
    overlap[answer.class_ids[:, None] != objects.class_ids[None, :]] = 0
    assert (overlap[~hits] < 0.5).all()


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_same_iou(seed: int) -> None:
    """The sparse overlap is the plain one."""
    objects, answer = random_answers(np.random.default_rng(seed), 8, 12, 1)
    np.testing.assert_allclose(
        iou_float64(answer.boxes_xyxy, objects.boxes_xyxy), iou_xyxy(answer.boxes_xyxy, objects.boxes_xyxy), atol=1e-6
    )


@pytest.mark.parametrize("seed", range(5))
def test_weights_are_repetitions(seed: int) -> None:
    """An image with weight 2 counts as if it were there twice, one with weight 0 as if it were not there."""
    rng = np.random.default_rng(seed)
    pairs = [random_answers(rng, int(rng.integers(1, 8)), 12, 2) for _ in range(5)]
    for _, answer in pairs:  # equal scores of different images have no order of their own in a resample
        answer.scores[:] = np.sort(rng.random(len(answer)))[::-1]
    weights = rng.integers(0, 3, 5)
    repeated = [pair for pair, weight in zip(pairs, weights, strict=True) for _ in range(weight)]
    weighted = match_all([pair[0] for pair in pairs], [pair[1] for pair in pairs], 2).ap(weights)
    plain = match_all([pair[0] for pair in repeated], [pair[1] for pair in repeated], 2).ap()
    assert weighted == pytest.approx(plain, abs=1e-12)


def test_curve() -> None:
    """Recall and precision follow the answers in descending score."""
    found = match_all([truth(HALF, (50, 50, 60, 60))], [detections((*HALF, 0.9), (90, 90, 99, 99, 0.8))], 1)
    recall, precision, scores = found.curve(0)
    assert recall.tolist() == [0.5, 0.5]
    assert precision.tolist() == [1.0, 0.5]
    assert scores.tolist() == pytest.approx([0.9, 0.8])


def test_nothing() -> None:
    """Without objects there is no AP."""
    assert math.isnan(match_all([], [], 2).ap())
    assert math.isnan(match_all([truth()], [detections((*HALF, 0.9))], 1).ap())
