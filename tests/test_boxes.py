"""Geometry of boxes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from spica.boxes import (
    Detections,
    Float32Array,
    area_xyxy,
    clip_xyxy,
    iou_xyxy,
    xywh_percent_to_xyxy,
    xyxy_to_xywh_percent,
)

# Images are smaller than 2**17 pixels a side; there float32 has steps of less than 0.01 pixels.
SIDES = st.integers(1, 2**17 - 1)
COORDINATES = st.floats(-1e5, 2e5, width=32, allow_subnormal=False)


def any_boxes(max_boxes: int = 6) -> st.SearchStrategy[Float32Array]:
    """Boxes (N, 4), inverted ones too."""
    shape = st.integers(0, max_boxes).map(lambda n: (n, 4))
    return hnp.arrays(np.float32, shape, elements=COORDINATES)


def upright_boxes(max_boxes: int = 6) -> st.SearchStrategy[Float32Array]:
    """Boxes (N, 4) with left <= right and top <= bottom."""

    def upright(boxes: Float32Array) -> Float32Array:
        corners = boxes.reshape(-1, 2, 2)
        return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)

    return any_boxes(max_boxes).map(upright)


@settings(deadline=None)
@given(boxes=upright_boxes(), width=SIDES, height=SIDES)
def test_percent_round_trip(boxes: Float32Array, width: int, height: int) -> None:
    """Pixels to percent and back are the same box, cut to the image, within a twentieth of a pixel."""
    inside = clip_xyxy(boxes, width, height)
    back = xywh_percent_to_xyxy(xyxy_to_xywh_percent(boxes, width, height), width, height)
    assert back.shape == boxes.shape
    assert back.dtype == np.float32
    assert np.abs(back - inside).max(initial=0) <= 0.05


@settings(deadline=None)
@given(boxes=any_boxes(), width=SIDES, height=SIDES)
def test_percent_stay_in_the_image(boxes: Float32Array, width: int, height: int) -> None:
    """No box, however wild, has a percent below 0, above 100, or an edge beyond 100."""
    percent = xyxy_to_xywh_percent(boxes, width, height)
    assert percent.dtype == np.float64
    assert (percent >= 0).all()
    assert (percent <= 100).all()
    assert (percent[:, :2] + percent[:, 2:] <= 100).all()


@settings(deadline=None)
@given(boxes=any_boxes(), width=SIDES, height=SIDES)
def test_clipping(boxes: Float32Array, width: int, height: int) -> None:
    """Clipping leaves nothing outside, changes nothing inside, and does it once for all."""
    before = boxes.copy()
    clipped = clip_xyxy(boxes, width, height)
    assert (clipped >= 0).all()
    assert (clipped <= np.array([width, height, width, height])).all()
    np.testing.assert_array_equal(clip_xyxy(clipped, width, height), clipped)
    inside = ((boxes >= 0) & (boxes <= np.array([width, height, width, height]))).all(axis=1)
    np.testing.assert_array_equal(clipped[inside], boxes[inside])
    np.testing.assert_array_equal(boxes, before)
    assert clipped.dtype == np.float32


@settings(deadline=None)
@given(a=any_boxes(), b=any_boxes())
def test_iou_is_a_symmetric_share(a: Float32Array, b: Float32Array) -> None:
    """Every pair has an overlap in [0, 1], the same from both sides."""
    overlap = iou_xyxy(a, b)
    assert overlap.shape == (len(a), len(b))
    assert overlap.dtype == np.float32
    assert (overlap >= 0).all()
    assert (overlap <= 1).all()
    np.testing.assert_array_equal(overlap, iou_xyxy(b, a).T)


@settings(deadline=None)
@given(boxes=upright_boxes())
def test_iou_of_a_box_with_itself(boxes: Float32Array) -> None:
    """A box overlaps itself wholly, unless it has no area: then not at all."""
    areas = area_xyxy(boxes)
    expected = (areas > 0).astype(np.float32)
    np.testing.assert_array_equal(np.diag(iou_xyxy(boxes, boxes)), expected)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        pytest.param([0, 0, 10, 10], [10, 0, 20, 10], 0.0, id="touching"),
        pytest.param([0, 0, 10, 10], [20, 20, 30, 30], 0.0, id="apart"),
        pytest.param([0, 0, 10, 10], [5, 0, 15, 10], 1 / 3, id="half"),
        pytest.param([0, 0, 10, 10], [2, 2, 4, 7], 0.1, id="inside"),
        pytest.param([0, 0, 0, 0], [0, 0, 0, 0], 0.0, id="both-without-area"),
        pytest.param([10, 10, 0, 0], [0, 0, 10, 10], 0.0, id="inverted"),
    ],
)
def test_iou(a: list[float], b: list[float], expected: float) -> None:
    """The overlap of known boxes is the known share."""
    pair = iou_xyxy(np.array([a], np.float32), np.array([b], np.float32))
    assert pair[0, 0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        pytest.param([1, 2, 4, 6], 12, id="usual"),
        pytest.param([1, 2, 1, 6], 0, id="no-width"),
        pytest.param([4, 2, 1, 6], 0, id="inverted"),
        pytest.param([4, 6, 1, 2], 0, id="inverted-twice"),
    ],
)
def test_area(box: list[float], expected: float) -> None:
    """Areas are in square pixels; two negative sides make no positive area."""
    areas = area_xyxy(np.array([box], np.float32))
    assert areas.dtype == np.float32
    assert areas.tolist() == [expected]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        pytest.param([0, 0, 640, 480], [0, 0, 100, 100], id="whole-image"),
        pytest.param([64, 48, 320, 240], [10, 10, 40, 40], id="usual"),
        pytest.param([-5, -5, 64, 48], [0, 0, 10, 10], id="over-the-corner"),
        pytest.param([700, 500, 800, 600], [100, 100, 0, 0], id="outside"),
        pytest.param([64, 48, 32, 24], [10, 10, 0, 0], id="inverted"),
    ],
)
def test_percent(box: list[float], expected: list[float]) -> None:
    """Known boxes on 640 x 480 pixels have the known percent."""
    percent: NDArray[np.float64] = xyxy_to_xywh_percent(np.array([box], np.float32), 640, 480)
    assert percent[0].tolist() == pytest.approx(expected)


def test_zero_boxes() -> None:
    """No boxes are a normal input everywhere."""
    none = np.zeros((0, 4), np.float32)
    some = np.ones((2, 4), np.float32)
    assert area_xyxy(none).shape == (0,)
    assert clip_xyxy(none, 5, 5).shape == (0, 4)
    assert iou_xyxy(none, some).shape == (0, 2)
    assert iou_xyxy(some, none).shape == (2, 0)
    assert xyxy_to_xywh_percent(none, 5, 5).shape == (0, 4)
    assert xywh_percent_to_xyxy(np.zeros((0, 4)), 5, 5).shape == (0, 4)
    assert len(Detections.empty()) == 0


def test_where_keeps_order_and_rows_together() -> None:
    """A selection keeps the order, and box, score and class of each detection together."""
    detections = Detections(
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.array([0.9, 0.5, 0.1], np.float32),
        np.array([2, 0, 1], np.int64),
    )
    chosen = detections.where(np.array([True, False, True]))
    assert len(chosen) == 2
    assert chosen.boxes_xyxy.tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert chosen.scores.tolist() == pytest.approx([0.9, 0.1])
    assert chosen.class_ids.tolist() == [2, 1]
    assert chosen.nbytes == 2 * (4 * 4 + 4 + 8)
