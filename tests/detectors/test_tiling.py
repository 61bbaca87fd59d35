"""Tiles against the truth: a detector that sees perfectly what shows in what it is given."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scripted_detector import ScriptedDetector, detections
from spica.boxes import Detections, Float32Array, clip_xyxy, iou_xyxy
from spica.detectors.contract import RGBImage, input_size_of
from spica.detectors.postprocess import shrink
from spica.detectors.tiling import TiledDetector, View, merge_tiles, tiled, windows

Scene = tuple[Float32Array, NDArray[np.int64]]


class PerfectDetector:
    """Reports the visible part of known boxes, wherever in its photograph the picture it is given lies.

    A view of the photograph tells its place by its address in memory; anything else is the whole, shrunk. Every box has
    a score of its own. What shows of a box must be at least ``least_px`` wide and high in what it is given.
    """

    classes = ("a", "b", "c")

    def __init__(
        self,
        photo: RGBImage,
        scene: Scene,
        *,
        noise: float = 0,
        least_px: float = 0,
        seed: int = 0,
        input_size: int = 1333,
    ) -> None:
        self.input_size = input_size
        self.photo = photo
        self.boxes, self.class_ids = scene
        self.scores = np.linspace(0.9, 0.5, len(self.boxes)).astype(np.float32)
        self.noise, self.least_px = noise, least_px
        self.random = np.random.default_rng(seed)
        self.shapes: list[tuple[int, ...]] = []

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        """What shows in each."""
        return [self._one(image) for image in images]

    def _one(self, image: RGBImage) -> Detections:
        height, width = image.shape[:2]
        self.shapes.append(image.shape)
        offset: NDArray[np.float64] = np.zeros(2)
        scale: NDArray[np.float64] = np.ones(2)
        if np.shares_memory(image, self.photo):
            begin = image.__array_interface__["data"][0] - self.photo.__array_interface__["data"][0]
            rows, rest = divmod(begin, self.photo.strides[0])
            offset[:] = rest // 3, rows
        else:
            scale = np.array([width, height]) / self.photo.shape[1::-1]
        there = (self.boxes - np.tile(offset, 2)) * np.tile(scale, 2)
        shown = clip_xyxy(there.astype(np.float32), width, height)
        sides = shown[:, 2:] - shown[:, :2]
        seen = (sides > self.least_px).all(axis=1)
        blurred = shown[seen] + self.random.normal(0, self.noise, (seen.sum(), 4)) if self.noise else shown[seen]
        boxes = clip_xyxy(
            np.sort(np.asarray(blurred, np.float32).reshape(-1, 2, 2), axis=1).reshape(-1, 4), width, height
        )
        return Detections(boxes, self.scores[seen], self.class_ids[seen])


def scene(seed: int, width: int, height: int, count: int, largest: float, classes: int = 3) -> Scene:
    """Boxes anywhere, of all sizes up to ``largest``, at least two pixels a side; they may overlap each other."""
    rng = np.random.default_rng(seed)
    sides = np.exp(rng.uniform(np.log(2), np.log(largest), (count, 2)))
    corner = rng.uniform(0, np.maximum(np.array([width, height]) - sides, 0))
    boxes = clip_xyxy(np.concatenate([corner, corner + sides], axis=1).astype(np.float32), width, height)
    return boxes, rng.integers(0, classes, count)


def same_objects(found: Detections, truth: Scene, tolerance: float) -> bool:
    """Whether each object is there once and nothing else is."""
    rows = np.column_stack([found.boxes_xyxy, found.class_ids])
    expected = np.column_stack(truth)
    if rows.shape != expected.shape:
        return False
    free = np.ones(len(rows), bool)
    for row in expected:
        distance = np.where(free, np.abs(rows - row).max(axis=1), np.inf)
        if distance.min() > tolerance:
            return False
        free[np.argmin(distance)] = False
    return True


@given(
    seed=st.integers(0, 10**6),
    width=st.integers(20, 400),
    height=st.integers(20, 400),
    count=st.integers(0, 60),
    tile=st.integers(50, 150),
    overlap=st.sampled_from([0.1, 0.2, 0.35, 0.5]),
    largest=st.sampled_from([8.0, 40.0, 400.0]),
)
@settings(deadline=None)
def test_each_object_once(
    seed: int, width: int, height: int, count: int, tile: int, overlap: float, largest: float
) -> None:
    """With a detector that sees what shows, each object of any size is answered once, whole, and none is lost."""
    photo = np.zeros((height, width, 3), np.uint8)
    truth = scene(seed, width, height, count, largest)
    detector = PerfectDetector(photo, truth, input_size=1000)
    (found,) = TiledDetector(detector, tile=tile, overlap=overlap).detect([photo])
    assert same_objects(found, truth, 0.01)


@given(st.integers(0, 10**6), st.sampled_from([0.1, 0.2, 0.5]))
@settings(deadline=None, max_examples=10)
def test_objects_that_only_tiles_show(seed: int, overlap: float) -> None:
    """Long thin objects that are too thin to be seen in the shrunk whole are put together from the tiles' pieces."""
    rng = np.random.default_rng(seed)
    tops = 10 + 35 * np.arange(17) + rng.uniform(0, 10, 17)
    lefts, lengths = rng.uniform(0, 250, 17), rng.uniform(20, 350, 17)
    boxes = np.column_stack([lefts, tops, lefts + lengths, tops + 8]).astype(np.float32)
    truth = (boxes, np.zeros(17, np.int64))
    photo = np.zeros((620, 620, 3), np.uint8)
    detector = PerfectDetector(photo, truth, least_px=3, input_size=90)
    (found,) = TiledDetector(detector, tile=100, overlap=overlap).detect([photo])
    assert detector.shapes[0] == (180, 180, 3)
    assert same_objects(found, truth, 0.01)


