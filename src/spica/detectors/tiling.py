"""Large photographs in tiles, so that small objects are not shrunk away; and the whole of it, for the large ones.

Two windows see the same object if what it shows of itself where they overlap is the same. So boxes are compared there
alone, and a box that its window cuts off agrees with the whole one beside it. Every box of a window agrees with one box
at most of another, the best pairs first, so that neighbours that overlap each other are not taken for one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from spica.boxes import Detections, Float32Array, Int64Array, area_xyxy, clip_xyxy, iou_xyxy
from spica.detectors.contract import Detector, RGBImage, checked
from spica.detectors.postprocess import shrink

AUTO_TILE: Final = 1024
"""Side of the tiles of ``auto`` in pixels, where the network's input is as large: what the tutorial's network was
trained on, images of 1024 x 1024 (Global Wheat Head Dataset)."""

_LARGE: Final = 2
"""``auto`` begins where a photograph is this many times as long as the network's input. Below, an object keeps at least
half of its pixels across, which networks are trained to bear, and tiles would cost four times the time and more."""

_VIEWS: Final = 5
"""An object shows in four tiles at most, and in the whole."""

_MARGIN: Final = 0.01
"""Share of a tile that a network errs by at an edge, where it sees half of things: ten pixels of 1024."""

AGREEMENT: Final = 0.4
"""IoU of two boxes' parts in the common region, above which they are one object: low, since small boxes that differ by
a few pixels are the same, and others are kept apart by the rule that each has one partner."""

_INSIDE: Final = 0.8
"""Share of a cut-off box that lies in a larger one of its class, above which it is a piece of it."""

Window = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the image."""


def tiled(
    detector: Detector, *, tile: int | Literal["auto"], overlap: float, max_detections: int = 1000
) -> TiledDetector:
    """The detector for large photographs.

    Args:
        detector: for a tile, and for the whole.
        tile: side in pixels; ``auto`` for tiles only where the photograph's longer side is more than twice the
            network's input, and then of 1024 pixels, or of the input's if these are fewer.
        overlap: share of a tile that its neighbour sees too, in [0, 0.5].
        max_detections: at most so many boxes of a photograph, the surest.
    """
    size = detector.input_size
    side, above = (min(AUTO_TILE, size), _LARGE * size) if tile == "auto" else (tile, 0)
    return TiledDetector(detector, tile=side, overlap=overlap, max_detections=max_detections, above=above)


