"""Rendered fields: the same for a seed, and their boxes are true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spica.demo import field
from spica.demo.field import render_field, write_images
from spica.demo.plants import Canvas, Ear


@pytest.mark.parametrize(("width", "height"), [(640, 480), (320, 240), (333, 257)], ids=["usual", "small", "odd"])
def test_same_seed_same_field(width: int, height: int) -> None:
    """A seed and a size determine every pixel and every box."""
    first, second = (render_field(7, width=width, height=height) for _ in range(2))
    assert first.pixels.shape == (height, width, 3)
    np.testing.assert_array_equal(first.pixels, second.pixels)
    np.testing.assert_array_equal(first.boxes_xyxy, second.boxes_xyxy)


def test_seeds_differ() -> None:
    """Two seeds give two pictures."""
    assert (render_field(1).pixels != render_field(2).pixels).mean() > 0.5


def test_global_random_state_is_neither_used_nor_changed() -> None:
    """Rendering depends on the seed alone, and leaves numpy's global generator where it was."""
    np.random.seed(1)
    first = render_field(3, width=160, height=120)
    drawn = np.random.random()
    np.random.seed(1)
    assert drawn == np.random.random()
    np.random.seed(2)
    np.testing.assert_array_equal(render_field(3, width=160, height=120).pixels, first.pixels)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), width=st.integers(32, 400), height=st.integers(32, 400))
def test_boxes_keep_their_contract(seed: int, width: int, height: int) -> None:
    """For any seed and size: uint8 RGB, float32 boxes inside the picture, left before right, no tiny ones."""
    rendered = render_field(seed, width=width, height=height)
    boxes = rendered.boxes_xyxy
    assert rendered.pixels.dtype == np.uint8
    assert boxes.dtype == np.float32
    assert boxes.shape == (len(boxes), 4)
    assert len(boxes) <= field.MOST_EARS
    assert (boxes >= 0).all()
    assert (boxes <= np.array([width, height, width, height])).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= field.LEAST_SIDE_PX).all()


@pytest.mark.parametrize(("width", "height"), [(31, 480), (640, 31), (0, 0)], ids=["narrow", "low", "nothing"])
def test_too_small(width: int, height: int) -> None:
    """A picture under 32 pixels is refused, and the message names its size."""
    with pytest.raises(ValueError, match=f"{width} x {height}"):
        render_field(1, width=width, height=height)


def test_demo_shows_many_and_few() -> None:
    """Of the 24 images of the demo one has no ears, another a few, another more than thirty."""
    counts = [len(render_field(field.DEMO_FIRST_SEED + k).boxes_xyxy) for k in range(24)]
    assert min(counts) == 0
    assert any(1 <= count <= 8 for count in counts)
    assert max(counts) > 30
    assert 300 <= sum(counts) <= 900


@pytest.mark.parametrize("seed", [5, 6, 13])
def test_boxes_are_tight_around_their_ears(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every ear painted magenta, each box's four sides touch magenta, and hardly any of it lies outside boxes."""
    magenta = np.array([255.0, 0.0, 255.0])
    painted: list[Canvas] = []

    def paint_magenta(ear: Ear, canvas: Canvas, owner: int) -> None:
        canvas.shape(ear.silhouette(), magenta, owner)
        painted.append(canvas)

    monkeypatch.setattr(Ear, "paint", paint_magenta)
    boxes = render_field(seed).boxes_xyxy
    assert len(boxes) > 5
    red, green, blue = np.moveaxis(np.asarray(painted[-1].picture, np.int16), 2, 0)
    shown = np.minimum(red, blue) - green > 40  # shadows darken it, nothing else has its hue
    assert shown.any()
    covered = np.zeros_like(shown)
    for left, top, right, bottom in (boxes * 2).astype(int).tolist():  # the canvas is painted at twice the size
        ear = shown[top:bottom, left:right]
        sides = (ear[0], ear[-1], ear[:, 0], ear[:, -1])
        assert all(side.any() for side in sides)
        covered[top:bottom, left:right] = True
    assert (shown & covered).sum() > 0.95 * shown.sum()


def test_ears_stand_out() -> None:
    """The boxes are where the plants are bright: their middles outshine the rest of the picture."""
    rendered = render_field(5)
    grey = rendered.pixels.mean(axis=2)
    middles = ((rendered.boxes_xyxy[:, :2] + rendered.boxes_xyxy[:, 2:]) / 2).astype(int)
    assert grey[middles[:, 1], middles[:, 0]].mean() > grey.mean() + 10


def test_write_images(tmp_path: Path) -> None:
    """Files are numbered from 001, readable, of the seeds asked for, and nothing else is left in the folder."""
    folder = tmp_path / "畑 wheat" / "images"
    paths = write_images(folder, 2, first_seed=40)
    assert [path.name for path in paths] == ["field-001.jpg", "field-002.jpg"]
    assert sorted(folder.iterdir()) == paths
    with Image.open(paths[1]) as image:
        decoded = np.asarray(image.convert("RGB"), np.float64)
    assert np.abs(decoded - render_field(41).pixels).mean() < 4  # JPEG's loss


def test_write_images_leaves_existing_files(tmp_path: Path) -> None:
    """A file that is there is not rendered again; a missing one comes back with the same bytes."""
    first, second = write_images(tmp_path, 2, first_seed=40)
    original = second.read_bytes()
    first.write_bytes(b"mine")
    second.unlink()
    write_images(tmp_path, 2, first_seed=40)
    assert first.read_bytes() == b"mine"
    assert second.read_bytes() == original


def test_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the last step of writing fails, neither the image nor a temporary file stays."""

    def refuse(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_images(tmp_path, 1, first_seed=40)
    assert list(tmp_path.iterdir()) == []
