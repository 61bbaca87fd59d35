"""The check of what detectors answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spica.boxes import Detections
from spica.detectors.contract import checked
from spica.errors import DetectorContractError

WIDTH, HEIGHT = 64, 48
GOOD: dict[str, Any] = {
    "boxes_xyxy": np.array([[0, 0, 10, 10], [5, 5, 64, 48]], np.float32),
    "scores": np.array([0.9, 0.5], np.float32),
    "class_ids": np.array([0, 1], np.int64),
}


def check(detections: Detections, *, classes: int = 2) -> Detections:
    return checked(detections, classes=classes, width=WIDTH, height=HEIGHT, detector="scripted")


def boxes(*rows: tuple[float, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(rows, np.float32)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="usual"),
        pytest.param({"scores": np.array([0.5, 0.5], np.float32)}, id="equal-scores"),
        pytest.param({"scores": np.array([1.0, 0.0], np.float32)}, id="extreme-scores"),
        pytest.param({"boxes_xyxy": boxes((-1, -1, 65, 49), (3, 3, 3, 3))}, id="a-pixel-outside-and-no-area"),
    ],
)
def test_an_answer_that_keeps_the_contract_passes(changes: dict[str, Any]) -> None:
    """A right answer comes back as it is."""
    detections = Detections(**{**GOOD, **changes})
    assert check(detections) is detections


@pytest.mark.parametrize("classes", [0, 2])
def test_no_boxes_pass(classes: int) -> None:
    """Zero boxes are a normal answer."""
    assert len(check(Detections.empty(), classes=classes)) == 0


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        pytest.param({"scores": np.array(0.5, np.float32)}, "(N,)", id="score-without-axis"),
        pytest.param({"scores": np.array([[0.9, 0.5]], np.float32)}, "(N,)", id="scores-with-two-axes"),
        pytest.param({"scores": np.array([0.9], np.float32)}, "(N,)", id="a-score-missing"),
        pytest.param({"boxes_xyxy": np.zeros((2, 5), np.float32)}, "(2, 5)", id="five-numbers"),
        pytest.param({"boxes_xyxy": np.zeros((8,), np.float32)}, "(8,)", id="flat-boxes"),
        pytest.param({"class_ids": np.array([[0, 1]], np.int64)}, "(1, 2)", id="class-shape"),
        pytest.param({"boxes_xyxy": GOOD["boxes_xyxy"].astype(np.float64)}, "float64", id="box-type"),
        pytest.param({"scores": GOOD["scores"].astype(np.float64)}, "float64", id="score-type"),
        pytest.param({"class_ids": GOOD["class_ids"].astype(np.int32)}, "int32", id="class-type"),
        pytest.param({"boxes_xyxy": boxes((0, 0, np.nan, 9), (0, 0, 9, 9))}, "finite", id="nan-box"),
        pytest.param({"boxes_xyxy": boxes((0, 0, np.inf, 9), (0, 0, 9, 9))}, "finite", id="infinite-box"),
        pytest.param({"scores": np.array([1.01, 0.5], np.float32)}, "[0, 1]", id="score-over-one"),
        pytest.param({"scores": np.array([0.5, -0.01], np.float32)}, "[0, 1]", id="score-below-zero"),
        pytest.param({"scores": np.array([np.nan, 0.5], np.float32)}, "[0, 1]", id="nan-score"),
        pytest.param({"scores": np.array([0.5, 0.9], np.float32)}, "descending", id="ascending"),
        pytest.param({"boxes_xyxy": boxes((9, 0, 8, 9), (0, 0, 9, 9))}, "left <= right", id="inverted-across"),
        pytest.param({"boxes_xyxy": boxes((0, 9, 9, 8), (0, 0, 9, 9))}, "top <= bottom", id="inverted-down"),
        pytest.param({"boxes_xyxy": boxes((-1.5, 0, 9, 9), (0, 0, 9, 9))}, "inside 64 x 48", id="left-of-the-image"),
        pytest.param({"boxes_xyxy": boxes((0, 0, 65.5, 9), (0, 0, 9, 9))}, "inside 64 x 48", id="right-of-the-image"),
        pytest.param({"boxes_xyxy": boxes((0, 0, 9, 49.5), (0, 0, 9, 9))}, "inside 64 x 48", id="below-the-image"),
        pytest.param({"class_ids": np.array([0, 2], np.int64)}, "[0, 1]", id="class-too-high"),
        pytest.param({"class_ids": np.array([-1, 0], np.int64)}, "[0, 1]", id="class-below-zero"),
    ],
)
def test_a_broken_contract_is_told(changes: dict[str, Any], word: str) -> None:
    """Each promise that is broken is an error of its own words, with the detector's name."""
    with pytest.raises(DetectorContractError) as caught:
        check(Detections(**{**GOOD, **changes}))
    assert caught.value.where == "scripted"
    assert word in f"{caught.value.expected} {caught.value.got}"
