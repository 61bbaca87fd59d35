"""The whole loop with a simulated annotator: does learning from corrections save work, round after round?

``python -m benchmarks.loop`` from the root of the repository; ``--help`` tells how to run less of it.

The annotator is shown the boxes of the active version, and makes the true ones of them, at the cost that
:mod:`spica.assistance.edits` states. After each round of photographs a candidate is trained on all corrected ones but
the hold-out, and the gate decides. Against that: the first version kept for ever, and drawing everything by hand.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spica.assistance.edits import Edits, cost_s, edits
from spica.bench import machine
from spica.boxes import Detections
from spica.detectors.contract import Detector
from spica.evaluation.metrics import evaluate
from spica.evaluation.predict import image_file, predict
from spica.models import store
from spica.models.load import load_detector
from spica.models.serving import Serving
from spica.models.version import ModelVersion
from spica.settings import Settings
from spica.training import gate, holdout, loop
from spica.training.dataset import DataSet, Example
from spica.training.recipe import Recipe
from spica.training.sources import load

from . import loop_speed, report_loop
from .report_loop import Found

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"

PER_ROUND = 20


@dataclass(slots=True)
class Round:
    """What happened in one round.

    Attributes:
        number: from 1.
        annotated: photographs corrected so far, this round's included.
        learning: what the annotator did with the active version's boxes.
        fixed: the same with the first version that passed the gate.
        nothing: the same without any boxes.
        ap50: of the version that is active after the round, on the validation set; None if there is none.
        candidate_ap50: of this round's candidate, likewise.
        train_s: seconds of the training.
        converted_s: seconds of conversion and judging.
        trained_on: photographs that the candidate learned from.
        held_out: photographs that it was judged by.
        passed: whether it became active.
        reason: the gate's.
    """

    number: int
    annotated: int
    learning: Edits
    fixed: Edits
    nothing: Edits
    ap50: float | None = None
    candidate_ap50: float | None = None
    train_s: float = 0.0
    converted_s: float = 0.0
    trained_on: int = 0
    held_out: int = 0
    passed: bool = False
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """With the costs in seconds."""
        told = asdict(self)
        for arm in ("learning", "fixed", "nothing"):
            told[arm]["cost_s"] = cost_s(getattr(self, arm))
        return told


@dataclass(slots=True)
class _State:
    settings: Settings
    place: Path
    classes: tuple[str, ...]
    valid: DataSet
    frozen: holdout.Record = field(default_factory=dict)
    active: ModelVersion | None = None
    detector: Detector | None = None
    first: Detector | None = None
    drift: gate.Drift = field(default_factory=gate.Drift)


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=__doc__)
    add = parser.add_argument
    add("--only", nargs="+", choices=("bccd", "pear", "speed"), default=["bccd", "pear", "speed"], help="parts to run")
    add("--rounds", type=int, default=5, help=f"of {PER_ROUND} photographs")
    add("--data", type=Path, default=DATA, help="folder with bccd/ and pear/, a COCO json each")
    add("--results", type=Path, help="write the report here, and the figure beside it; without it, on the screen")
    add("--figures", type=Path, help="keep the numbers of each part here, and take parts that are not run from there")
    add("--most-valid", type=int, default=0, help="judge on so many validation photographs; 0 for all")
    return parser.parse_args(arguments)


def main() -> None:
    """Run what the command line asks for, and write the report."""
    given = options()
    if not (given.data / "bccd" / "train.json").is_file():
        sys.exit(f"There are no photographs with boxes in {given.data}; name their folder with --data.")
    found: Found = json.loads(given.figures.read_text("utf-8")) if given.figures and given.figures.is_file() else {}
    with tempfile.TemporaryDirectory(prefix="spica-loop-") as name:
        for part in given.only:
            began, folder = datetime.now(UTC), Path(name) / part
            folder.mkdir()
            say(f"== {part}")
            figures: Any
            if part == "speed":
                figures = loop_speed.measure(load(given.data / "bccd" / "train.json"), folder, say=say)
            else:
                figures = [done.as_json() for done in _rounds(given, part, folder)]
            found[part] = {"figures": figures, "when": began.isoformat(timespec="minutes"), "load": machine.load()}
            if given.figures:
                given.figures.write_text(json.dumps(found, indent=1), "utf-8")
    figure = given.results.with_suffix(".png") if given.results else None
    if figure is not None:
        report_loop.draw(found, figure)
    text = report_loop.text(found, "python -m benchmarks.loop " + " ".join(sys.argv[1:]), figure)
    if given.results:
        given.results.write_text(text, "utf-8")
    else:
        print(text)


def say(text: str) -> None:
    """Tell what is being done."""
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", file=sys.stderr, flush=True)


def _rounds(given: argparse.Namespace, name: str, place: Path) -> list[Round]:
    pool = load(given.data / name / "train.json")
    valid = load(given.data / name / "valid.json", classes=pool.classes)
    if given.most_valid:
        valid = replace(valid, examples=valid.examples[:: max(1, len(valid.examples) // given.most_valid)])
    state = _State(Settings(data_dir=place), place, pool.classes, valid)
    order = random.Random(0).sample(pool.examples, len(pool.examples))  # noqa: S311 - reproducible, not secret
    done = []
    for number in range(1, given.rounds + 1):
        new = order[PER_ROUND * (number - 1) : PER_ROUND * number]
        if not new:
            break
        result = _annotate(state, new, number)
        _learn(state, replace(pool, examples=tuple(order[: PER_ROUND * number])), result)
        say(f"round {number}: {result.as_json()}")
        done.append(result)
    return done


def _annotate(state: _State, new: Sequence[Example], number: int) -> Round:
    def work(detector: Detector | None) -> Edits:
        total = Edits()
        for example, answer in zip(new, _answers(detector, new), strict=True):
            total += edits(answer.where(answer.scores >= state.settings.threshold), example.truth)
        return total

    learning = work(state.detector)
    fixed = learning if state.first is state.detector else work(state.first)
    return Round(number, PER_ROUND * number, learning, fixed, work(None))


def _learn(state: _State, annotated: DataSet, result: Round) -> None:
    settings = state.settings
    train, held, state.frozen = holdout.split(
        annotated, state.frozen, share=settings.holdout_share, minimum=settings.holdout_min
    )
    recipe = Recipe.for_data(len(train.examples), continued=state.active is not None)
    folder = state.place / "run" / str(result.number)
    init = state.active.source if state.active is not None else None
    began = time.monotonic()
    trained = loop.train(train, None, folder, recipe, init=init)
    result.train_s = time.monotonic() - began
    began = time.monotonic()
    candidate = store.add(
        state.place,
        trained.weights,
        name="loop",
        parent=state.active.id if state.active is not None else None,
        training={"images": len(train.examples), "boxes": train.boxes},
        metrics={},
        score_floor=settings.score_floor,
        max_detections=settings.max_detections,
        norm_eps=settings.norm_eps,
    )
    detector = load_detector(candidate, device="cpu", serving=Serving())
    truths = [example.truth for example in held.examples]
    verdict = gate.judge(
        truths,
        _answers(state.detector, held.examples) if state.detector is not None else None,
        _answers(detector, held.examples),
        state.classes,
        threshold=settings.threshold,
        groups=[example.group for example in held.examples],
        drift=state.drift,
    )
    result.converted_s = time.monotonic() - began
    result.trained_on, result.held_out = len(train.examples), len(held.examples)
    result.passed, result.reason = verdict.passed, verdict.reason
    result.candidate_ap50 = _ap50(state, detector)
    if verdict.passed:
        state.active, state.detector, state.drift = candidate, detector, verdict.drift
        state.first = state.first or detector
    result.ap50 = result.candidate_ap50 if verdict.passed else _ap50(state, state.detector)


def _ap50(state: _State, detector: Detector | None) -> float | None:
    if detector is None:
        return None
    answers = _answers(detector, state.valid.examples)
    return evaluate([example.truth for example in state.valid.examples], answers, state.classes).ap50


def _answers(detector: Detector | None, examples: Sequence[Example]) -> list[Detections]:
    if detector is None:
        return [Detections.empty()] * len(examples)
    (predictions,) = predict([detector], [image_file(example.path, max_pixels=10**9) for example in examples])
    return predictions.of_all()


if __name__ == "__main__":
    main()
