from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra spica[train]")

from hypothesis import given, settings  # noqa: E402 - after the check for torch
from hypothesis import strategies as st  # noqa: E402

from spica.training import augmentation  # noqa: E402
from spica.training.recipe import Recipe  # noqa: E402

pytestmark = pytest.mark.torch

NOTHING = Recipe(flip=False, flip_vertical=False, zoom=False, colour=False)
WIDTH, HEIGHT = 96, 64

Box = tuple[int, int, int, int]


@st.composite
def _boxes(draw: st.DrawFn) -> list[Box]:
    """Up to four boxes that do not touch: one in each quarter of the image."""
    boxes = []
    for left, top in draw(st.sets(st.sampled_from([(0, 0), (48, 0), (0, 32), (48, 32)]))):
        x, y = draw(st.integers(left + 1, left + 20)), draw(st.integers(top + 1, top + 12))
        boxes.append((x, y, x + draw(st.integers(8, 26)), y + draw(st.integers(8, 18))))
    return boxes


def _painted(boxes: list[Box]) -> tuple[Any, Any, Any]:
    """A black image with each box filled with a grey of its own."""
    image = torch.zeros((3, HEIGHT, WIDTH), dtype=torch.uint8)
    for number, (left, top, right, bottom) in enumerate(boxes, 1):
        image[:, top:bottom, left:right] = 50 + 50 * number
    return image, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.arange(1, len(boxes) + 1)


def _extent(image: Any, grey: int) -> list[float]:
    rows, columns = np.nonzero(image[0].numpy() == grey)
    return [float(columns.min()), float(rows.min()), float(columns.max()) + 1, float(rows.max()) + 1]


@given(boxes=_boxes(), seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=60)
def test_boxes_stay_on_their_objects(boxes: list[Box], seed: int) -> None:
    """Whatever is mirrored, cut or padded, a box encloses exactly what is left of its object."""
    image, xyxy, labels = _painted(boxes)
    transform = augmentation.build(Recipe(flip_vertical=True, colour=False))
    changed, moved, kept = augmentation.apply(transform, image, xyxy, labels, seed=seed)
    assert moved.shape == (len(kept), 4)
    for box, label in zip(moved.tolist(), kept.tolist(), strict=True):
        assert box == _extent(changed, 50 + 50 * label)


@given(boxes=_boxes())
@settings(deadline=None, max_examples=20)
def test_mirroring_twice_is_no_change(boxes: list[Box]) -> None:
    """The same mirroring twice gives back image and boxes."""
    from torchvision.transforms import v2

    image, xyxy, labels = _painted(boxes)
    mirror = v2.Compose([v2.RandomHorizontalFlip(1.0), v2.RandomVerticalFlip(1.0)])
    once = augmentation.apply(mirror, image, xyxy, labels, seed=0)
    back, boxes_back, _ = augmentation.apply(mirror, *once, seed=0)
    assert torch.equal(back, image)
    assert torch.equal(boxes_back, xyxy)


@pytest.mark.parametrize("name", ["flip", "flip_vertical", "zoom", "colour"])
def test_each_change_can_be_turned_on_alone(name: str) -> None:
    """With one switch on, some seed changes the image; with none, no seed does."""
    image, xyxy, labels = _painted([(4, 4, 30, 20), (50, 36, 70, 60)])
    image += torch.arange(WIDTH, dtype=torch.uint8) // 4

    def changes(recipe: Recipe) -> bool:
        found = (augmentation.apply(augmentation.build(recipe), image, xyxy, labels, seed=s)[0] for s in range(12))
        return any(not torch.equal(each, image) for each in found)

    switch: dict[str, Any] = {name: True}
    assert changes(replace(NOTHING, **switch))
    assert not changes(NOTHING)


def test_the_same_seed_makes_the_same_change() -> None:
    """Image and boxes depend on the seed alone, and torch's own random numbers are left as they were."""
    image, xyxy, labels = _painted([(4, 4, 30, 20)])
    transform = augmentation.build(Recipe())
    before = torch.get_rng_state()
    one, other, third = (augmentation.apply(transform, image, xyxy, labels, seed=seed) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0], third[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_hardly_visible_is_no_object_any_more() -> None:
    """A box of which a cut leaves less than a quarter is gone; one of which more is left stays, cut."""
    from torchvision.transforms import v2

    image, xyxy, labels = _painted([(10, 4, 50, 20), (22, 36, 62, 60)])

    class RightHalf(v2.Transform):  # type: ignore[misc]  # torchvision ships no types
        def transform(self, inpt: object, params: object) -> object:
            return v2.functional.crop(inpt, 0, 42, HEIGHT, WIDTH - 42)

    _, moved, kept = augmentation.apply(RightHalf(), image, xyxy, labels, seed=0)
    assert kept.tolist() == [2]
    assert moved.tolist() == [[0, 36, 20, 60]]
