"""Photographs a little changed each time they are learned from: mirrored, nearer or farther, in another light.

Built on torchvision's ``transforms.v2``, which moves the boxes along. This module needs torch and torchvision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F  # noqa: N812 - torchvision's own name for it

from spica.training.recipe import Recipe

LEAST_VISIBLE = 0.25
"""An object of which a cut leaves a smaller share is no object any more."""

_NEAREST, _FARTHEST = 0.6, 1.4
"""Sides of what is seen, as shares of the image's sides."""

_FILL = 114
"""Grey around an image that was put on a larger ground."""


class Zoom(v2.Transform):  # type: ignore[misc]  # torchvision ships no types
    """A third of the time nearer (a part is cut out), a third farther (on a larger ground); the aspect ratio stays."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Window left, top, width, height in pixels of the image; it may be larger than the image."""
        image = next(value for value in flat_inputs if isinstance(value, tv_tensors.Image))
        height, width = image.shape[-2:]
        kind, size, x, y = torch.rand(4).tolist()
        share = 1.0
        if kind < 1 / 3:
            share = _NEAREST + (1 - _NEAREST) * size
        elif kind < 2 / 3:
            share = 1 + (_FARTHEST - 1) * size
        wide, high = max(1, round(width * share)), max(1, round(height * share))
        return {"left": round((width - wide) * x), "top": round((height - high) * y), "width": wide, "height": high}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cut or pad one input."""
        height, width = F.get_size(inpt)
        if params["width"] <= width:
            return F.crop(inpt, params["top"], params["left"], params["height"], params["width"])
        left, top = -params["left"], -params["top"]
        return F.pad(inpt, [left, top, params["width"] - width - left, params["height"] - height - top], fill=_FILL)


def build(recipe: Recipe) -> v2.Transform:
    """The changes that a recipe asks for; none at all is fine."""
    steps: list[v2.Transform] = []
    if recipe.flip:
        steps.append(v2.RandomHorizontalFlip(0.5))
    if recipe.flip_vertical:
        steps.append(v2.RandomVerticalFlip(0.5))
    if recipe.zoom:
        steps.append(Zoom())
    if recipe.colour:
        steps.append(v2.ColorJitter(brightness=0.25, contrast=0.25, saturation=0.25, hue=0.02))
    return v2.Compose(steps) if steps else v2.Identity()


def apply(
    transform: v2.Transform, image: Tensor, boxes_xyxy: Tensor, labels: Tensor, *, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One image with its boxes, changed as the seed decides; torch's own random numbers are left as they were.

    Args:
        transform: of :func:`build`.
        image: uint8 (3, H, W).
        boxes_xyxy: float32 (N, 4), pixels.
        labels: int64 (N,).
        seed: at least 0.

    Returns:
        Image, boxes and labels; boxes of which less than ``LEAST_VISIBLE`` is left, or no pixel, are gone.
    """
    boxes = tv_tensors.BoundingBoxes(boxes_xyxy, format="XYXY", canvas_size=tuple(image.shape[-2:]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        changed, moved = transform(tv_tensors.Image(image), boxes)
    sides_before, sides = (b[:, 2:] - b[:, :2] for b in (boxes_xyxy, moved.as_subclass(torch.Tensor)))
    visible = sides.prod(dim=1) / sides_before.prod(dim=1).clamp(min=1e-6)  # (N,); no change scales anything
    keep = (visible >= LEAST_VISIBLE) & (sides >= 1).all(dim=1)
    return changed.as_subclass(torch.Tensor), moved.as_subclass(torch.Tensor)[keep], labels[keep]
