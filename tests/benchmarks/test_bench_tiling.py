"""What the comparison of tiles counts."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.tiling import judged
from spica.boxes import Detections
from spica.evaluation.truth import Truth

Box = tuple[float, float, float, float]
OBJECT: Box = (600, 100, 700, 150)  # the first tile of a photograph of 3200 pixels ends at 640
INSIDE: Box = (100, 100, 150, 150)


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        pytest.param([], (0, 2, 1, 0, 0), id="nothing"),
        pytest.param([OBJECT, INSIDE], (2, 0, 0, 0, 0), id="both"),
        pytest.param([OBJECT, (600, 100, 640, 150), INSIDE], (2, 0, 0, 1, 0), id="one and its part"),
        pytest.param([(600, 100, 640, 150), (640, 100, 700, 150), INSIDE], (2, 0, 0, 1, 0), id="in two parts"),
        pytest.param([INSIDE, (900, 900, 950, 950)], (1, 1, 1, 0, 1), id="elsewhere"),
    ],
)
def test_what_is_found_lost_and_doubled(boxes: list[Box], expected: tuple[int, ...]) -> None:
    """An object has one box; a further one on it is a double, and an object without is lost, at a seam or not."""
    truth = Truth(np.array([OBJECT, INSIDE], np.float32), np.zeros(2, np.int64), 3200, 2400)
    found = np.array(boxes, np.float32).reshape(-1, 4)
    scores = np.linspace(0.9, 0.8, len(found), dtype=np.float32)
    counted = judged(Detections(found, scores, np.zeros(len(found), np.int64)), truth)
    assert tuple(counted[key] for key in ("found", "lost", "lost_at_seams", "doubled", "made_up")) == expected