@pytest.mark.parametrize("seed", range(8))
def test_a_detector_that_errs_by_pixels(seed: int) -> None:
    """With boxes that are off by a pixel or two, and slivers that are not seen, doubles and losses stay rare."""
    photo = np.zeros((1000, 1400, 3), np.uint8)
    boxes, class_ids = apart(scene(seed, 1400, 1000, 400, 300))
    detector = PerfectDetector(photo, (boxes, class_ids), noise=1.0, least_px=6, seed=seed, input_size=1000)
    (found,) = TiledDetector(detector, tile=256, overlap=0.25).detect([photo])
    large = ((boxes[:, 2:] - boxes[:, :2]) >= 12).all(axis=1)
    overlaps = iou_xyxy(boxes[large], found.boxes_xyxy)
    overlaps[class_ids[large][:, None] != found.class_ids[None, :]] = 0
    matched = (overlaps > 0.5).sum(axis=1)
    assert (matched == 0).sum() <= 0.01 * large.sum()
    assert (matched > 1).sum() <= 0.01 * large.sum()
    assert len(found) <= 1.02 * len(boxes)


def apart(truth: Scene) -> Scene:
    """Those boxes that hardly overlap any before them."""
    boxes, class_ids = truth
    kept: list[int] = []
    for index in range(len(boxes)):
        if not (iou_xyxy(boxes[[index]], boxes[kept]) > 0.1).any():
            kept.append(index)
    return boxes[kept], class_ids[kept]


@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 1), (100, 100), (37, 100), (100, 37)],
    ids=["one pixel", "a tile", "wide", "tall"],
)
@pytest.mark.parametrize("tile", [100, "auto"])
def test_an_image_that_fits_into_a_tile(tile: int, height: int, width: int) -> None:
    """An image that fits into one tile is answered exactly as without tiles, with one look."""
    answer = detections((0, 0, 1, 1, 0.9), (0, 0, 1, 1, 0.9))  # a double, which nobody may remove
    plain = ScriptedDetector(answer)
    (found,) = tiled(plain, tile=tile, overlap=0.2).detect([np.ones((height, width, 3), np.uint8)])
    assert found is answer
    assert plain.calls == 1


