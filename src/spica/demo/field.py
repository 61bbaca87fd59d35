"""Render wheat fields: pictures, and the boxes of the ears that can be seen in them."""

from __future__ import annotations

import io
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from spica.demo.plants import SUPERSAMPLE, Blade, Canvas, Colour, Ear, Points, bezier

DEMO_FIRST_SEED = 25
"""The demo's images are rendered from this seed on; training and evaluation use other ranges."""
MOST_EARS = 60
LEAST_SIDE_PX = 8.0
"""An ear whose visible part is smaller than this is not labelled."""
LEAST_VISIBLE = 0.35
"""An ear of which less than this share can be seen is not labelled."""

_GREEN, _RIPE, _STRAW = (np.array(c, np.float64) for c in ((140, 160, 68), (228, 174, 78), (220, 178, 100)))
_LEAF, _DRY_LEAF = np.array([98.0, 138.0, 58.0]), np.array([196.0, 166.0, 92.0])
_SOIL, _UNDERGROWTH = np.array([118.0, 92.0, 64.0]), np.array([66.0, 88.0, 40.0])


@dataclass(frozen=True, slots=True)
class Field:
    """A rendered picture with its truth.

    Attributes:
        pixels: uint8 (H, W, 3), RGB.
        boxes_xyxy: float32 (N, 4), pixels, within the picture; the visible body of each ear, without awns.
    """

    pixels: NDArray[np.uint8]
    boxes_xyxy: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Scene:
    """What all plants of one picture share."""

    rng: np.random.Generator
    width: int
    height: int
    unit: float
    ripeness: float
    up: float
    spread: float
    light: Points

    def colour(self, young: Colour, old: Colour, jitter: float = 0.12) -> Colour:
        """Between ``young`` and ``old`` by ripeness, each plant a little its own."""
        t = np.clip(self.ripeness + self.rng.normal(0, jitter), 0, 1.08)
        return np.asarray((young * (1 - t) + old * t) * self.rng.uniform(0.88, 1.1) + self.rng.normal(0, 2.5, 3))

    def anywhere(self, margin: float = 0.05) -> Points:
        """A point of the picture, or just outside it."""
        low, high = -margin, 1 + margin
        return self.rng.uniform(low, high, 2) * (self.width, self.height)

    def direction(self, spread: float) -> Points:
        """A unit vector (2,) around the direction of growth."""
        angle = self.up + self.rng.normal(0, spread)
        return np.array([np.cos(angle), np.sin(angle)])


def render_field(seed: int, *, width: int = 640, height: int = 480) -> Field:
    """Render one field; the same seed and size give the same picture.

    Args:
        seed: at least 0.
        width: of the picture in pixels, at least 32.
        height: of the picture in pixels, at least 32.

    Raises:
        ValueError: the picture would be too small to show anything.
    """
    if width < 32 or height < 32:
        raise ValueError(f"a field needs at least 32 x 32 pixels, got {width} x {height}")
    rng = np.random.default_rng(seed)
    oblique = rng.random() < 0.7
    angle = rng.uniform(-2.5, -0.6)
    scene = _Scene(
        rng=rng,
        width=width,
        height=height,
        unit=min(width, height) / 480 * rng.uniform(0.85, 1.2),
        ripeness=float(rng.beta(1.6, 1.1)),
        up=float(-np.pi / 2 + rng.normal(0, 0.25)) if oblique else float(rng.uniform(-np.pi, np.pi)),
        spread=float(rng.uniform(0.25, 0.6)) if oblique else 1.0,
        light=np.array([np.cos(angle), np.sin(angle)]),
    )
    canvas = Canvas(_ground(scene))
    _paint_blades(canvas, scene, 260, dark=0.55)
    canvas.replace(canvas.picture.filter(ImageFilter.GaussianBlur(2.2 * SUPERSAMPLE / 2)))
    _paint_blades(canvas, scene, 190, dark=0.76)
    canvas.replace(canvas.picture.filter(ImageFilter.GaussianBlur(0.9 * SUPERSAMPLE / 2)))
    ears = _grow(scene, _ear_count(rng))
    full_areas = _paint_ears(canvas, scene, ears)
    return Field(pixels=_develop(canvas.picture, scene), boxes_xyxy=_visible_boxes(canvas, ears, full_areas))


