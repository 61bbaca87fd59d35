"""Ask detectors for many images. What fails keeps its error, and never counts as an image without objects."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spica.boxes import Detections
from spica.detectors.contract import Detector, RGBImage, checked
from spica.errors import SpicaError
from spica.images import decode

logger = logging.getLogger(__name__)

ReadImage = Callable[[], RGBImage]
"""Reads one image, uint8 (H, W, 3), when its turn comes. What it raises is that image's error."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """A detector's output for some images, by the image's position in what was asked.

    Attributes:
        detections: of the images that went well, with the detector's own class ids.
        seconds: of the detector for each of these; the images of a batch share its time.
        errors: of the others.
    """

    detections: dict[int, Detections] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    errors: dict[int, Exception] = field(default_factory=dict)

    def of_all(self) -> list[Detections]:
        """The detections of every image, in order.

        Raises:
            Exception: the error of the first image that failed.
        """
        if self.errors:
            raise next(iter(self.errors.values()))
        return list(self.detections.values())


def predict(
    detectors: Sequence[Detector],
    images: Sequence[ReadImage],
    *,
    batch: int = 1,
    between: Callable[[int], None] = lambda done: None,
) -> tuple[Predictions, ...]:
    """The output of one or several detectors for every image; only one batch of images is in memory.

    Several detectors take turns, so that a busy moment slows all of them and their times can be compared. Where a batch
    fails, its images are asked for one by one.

    Args:
        detectors: whatever they raise is an error of that image.
        images: how each is read.
        batch: images that a detector gets at once, at least 1.
        between: called before each batch, and at the end, with the number of images done; what it raises ends the work.

    Returns:
        One for each detector.
    """
    results = tuple(Predictions() for _ in detectors)
    for start in range(0, len(images), batch):
        between(start)
        pixels: dict[int, RGBImage] = {}
        for position in range(start, min(start + batch, len(images))):
            try:
                pixels[position] = images[position]()
            except Exception as error:
                logger.debug("image %d can't be read", position, exc_info=True)
                for result in results:
                    result.errors[position] = error
        for detector, result in zip(detectors, results, strict=True):
            _detect(detector, pixels, result)
    between(len(images))
    return results


def _detect(detector: Detector, pixels: dict[int, RGBImage], result: Predictions) -> None:
    if not pixels:
        return
    try:
        started = time.perf_counter()
        batch = detector.detect(list(pixels.values()))
        seconds = (time.perf_counter() - started) / len(pixels)
        for image, detections in zip(pixels.values(), batch, strict=True):
            height, width, _ = image.shape
            checked(detections, classes=len(detector.classes), width=width, height=height, detector="the model")
        result.detections.update(zip(pixels, batch, strict=True))
        result.seconds.update(dict.fromkeys(pixels, seconds))
    except Exception as error:
        if len(pixels) > 1:
            for position, image in pixels.items():
                _detect(detector, {position: image}, result)
            return
        (position,) = pixels
        result.errors[position] = error
        logger.debug("image %d: the detector failed", position, exc_info=True)


def image_file(path: Path, *, max_pixels: int, size: tuple[int, int] | None = None) -> ReadImage:
    """How the image in a file is read.

    Args:
        path: the file.
        max_pixels: a larger image is an error.
        size: width and height of the upright image in pixels; one of another size is an error. None for any.
    """

    def read() -> RGBImage:
        image = decode(path.read_bytes(), where=str(path), max_pixels=max_pixels)
        if size not in (None, (image.width, image.height)):
            raise SpicaError(
                "the image is not of the size that its annotations are for",
                expected="{} x {}".format(*size),
                got=f"{image.width} x {image.height}",
            )
        return image.pixels

    return read


def reason(error: Exception) -> str:
    """Why an image failed, in a line."""
    if isinstance(error, SpicaError):
        return error.summary
    return str(error) if isinstance(error, OSError) else f"the detector failed: {type(error).__name__}: {error}"