@pytest.mark.parametrize(
    ("side", "input_size", "looks"),
    [
        pytest.param(1280, 640, 1, id="twice its input"),
        pytest.param(1281, 640, 1 + 3 * 1, id="a pixel more"),
        pytest.param(2666, 1333, 1, id="twice what torchvision's networks see"),
        pytest.param(2667, 1333, 1 + 4, id="a pixel more than that"),
    ],
)
def test_auto(side: int, input_size: int, looks: int) -> None:
    """Left to itself it takes tiles where the network would see less than half of the photograph's pixels across."""
    plain = ScriptedDetector(Detections.empty(), input_size=input_size)
    tiled(plain, tile="auto", overlap=0.2).detect([np.ones((100, side, 3), np.uint8)])
    assert plain.calls == looks


@pytest.mark.parametrize(
    ("architecture", "longer_side"),
    [
        ("fasterrcnn_mobilenet_v3_large_fpn", 1333),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", 640),
        ("ssdlite320_mobilenet_v3_large", 320),
        ("fasterrcnn_efficientnet_lite0_fpn", 853),
    ],
)
@pytest.mark.torch
def test_what_networks_see(architecture: str, longer_side: int) -> None:
    """The size that is told of a network is the one that it shrinks images to."""
    pytest.importorskip("torch", reason="needs the extra spica[train]")
    from spica.detectors.networks import build

    transform: Any = build(architecture, 2).transform
    fixed = transform.fixed_size
    assert input_size_of(architecture) == (max(fixed) if fixed is not None else transform.max_size) == longer_side


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(10, 1000), st.floats(0, 0.5))
@settings(deadline=None)
def test_windows_cover_the_image(width: int, height: int, tile: int, overlap: float) -> None:
    """Windows lie in the image, are as large as asked, overlap as asked and leave no pixel out."""
    places = windows(width, height, tile=tile, overlap=overlap)
    for length, first, last in ((width, 0, 2), (height, 1, 3)):
        spans = sorted({(place[first], place[last]) for place in places})
        assert spans[0][0] == 0
        assert spans[-1][1] == length
        assert {end - begin for begin, end in spans} == {min(tile, length)}
        for (_, end), (begin, _) in itertools.pairwise(spans):
            assert end - begin >= overlap * tile - 1
    assert len(places) == len(set(places))


def test_memory_is_bounded_by_the_tile() -> None:
    """A large photograph is not copied: its tiles are views, its whole is shrunk before it is looked at."""
    photo = np.zeros((6000, 8000, 3), np.uint8)  # 144 MB
    detector = PerfectDetector(photo, scene(0, 8000, 6000, 50, 500), input_size=640)
    slow = TiledDetector(detector, tile=1024, overlap=0.2)
    tracemalloc.start()
    (found,) = slow.detect([photo])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 50
    assert peak < 3 * 1024 * 1024 * 3
    assert detector.shapes[0] == (960, 1280, 3)
    assert set(detector.shapes[1:]) == {(1024, 1024, 3)}


def test_pieces_that_end_before_the_edge() -> None:
    """A network that stops a little before the edge that cuts an object off makes no doubles."""

    class Shy(PerfectDetector):
        def _one(self, image: RGBImage) -> Detections:
            found = super()._one(image)
            height, width = image.shape[:2]
            return Detections(
                np.clip(found.boxes_xyxy, 4, np.array([width - 4, height - 4] * 2, np.float32)),
                found.scores,
                found.class_ids,
            )

    photo = np.zeros((1300, 1300, 3), np.uint8)
    places = np.arange(30, 1200, 83, dtype=np.float32)
    corners = np.stack(np.meshgrid(places, places), axis=2).reshape(-1, 2)
    truth = np.concatenate([corners, corners + 60], axis=1), np.zeros(len(corners), np.int64)
    (found,) = TiledDetector(Shy(photo, truth, least_px=9), tile=500, overlap=0.2).detect([photo])
    assert same_objects(found, truth, 0.01)


