from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spica.detectors.postprocess import BORDER, letterbox, stretch


@pytest.mark.parametrize(
    ("height", "width", "inside"),
    [
        pytest.param(10, 10, (0, 0, 8, 8), id="square"),
        pytest.param(10, 20, (0, 2, 8, 6), id="wide"),
        pytest.param(20, 10, (2, 0, 6, 8), id="tall"),
        pytest.param(7, 8, (0, 0, 8, 7), id="an odd row goes below"),
        pytest.param(1, 1, (0, 0, 8, 8), id="one pixel"),
        pytest.param(1, 3000, (0, 3, 8, 4), id="a strip keeps a row"),
        pytest.param(8, 8, (0, 0, 8, 8), id="as it is"),
    ],
)
def test_the_photograph_is_in_the_middle(height: int, width: int, inside: tuple[int, int, int, int]) -> None:
    """A photograph fills the input as far as its shape allows, in the middle, on the grey of YOLO's training."""
    canvas, fit = letterbox(np.full((height, width, 3), 7, np.uint8), height=8, width=8)
    left, top, right, bottom = inside
    assert canvas.shape == (8, 8, 3)
    assert (canvas[top:bottom, left:right] == 7).all()
    assert (canvas == BORDER).sum() == 3 * (64 - (right - left) * (bottom - top))
    corners = np.array([inside], np.float32)
    assert np.allclose(fit.undo(corners), [[0, 0, width, height]], atol=1e-3)


@given(st.integers(1, 300), st.integers(1, 300), st.data())
@settings(deadline=None)
def test_boxes_come_back(height: int, width: int, data: st.DataObject) -> None:
    """A box that is moved into the input as its pixels were is moved back to where it was."""
    _, fit = letterbox(np.zeros((height, width, 3), np.uint8), height=64, width=96)
    box = np.array([[data.draw(st.floats(0, side)) for side in (width, height, width, height)]], np.float32)
    there = box * ([fit.scale_x, fit.scale_y] * 2)
    assert np.allclose(
        fit.undo((there + [fit.left, fit.top] * 2).astype(np.float32)), box, atol=0.01 * max(height, width)
    )


def test_shrinking_as_pillow_does() -> None:
    """With antialias the pixels are Pillow's; without, the nearest four count alone."""
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    smooth, fit = stretch(image, height=8, width=9, antialias=True)
    assert np.array_equal(smooth, np.asarray(Image.fromarray(image).resize((9, 8), Image.Resampling.BILINEAR)))
    assert (fit.scale_x, fit.scale_y) == (0.1, 8 / 60)
    rough, _ = stretch(image[::2], height=10, width=30, antialias=False)
    assert np.array_equal(rough, image[::2][1::3, 1::3])  # every third pixel lies right in the middle


def test_views_are_taken() -> None:
    """A part of a photograph, turned round or read-only, is taken like a whole."""
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    image.setflags(write=False)
    part = image[30:3:-1, 5:25]
    for view in (part, part.transpose(1, 0, 2)):
        got, expected = (letterbox(given, height=16, width=16)[0] for given in (view, view.copy()))
        assert np.array_equal(got, expected)
        assert stretch(view, height=5, width=5, antialias=True)[0].shape == (5, 5, 3)
