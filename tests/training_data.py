"""Rendered wheat as a data set: small photographs on disk with the truth about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spica.demo.field import render_field
from spica.evaluation.truth import Truth
from spica.images import digest_of
from spica.training.dataset import DataSet, Example


def wheat(folder: Path, seeds: Sequence[int], *, width: int = 160, height: int = 120) -> DataSet:
    """A data set with the class ``spike``: a PNG a seed in ``folder``.

    Args:
        folder: made where it is missing.
        seeds: of the fields.
        width: of the images, in pixels.
        height: of the images, in pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for seed in seeds:
        field = render_field(seed, width=width, height=height)
        boxes = field.boxes_xyxy
        truth = Truth(boxes, np.zeros(len(boxes), np.int64), width, height)
        examples.append(example(folder / f"field-{seed}.png", field.pixels, truth))
    return DataSet(("spike",), tuple(examples))


def example(path: Path, pixels: NDArray[np.uint8], truth: Truth) -> Example:
    """An image written to ``path``, with what is in it."""
    Image.fromarray(pixels).save(path)
    return Example(path, digest_of(path.read_bytes()), truth, path.name)
