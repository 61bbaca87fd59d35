from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spica.boxes import Detections, iou_xyxy
from spica.detectors.postprocess import batched_nms, xyxy_from_cxcywh


def candidates(seed: int, count: int, classes: int, extent: float = 100) -> Detections:
    """Boxes at random; a few scores are equal."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, extent, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 40, (count, 2))], axis=1).astype(np.float32)
    scores = (rng.integers(0, 50, count) / 50).astype(np.float32)
    return Detections(boxes, scores, rng.integers(0, classes, count))


def greedy(given: Detections, iou: float) -> list[int]:
    """The loop that everybody knows."""
    kept: list[int] = []
    for index in np.argsort(-given.scores, kind="stable"):
        overlaps = iou_xyxy(given.boxes_xyxy[[index]], given.boxes_xyxy[kept])[0]
        same = given.class_ids[kept] == given.class_ids[index]
        if not (same & (overlaps > iou)).any():
            kept.append(int(index))
    return kept


@given(st.integers(0, 10**6), st.integers(0, 700), st.integers(1, 3), st.sampled_from([0.0, 0.45, 0.7, 1.0]))
@settings(deadline=None, max_examples=25)
def test_as_the_greedy_loop(seed: int, count: int, classes: int, iou: float) -> None:
    """Suppression by blocks keeps exactly the boxes of the greedy loop, in its order, and the best of them."""
    given = candidates(seed, count, classes)
    expected = given.where(np.array(greedy(given, iou), np.intp))
    got = batched_nms(given, iou=iou, limit=count)
    assert np.array_equal(got.boxes_xyxy, expected.boxes_xyxy)
    assert np.array_equal(got.scores, expected.scores)
    assert np.array_equal(got.class_ids, expected.class_ids)
    few = batched_nms(given, iou=iou, limit=5)
    assert np.array_equal(few.boxes_xyxy, expected.boxes_xyxy[:5])


@pytest.mark.torch
def test_as_torchvision() -> None:
    """Suppression keeps the boxes that torchvision keeps."""
    torch = pytest.importorskip("torch", reason="needs the extra spica[train]")
    from torchvision.ops import batched_nms as torch_nms

    given = candidates(1, 2000, 2, extent=400)
    given = Detections(given.boxes_xyxy, np.random.default_rng(1).permutation(2000).astype(np.float32), given.class_ids)
    kept = torch_nms(*(torch.tensor(part) for part in (given.boxes_xyxy, given.scores, given.class_ids)), 0.5)
    assert np.array_equal(batched_nms(given, iou=0.5, limit=2000).scores, given.scores[kept.numpy()])


def test_centres_to_corners() -> None:
    """Half a side lies on each side of the centre, in float16 too."""
    assert xyxy_from_cxcywh(np.array([[10, 20, 4, 8]], np.float16)).tolist() == [[8, 16, 12, 24]]
    assert xyxy_from_cxcywh(np.zeros((0, 4))).shape == (0, 4)
