"""The check of a faster precision against f32: answers to the same photographs, and a verdict."""

from __future__ import annotations

import concurrent.futures
import functools
import logging
import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from spica.boxes import Detections
from spica.detectors.comparison import LEAST_BOXES, Agreement, agreement
from spica.detectors.contract import Detector, Precision, RGBImage
from spica.detectors.openvino import Machine, machine
from spica.errors import ImageError, ModelUnavailableError, SpicaError
from spica.evaluation.bootstrap import Interval, difference, draws
from spica.evaluation.matching import match_all
from spica.evaluation.metrics import Metrics, evaluate
from spica.evaluation.predict import predict
from spica.evaluation.truth import Truth
from spica.images import Image, decode
from spica.models import store
from spica.models.card import Variant, record_variant
from spica.models.load import computed_by, load_detector
from spica.models.locks import writing
from spica.models.serving import Serving
from spica.models.version import ModelIdentity, ModelVersion
from spica.settings import Settings

logger = logging.getLogger(__name__)

MAX_AP50_LOSS: Final = 0.005
"""Half a point: a variant that loses more does not pass."""

RESAMPLES: Final = 1000

UP_IMAGES: Final = 6
"""This many photographs show whether bf16 agrees with f32; a Faster R-CNN takes some two seconds for each."""


@dataclass(frozen=True, slots=True)
class Run:
    """The output in one precision, and the seconds that each image took."""

    detections: list[Detections]
    seconds: list[float]

    @property
    def median_s(self) -> float:
        """The middle time an image, in seconds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True, slots=True)
class Check:
    """How a variant stands beside f32.

    Attributes:
        precision: of the variant.
        run: its output.
        agreement: with f32.
        metrics: by the truth; None without one.
        loss: AP50 of f32 minus AP50 of the variant, with its interval over images; None without a truth.
        exact: the output in f32.
    """

    precision: Precision
    run: Run
    agreement: Agreement
    metrics: Metrics | None
    loss: Interval | None
    exact: Run

    @property
    def passed(self) -> bool:
        """By the truth if there is one with objects in it, else by the agreement."""
        if self.metrics is None or self.loss is None or self.metrics.ap50 is None:
            return self.agreement.passed
        return self.loss.estimate <= MAX_AP50_LOSS

    @property
    def result(self) -> str:
        """The outcome in a few words, for the log, the page and the card."""
        if self.loss is not None and self.metrics is not None and self.metrics.ap50 is not None:
            interval = f"{points(-self.loss.high)} to {points(-self.loss.low)}"
            return f"AP50 {points(-self.loss.estimate)} points ({interval}) on {self.metrics.images} annotated images"
        if self.agreement.score_median is None:
            return f"no boxes to compare on {self.agreement.images} images"
        return f"{self.agreement.share:.1%} of the boxes agree with f32 on {self.agreement.images} images"

    def as_variant(self, *, accept_loss: bool = False, here: Machine | None = None, **own: Any) -> Variant:
        """For the card; ``own`` are graph and files of a variant that has them, and what else was ``measured``."""
        here = here or machine()
        check = {
            "result": self.result,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "processor": here.processor,
            "device": here.device,
            "seconds": round(self.run.median_s, 5),
            "f32_seconds": round(self.exact.median_s, 5),
            "agreement": self.agreement.as_json(),
        }
        if self.metrics is not None and self.loss is not None:
            check["truth"] = {
                "images": self.metrics.images,
                "objects": self.metrics.objects,
                "ap": _rounded(self.metrics.ap),
                "ap50": _rounded(self.metrics.ap50),
                "ap50_loss": _rounded(self.loss.estimate),
                "ap50_loss_interval": [_rounded(self.loss.low), _rounded(self.loss.high)],
                "level": self.loss.level,
            }
        check |= own.pop("measured", {})
        return Variant(passed=self.passed, check=check, accepted_loss=accept_loss and not self.passed, **own)


def points(change: float) -> str:
    """A change of a metric in points of 100, with its sign; what rounds to nothing has a plus."""
    return f"{round(100 * change, 2) + 0.0:+.2f}"


def run_all(
    detectors: Mapping[Precision, Detector],
    photographs: Sequence[Path],
    *,
    max_pixels: int,
    between: Callable[[int], None] = lambda done: None,
) -> dict[Precision, Run]:
    """The output of every detector for every photograph, in turn, so that a busy moment slows all of them.

    ``between`` is called with how many photographs are done; what it raises ends the check.

    Raises:
        ImageError: a photograph can't be read.
    """
    for detector in detectors.values():  # the first image pays for preparations
        detector.detect([np.zeros((64, 64, 3), np.uint8)])

    def pixels(path: Path) -> RGBImage:
        return read(path, max_pixels=max_pixels).pixels

    images = [functools.partial(pixels, path) for path in photographs]
    results = predict(list(detectors.values()), images, between=between)
    return {
        name: Run(result.of_all(), list(result.seconds.values()))
        for name, result in zip(detectors, results, strict=True)
    }


def judge(
    runs: Mapping[Precision, Run],
    *,
    threshold: float,
    truths: Sequence[Truth] | None = None,
    classes: Sequence[str] = (),
) -> dict[Precision, Check]:
    """A check for every precision but f32, of runs on the same images, by the truth about them if there is one.

    Raises:
        UsageError: there is a truth, and the package that computes COCO's metrics is missing.
    """
    exact = runs["f32"]
    checks: dict[Precision, Check] = {}
    for name, run in runs.items():
        if name == "f32":
            continue
        metrics = loss = None
        if truths is not None:
            metrics = evaluate(truths, run.detections, classes)
            ours, theirs = (match_all(truths, output.detections, len(classes)) for output in (run, exact))
            loss = difference(ours.ap, theirs.ap, draws(len(truths), resamples=RESAMPLES))
        agreed = agreement(exact.detections, run.detections, threshold=threshold, least=LEAST_BOXES)
        checks[name] = Check(name, run, agreed, metrics, loss, exact)
    return checks


def check_bf16(
    version: ModelVersion, photographs: Sequence[Path], settings: Settings, *, stop: threading.Event | None = None
) -> Check | None:
    """Compare bf16 with f32 on up to ``UP_IMAGES`` of a person's photographs and write the result into the card.

    None if no photograph can be read, or none shows a box, so that nothing was learned or written.

    Raises:
        WeightsError: the version can't be run.
        StorageError: the card can't be written.
        ModelUnavailableError: ``stop`` was set.
    """
    chosen = readable(spread(photographs, UP_IMAGES), max_pixels=settings.max_pixels)
    if not chosen:
        return None

    def between(done: int) -> None:
        if stop is not None and stop.is_set():
            raise ModelUnavailableError("the check was stopped", where=version.id)

    precisions: tuple[Precision, ...] = ("f32", "bf16")
    detectors = {name: detector_in(version, name, threads=settings.threads) for name in precisions}
    runs = run_all(detectors, chosen, max_pixels=settings.max_pixels, between=between)
    check = judge(runs, threshold=settings.threshold)["bf16"]
    if check.agreement.boxes + check.agreement.others == 0:
        return None
    with writing(settings.data_dir):  # or a form that `spica models optimise` records meanwhile would be lost
        record_variant(version.folder, "bf16", check.as_variant(here=computed_by(version)))
    return check


def detector_in(version: ModelVersion, precision: Precision, *, threads: int) -> Detector:
    """The version's detector in a precision, whole images, on what will serve it."""
    return load_detector(version, threads=threads, device="auto", serving=Serving(precision=precision, why="checked"))


