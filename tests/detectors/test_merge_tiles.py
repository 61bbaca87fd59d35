"""Boxes of overlapping windows, one case at a time."""

from __future__ import annotations

import numpy as np
import pytest

from spica.boxes import Detections
from spica.detectors.tiling import View, Window, inside, merge_tiles

WIDTH, HEIGHT = 180, 100
LEFT: Window = (0, 0, 100, 100)
RIGHT: Window = (80, 0, 180, 100)
WHOLE: Window = (0, 0, WIDTH, HEIGHT)

Row = tuple[float, float, float, float, float, int]
"""Left, top, right, bottom, score, class."""


def view(window: Window, *rows: Row) -> View:
    """Rows as a view, in descending score; the whole image is a coarse one."""
    told = np.array(sorted(rows, key=lambda row: -row[4]), np.float32).reshape(-1, 6)
    found = Detections(told[:, :4], told[:, 4], told[:, 5].astype(np.int64))
    return View(window, found, coarse=window == WHOLE)


def rows(found: Detections) -> list[Row]:
    told = np.column_stack([found.boxes_xyxy, found.scores]).astype(np.float64).round(2).tolist()
    return [(*row, int(class_id)) for row, class_id in zip(told, found.class_ids, strict=True)]


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        pytest.param([view(LEFT), view(RIGHT)], [], id="nothing"),
        pytest.param(
            [view(LEFT, (10, 10, 20, 20, 0.9, 0)), view(RIGHT, (120, 10, 130, 20, 0.8, 0))],
            [(10, 10, 20, 20, 0.9, 0), (120, 10, 130, 20, 0.8, 0)],
            id="two apart",
        ),
        pytest.param(
            [view(LEFT, (82, 10, 94, 20, 0.7, 0)), view(RIGHT, (83, 10, 95, 20, 0.9, 0))],
            [(83, 10, 95, 20, 0.9, 0)],
            id="whole in both: the surer",
        ),
        pytest.param(
            [view(LEFT, (70, 10, 100, 40, 0.9, 0)), view(RIGHT, (80, 10, 120, 40, 0.8, 0))],
            [(70, 10, 120, 40, 0.9, 0)],
            id="cut off by both: put together",
        ),
        pytest.param(
            [view(LEFT, (70, 10, 90, 40, 0.6, 0)), view(RIGHT, (80, 10, 90, 40, 0.9, 0))],
            [(70, 10, 90, 40, 0.6, 0)],
            id="whole in one: that, though the piece is surer",
        ),
        pytest.param(
            [view(LEFT, (82, 10, 94, 20, 0.7, 0)), view(RIGHT, (82, 10, 94, 20, 0.9, 1))],
            [(82, 10, 94, 20, 0.9, 1), (82, 10, 94, 20, 0.7, 0)],
            id="of two classes",
        ),
        pytest.param(
            [
                view(LEFT, (82, 10, 94, 20, 0.9, 0), (84, 10, 96, 20, 0.8, 0)),
                view(RIGHT, (82, 10, 94, 20, 0.7, 0), (84, 10, 96, 20, 0.6, 0)),
            ],
            [(82, 10, 94, 20, 0.9, 0), (84, 10, 96, 20, 0.8, 0)],
            id="neighbours that overlap",
        ),
        pytest.param(
            [view(LEFT, (60, 10, 90, 40, 0.9, 0)), view(RIGHT, (80, 20, 83, 24, 0.5, 0))],
            [(60, 10, 90, 40, 0.9, 0)],
            id="a sliver that agrees with nothing, in a larger one",
        ),
        pytest.param(
            [view(LEFT, (60, 10, 90, 40, 0.9, 1)), view(RIGHT, (80, 20, 83, 24, 0.5, 0))],
            [(60, 10, 90, 40, 0.9, 1)],
            id="a sliver of a class that the other window does not see",
        ),
        pytest.param(
            [
                view(WHOLE, (60, 10, 170, 40, 0.9, 0)),
                view(LEFT, (60, 10, 100, 40, 0.8, 0)),
                view(RIGHT, (80, 1, 140, 9, 0.5, 0)),
            ],
            [(60, 10, 170, 40, 0.9, 0), (80, 1, 140, 9, 0.5, 0)],
            id="a piece beside a large one",
        ),
        pytest.param(
            [view(WHOLE, (60, 10, 170, 40, 0.9, 0)), view(LEFT), view(RIGHT, (80, 20, 110, 24, 0.5, 0))],
            [(60, 10, 170, 40, 0.9, 0)],
            id="a piece that agrees with nothing, in a large one",
        ),
        pytest.param(
            [view(WHOLE, (60, 10, 170, 40, 0.9, 1)), view(LEFT), view(RIGHT, (80, 20, 110, 24, 0.5, 0))],
            [(60, 10, 170, 40, 0.9, 1), (80, 20, 110, 24, 0.5, 0)],
            id="a piece in a large one of another class",
        ),
        pytest.param(
            [view(LEFT, (60, 10, 90, 40, 0.9, 0)), view(RIGHT, (84, 20, 87, 24, 0.5, 0))],
            [(60, 10, 90, 40, 0.9, 0), (84, 20, 87, 24, 0.5, 0)],
            id="a small one, whole, in a larger one",
        ),
        pytest.param(
            [view(LEFT), view(RIGHT, (80, 20, 110, 30, 0.5, 0))],
            [(80, 20, 110, 30, 0.5, 0)],
            id="a piece alone is better than nothing",
        ),
        pytest.param(
            [view(LEFT, (10, 60, 20, 70, 0.5, 0)), view(RIGHT, (80, 20, 90, 30, 0.9, 0))],
            [(10, 60, 20, 70, 0.5, 0)],
            id="a piece of what another window shows whole, and is not there",
        ),
        pytest.param(
            [
                view(WHOLE, (12, 8, 168, 90, 0.5, 0)),
                view(LEFT, (10, 10, 100, 88, 0.9, 0)),
                view(RIGHT, (80, 10, 170, 88, 0.8, 0)),
            ],
            [(12, 8, 168, 90, 0.5, 0)],
            id="cut off by both tiles: the whole image's box",
        ),
        pytest.param(
            [view(WHOLE, (8, 8, 62, 62, 0.9, 0)), view(LEFT, (10, 10, 60, 60, 0.6, 0)), view(RIGHT)],
            [(10, 10, 60, 60, 0.6, 0)],
            id="whole in a tile: that, for it is finer",
        ),
        pytest.param(
            [view(WHOLE, (10, 10, 150, 90, 0.6, 0)), view(LEFT, (12, 12, 96, 88, 0.9, 0)), view(RIGHT)],
            [(10, 10, 150, 90, 0.6, 0)],
            id="a tile that shows half of it, not to its edge",
        ),
        pytest.param(
            [view(WHOLE, (10, 10, 150, 90, 0.6, 0)), view(LEFT), view(RIGHT)],
            [(10, 10, 150, 90, 0.6, 0)],
            id="seen in the whole alone",
        ),
        pytest.param(
            [view(WHOLE, (10, 10, 60, 90, 0.9, 0)), view(LEFT), view(RIGHT)],
            [],
            id="seen in the whole alone, where a tile would show it",
        ),
    ],
)
def test_each_once(views: list[View], expected: list[Row]) -> None:
    """What several windows show of one object becomes one box, the best; different objects stay."""
    assert rows(merge_tiles(views, width=WIDTH, height=HEIGHT, margin=1)) == expected


def test_edges_of_the_image_cut_nothing() -> None:
    """A window shows a box whole that keeps a margin from its edges, those of the image not counted."""
    boxes = np.array([[0, 0, 5, 5], [95, 50, 99.5, 60], [95, 50, 98, 60], [50, 95, 60, 100]], np.float32)
    edges = np.array([LEFT, RIGHT, WHOLE], np.float32)
    told = inside(boxes, edges, width=WIDTH, height=HEIGHT, margin=1)
    assert told.tolist() == [[True, False, True, True], [False, True, True, False], [True] * 4]
    assert inside(boxes[:0], edges, width=WIDTH, height=HEIGHT, margin=1).shape == (3, 0)