def test_small_boxes_of_the_whole_do_not_count() -> None:
    """What is small enough to be whole in a tile is taken from the tiles, where it is seen better, and nowhere else."""

    class Blurred(PerfectDetector):
        def _one(self, image: RGBImage) -> Detections:
            found = super()._one(image)
            moved = found.boxes_xyxy + np.float32(0 if np.shares_memory(image, self.photo) else 9)
            return Detections(moved, found.scores, found.class_ids)

    photo = np.zeros((200, 200, 3), np.uint8)
    truth = np.array([[20, 20, 30, 32], [88, 120, 100, 131]], np.float32), np.array([0, 1])
    (found,) = TiledDetector(Blurred(photo, truth, input_size=90), tile=100, overlap=0.2).detect([photo])
    assert same_objects(found, truth, 0.01)


class BusyDetector:
    """A thousand boxes anywhere in whatever it is given, the surest before."""

    classes = ("a",)
    input_size = 1333

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        """Of each."""
        return [self._one(*image.shape[:2]) for image in images]

    def _one(self, height: int, width: int) -> Detections:
        corners = self.random.uniform(0, [width - 40, height - 40], (1000, 2))
        boxes = np.concatenate([corners, corners + self.random.uniform(10, 40, (1000, 2))], axis=1)
        scores = np.sort(self.random.random(1000).astype(np.float32))[::-1]
        return Detections(boxes.astype(np.float32), np.ascontiguousarray(scores), np.zeros(1000, np.int64))


@pytest.mark.parametrize("limit", [1, 100, 699, 700, 1000])
def test_the_limit_is_the_photographs_and_not_each_tiles(limit: int) -> None:
    """Of a photograph in tiles no more objects are answered than asked for: those of the highest scores, each whole."""
    photo = np.zeros((600, 800, 3), np.uint8)
    truth = scene(1, 800, 600, 700, 60)
    (found,) = TiledDetector(
        PerfectDetector(photo, truth, input_size=1000), tile=100, overlap=0.2, max_detections=limit
    ).detect([photo])
    assert len(found) == min(limit, 700)
    assert same_objects(found, (truth[0][:limit], truth[1][:limit]), 0.01)  # the scene's scores descend


def test_what_goes_into_merging_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The boxes that are compared with each other grow with the limit, not with the photograph."""
    compared: list[int] = []

    def counted(views: Sequence[View], **more: Any) -> Detections:
        compared.append(sum(len(view.detections) for view in views))
        return merge_tiles(views, **more)

    monkeypatch.setattr("spica.detectors.tiling.merge_tiles", counted)
    TiledDetector(BusyDetector(), tile=256, overlap=0.2, max_detections=100).detect(
        [np.zeros((1500, 2000, 3), np.uint8)]
    )
    assert compared == [500]


def test_no_boxes_and_no_images() -> None:
    """Nothing found is an empty answer; nothing given is none."""
    none = TiledDetector(ScriptedDetector(Detections.empty()), tile=10, overlap=0.2)
    assert [len(found) for found in none.detect([np.ones((25, 25, 3), np.uint8)])] == [0]
    assert none.detect([]) == []
    assert none.classes == ("spike",)


def test_shrinking_averages() -> None:
    """All pixels count when the whole is shrunk, and nothing is made larger."""
    image = np.zeros((40, 80, 3), np.uint8)
    image[::2] = 200
    assert (shrink(image, 20) == 100).all()
    assert shrink(image, 20).shape == (10, 20, 3)
    assert shrink(image, 80) is image
    assert shrink(np.zeros((1, 500, 3), np.uint8), 10).shape == (1, 10, 3)
