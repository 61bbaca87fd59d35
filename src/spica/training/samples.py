"""The images of a data set as a network wants them: decoded, scaled once, remembered, in a random order by the seed.

Every random number comes from the recipe's seed, the epoch and the image, and from nothing else. So a training that
goes on after a break sees what an unbroken one would have seen. This module needs torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from spica.detectors.networks import max_aspect
from spica.detectors.postprocess import MAX_ASPECT, pad_extreme_aspect, padded_size
from spica.errors import DataSetError
from spica.images import decode
from spica.settings import Settings
from spica.training import augmentation
from spica.training.dataset import DataSet, Example
from spica.training.recipe import Recipe

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]
"""Images float32 (3, H, W) in [0, 1], and for each its ``boxes`` float32 (N, 4) xyxy and ``labels`` int64 (N,) from 1.
"""

_ROOM = 4
"""Strips are padded to so many times what a network takes: :mod:`spica.training.augmentation` makes some narrower."""

_MEMORY_BYTES = 2**30
"""Scaled images are remembered up to so many bytes; the others are read again each time."""


class TrainingImages:
    """Images and boxes by index, scaled to what the network scales them to anyway.

    Args:
        data: at least one example.
        min_size: pixels to which the network scales the shorter side.
        max_size: pixels that the longer side does not exceed.
        max_pixels: larger images are refused.
        aspect: longer strips are padded as :func:`pad_extreme_aspect` does, as they are at detection.
    """

    def __init__(
        self, data: DataSet, *, min_size: int, max_size: int, max_pixels: int, aspect: int = MAX_ASPECT
    ) -> None:
        self.examples = data.examples
        self._aspect = aspect
        self._sizes = min_size, max_size
        self._max_pixels = max_pixels
        self._kept: dict[int, Tensor] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.examples)

    def image(self, index: int) -> Tensor:
        """uint8 (3, H, W); never larger than the network scales it to.

        Raises:
            DataSetError: the file is gone, or is another one than it was.
            ImageError: it can't be decoded.
        """
        image = self._kept.get(index)
        if image is None:
            image = self._read(self.examples[index])
            if self._bytes + image.nbytes <= _MEMORY_BYTES:
                self._kept[index] = image
                self._bytes += image.nbytes
        return image

    def target(self, index: int) -> tuple[Tensor, Tensor]:
        """Boxes float32 (N, 4) in pixels of :meth:`image`, and labels int64 (N,) counted from 1."""
        truth = self.examples[index].truth
        boxes = torch.from_numpy(np.array(truth.boxes_xyxy, np.float32)) * self.scale(index)
        return boxes, torch.from_numpy(np.array(truth.class_ids, np.int64)) + 1

    def scale(self, index: int) -> Tensor:
        """Pixels of :meth:`image` for one of the file's, float32 (4,) for x, y, x, y."""
        truth = self.examples[index].truth
        height, width = self.image(index).shape[-2:]
        wide, high = padded_size(truth.width, truth.height, self._aspect)
        return torch.tensor([width / wide, height / high] * 2, dtype=torch.float32)

    def _read(self, example: Example) -> Tensor:
        try:
            data = example.path.read_bytes()
        except OSError as error:
            raise DataSetError(
                "an image of the training data can't be read",
                where=str(example.path),
                got=error.strerror or type(error).__name__,
                hint="put it back, or leave it out",
            ) from error
        image = decode(data, where=str(example.path), max_pixels=self._max_pixels)
        if (image.width, image.height) != (example.truth.width, example.truth.height):
            raise DataSetError(
                "an image has another size than its boxes were drawn for",
                where=str(example.path),
                expected=f"{example.truth.width} x {example.truth.height} pixels",
                got=f"{image.width} x {image.height}",
                hint="the file was replaced, or turned: label it again, or leave it out",
            )
        pixels = pad_extreme_aspect(image.pixels, self._aspect)
        return _shrunk(torch.from_numpy(pixels).permute(2, 0, 1), *self._sizes)


def _shrunk(image: Tensor, min_size: int, max_size: int) -> Tensor:
    """Scaled down as torchvision's GeneralizedRCNNTransform does it (bilinear, not smoothed); never up."""
    shorter, longer = sorted(image.shape[-2:])
    scale = min(min_size / shorter, max_size / longer)
    if scale >= 1:
        return image.contiguous()
    size = [max(1, int(side * scale)) for side in image.shape[-2:]]
    scaled = F.interpolate(image[None].to(torch.float32), size=size, mode="bilinear", align_corners=False)
    return scaled[0].round().clamp(0, 255).to(torch.uint8)


def for_network(data: DataSet, network: nn.Module) -> TrainingImages:
    """A data set as this network of torchvision's family scales it."""
    transform: Any = network.get_submodule("transform")
    # networks with a fixed input size distort images: more of them is kept, so that nothing is lost
    more = 2 if transform.fixed_size is not None else 1
    return TrainingImages(
        data,
        min_size=more * int(transform.min_size[-1]),
        max_size=more * int(transform.max_size),
        max_pixels=Settings().max_pixels,
        aspect=max(1, max_aspect(network) // _ROOM),
    )


def batch_indices(count: int, recipe: Recipe, epoch: int) -> list[list[int]]:
    """The order of an epoch: each of ``count`` images once, in batches of nearly the same size."""
    generator = torch.Generator().manual_seed(mixed(recipe.seed, "order", epoch))
    order = torch.randperm(count, generator=generator).numpy()
    return [part.tolist() for part in np.array_split(order, -(-len(order) // recipe.batch))]


def batches(images: TrainingImages, recipe: Recipe, epoch: int) -> Iterator[Batch]:
    """The batches of one epoch, augmented, read by this thread: images are in memory after the first epoch."""
    transform = augmentation.build(recipe)
    for indices in batch_indices(len(images), recipe, epoch):
        batch: Batch = ([], [])
        for index in indices:
            seed = mixed(recipe.seed, "image", epoch, index)
            image, boxes, labels = augmentation.apply(transform, images.image(index), *images.target(index), seed=seed)
            batch[0].append(image.to(torch.float32) / 255)
            batch[1].append({"boxes": boxes, "labels": labels})
        yield batch


def whole(images: TrainingImages) -> Iterator[tuple[Example, Tensor, Tensor]]:
    """Each example with its image, not augmented, float32 (3, H, W) in [0, 1], and :meth:`TrainingImages.scale`."""
    for index, example in enumerate(images.examples):
        yield example, images.image(index).to(torch.float32) / 255, images.scale(index)


def mixed(*parts: object) -> int:
    """A seed from several things, in [0, 2^63)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "little") >> 1
