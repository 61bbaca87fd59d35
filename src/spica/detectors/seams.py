"""One answer out of many: boxes that were seen through overlapping windows of an image, each object once.

Two windows see the same object if what it shows of itself where they overlap is the same. So boxes are compared there
alone, and a box that its window cuts off agrees with the whole one beside it. Every box of a window agrees with one box
at most of another, the best pairs first, so that neighbours that overlap each other are not taken for one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spica.boxes import Detections, Float32Array, Int64Array, area_xyxy, clip_xyxy, iou_xyxy

AGREEMENT: Final = 0.4
"""IoU of two boxes' parts in the common region, above which they are one object: low, since small boxes that differ by
a few pixels are the same, and others are kept apart by the rule that each has one partner."""

_INSIDE: Final = 0.8
"""Share of a cut-off box that lies in a larger one of its class, above which it is a piece of it."""

Window = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the image."""


@dataclass(frozen=True, slots=True)
class View:
    """What was seen through a window.

    Attributes:
        window: of the image.
        found: boxes in pixels of the image.
        coarse: the image was shrunk for it; its boxes count where no other view could show the object whole.
    """

    window: Window
    found: Detections
    coarse: bool = False


def inside(
    boxes_xyxy: Float32Array, windows_xyxy: Float32Array, *, width: int, height: int, margin: float
) -> NDArray[np.bool_]:
    """Which boxes a window shows whole, bool (windows, boxes): they keep away from those of its edges that cut.

    Args:
        boxes_xyxy: (N, 4) in pixels of the image.
        windows_xyxy: (M, 4) in pixels of the image.
        width: of the image. Its own edges cut nothing.
        height: of the image.
        margin: so many pixels from the edge still count as touching.
    """
    inwards = np.array([1, 1, -1, -1], np.float32)
    edges = np.array([0, 0, width, height], np.float32)
    distance = (boxes_xyxy[None, :, :] - windows_xyxy[:, None, :]) * inwards  # (M, N, 4)
    return np.asarray(((distance > margin) | (windows_xyxy == edges)[:, None, :]).all(axis=2))


def merged(views: Sequence[View], *, width: int, height: int, margin: float) -> Detections:
    """Each object of the views once, by descending score.

    Of an object that is whole in some window, the surest of these boxes is taken; else the box of the coarse view; else
    the pieces are put together, with the best score among them. The latter two count only where no window could have
    shown the object whole: a window that could, and did not, saw better that there is none, or another. Pieces that lie
    in a larger object are dropped too.

    Args:
        views: of one image; those that are not coarse by the top of their windows, from above to below.
        width: of the image, in pixels.
        height: of the image, in pixels.
        margin: a box that ends so many pixels from an edge of its window, or nearer, may be cut off by it.
    """
    tiles = np.array([view.window for view in views if not view.coarse], np.float32).reshape(-1, 4)

    def shown(boxes: Float32Array) -> NDArray[np.bool_]:
        return np.asarray(inside(boxes, tiles, width=width, height=height, margin=margin).any(axis=0))

    views = [
        replace(view, found=view.found.where(~shown(view.found.boxes_xyxy))) if view.coarse else view for view in views
    ]
    every = _Every.of(views, width=width, height=height, margin=margin)
    groups = _groups(views, every)
    chosen = [_chosen(every, group) for group in groups]
    numbers = np.array([number for _, number in chosen], np.intp)
    boxes = every.boxes[numbers].reshape(-1, 4)
    for position, (box, _) in enumerate(chosen):
        if box is not None:
            boxes[position] = box
    found = Detections(boxes, every.scores[numbers], every.class_ids[numbers])
    pieces = np.array([box is not None for box, _ in chosen], bool)
    wrong = pieces.copy()
    wrong[pieces] = shown(boxes[pieces])
    found = found.where(~wrong & ~_swallowed(found, pieces))
    order = np.argsort(-found.scores, kind="stable")
    return Detections(found.boxes_xyxy[order], found.scores[order], found.class_ids[order])


@dataclass(frozen=True, slots=True)
class _Every:
    """The boxes of all views, one view after the other, and what their views say of them."""

    boxes: Float32Array  # (N, 4)
    scores: Float32Array  # (N,)
    class_ids: Int64Array  # (N,)
    cut: NDArray[np.bool_]  # (N,)
    coarse: NDArray[np.bool_]  # (N,)
    windows: Float32Array  # (N, 4)
    of_view: NDArray[np.intp]  # (N,)

    @classmethod
    def of(cls, views: Sequence[View], *, width: int, height: int, margin: float) -> _Every:
        of_view = np.repeat(np.arange(len(views)), [len(view.found) for view in views])
        windows = np.array([view.window for view in views], np.float32)  # (number of views, 4)
        whole = [
            inside(view.found.boxes_xyxy, windows[[number]], width=width, height=height, margin=margin)[0]
            for number, view in enumerate(views)
        ]
        return cls(
            np.concatenate([view.found.boxes_xyxy for view in views]),
            np.concatenate([view.found.scores for view in views]),
            np.concatenate([view.found.class_ids for view in views]),
            ~np.concatenate(whole),
            np.array([view.coarse for view in views], bool)[of_view],
            windows[of_view],
            of_view,
        )


