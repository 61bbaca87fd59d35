from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spica.boxes import Detections
from spica.detectors.comparison import compare, rendered_images
from spica.detectors.convert import _same
from spica.errors import WeightsError


def some(count: int = 200, lowest: float = 0.1) -> Detections:
    """Boxes far from each other, with different scores."""
    corners = np.stack([np.arange(count) * 3, np.zeros(count)], axis=1)
    return Detections(
        np.concatenate([corners, corners + 2], axis=1).astype(np.float32),
        np.linspace(0.9, lowest, count, dtype=np.float32),
        np.arange(count) % 2,
    )


def moved(found: Detections, pixels: float) -> Detections:
    return replace(found, boxes_xyxy=found.boxes_xyxy + np.float32(pixels))


def test_the_same_answer_is_the_same() -> None:
    """An answer differs from itself in nothing."""
    comparison = compare(some(), some(), floor=0.05, limit=1000)
    assert (comparison.unmatched, comparison.box_px, comparison.score) == (0, 0, 0)
    assert comparison.same


@pytest.mark.parametrize(
    ("got", "same"),
    [
        pytest.param(moved(some(), 0.4), True, id="0.4 px aside"),
        pytest.param(moved(some(), 0.6), False, id="0.6 px aside"),
        pytest.param(replace(some(), scores=some().scores - np.float32(0.004)), True, id="0.004 less sure"),
        pytest.param(replace(some(), scores=some().scores - np.float32(0.006)), False, id="0.006 less sure"),
        pytest.param(replace(some(), class_ids=1 - some().class_ids), False, id="other classes"),
        pytest.param(Detections.empty(), False, id="nothing"),
        pytest.param(some().where(np.arange(200) != 5), True, id="one of 200 missing"),
        pytest.param(some().where(np.arange(200) >= 10), False, id="ten of 200 missing"),
    ],
)
def test_both_sides_of_each_limit(got: Detections, same: bool) -> None:
    """Answers are the same up to half a pixel, 0.005 in score and a few boxes, in both directions."""
    assert compare(some(), got, floor=0.05, limit=1000).same is same
    assert compare(got, some(), floor=0.05, limit=1000).same is same


def test_a_box_has_one_partner() -> None:
    """A box that is given twice where it is expected once is one too many."""
    once = some(1)
    twice = Detections(np.repeat(once.boxes_xyxy, 2, axis=0), np.repeat(once.scores, 2), np.repeat(once.class_ids, 2))
    assert compare(once, twice, floor=0.05, limit=1000).unmatched == 1


def test_boxes_at_the_edge_of_an_answer_need_no_partner() -> None:
    """Rounding may decide about a box at the floor, and about the last of a full answer; not about others."""
    full, cut = some(20, lowest=0.052), some(20, lowest=0.052).where(np.arange(20) < 19)
    assert compare(full, cut, floor=0.05, limit=1000).unmatched == 0
    assert compare(full, cut, floor=0.01, limit=1000).unmatched == 1
    assert compare(full, cut, floor=0.01, limit=20).unmatched == 0


def test_another_answer_is_refused() -> None:
    """A converted network with other answers is not used, and the numbers are told."""
    with pytest.raises(WeightsError, match="does not give torch's answers") as refused:
        _same([some()], [moved(some(), 3)], floor=0.05, limit=1000, graph=Path("model.xml"))
    assert "200 boxes, 400 without a partner" in str(refused.value)


def test_the_images_are_the_same_each_time() -> None:
    """The test images differ in size, are no plain areas, and don't change."""
    first, second = list(rendered_images()), list(rendered_images())
    assert len({image.shape for image in first}) == len(first) >= 3
    assert all(image.dtype == np.uint8 and image.std() > 20 for image in first)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
