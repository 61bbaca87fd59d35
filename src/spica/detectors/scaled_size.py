"""The size to which torchvision's detectors scale an image, computed in a graph to the pixel.

torchvision multiplies in 64-bit floats: ``floor(side * (min_size / shorter))``, or with ``max_size / longer`` if that
is smaller (``_resize_image_and_masks`` in torchvision/models/detection/transform.py, and ``interpolate`` of torch).
While it is traced it multiplies in 32 bits, and OpenVINO has no more than 32; the size then is one pixel smaller for
about one image in six, 4000 x 3000 among them, and all boxes move a little.

In whole numbers: let ``n`` be the side that decides and ``m`` its target. ``floor(side * m / n)`` is what torchvision
means. It gets one less where ``side * m / n`` is a whole number ``E`` and the quotient was rounded down too far: with
``fl(m / n) = (m / n)(1 + d)``, the product ``E(1 + d)`` is rounded to a number below ``E`` if ``-d E`` is more than
half the distance to the next float, which is 2^(e-52) for E between 2^e and 2^(e+1), and half of that below E = 2^e.
``d`` for each ``n`` is worked out exactly beforehand and kept in the graph as a table.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

_SIDES = 2**14
"""Sides in the table; the rounding of larger ones is not followed."""


def rounding_table(target: int) -> NDArray[np.float32]:
    """``-d * 2^53`` by side, float32 (16384,): how far ``target / side`` is rounded down, in units of 2^-53.

    Args:
        target: ``min_size`` or ``max_size`` of the network.
    """
    table = np.zeros(_SIDES, np.float32)
    for side in range(1, _SIDES):
        exact = Fraction(target, side)
        table[side] = float((exact - Fraction(target / side)) / exact * 2**53)
    return table


class ScaledSize:
    """Computes the size while a network is traced.

    Args:
        min_size: the shorter side is scaled to so many pixels,
        max_size: but the longer side to no more than so many.
    """

    def __init__(self, min_size: int, max_size: int) -> None:
        import torch

        self._targets = (min_size, max_size)
        self._tables = [torch.from_numpy(rounding_table(target)) for target in self._targets]
        most = max(self._targets)
        # half the distance to the next float below E, in units of 2^-53
        below = [0.0, *(2.0 ** ((E - 1).bit_length() - 1) if E > 1 else 0.5 for E in range(1, most + 1))]
        self._half = torch.tensor(below, dtype=torch.float32)

    def __call__(self, sides: torch.Tensor) -> torch.Tensor:
        """The size for an image, int64 (2,), from its height and width, int64 (2,)."""
        import torch

        shorter, longer = sides.min(), sides.max()
        min_size, max_size = self._targets
        by_shorter = min_size * longer <= max_size * shorter
        target = torch.where(by_shorter, min_size, max_size)
        decides = torch.where(by_shorter, shorter, longer)
        place = decides.clamp(max=_SIDES - 1)
        rounded = torch.where(by_shorter, self._tables[0][place], self._tables[1][place])
        rounded = rounded * (decides < _SIDES)
        product = sides * target
        scaled = torch.div(product, decides, rounding_mode="floor")
        exact = scaled * decides == product
        half = self._half[scaled.clamp(max=len(self._half) - 1)]
        return scaled - (exact & (scaled * rounded > half)).to(scaled.dtype)