def _chosen(every: _Every, group: NDArray[np.intp]) -> tuple[Float32Array | None, int]:
    """The best box of one object: None and its number, or pieces put together and the number of the surest."""
    surest = int(group[np.argmax(every.scores[group])])
    if len(group) == 1:
        return (every.boxes[surest] if every.cut[surest] else None), surest
    boxes, windows = every.boxes[group], every.windows[group]
    enough = _common_area(windows, boxes) >= _INSIDE * area_xyxy(boxes)[None, :]  # (window, box)
    # a box is whole if what the others saw of the object could be seen through its window too
    whole = group[~every.cut[group] & ~every.coarse[group] & enough.all(axis=1)]
    taken = whole if len(whole) else group[every.coarse[group]]
    if len(taken):
        return None, int(taken[np.argmax(every.scores[taken])])
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)]), surest


def _groups(views: Sequence[View], every: _Every) -> list[NDArray[np.intp]]:
    """Which of all boxes are one object: arrays of their numbers, at most one box a view in each."""
    count = len(every.scores)
    edges = sorted(_agreements(views), key=lambda edge: edge[:2], reverse=True)
    parent = list(range(count))
    members = {number: {int(every.of_view[number])} for number in range(count)}

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for _, _, one, other in edges:
        first, second = root(one), root(other)
        if first != second and not members[first] & members[second]:
            parent[second] = first
            members[first] |= members.pop(second)
    roots = np.array([root(number) for number in range(count)], np.intp)
    order = np.argsort(roots, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(roots[order])) + 1) if count else []


def _agreements(views: Sequence[View]) -> Iterator[tuple[float, float, int, int]]:
    """Pairs of boxes that agree: IoU rounded, area compared, and their numbers among all boxes."""
    begins = np.cumsum([0, *(len(view.found) for view in views)])
    for one, first in enumerate(views):
        for other in range(one + 1, len(views)):
            region = _common(first.window, views[other].window)
            if region is None:
                if not first.coarse and views[other].window[1] >= first.window[3]:
                    break  # and so do all that follow
                continue
            which, parts = _within(first, region)
            which_other, parts_other = _within(views[other], region)
            overlap = iou_xyxy(parts, parts_other)  # (N, M)
            same = first.found.class_ids[which][:, None] == views[other].found.class_ids[which_other][None, :]
            areas = area_xyxy(parts)
            for i, j in np.argwhere(same & (overlap > AGREEMENT)):
                yield (
                    round(float(overlap[i, j]), 3),
                    float(areas[i]),
                    int(begins[one] + which[i]),
                    int(begins[other] + which_other[j]),
                )


def _common(one: Window, other: Window) -> Window | None:
    left, top, right, bottom = (
        max(one[0], other[0]),
        max(one[1], other[1]),
        min(one[2], other[2]),
        min(one[3], other[3]),
    )
    return (left, top, right, bottom) if left < right and top < bottom else None


def _within(view: View, region: Window) -> tuple[NDArray[np.intp], Float32Array]:
    """The boxes of a view that show in a region: their numbers, and the parts that show."""
    left, top, right, bottom = region
    offset = np.array([left, top, left, top], np.float32)
    parts = clip_xyxy(view.found.boxes_xyxy - offset, right - left, bottom - top)
    which = np.flatnonzero(area_xyxy(parts) > 0)
    return which, parts[which]


def _swallowed(found: Detections, pieces: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of the boxes are pieces that lie in a larger box of their class, bool (N,)."""
    lost = np.zeros(len(found), bool)
    areas = area_xyxy(found.boxes_xyxy)
    for piece in np.flatnonzero(pieces):
        others = (areas > areas[piece]) & (found.class_ids == found.class_ids[piece]) & ~lost
        shared = _common_area(found.boxes_xyxy[[piece]], found.boxes_xyxy[others])
        lost[piece] = bool((shared >= _INSIDE * areas[piece]).any())
    return lost


def _common_area(a_xyxy: Float32Array, b_xyxy: Float32Array) -> Float32Array:
    """Area of the intersection of every pair in square pixels, float32 (N, M)."""
    top_left = np.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])  # (N, M, 2)
    bottom_right = np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    return np.asarray(np.clip(bottom_right - top_left, 0, None).prod(axis=2), np.float32)
