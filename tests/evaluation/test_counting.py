"""Counts of objects, and what a threshold keeps."""

from __future__ import annotations

import numpy as np
import pytest

from scripted_detector import detections
from simulated_detectors import detect, scenes
from spica.boxes import Detections
from spica.evaluation.counting import Counting, at_threshold, best_f1, count
from spica.evaluation.matching import match_all


def counting(true: list[int], predicted: list[int]) -> Counting:
    return Counting(np.array(true, np.int64), np.array(predicted, np.int64), 0.5)


@pytest.mark.parametrize(
    ("true", "predicted", "bias", "mae", "r2"),
    [
        ([], [], None, None, None),
        ([3, 3], [3, 5], 1.0, 1.0, None),
        ([1, 2, 3], [1, 2, 3], 0.0, 0.0, 1.0),
        ([1, 2, 3], [2, 2, 2], 0.0, 2 / 3, 0.0),
        ([1, 2, 3], [3, 2, 1], 0.0, 4 / 3, -3.0),
        ([10, 20], [9, 18], -1.5, 1.5, 0.9),
    ],
    ids=["no images", "all the same", "perfect", "the mean", "upside down", "too few"],
)
def test_counting(
    true: list[int], predicted: list[int], bias: float | None, mae: float | None, r2: float | None
) -> None:
    """Bias is predicted less true; R² compares with always guessing the mean, and is unknown where that is perfect."""
    found = counting(true, predicted)
    assert found.bias == (None if bias is None else pytest.approx(bias))
    assert found.mae == (None if mae is None else pytest.approx(mae))
    assert found.r2 == (None if r2 is None else pytest.approx(r2))
    assert found.as_json()["predicted"] == sum(predicted)


def test_the_threshold_itself_is_shown() -> None:
    """A box with exactly the threshold's score counts, as it is shown in Label Studio."""
    answer = detections((0, 0, 9, 9, 0.5), (0, 0, 9, 9, 0.25))
    truth = scenes(np.random.default_rng(0), 1)
    assert count(truth, [answer], 0.5).predicted.tolist() == [1]


def test_a_threshold_on_matches() -> None:
    """The matches of all boxes give for every threshold what matching the shown boxes alone gives."""
    rng = np.random.default_rng(0)
    truths = scenes(rng, 6)
    answers = detect(rng, truths, recall=0.7, blur=5, false=4)
    matches = match_all(truths, answers, 1)
    for threshold in (0.0, 0.4, 0.7, 1.0):
        shown = [answer.where(answer.scores >= threshold) for answer in answers]
        assert at_threshold(matches, threshold) == at_threshold(match_all(truths, shown, 1), threshold)


def test_the_best_threshold() -> None:
    """No threshold has a higher F1 than the best one."""
    rng = np.random.default_rng(1)
    truths = scenes(rng, 6)
    matches = match_all(truths, detect(rng, truths, recall=0.7, blur=5, false=4), 1)
    best = best_f1(matches)
    assert best is not None
    every = [at_threshold(matches, float(score)).f1 or 0 for score in matches.scores]
    assert best.f1 == pytest.approx(max(every))


def test_nothing_to_count() -> None:
    """Without boxes and objects there are no shares, and no best threshold."""
    found = at_threshold(match_all(scenes(np.random.default_rng(0), 1, objects=0), [Detections.empty()], 1), 0.5)
    assert (found.precision, found.recall, found.f1) == (None, None, None)
    assert best_f1(match_all([], [], 1)) is None