def write_images(folder: Path, count: int, *, first_seed: int) -> list[Path]:
    """Write ``field-001.jpg`` and so on into ``folder``; files that are there already are left alone.

    Args:
        folder: created where it is missing.
        count: how many images.
        first_seed: of ``field-001.jpg``; the next image has the next seed.

    Returns:
        All ``count`` paths, in order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"field-{number:03d}.jpg" for number in range(1, count + 1)]
    for offset, path in enumerate(paths):
        if not path.exists():
            _write_jpeg(path, render_field(first_seed + offset).pixels)
    return paths


def _write_jpeg(path: Path, pixels: NDArray[np.uint8]) -> None:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=92, subsampling=0)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(encoded.getvalue())
        Path(name).replace(path)
    except BaseException:  # a half-written file must not stay behind, whatever the reason
        Path(name).unlink(missing_ok=True)
        raise


def _ear_count(rng: np.random.Generator) -> int:
    chance = rng.random()
    if chance < 0.05:
        return 0
    return int(rng.integers(1, 6) if chance < 0.15 else rng.integers(6, MOST_EARS + 1))


def _cloud(rng: np.random.Generator, cells: int, size: tuple[int, int]) -> NDArray[np.float32]:
    """Smooth noise around 0, float32 (height, width) for ``size`` (width, height)."""
    coarse = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))


def _ground(scene: _Scene) -> Image.Image:
    size = (scene.width, scene.height)
    cover = 0.6 + 0.35 * _cloud(scene.rng, 6, size) + 0.2 * _cloud(scene.rng, 30, size)
    t = np.clip(cover, 0, 1)[..., None]
    grass = scene.colour(_UNDERGROWTH, _UNDERGROWTH * 0.4 + _DRY_LEAF * 0.4, 0.05)
    grain = 1 + 0.14 * _cloud(scene.rng, max(32, scene.height // 4), size)[..., None]
    pixels = (_SOIL * scene.rng.uniform(0.7, 1.0) * (1 - t) + grass * t) * grain
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image.resize((scene.width * SUPERSAMPLE, scene.height * SUPERSAMPLE), Image.Resampling.BILINEAR)


def _blade(scene: _Scene, dark: float) -> Blade:
    rng = scene.rng
    base = scene.anywhere(0.15)
    out = scene.direction(scene.spread + 0.35)
    length = rng.uniform(70, 230) * scene.unit
    side = np.array([-out[1], out[0]]) * rng.normal(0, 0.14) * length
    tip = base + out * length * rng.uniform(0.75, 1.0) + side * 1.6
    colour = scene.colour(_LEAF, _DRY_LEAF, 0.2) * dark
    return Blade(bezier(base, base + out * 0.55 * length, tip, 12), rng.uniform(3.5, 11.0) * scene.unit, colour)


def _paint_blades(canvas: Canvas, scene: _Scene, count: int, *, dark: float) -> None:
    for _ in range(count):
        _blade(scene, dark * scene.rng.uniform(0.8, 1.2)).paint(canvas)


def _grow(scene: _Scene, count: int) -> list[Ear]:
    """Up to ``count`` ears with some distance between them, the farthest first."""
    places: list[Points] = []
    distance = 28 * scene.unit
    for _ in range(count * 6):
        place = scene.anywhere(0.02)
        if len(places) < count and all(np.hypot(*(place - other)) >= distance for other in places):
            places.append(place)
    places.sort(key=lambda place: float(place[1]))
    return [_ear(scene, place) for place in places]


def _ear(scene: _Scene, middle: Points) -> Ear:
    rng = scene.rng
    near = 0.85 + 0.3 * middle[1] / scene.height
    length = rng.uniform(50, 84) * scene.unit * near
    width = length * rng.uniform(0.24, 0.31)
    out = scene.direction(scene.spread)
    side = np.array([-out[1], out[0]]) * rng.normal(0, 0.1) * length
    base, tip = middle - out * length / 2, middle + out * length / 2 + side
    axis = bezier(base, middle - side * 0.3, tip, 12)
    start = (axis[1] - axis[0]) / max(float(np.hypot(*(axis[1] - axis[0]))), 1e-9)
    root = base - start * length * rng.uniform(1.2, 2.2) + rng.normal(0, 0.25, 2) * length
    colour = scene.colour(_GREEN, _RIPE if rng.random() < 0.75 else _STRAW, 0.1)
    rows = int(rng.integers(8, 12))
    return Ear(
        axis=axis,
        width_px=float(width),
        stem=bezier(root, base - start * length * 0.6, base + start * 0.04 * length, 12),
        awns=_awns(rng, axis, float(length), float(rng.uniform(0.4, 0.95))),
        colour=colour,
        stem_colour=scene.colour(_LEAF * 1.25, _STRAW, 0.1) * 0.9,
        tones=rng.uniform(0.9, 1.1, 3 * rows),
        light=scene.light,
    )


def _awns(rng: np.random.Generator, axis: Points, length: float, reach: float) -> tuple[Points, ...]:
    """Bristles that leave the body sideways and bend towards the tip's direction."""
    along = (axis[-1] - axis[0]) / max(float(np.hypot(*(axis[-1] - axis[0]))), 1e-9)
    across = np.array([-along[1], along[0]])
    awns = []
    for number in range(int(rng.integers(14, 22))):
        start = axis[int(rng.integers(3, len(axis)))]
        side = (1.0 if number % 2 else -1.0) * rng.uniform(0.1, 0.5)
        size = length * reach * rng.uniform(0.6, 1.1)
        tip = start + (along + across * side) * size
        awns.append(bezier(start, start + (along * 0.5 + across * side * 0.75) * size, tip, 6))
    return tuple(awns)