class TiledDetector:
    """A detector that looks at an image tile by tile and once as a whole.

    Objects no larger than the overlap are whole in some tile, and detected there. Of larger ones, those that every tile
    cuts off are taken from the whole image, or put together of their parts. An image that fits into one tile is given
    to the detector as it is. The whole is given to it no larger than twice its input, so that memory is bounded.

    Args:
        detector: for a tile, and for the whole.
        tile: side in pixels.
        overlap: share of a tile that its neighbour sees too, in [0, 0.5].
        max_detections: at most so many boxes of an image, the surest.
        above: images whose longer side has at most so many pixels are given to the detector as they are.
    """

    def __init__(
        self, detector: Detector, *, tile: int, overlap: float, max_detections: int = 1000, above: int = 0
    ) -> None:
        self._detector = detector
        self._tile = tile
        self._overlap = overlap
        self._max_detections = max_detections
        self._above = above
        self._whole_side = max(_LARGE * detector.input_size, tile)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by class id; empty strings where the weights carry no names."""
        return self._detector.classes

    @property
    def input_size(self) -> int:
        """Of the detector within, for the whole."""
        return self._detector.input_size

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        """One answer per image, in order, down to the floor score of the detector."""
        return [self._detect_one(image) for image in images]

    def _detect_one(self, image: RGBImage) -> Detections:
        height, width = image.shape[:2]
        places = windows(width, height, tile=self._tile, overlap=self._overlap)
        if len(places) == 1 or max(width, height) <= self._above:
            (answer,) = self._detector.detect([image])
            return answer
        views = [self._whole(image), *(self._through(image, window) for window in places)]
        # more would not come through: each of the surest objects has a box among these
        views = _surest(views, _VIEWS * self._max_detections)
        answer = merge_tiles(views, width=width, height=height, margin=_MARGIN * self._tile)
        answer = answer.where(np.arange(len(answer)) < self._max_detections)
        return checked(answer, classes=len(self.classes), width=width, height=height, detector="tiles")

    def _through(self, image: RGBImage, window: Window) -> View:
        left, top, right, bottom = window
        (seen,) = self._detector.detect([image[top:bottom, left:right]])  # a view: nothing is copied
        boxes = seen.boxes_xyxy + np.array([left, top, left, top], np.float32)
        return View(window, replace(seen, boxes_xyxy=boxes))

    def _whole(self, image: RGBImage) -> View:
        height, width = image.shape[:2]
        small = shrink(image, self._whole_side)
        (seen,) = self._detector.detect([small])
        scale = np.array([width / small.shape[1], height / small.shape[0]] * 2, np.float32)
        return View((0, 0, width, height), replace(seen, boxes_xyxy=seen.boxes_xyxy * scale), coarse=True)


def windows(width: int, height: int, *, tile: int, overlap: float) -> list[Window]:
    """Windows that cover an image, each of ``tile`` pixels a side or of the image's if that is less, row by row.

    Neighbours overlap by at least ``overlap`` of a tile; the windows are spread evenly, so no narrow rest is left.
    """
    across, down = (_spans(length, tile, overlap) for length in (width, height))
    return [(left, top, right, bottom) for top, bottom in down for left, right in across]


def _spans(length: int, tile: int, overlap: float) -> list[tuple[int, int]]:
    if length <= tile:
        return [(0, length)]
    step = max(1, math.floor(tile * (1 - overlap)))
    count = math.ceil((length - tile) / step) + 1
    starts = [number * (length - tile) // (count - 1) for number in range(count)]  # no step is longer than asked
    return [(start, start + tile) for start in starts]


# --- merging


@dataclass(frozen=True, slots=True)
class View:
    """The boxes of one window.

    Attributes:
        window: of the image.
        detections: boxes in pixels of the image.
        coarse: the image was shrunk for it; its boxes count where no other view could show the object whole.
    """

    window: Window
    detections: Detections
    coarse: bool = False


def _surest(views: Sequence[View], count: int) -> list[View]:
    """The views with their ``count`` boxes of the highest scores, all views together."""
    scores = np.concatenate([view.detections.scores for view in views])
    keep = np.zeros(len(scores), bool)
    keep[np.argsort(-scores, kind="stable")[:count]] = True
    parts = np.split(keep, np.cumsum([len(view.detections) for view in views])[:-1])
    return [replace(view, detections=view.detections.where(part)) for view, part in zip(views, parts, strict=True)]


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


def merge_tiles(views: Sequence[View], *, width: int, height: int, margin: float) -> Detections:
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

    def shown_whole(boxes: Float32Array) -> NDArray[np.bool_]:
        return np.asarray(inside(boxes, tiles, width=width, height=height, margin=margin).any(axis=0))

    views = [
        replace(view, detections=view.detections.where(~shown_whole(view.detections.boxes_xyxy)))
        if view.coarse
        else view
        for view in views
    ]
    pool = _Pool.of(views, width=width, height=height, margin=margin)
    chosen = [_choose(pool, group) for group in _groups(views, pool)]
    numbers = np.array([number for _, number in chosen], np.intp)
    boxes = pool.boxes[numbers].reshape(-1, 4)
    for position, (box, _) in enumerate(chosen):
        if box is not None:
            boxes[position] = box
    merged = Detections(boxes, pool.scores[numbers], pool.class_ids[numbers])
    pieces = np.array([box is not None for box, _ in chosen], bool)
    wrong = pieces.copy()
    wrong[pieces] = shown_whole(boxes[pieces])
    merged = merged.where(~wrong & ~_swallowed(merged, pieces))
    return merged.best(len(merged))


@dataclass(frozen=True, slots=True)
class _Pool:
    """The boxes of all views, one view after the other, and what is known of them by their views."""

    boxes: Float32Array  # (N, 4)
    scores: Float32Array  # (N,)
    class_ids: Int64Array  # (N,)
    cut: NDArray[np.bool_]  # (N,)
    coarse: NDArray[np.bool_]  # (N,)
    windows: Float32Array  # (N, 4)
    view_numbers: NDArray[np.intp]  # (N,)

    @classmethod
    def of(cls, views: Sequence[View], *, width: int, height: int, margin: float) -> _Pool:
        numbers = np.repeat(np.arange(len(views)), [len(view.detections) for view in views])
        windows = np.array([view.window for view in views], np.float32)  # (number of views, 4)
        whole = [
            inside(view.detections.boxes_xyxy, windows[[number]], width=width, height=height, margin=margin)[0]
            for number, view in enumerate(views)
        ]
        return cls(
            np.concatenate([view.detections.boxes_xyxy for view in views]),
            np.concatenate([view.detections.scores for view in views]),
            np.concatenate([view.detections.class_ids for view in views]),
            ~np.concatenate(whole),
            np.array([view.coarse for view in views], bool)[numbers],
            windows[numbers],
            numbers,
        )


def _choose(pool: _Pool, group: NDArray[np.intp]) -> tuple[Float32Array | None, int]:
    """The best box of one object: None and its number, or pieces put together and the number of the surest."""
    surest = int(group[np.argmax(pool.scores[group])])
    if len(group) == 1:
        return (pool.boxes[surest] if pool.cut[surest] else None), surest
    boxes, windows = pool.boxes[group], pool.windows[group]
    enough = _common_area(windows, boxes) >= _INSIDE * area_xyxy(boxes)[None, :]  # (window, box)
    # a box is whole if what the others saw of the object could be seen through its window too
    whole = group[~pool.cut[group] & ~pool.coarse[group] & enough.all(axis=1)]
    taken = whole if len(whole) else group[pool.coarse[group]]
    if len(taken):
        return None, int(taken[np.argmax(pool.scores[taken])])
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)]), surest


def _groups(views: Sequence[View], pool: _Pool) -> list[NDArray[np.intp]]:
    """Which of all boxes are one object: arrays of their numbers, at most one box a view in each."""
    count = len(pool.scores)
    edges = sorted(_agreements(views), key=lambda edge: edge[:2], reverse=True)
    parent = list(range(count))
    members = {number: {int(pool.view_numbers[number])} for number in range(count)}

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
    begins = np.cumsum([0, *(len(view.detections) for view in views)])
    for one, first in enumerate(views):
        for other, second in enumerate(views[one + 1 :], one + 1):
            region = _common(first.window, second.window)
            if region is None:
                if not first.coarse and second.window[1] >= first.window[3]:
                    break  # and so do all that follow
                continue
            which, parts = _within(first, region)
            which_other, parts_other = _within(second, region)
            overlap = iou_xyxy(parts, parts_other)  # (N, M)
            same = first.detections.class_ids[which][:, None] == second.detections.class_ids[which_other][None, :]
            areas = area_xyxy(parts)
            for i, j in np.argwhere(same & (overlap > AGREEMENT)):
                numbers = int(begins[one] + which[i]), int(begins[other] + which_other[j])
                yield round(float(overlap[i, j]), 3), float(areas[i]), *numbers


def _common(one: Window, other: Window) -> Window | None:
    left, top = max(one[0], other[0]), max(one[1], other[1])
    right, bottom = min(one[2], other[2]), min(one[3], other[3])
    return (left, top, right, bottom) if left < right and top < bottom else None


def _within(view: View, region: Window) -> tuple[NDArray[np.intp], Float32Array]:
    """The boxes of a view that show in a region: their numbers, and the parts that show."""
    left, top, right, bottom = region
    offset = np.array([left, top, left, top], np.float32)
    parts = clip_xyxy(view.detections.boxes_xyxy - offset, right - left, bottom - top)
    which = np.flatnonzero(area_xyxy(parts) > 0)
    return which, parts[which]


def _swallowed(merged: Detections, pieces: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of the boxes are pieces that lie in a larger box of their class, bool (N,)."""
    lost = np.zeros(len(merged), bool)
    areas = area_xyxy(merged.boxes_xyxy)
    for piece in np.flatnonzero(pieces):
        others = (areas > areas[piece]) & (merged.class_ids == merged.class_ids[piece]) & ~lost
        shared = _common_area(merged.boxes_xyxy[[piece]], merged.boxes_xyxy[others])
        lost[piece] = bool((shared >= _INSIDE * areas[piece]).any())
    return lost


def _common_area(a_xyxy: Float32Array, b_xyxy: Float32Array) -> Float32Array:
    """Area of the intersection of every pair in square pixels, float32 (N, M)."""
    top_left = np.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])  # (N, M, 2)
    bottom_right = np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    return np.asarray(np.clip(bottom_right - top_left, 0, None).prod(axis=2), np.float32)
