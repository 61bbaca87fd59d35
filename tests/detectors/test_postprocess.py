from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spica.detectors.contract import checked
from spica.detectors.postprocess import pad_extreme_aspect, postprocess

ANY_FLOAT = st.floats(width=32) | st.floats(-50, 150, width=32)


@given(count=st.integers(0, 8), data=st.data())
@settings(deadline=None)
def test_any_output_is_brought_within_the_contract(count: int, data: st.DataObject) -> None:
    """Whatever numbers a network puts out, what is left of them keeps the contract."""
    boxes = data.draw(arrays(np.float32, (count, 4), elements=ANY_FLOAT))
    scores = data.draw(arrays(np.float32, (count,), elements=ANY_FLOAT))
    labels = data.draw(arrays(np.int64, (count,), elements=st.integers(0, 3)))
    answer = postprocess(boxes, labels, scores, width=100, height=50)
    checked(answer, classes=3, width=100, height=50, detector="any")


@pytest.mark.parametrize(
    ("box", "label", "score", "kept"),
    [
        pytest.param((1, 2, 30, 40), 1, 0.5, (1, 2, 30, 40), id="inside"),
        pytest.param((-5, -5, 30, 60), 1, 0.5, (0, 0, 30, 50), id="clipped"),
        pytest.param((1, 2, 30, 40), 0, 0.5, None, id="background"),
        pytest.param((1, 2, 1, 40), 1, 0.5, None, id="no width"),
        pytest.param((1, 40, 30, 2), 1, 0.5, None, id="upside down"),
        pytest.param((110, 2, 130, 40), 1, 0.5, None, id="outside"),
        pytest.param((np.nan, 2, 30, 40), 1, 0.5, None, id="a box with NaN"),
        pytest.param((1, 2, np.inf, 40), 1, 0.5, None, id="a box without end"),
        pytest.param((1, 2, 30, 40), 1, np.nan, None, id="a score of NaN"),
    ],
)
def test_what_is_kept(box: tuple[float, ...], label: int, score: float, kept: tuple[float, ...] | None) -> None:
    """A box is clipped to the image; one without area, sense or class is dropped."""
    answer = postprocess(np.array([box], np.float32), np.array([label]), np.array([score]), width=100, height=50)
    assert [tuple(found) for found in answer.boxes_xyxy.tolist()] == ([kept] if kept else [])


def test_the_best_comes_first_and_classes_count_from_zero() -> None:
    """Boxes come by descending score, equal scores in their order, labels one lower."""
    boxes = np.array([[0, 0, n, n] for n in (1, 2, 3, 4)], np.float32)
    answer = postprocess(boxes, np.array([1, 2, 3, 1]), np.array([0.2, 0.9, 0.2, 0.9]), width=10, height=10)
    assert answer.boxes_xyxy[:, 2].tolist() == [2, 4, 1, 3]
    assert answer.class_ids.tolist() == [1, 0, 0, 2]


@pytest.mark.parametrize(
    ("size", "wider"),
    [
        pytest.param((480, 640), (480, 640), id="a photograph"),
        pytest.param((1, 1), (1, 1), id="one pixel"),
        pytest.param((1, 1000), (1, 1000), id="just long enough"),
        pytest.param((1, 1001), (2, 1001), id="a row"),
        pytest.param((5000, 3), (5000, 5), id="a column"),
    ],
)
def test_strips_are_widened(size: tuple[int, int], wider: tuple[int, int]) -> None:
    """Only what is more than a thousand times as long as wide is made wider, by repeating its last line."""
    image = np.arange(size[0] * size[1] * 3, dtype=np.uint32).astype(np.uint8).reshape(*size, 3)
    got = pad_extreme_aspect(image)
    assert got.shape == (*wider, 3)
    assert np.array_equal(got[: size[0], : size[1]], image)
    assert np.array_equal(got[-1, -1], image[-1, -1])
