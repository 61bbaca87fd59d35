"""A candidate on the hold-out: the gate's verdict against the version that answers now, and the check of bf16.

Both versions answer in f32, and in tiles where those are served. Where this machine computes faster in bf16, the
candidate answers in it too, by the same truth: a version that is made here needs no check of its own before it is
served fast.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spica.boxes import Detections
from spica.classes import ClassMap, map_classes
from spica.detectors.contract import Detector
from spica.errors import ImageError, MediaError, SpicaError
from spica.evaluation.truth import Truth
from spica.images import decode
from spica.models import checks
from spica.models.card import record_form
from spica.models.checks import Check, Run
from spica.models.load import computed_by, load_detector
from spica.models.locks import hold, writing
from spica.models.serving import Serving, tile_of
from spica.models.version import ModelVersion
from spica.training import gate
from spica.training.dataset import DataSet
from spica.training.gate import Drift, Verdict
from spica.training.parent import Parent, detector_of
from spica.training.process import Request

logger = logging.getLogger(__name__)

_WANTS_BF16 = ("auto", "bf16")
"""Settings of ``precision`` with which bf16 could be served."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What the hold-out says of a candidate.

    Attributes:
        verdict: the gate's.
        metrics: COCO's, in f32.
        bf16: the candidate in bf16 beside f32; None where that was not looked at.
        notes: why it was not, where it should have been.
    """

    verdict: Verdict
    metrics: dict[str, Any]
    bf16: Check | None
    notes: tuple[str, ...]


@dataclass(slots=True)
class _Asked:
    """A detector, and what it has answered so far with the class ids of the hold-out."""

    detector: Detector | None
    classes: ClassMap
    run: Run = field(default_factory=Run)
    problem: str | None = None

    @classmethod
    def with_names(cls, detector: Detector | None, names: Sequence[str], classes: Sequence[str]) -> _Asked:
        """Classes that the hold-out does not have are left out of the answers."""
        return cls(detector, map_classes(names, classes))

    def ask(self, pixels: NDArray[np.uint8]) -> tuple[Detections, float]:
        """The answer to one image, and its seconds; no boxes without a detector."""
        started = time.perf_counter()
        (found,) = self.detector.detect([pixels]) if self.detector is not None else (Detections.empty(),)
        seconds = time.perf_counter() - started
        return self.classes.translate(found), seconds

    def take(self, answer: tuple[Detections, float]) -> None:
        """Remember an answer."""
        self.run.answers.append(answer[0])
        self.run.seconds.append(answer[1])


def judge(
    request: Request,
    version: ModelVersion,
    parent: Parent | None,
    held: DataSet,
    *,
    threshold: float,
    tell: Callable[..., None],
) -> Judged:
    """Compare a candidate with the version that answers now.

    Args:
        request: with the settings.
        version: the candidate.
        parent: the version that answers now, None if none does.
        held: the hold-out.
        threshold: lowest score that the project shows, in [0, 1].
        tell: called with the stage.

    Raises:
        WeightsError: the candidate can't be run.
    """
    with hold(Path(request.data_dir), version.id):  # judging may take longer than an unused version is left alone
        return _judge(request, version, parent, held, threshold, tell)


def _judge(
    request: Request,
    version: ModelVersion,
    parent: Parent | None,
    held: DataSet,
    threshold: float,
    tell: Callable[..., None],
) -> Judged:
    from spica.evaluation.metrics import evaluate

    detector = load_detector(version, threads=request.threads, serving=_seen(request))
    ours = _Asked.with_names(detector, version.classes, held.classes)
    theirs, problem = _active(request, parent, held.classes)
    fast = _in_bf16(request, version, held.classes)
    truths: list[Truth] = []
    groups: list[str | None] = []
    for number, example in enumerate(held.examples, start=1):
        tell(stage=f"comparing it with the version that answers now, image {number} of {len(held.examples)}")
        try:
            image = decode(
                example.path.read_bytes(), where=example.name, max_pixels=int(request.settings["max_pixels"])
            )
            answers = ours.ask(image.pixels), theirs.ask(image.pixels)
        except (ImageError, MediaError, OSError) as error:  # it has gone since it was read: it counts for neither
            logger.warning("hold-out, %s: %s", example.name, error)
            continue
        truths.append(example.truth)
        groups.append(example.group)
        ours.take(answers[0])
        theirs.take(answers[1])
        _ask_too(fast, image.pixels)
    verdict = gate.judge(
        truths,
        theirs.run.answers if theirs.detector is not None else None,
        ours.run.answers,
        held.classes,
        threshold=threshold,
        groups=groups,
        drift=parent.drift if parent is not None else Drift(),
    )
    if problem is not None:
        verdict = replace(verdict, reason=f"{verdict.reason} {problem}")
    metrics = evaluate(truths, ours.run.answers, held.classes).as_json()
    form, notes = _checked(fast, ours.run, truths, held.classes, threshold)
    return Judged(verdict, metrics, form, notes)


def record_bf16(data_dir: Path, version: ModelVersion, judged: Judged) -> tuple[str, ...]:
    """Write what came of bf16 into the version's card; what people should know of it, a sentence each."""
    if judged.bf16 is None:
        return judged.notes
    logger.info("bf16 %s its check: %s", "has passed" if judged.bf16.passed else "did not pass", judged.bf16.result)
    try:
        with writing(data_dir):
            record_form(version.folder, "bf16", judged.bf16.as_form(here=computed_by(version)))
    except SpicaError as error:
        return (*judged.notes, _unchecked(error.summary))
    return judged.notes