def _paint_ears(canvas: Canvas, scene: _Scene, ears: list[Ear]) -> list[int]:
    """Paint all ears, the farthest first; returns the pixels of each within the frame before others hid them."""
    areas = []
    bands = 4
    size = -(-max(len(ears), 1) // bands)
    for first in range(0, max(len(ears), 1), size):
        band = ears[first : first + size]
        _paint_blades(canvas, scene, 22, dark=0.98)
        _cast_shadows(canvas, scene, band)
        for ear in band:
            ear.paint_stem(canvas)
        for number, ear in enumerate(band, start=first + 1):
            ear.paint(canvas, number)
            areas.append(int(np.count_nonzero(_window(canvas, ear)[0] == number)))
            if scene.rng.random() < 0.12:
                _crossing_blade(scene, ear).paint(canvas)
    return areas


def _crossing_blade(scene: _Scene, ear: Ear) -> Blade:
    """A narrow leaf across an ear: part of it is hidden."""
    rng = scene.rng
    angle = rng.uniform(0, 2 * np.pi)
    out = np.array([np.cos(angle), np.sin(angle)]) * ear.length_px * rng.uniform(0.8, 1.4)
    middle = ear.axis[int(rng.integers(3, 9))]
    bend = rng.normal(0, 0.15, 2) * ear.length_px
    colour = scene.colour(_LEAF, _DRY_LEAF, 0.2)
    return Blade(bezier(middle - out, middle + bend, middle + out, 12), rng.uniform(3, 6) * scene.unit, colour)


def _cast_shadows(canvas: Canvas, scene: _Scene, ears: list[Ear]) -> None:
    """Darken what lies behind ``ears``, away from the light; drawn at the finished size, for it is soft anyway."""
    mask = Image.new("L", (scene.width, scene.height), 0)
    pen = ImageDraw.Draw(mask)
    shift = -scene.light * 7 * scene.unit + (0, 3 * scene.unit)
    for ear in ears:
        pen.polygon([(x, y) for x, y in (ear.silhouette() + shift).tolist()], fill=165)
        pen.line([(x, y) for x, y in (ear.stem + shift * 0.6).tolist()], fill=110, width=2)
    soft = mask.filter(ImageFilter.GaussianBlur(3.2 * scene.unit)).resize(canvas.picture.size)
    canvas.replace(Image.composite(Image.new("RGB", canvas.picture.size, (16, 20, 10)), canvas.picture, soft))


def _window(canvas: Canvas, ear: Ear) -> tuple[NDArray[np.int32], tuple[int, int]]:
    """The owners of the pixels around ``ear`` on the canvas, and that window's left and top."""
    margin = ear.width_px
    left, top = np.maximum(0, (ear.axis.min(axis=0) - margin) * SUPERSAMPLE).astype(int).tolist()
    right, bottom = ((ear.axis.max(axis=0) + margin) * SUPERSAMPLE).astype(int).tolist()
    columns, rows = canvas.owners.size
    if right <= left or bottom <= top or left >= columns or top >= rows:
        return np.zeros((0, 0), np.int32), (0, 0)
    crop = canvas.owners.crop((left, top, min(right, columns), min(bottom, rows)))
    return np.asarray(crop, np.int32), (left, top)


def _visible_boxes(canvas: Canvas, ears: list[Ear], full_areas: list[int]) -> NDArray[np.float32]:
    boxes = []
    for number, (ear, in_frame) in enumerate(zip(ears, full_areas, strict=True), start=1):
        owners, (left, top) = _window(canvas, ear)
        ys, xs = np.nonzero(owners == number)
        whole = 0.8 * ear.length_px * ear.width_px * SUPERSAMPLE**2  # body's area if nothing cut it
        if len(xs) < LEAST_VISIBLE * max(in_frame, whole):
            continue
        corners = (left + xs.min(), top + ys.min(), left + xs.max() + 1, top + ys.max() + 1)
        box = np.array(corners, np.float32) / SUPERSAMPLE
        if (box[2:] - box[:2] >= LEAST_SIDE_PX).all():
            boxes.append(box)
    return np.array(boxes, np.float32).reshape(-1, 4)


def _develop(picture: Image.Image, scene: _Scene) -> NDArray[np.uint8]:
    """Reduce to the finished size; then the light's gradient, a lens's blur, a sensor's noise."""
    rng = scene.rng
    image = picture.resize((scene.width, scene.height), Image.Resampling.BOX)
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.15, 0.7))))
    pixels = 255 * (np.asarray(image, np.float32) / 255) ** 0.86
    y, x = np.mgrid[0 : scene.height, 0 : scene.width].astype(np.float32)
    u, v = x / scene.width - 0.5, y / scene.height - 0.5
    slope = rng.uniform(0.1, 0.35) * (u * scene.light[0] + v * scene.light[1])
    exposure = rng.uniform(1.02, 1.3) * (1 + slope - 0.3 * (u * u + v * v))
    warmth = np.array([1.0, 0.99, 0.93]) ** rng.uniform(-0.5, 1.5)
    noisy = pixels * exposure[..., None] * warmth + rng.normal(0, rng.uniform(1.0, 4.0), pixels.shape)
    return np.asarray(np.clip(noisy, 0, 255), np.uint8)
