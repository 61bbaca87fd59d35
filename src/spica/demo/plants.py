"""Paint the plants of a rendered field: blades, stems and ears, as polygons on a canvas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Points = NDArray[np.float64]
"""float64 (N, 2), x to the right and y downward, in pixels of the finished image."""
Colour = NDArray[np.float64]
"""float64 (3,), RGB, 0 to 255; values beyond are cut when painted."""

SUPERSAMPLE = 2
"""The canvas is painted at this many times the finished size and reduced at the end: smooth edges."""

_NOTHING = 0
_SPIKELET = np.array(
    [[-0.5, 0.0], [-0.3, 0.4], [0.1, 0.5], [0.5, 0.24], [0.66, 0.0], [0.5, -0.24], [0.1, -0.5], [-0.3, -0.4]]
)


def _rgb(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = np.clip(colour, 0, 255).astype(int).tolist()
    return red, green, blue


def _ink(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in (points * SUPERSAMPLE).tolist()]


def bezier(start: Points, control: Points, end: Points, count: int) -> Points:
    """``count`` points, float64 (count, 2), on the quadratic curve through ``start`` and ``end``, each (2,)."""
    t = np.linspace(0.0, 1.0, count)[:, None]
    return np.asarray((1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end)


def normals(curve: Points) -> Points:
    """Unit vectors at a right angle to ``curve`` (N, 2), float64 (N, 2), pointing to its left on the screen."""
    along = np.gradient(curve, axis=0)
    along /= np.maximum(np.hypot(along[:, 0], along[:, 1])[:, None], 1e-9)
    return np.stack([along[:, 1], -along[:, 0]], axis=1)


class Canvas:
    """What is painted so far, and which ear each of its pixels shows.

    Args:
        background: RGB image of the finished size times :data:`SUPERSAMPLE`.
    """

    def __init__(self, background: Image.Image) -> None:
        self.picture = background
        self.owners = Image.new("I", background.size, _NOTHING)
        self._pen = ImageDraw.Draw(self.picture)
        self._owner_pen = ImageDraw.Draw(self.owners)

    def replace(self, picture: Image.Image) -> None:
        """Go on painting on ``picture``, of the same size: the old one, shaded or blurred."""
        self.picture = picture
        self._pen = ImageDraw.Draw(picture)

    def shape(self, outline: Points, colour: Colour, owner: int = _NOTHING) -> None:
        """Fill the polygon ``outline`` (N, 2); its pixels now belong to ear ``owner``, 0 for none."""
        ink = _ink(outline)
        self._pen.polygon(ink, fill=_rgb(colour))
        self._owner_pen.polygon(ink, fill=owner)

    def gloss(self, outline: Points, colour: Colour) -> None:
        """Fill a polygon without changing whose pixels they are."""
        self._pen.polygon(_ink(outline), fill=_rgb(colour))

    def thread(self, line: Points, colour: Colour, width_px: float) -> None:
        """Draw a line through ``line`` (N, 2), too thin to hide what it crosses."""
        self._pen.line(_ink(line), fill=_rgb(colour), width=max(1, round(width_px * SUPERSAMPLE)))


@dataclass(frozen=True, slots=True)
class Blade:
    """A leaf: a tapering ribbon along a curve, one half in the light.

    Attributes:
        spine: (N, 2), from the base to the tip.
        width_px: at its widest.
        colour: of the lit half.
    """

    spine: Points
    width_px: float
    colour: Colour

    def outline(self) -> Points:
        """The whole leaf, (2N, 2)."""
        reach = self._half_widths() * normals(self.spine)
        return np.concatenate([self.spine + reach, (self.spine - reach)[::-1]])

    def _half_widths(self) -> Points:
        t = np.linspace(0.0, 1.0, len(self.spine))
        profile = np.minimum(1.0, 0.45 + 2.2 * t) * np.sqrt(np.clip(1.0 - t, 0.0, 1.0))
        return np.asarray(0.5 * self.width_px * profile)[:, None]

    def paint(self, canvas: Canvas) -> None:
        """Put the leaf over what is there."""
        canvas.shape(self.outline(), self.colour * 0.74)
        reach = self._half_widths() * normals(self.spine)
        canvas.gloss(np.concatenate([self.spine + reach, self.spine[::-1]]), self.colour)
        if self.width_px >= 3.0:
            canvas.thread(self.spine[:-1], self.colour * 1.16 + 6, 0.5)


@dataclass(frozen=True, slots=True)
class Ear:
    """A head of wheat with its stem and awns; made once, so that painting needs no chance.

    Attributes:
        axis: (N, 2), from its base to its tip.
        width_px: of the body.
        stem: (M, 2), from the ground to the base.
        awns: each (K, 2).
        colour: of a grain in full light.
        stem_colour: of the stem.
        tones: (2 * rows + rows,), brightness of each spikelet, around 1.
        light: unit vector (2,) towards the light on the screen.
    """

    axis: Points
    width_px: float
    stem: Points
    awns: tuple[Points, ...]
    colour: Colour
    stem_colour: Colour
    tones: NDArray[np.float64]
    light: Points

    @property
    def length_px(self) -> float:
        """Along the axis, without awns."""
        return float(np.hypot(*np.diff(self.axis, axis=0).T).sum())

    def silhouette(self) -> Points:
        """A plain outline of the body, for its shadow."""
        t = np.linspace(0.0, 1.0, len(self.axis))
        half = (0.5 * self.width_px * np.minimum(1.0, 0.6 + 2.0 * t) * np.sqrt(np.clip(1.08 - t, 0, 1)))[:, None]
        reach = half * normals(self.axis)
        return np.concatenate([self.axis + reach, (self.axis - reach)[::-1]])

    def paint_stem(self, canvas: Canvas) -> None:
        """Put the stem over what is there, with a lit and a shaded side."""
        half = max(0.7, 0.075 * self.width_px)
        side = normals(self.stem) * half
        canvas.shape(np.concatenate([self.stem + side, (self.stem - side)[::-1]]), self.stem_colour * 0.66)
        bright = side if float(side[0] @ self.light) > 0 else -side
        canvas.gloss(np.concatenate([self.stem + bright, self.stem[::-1]]), self.stem_colour)

    def paint(self, canvas: Canvas, owner: int) -> None:
        """Put awns and body over what is there; the body's pixels belong to ``owner``, the awns' do not."""
        fine = max(0.45, 0.035 * self.width_px)
        behind, before = self.awns[::2], self.awns[1::2]
        for awn in behind:
            canvas.thread(awn, self.colour * 0.8 + 8, fine)
        canvas.shape(self.silhouette(), self.colour * 0.5, owner)
        for outline, tone in self._spikelets():
            self._paint_spikelet(canvas, outline, tone, owner)
        for awn in before:
            canvas.thread(awn, self.colour * 1.08 + 14, fine)

    def _paint_spikelet(self, canvas: Canvas, outline: Points, tone: float, owner: int) -> None:
        centre = outline.mean(axis=0)
        canvas.shape(outline, self.colour * (0.52 * tone), owner)
        canvas.gloss(
            centre + (outline - centre) * 0.84 + self.light * (0.035 * self.width_px), self.colour * (0.86 * tone)
        )
        canvas.gloss(
            centre + (outline - centre) * 0.52 + self.light * (0.07 * self.width_px), self.colour * (1.06 * tone) + 10
        )

    def _spikelets(self) -> list[tuple[Points, float]]:
        """Outlines and tones from the tip to the base: as on the plant, the lower lie over the upper."""
        rows = len(self.tones) // 3
        places = np.linspace(0.04, 0.93, rows)
        knots = np.linspace(0.0, 1.0, len(self.axis))
        step = self.length_px / rows
        across = normals(self.axis)
        found = []
        for row in range(rows - 1, -1, -1):
            t = places[row]
            x, y = (np.interp(t, knots, self.axis[:, k]) for k in (0, 1))
            nx, ny = (np.interp(t, knots, across[:, k]) for k in (0, 1))
            normal, along = np.array([nx, ny]), np.array([-ny, nx])
            taper = min(1.0, 0.72 + 1.2 * t) * (1.0 - 0.45 * max(0.0, t - 0.55) / 0.45)
            size = np.array([step * 2.05, self.width_px * 0.52 * taper])
            for lane, side in enumerate((-1.0, 1.0, 0.0)):
                tilt = side * 0.42
                forward = np.cos(tilt) * along + np.sin(tilt) * normal
                sideways = np.array([-forward[1], forward[0]])
                shift = (0.27 * side * taper * self.width_px) * normal + (0.5 * step * (lane == 2)) * along
                scaled = _SPIKELET * size * (0.82 if lane == 2 else 1.0)
                outline = np.array([x, y]) + shift + scaled[:, :1] * forward + scaled[:, 1:] * sideways
                lit = 1.0 + 0.2 * side * float(normal @ self.light) + (0.04 if lane == 2 else 0.0)
                found.append((outline, float(self.tones[3 * row + lane]) * lit))
        return found
