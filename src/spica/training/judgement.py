"""A candidate on the hold-out: the gate's verdict against the version that is active, and the check of bf16.

Both are run in f32, and in tiles where those are served. Where this machine computes faster in bf16, the candidate is
run in it too, by the same truth: a version that is made here needs no check of its own before it is served fast.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spica.classes import class_names, map_classes
from spica.detectors.contract import Detector
from spica.errors import ImageError, MediaError, SpicaError
from spica.evaluation.predict import Predictions, image_file, predict, reason
from spica.evaluation.truth import Truth
from spica.labelstudio.config import RectangleControl, match_labels
from spica.models import checks
from spica.models.card import read_card, record_variant
from spica.models.checks import Check, Run
from spica.models.load import computed_by, load_detector
from spica.models.locks import hold, writing
from spica.models.serving import Serving, tile_of
from spica.models.version import ModelVersion, open_version, version_info
from spica.training import gate, initialise
from spica.training.dataset import DataSet
from spica.training.gate import Drift, Verdict
from spica.training.runs import TrainingJob

logger = logging.getLogger(__name__)

_WANTS_BF16 = ("auto", "bf16")
"""Settings of ``precision`` with which bf16 could be served."""


@dataclass(frozen=True, slots=True)
class Parent:
    """The active version: what a training begins with, and what its result is compared with.

    Attributes:
        names: of its classes as the project calls them; their own where the project does not know them.
        init: the folder, if a training can begin with it, else None, and ``why_not`` says why.
    """

    folder: Path
    id: str
    names: tuple[str, ...]
    init: Path | None
    why_not: str | None
    drift: Drift = field(default_factory=Drift)

    @classmethod
    def of(cls, job: TrainingJob, controls: Sequence[RectangleControl]) -> Parent | None:
        """The version that a job names; None if it names none.

        Raises:
            WeightsError: its files can't be used.
        """
        if job.parent is None or job.parent_id is None:
            return None
        card = read_card(job.parent)
        info = version_info(job.parent, card)
        why_not = initialise.obstacle(info)
        names = _project_names(info.classes, controls)
        init = job.parent if why_not is None else None
        return cls(job.parent, job.parent_id, names, init, why_not, Drift.of(card.gate))

    def is_stored(self, data_dir: Path) -> bool:
        """Whether it has a folder in the store; the weights of a server have none."""
        return (data_dir / "models" / self.id).is_dir()


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the hold-out says of a candidate.

    Attributes:
        metrics: COCO's, in f32.
        bf16: the candidate in bf16 beside f32; None where that was not checked.
        notes: why it was not, where it should have been.
    """

    verdict: Verdict
    metrics: dict[str, Any]
    bf16: Check | None
    notes: tuple[str, ...]


def judge(
    job: TrainingJob,
    candidate: ModelVersion,
    parent: Parent | None,
    holdout: DataSet,
    *,
    threshold: float,
    report: Callable[..., None],
) -> Judgement:
    """Compare a candidate with the active version.

    Args:
        job: with the settings.
        candidate: in the store.
        parent: the active version, None if there is none.
        holdout: to compare on.
        threshold: lowest score that the project shows, in [0, 1].
        report: called with the stage.

    Raises:
        WeightsError: the candidate can't be run.
    """
    with hold(job.settings.data_dir, candidate.id):  # comparing may take longer than an unused version is left alone
        return _judge(job, candidate, parent, holdout, threshold, report)


def record_bf16(data_dir: Path, version: ModelVersion, judgement: Judgement) -> tuple[str, ...]:
    """Write what came of bf16 into the version's card; notes on it, a sentence each."""
    form = judgement.bf16
    if form is None:
        return judgement.notes
    logger.info("bf16 %s its check: %s", "has passed" if form.passed else "did not pass", form.result)
    try:
        with writing(data_dir):
            record_variant(version.folder, "bf16", form.as_variant(here=computed_by(version)))
    except SpicaError as error:
        return (*judgement.notes, _unchecked(error.summary))
    return judgement.notes


