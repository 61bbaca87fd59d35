"""Ask a detector about photographs; what fails is told, and never counts as an image without objects."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spica.boxes import Detections
from spica.detectors.contract import Detector, checked
from spica.errors import SpicaError
from spica.evaluation.naming import Naming
from spica.evaluation.truth import Truth
from spica.images import decode

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Photograph:
    """An image with its truth.

    Attributes:
        name: for people.
        path: the file.
        truth: what is in it.
        group: photographs that show the same thing share it; None if unknown.
    """

    name: str
    path: Path
    truth: Truth
    group: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """What came of it.

    Attributes:
        photographs: that were answered.
        answers: for each of them, with the data set's class ids.
        failures: name and reason of the others.
        seconds: of the network for each photograph answered.
    """

    photographs: tuple[Photograph, ...]
    answers: tuple[Detections, ...]
    failures: tuple[tuple[str, str], ...]
    seconds: tuple[float, ...]

    @property
    def truths(self) -> tuple[Truth, ...]:
        """Of the photographs that were answered."""
        return tuple(photograph.truth for photograph in self.photographs)


def answer(
    detector: Detector,
    photographs: Sequence[Photograph],
    naming: Naming,
    *,
    max_pixels: int,
    progress: Callable[[], None] = lambda: None,
) -> Answered:
    """Every photograph's answer, one after the other.

    Args:
        detector: whatever it raises is that photograph's failure.
        photographs: with the truth in pixels of the upright image; one of another size is a failure.
        naming: of the detector's classes.
        max_pixels: larger images are failures.
        progress: called after each.
    """
    done: list[tuple[Photograph, Detections, float]] = []
    failures: list[tuple[str, str]] = []
    for photograph in photographs:
        try:
            found, seconds = _answer(detector, photograph, max_pixels)
            done.append((photograph, naming.translate(found), seconds))
        except (SpicaError, OSError) as error:
            failures.append((photograph.name, error.summary if isinstance(error, SpicaError) else str(error)))
        except Exception as error:
            logger.debug("%s: the detector failed", photograph.name, exc_info=True)
            failures.append((photograph.name, f"the detector failed: {type(error).__name__}: {error}"))
        progress()
    return Answered(
        tuple(photograph for photograph, _, _ in done),
        tuple(found for _, found, _ in done),
        tuple(failures),
        tuple(seconds for _, _, seconds in done),
    )


def _answer(detector: Detector, photograph: Photograph, max_pixels: int) -> tuple[Detections, float]:
    image = decode(photograph.path.read_bytes(), where=str(photograph.path), max_pixels=max_pixels)
    truth = photograph.truth
    if (image.width, image.height) != (truth.width, truth.height):
        raise SpicaError(
            "the image is not of the size that its annotations are for",
            expected=f"{truth.width} x {truth.height}",
            got=f"{image.width} x {image.height}",
        )
    started = time.perf_counter()
    (found,) = detector.detect([image.pixels])
    seconds = time.perf_counter() - started
    return (
        checked(found, classes=len(detector.classes), width=image.width, height=image.height, detector="the model"),
        seconds,
    )
