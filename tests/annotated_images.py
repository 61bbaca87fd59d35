"""Small annotated images for the tests of what is learned from."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from spica.evaluation.truth import Truth
from spica.images import digest_of
from spica.training.dataset import DataSet, Example

CLASSES = ("spike", "weed")
BOXES = ([4.0, 6.0, 20.0, 18.0], [30.5, 10.25, 50.0, 40.0])
ORIENTATION = 0x0112


def photograph(seed: int, size: tuple[int, int] = (64, 48), orientation: int | None = None) -> bytes:
    """A JPEG of ``size`` (width, height) as it is stored; every seed gives one that is like no other."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = PILImage.fromarray(coarse).resize(size, PILImage.Resampling.BICUBIC)
    written = io.BytesIO()
    exif = PILImage.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    image.save(written, "JPEG", quality=90, exif=exif)
    return written.getvalue()


def example(
    folder: Path,
    name: str,
    data: bytes,
    boxes: Sequence[Sequence[float]] = (),
    class_ids: Sequence[int] = (),
    size: tuple[int, int] = (64, 48),
) -> Example:
    """An annotated image, its file written into ``folder``; ``size`` is upright."""
    path = folder / name
    path.write_bytes(data)
    truth = Truth(np.array(boxes, np.float32).reshape(-1, 4), np.array(class_ids, np.int64), *size)
    return Example(path=path, digest=digest_of(data), truth=truth, name=name)


def small_set(folder: Path) -> DataSet:
    """Two images with boxes and one without."""
    folder.mkdir(parents=True, exist_ok=True)
    return DataSet(
        CLASSES,
        (
            example(folder, "a.jpg", photograph(1), BOXES, (0, 1)),
            example(folder, "b.jpg", photograph(2), BOXES[:1], (1,)),
            example(folder, "小麦 empty.jpg", photograph(3)),
        ),
    )


def as_rows(dataset: DataSet) -> dict[str, list[list[float]]]:
    """Class and box of every object, by the image's digest, sorted."""
    return {
        each.digest: sorted(
            [int(class_id), *(round(float(side), 2) for side in box)]
            for box, class_id in zip(each.truth.boxes_xyxy, each.truth.class_ids, strict=True)
        )
        for each in dataset.examples
    }