def spread(paths: Sequence[Path], count: int) -> list[Path]:
    """At most ``count`` of the paths, evenly spread over all of them: neighbours often show the same thing."""
    if len(paths) <= count:
        return list(paths)
    return [paths[int(position)] for position in np.linspace(0, len(paths) - 1, count)]


def readable(paths: Sequence[Path], *, max_pixels: int) -> list[Path]:
    """Those that are images within the limit."""
    return [path for path in paths if _is_readable(path, max_pixels)]


def read(path: Path, *, max_pixels: int) -> Image:
    """The photograph in a file.

    Raises:
        ImageError: it can't be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ImageError("an image file can't be read", where=str(path), got=error.strerror) from error
    return decode(content, where=str(path), max_pixels=max_pixels)


def _is_readable(path: Path, max_pixels: int) -> bool:
    try:
        read(path, max_pixels=max_pixels)
    except ImageError:
        return False
    return True


def _rounded(value: float | None) -> float | None:
    return None if value is None or value != value else round(value, 5)  # NaN is not JSON


class FirstCheck:
    """Makes the version and compares bf16 with f32, beside other work, from the entering of the block on.

    Leaving the block stops it after the photograph that is being looked at.
    """

    def __init__(self, identity: ModelIdentity, photographs: Sequence[Path], settings: Settings) -> None:
        self._identity = identity
        self._photographs = photographs
        self._settings = settings
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="spica-first-check")
        self._done: Future[None] = Future()

    def __enter__(self) -> Self:
        self._done = self._pool.submit(self._run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._pool.shutdown()

    def wait(self, given_up: threading.Event | None = None) -> None:
        """Until the check is made, or could not be (the log says why, and f32 is served), or ``given_up`` is set.

        Raises:
            SpicaError: the version itself could not be made.
        """
        while not self._done.done():
            if given_up is not None and given_up.is_set():
                return
            concurrent.futures.wait([self._done], timeout=0.2)  # in pieces, or Ctrl-C would wait too on Windows
        self._done.result()

    def _run(self) -> None:
        try:
            version = store.ensure(
                self._identity, data_dir=self._settings.data_dir, progress=logger.info, stop=self._stop
            )
        except SpicaError:
            raise
        except Exception as error:
            raise ModelUnavailableError(
                "the model can't be prepared",
                where=str(self._identity.weights.path),
                got=f"{type(error).__name__}: {error}",
                hint="try again; if it stays so, please report it",
            ) from error
        try:
            check = check_bf16(version, self._photographs, self._settings, stop=self._stop)
        except Exception as error:  # noqa: BLE001 - of a runtime too; what was not checked is not used
            if not self._stop.is_set():
                why = error.summary if isinstance(error, SpicaError) else f"{type(error).__name__}: {error}"
                logger.warning("bf16 could not be checked, so f32 is used: %s", why)
            return
        if check is None:
            logger.warning("bf16 could not be checked, so f32 is used: no boxes on the photographs looked at")
            return
        logger.info("bf16 %s its check: %s", "has passed" if check.passed else "did not pass", check.result)