def _seen(request: Request) -> Serving:
    """How the project's photographs are looked at, whole or in tiles, in f32."""
    told = request.settings
    tile = tile_of(str(told.get("tile", "off")))
    return Serving("f32", "compared on the hold-out", tile=tile, overlap=float(told.get("overlap", 0.2)))


def _active(request: Request, parent: Parent | None, classes: Sequence[str]) -> tuple[_Asked, str | None]:
    """What answers now; without a detector, and why, if it can't be asked."""
    if parent is None:
        return _Asked.with_names(None, (), classes), None
    detector, problem = detector_of(parent, Path(request.data_dir), threads=request.threads, serving=_seen(request))
    return _Asked.with_names(detector, parent.names, classes), problem


def _in_bf16(request: Request, version: ModelVersion, classes: Sequence[str]) -> _Asked | None:
    """The candidate in bf16; None where it would not be served in it."""
    if request.settings.get("precision", "auto") not in _WANTS_BF16:
        return None
    asked = _Asked.with_names(None, version.classes, classes)
    try:
        if "bf16" not in computed_by(version).has:
            return None
        serving = replace(_seen(request), precision="bf16")
        asked.detector = load_detector(version, threads=request.threads, serving=serving)
    except (SpicaError, RuntimeError) as error:  # OpenVINO's own
        asked.problem = _told(error)
    return asked


def _ask_too(fast: _Asked | None, pixels: NDArray[np.uint8]) -> None:
    """In turn with the others, so that a busy moment slows all of them; a failure is not the candidate's."""
    if fast is None or fast.problem is not None:
        return
    try:
        fast.take(fast.ask(pixels))
    except (SpicaError, RuntimeError) as error:
        fast.problem = _told(error)


def _checked(
    fast: _Asked | None, exact: Run, truths: Sequence[Truth], classes: Sequence[str], threshold: float
) -> tuple[Check | None, tuple[str, ...]]:
    """By the rule of `spica models optimise --truth`."""
    if fast is None:
        return None, ()
    if fast.problem is not None:
        return None, (_unchecked(fast.problem),)
    runs: dict[Any, Run] = {"f32": exact, "bf16": fast.run}
    found = checks.judge(runs, threshold=threshold, truths=truths, classes=classes)["bf16"] if truths else None
    if found is None or found.agreement.boxes + found.agreement.others == 0:
        return None, (_unchecked("no boxes on the held-out images"),)
    return found, ()


def _unchecked(why: str) -> str:
    return f"bf16 could not be checked, so the version is served in f32: {why}."


def _told(error: Exception) -> str:
    return error.summary if isinstance(error, SpicaError) else str(error)