def _judge(
    job: TrainingJob,
    candidate: ModelVersion,
    parent: Parent | None,
    holdout: DataSet,
    threshold: float,
    report: Callable[..., None],
) -> Judgement:
    from spica.evaluation.metrics import evaluate

    tile = tile_of(job.settings.tile)
    serving = Serving("f32", "compared on the hold-out", tile=tile, overlap=job.settings.overlap)
    exact = load_detector(candidate, threads=job.threads, serving=serving)
    active, problem = _active(job, parent, serving)
    fast, unchecked = _in_bf16(job, candidate, serving)

    def between(done: int) -> None:
        report(stage=f"comparing it with the active version, image {done + 1} of {len(holdout.examples)}")

    detectors = [detector for detector in (exact, active, fast) if detector is not None]
    images = [image_file(example.path, max_pixels=job.settings.max_pixels) for example in holdout.examples]
    results = list(predict(detectors, images, between=between))
    for position, error in results[0].errors.items():
        if not isinstance(error, ImageError | MediaError | OSError):
            raise error
        logger.warning("hold-out, %s: %s", holdout.examples[position].name, reason(error))
    compared = results[: 1 + (active is not None)]
    positions = [
        n for n in range(len(images)) if all(n in result.detections for result in compared)
    ]  # else for neither
    truths = [holdout.examples[position].truth for position in positions]
    ours = _run(results[0], positions, candidate.classes, holdout.classes)
    theirs = _run(results[1], positions, parent.names, holdout.classes) if parent is not None and active else None
    verdict = gate.judge(
        truths,
        theirs.detections if theirs is not None else None,
        ours.detections,
        holdout.classes,
        threshold=threshold,
        groups=[holdout.examples[position].group for position in positions],
        drift=parent.drift if parent is not None else None,
    )
    if problem is not None:
        verdict = replace(verdict, reason=f"{verdict.reason} {problem}")
    check = None
    if fast is not None:
        failed = [results[-1].errors[position] for position in positions if position in results[-1].errors]
        if not failed:
            run = _run(results[-1], positions, candidate.classes, holdout.classes)
            check = _check(ours, run, truths, holdout.classes, threshold)
        if check is None:
            unchecked = _unchecked(reason(failed[0]) if failed else "no boxes on the held-out images")
    metrics = evaluate(truths, ours.detections, holdout.classes).as_json()
    return Judgement(verdict, metrics, check, (unchecked,) if unchecked is not None else ())


def _run(result: Predictions, positions: Sequence[int], names: Sequence[str], classes: Sequence[str]) -> Run:
    """Detections of these images by the class ids of the hold-out; other classes are left out."""
    class_map = map_classes(names, classes)
    detections = [class_map.translate(result.detections[position]) for position in positions]
    return Run(detections, [result.seconds[position] for position in positions])


def _active(job: TrainingJob, parent: Parent | None, serving: Serving) -> tuple[Detector | None, str | None]:
    """The active version's detector; None and a sentence why, if it can't be run."""
    if parent is None:
        return None, None
    data_dir = job.settings.data_dir
    try:
        version = (
            open_version(data_dir, parent.id)
            if parent.is_stored(data_dir)
            else ModelVersion(parent.folder, read_card(parent.folder), data_dir / "cache" / f"{parent.id}-compared")
        )
        return load_detector(version, threads=job.threads, serving=serving), None
    except SpicaError as error:
        logger.warning("the active version can't be compared with: %s", error.summary)
        return None, f"{parent.id} could not be asked ({error.what}), so it was compared with drawing by hand."


def _in_bf16(job: TrainingJob, candidate: ModelVersion, serving: Serving) -> tuple[Detector | None, str | None]:
    """The candidate in bf16; None where it would not be served in it, with a note where it can't be run in it."""
    try:
        if job.settings.precision not in _WANTS_BF16 or "bf16" not in computed_by(candidate).has:
            return None, None
        threads, serving = job.threads, replace(serving, precision="bf16")
        return load_detector(candidate, threads=threads, serving=serving), None
    except (SpicaError, RuntimeError) as error:  # OpenVINO's own
        return None, _unchecked(reason(error))


def _check(exact: Run, fast: Run, truths: Sequence[Truth], classes: Sequence[str], threshold: float) -> Check | None:
    """By the rule of `spica models optimise --truth`; None where there are no boxes to compare."""
    if not truths:
        return None
    runs: dict[Any, Run] = {"f32": exact, "bf16": fast}
    check = checks.judge(runs, threshold=threshold, truths=truths, classes=classes)["bf16"]
    return check if check.agreement.boxes + check.agreement.others else None


def _project_names(classes: Sequence[str], controls: Sequence[RectangleControl]) -> tuple[str, ...]:
    """A model's classes as the project calls them: by the rules that its predictions are shown by."""
    names: list[str | None] = [None] * len(classes)
    for control in controls:
        names = [name or label for name, label in zip(names, match_labels(classes, control).labels, strict=True)]
    return tuple(name or own for name, own in zip(names, class_names(classes), strict=True))


def _unchecked(why: str) -> str:
    return f"bf16 could not be checked, so the version is served in f32: {why}."
