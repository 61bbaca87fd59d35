"""COCO's metrics."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scripted_detector import detections
from simulated_detectors import random_answers
from spica.boxes import Detections
from spica.evaluation.matching import match_all
from spica.evaluation.metrics import evaluate
from spica.evaluation.truth import Truth

pytestmark = pytest.mark.torch  # faster-coco-eval comes with the extra spica[train]

CLASSES = ("ear", "weed")


def truth(*boxes: tuple[float, float, float, float], class_id: int = 0) -> Truth:
    return Truth(np.array(boxes, np.float32).reshape(-1, 4), np.full(len(boxes), class_id, np.int64), 400, 400)


@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_our_own(seed: int) -> None:
    """COCO's AP50 and the one from our own matching are the same number, ties and limits included."""
    rng = np.random.default_rng(seed)
    classes, limit = int(rng.integers(1, 4)), int(rng.choice([3, 1000]))
    pairs = [random_answers(rng, int(rng.integers(0, 12)), int(rng.integers(0, 30)), classes) for _ in range(6)]
    truths, answers = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    found = evaluate(truths, answers, ["a", "b", "c"][:classes], max_detections=limit)
    ours = match_all(truths, answers, classes, max_detections=limit)
    assert found.ap50 == pytest.approx(ours.ap(), abs=1e-12)
    for class_id, row in enumerate(found.per_class):
        assert row.ap50 == pytest.approx(ours.class_ap(class_id), abs=1e-12, nan_ok=True) or row.objects == 0


def test_no_cap_at_100() -> None:
    """In an image with 300 objects all 300 answers count."""
    boxes = [(20.0 * (i % 20), 20.0 * (i // 20), 20.0 * (i % 20) + 10, 20.0 * (i // 20) + 10) for i in range(300)]
    answer = detections(*[(*box, 0.9 - i / 1000) for i, box in enumerate(boxes)])
    found = evaluate([truth(*boxes)], [answer], ["ear"])
    assert (found.ap, found.ap50, found.ar) == pytest.approx((1.0, 1.0, 1.0))
    capped = evaluate([truth(*boxes)], [answer], ["ear"], max_detections=100)
    assert capped.ar == pytest.approx(1 / 3)


def test_known_numbers() -> None:
    """One of two objects found at IoU 0.8, with a wrong box of lower score: AP50 and AR are what paper gives."""
    found = evaluate(
        [truth((0, 0, 100, 100), (200, 200, 300, 300))],
        [detections((0, 0, 100, 80, 0.9), (350, 350, 390, 390, 0.8))],
        ["ear"],
    )
    assert found.ap50 == pytest.approx(51 / 101)  # precision 1 at recalls 0 to 0.50
    assert found.ap75 == pytest.approx(51 / 101)
    assert found.ar == pytest.approx(0.5 * 7 / 10)  # found at 0.50, 0.55 … 0.80
    assert (found.images, found.objects, found.detections) == (1, 2, 2)


def test_nothing_to_judge_by() -> None:
    """Without objects nothing can be said, with boxes or without; nor without images."""
    for truths, answers in (
        ([], []),
        ([truth()], [Detections.empty()]),
        ([truth()], [detections((0, 0, 9, 9, 0.5))]),
    ):
        found = evaluate(truths, answers, CLASSES)
        assert (found.ap, found.ap50, found.ap75, found.ar) == (None, None, None, None)
        assert all(row.ap is None and row.objects == 0 for row in found.per_class)
        assert json.loads(json.dumps(found.as_json()))["ap50"] is None


def test_no_answers() -> None:
    """Objects without any answer are 0, not unknown."""
    found = evaluate([truth((0, 0, 9, 9))], [Detections.empty()], ["ear"])
    assert (found.ap, found.ap50, found.ar) == (0.0, 0.0, 0.0)


def test_class_without_objects() -> None:
    """A class without objects has no AP and does not touch the mean, even if it was answered."""
    answer = detections((0, 0, 50, 50, 0.9), (100, 100, 150, 150, 0.8))
    answer.class_ids[1] = 1
    found = evaluate([truth((0, 0, 50, 50))], [answer], CLASSES)
    assert [row.ap50 for row in found.per_class] == [pytest.approx(1.0), None]
    assert found.ap50 == pytest.approx(1.0)


def test_sizes() -> None:
    """Objects are small up to 32 x 32, medium up to 96 x 96, large above, by the area of their box."""
    boxes = [(0.0, 0.0, 20.0, 20.0), (100.0, 0.0, 164.0, 64.0), (200.0, 200.0, 390.0, 390.0)]
    answer = detections((*boxes[1], 0.9), (*boxes[2], 0.8))
    found = evaluate([truth(*boxes)], [answer], ["ear"])
    assert {name: row.objects for name, row in found.per_size.items()} == {"small": 1, "medium": 1, "large": 1}
    assert [found.per_size[name].ar for name in ("small", "medium", "large")] == [0.0, 1.0, 1.0]


def test_silence(capfd: pytest.CaptureFixture[str]) -> None:
    """The library prints nothing."""
    evaluate([truth((0, 0, 50, 50))], [detections((0, 0, 50, 50, 0.9))], ["ear"])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("answers", "told"),
    [([], "detections of 0 images for 1 truths"), ([detections((0, 0, 9, 9, 0.5), class_id=2)], "2 classes")],
    ids=["too few answers", "unknown class"],
)
def test_refused(answers: list[Detections], told: str) -> None:
    """Answers that don't go with the truths are refused."""
    with pytest.raises(ValueError, match=told):
        evaluate([truth()], answers, CLASSES)
