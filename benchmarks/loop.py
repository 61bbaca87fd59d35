"""The whole loop with a simulated annotator: does learning from corrections save work, round after round?

``python -m benchmarks.loop`` from the root of the repository; ``--help`` tells how to run less of it.

The annotator is shown the boxes of the active version, and makes the true ones of them, at the cost that
:mod:`spica.assistance.edits` states. After each round of photographs a candidate is trained on all corrected ones but
the hold-out, and the gate decides. Against that: the first version kept for ever, and drawing everything by hand.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx

from spica.assistance.edits import Edits, cost_s, edits
from spica.bench import server
from spica.bench.photographs import ARCHITECTURE
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
from spica.training.footprint import lower_priority
from spica.training.recipe import Recipe
from spica.training.sources import load

from . import report
from .report import DATA, number, say, table, write_untrained

PER_ROUND = 20
"""Photographs that are corrected before the next training."""
TITLES = {"bccd": "Blood cells (bccd)", "pear": "Pears (pear)"}
ARMS = {"learning": "learning", "fixed": "first version kept", "nothing": "from nothing"}
EDITS = ("kept", "moved", "relabelled", "deleted", "drawn")
_SERVED = ("fasterrcnn_efficientnet_lite0_fpn", ARCHITECTURE)
"""Networks that answer beside a training."""
_BLOCKS, _LOOKS = 4, 8
"""Times that idle and busy take turns, and photographs opened in each."""


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=__doc__)
    add = parser.add_argument
    report.add_options(parser, (*TITLES, "speed"))
    add("--rounds", type=int, default=5, help=f"of {PER_ROUND} photographs")
    add("--data", type=Path, default=DATA, help="folder with bccd/ and pear/, a COCO json each")
    add("--most-valid", type=int, default=0, help="judge on as many validation photographs; 0 for all")
    add("--train-in", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


class Loop:
    """The rounds on one data set.

    Args:
        pool: photographs that are corrected, round by round.
        valid: photographs that nothing is trained or judged on.
        folder: for everything that is made.
    """

    def __init__(self, pool: DataSet, valid: DataSet, folder: Path) -> None:
        self.pool = pool
        self.valid = valid
        self.folder = folder
        self.settings = Settings(data_dir=folder)
        self.order = random.Random(0).sample(pool.examples, len(pool.examples))  # noqa: S311 - not secret
        self.record: holdout.Record = {}
        self.active: ModelVersion | None = None
        self.detector: Detector | None = None
        self.first: Detector | None = None

    def rounds(self, count: int) -> list[dict[str, Any]]:
        """What happened in each round."""
        done = []
        for index in range(1, count + 1):
            new = self.order[PER_ROUND * (index - 1) : PER_ROUND * index]
            if new:
                result = {"round": index, "annotated": PER_ROUND * index, **self._annotate(new), **self._learn(index)}
                say(f"round {index}: {result}")
                done.append(result)
        return done

    def _annotate(self, new: Sequence[Example]) -> dict[str, Any]:
        """Edits and their cost with the active version's boxes, with the first version's, and without any."""
        arms = {"learning": self.detector, "fixed": self.first, "nothing": None}
        result = {}
        for arm, detector in arms.items():
            total = Edits()
            for example, detections in zip(new, detect(detector, new), strict=True):
                total += edits(detections.where(detections.scores >= self.settings.threshold), example.truth)
            result[arm] = {**asdict(total), "cost_s": cost_s(total)}
        return result

    def _learn(self, index: int) -> dict[str, Any]:
        """Train on everything corrected so far but the hold-out, and let the gate decide."""
        settings = self.settings
        annotated = replace(self.pool, examples=tuple(self.order[: PER_ROUND * index]))
        train, held, self.record = holdout.split(
            annotated, self.record, share=settings.holdout_share, minimum=settings.holdout_min
        )
        recipe = Recipe.for_data(len(train.examples), continued=self.active is not None)
        init = self.active.source if self.active is not None else None
        began = time.monotonic()
        trained = loop.train(train, None, self.folder / "run" / str(index), recipe, init=init)
        trained_at = time.monotonic()
        candidate = store.add(
            self.folder,
            trained.weights,
            name="loop",
            parent=self.active.id if self.active is not None else None,
            training={"images": len(train.examples), "boxes": train.boxes},
            metrics={},
            score_floor=settings.score_floor,
            max_detections=settings.max_detections,
            norm_eps=settings.norm_eps,
        )
        detector = load_detector(candidate, device="cpu", serving=Serving())
        verdict = gate.judge(
            [example.truth for example in held.examples],
            detect(self.detector, held.examples) if self.detector is not None else None,
            detect(detector, held.examples),
            self.pool.classes,
            threshold=settings.threshold,
            groups=[example.group for example in held.examples],
        )
        judged_at = time.monotonic()
        candidate_ap50 = self._ap50(detector)
        if verdict.passed:
            self.active, self.detector = candidate, detector
            self.first = self.first or detector
        return {
            "train_s": trained_at - began,
            "converted_s": judged_at - trained_at,
            "trained_on": len(train.examples),
            "held_out": len(held.examples),
            "passed": verdict.passed,
            "reason": verdict.reason,
            "candidate_ap50": candidate_ap50,
            "ap50": candidate_ap50 if verdict.passed else self._ap50(self.detector),
        }

    def _ap50(self, detector: Detector | None) -> float | None:
        if detector is None:
            return None
        truths = [example.truth for example in self.valid.examples]
        return evaluate(truths, detect(detector, self.valid.examples), self.pool.classes).ap50


def detect(detector: Detector | None, examples: Sequence[Example]) -> list[Detections]:
    """A detector's boxes on photographs; none without a detector."""
    if detector is None:
        return [Detections.empty()] * len(examples)
    images = [image_file(example.path, max_pixels=10**9) for example in examples]
    return predict([detector], images)[0].of_all()


def run_rounds(chosen: argparse.Namespace, name: str, folder: Path) -> list[dict[str, Any]]:
    """All rounds on one data set."""
    pool = load(chosen.data / name / "train.json")
    valid = load(chosen.data / name / "valid.json", classes=pool.classes)
    if chosen.most_valid:
        valid = replace(valid, examples=valid.examples[:: max(1, len(valid.examples) // chosen.most_valid)])
    return Loop(pool, valid, folder / name).rounds(chosen.rounds)


def speed(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds until an opened photograph is answered, idle and beside a training, by served network."""
    data = chosen.data / "bccd" / "train.json"
    photographs = [example.path for example in load(data).examples[:_LOOKS]]
    measured = {}
    for architecture in _SERVED:
        weights = write_untrained(folder / f"{architecture}.pth", architecture)
        arguments = ["--weights", str(weights), "--data-dir", str(folder / architecture), "--precision", "f32"]
        times: dict[str, list[float]] = {"idle": [], "beside": []}
        root = photographs[0].parent
        with (
            server.server(root, arguments, {"SPICA_MEMORY_BYTES": "0"}) as running,
            httpx.Client(timeout=300, trust_env=False) as http,
        ):
            running.wait_healthy()
            look = partial(_look, http, running.url, root)
            look(photographs[0])
            for block in range(_BLOCKS):
                say(f"{architecture}: block {block + 1} of {_BLOCKS}")
                times["idle"] += map(look, photographs)
                with training_beside(data, folder / f"{architecture}-{block}"):
                    times["beside"] += map(look, photographs)
        measured[architecture] = times
    return measured


def _look(http: httpx.Client, url: str, root: Path, photograph: Path) -> float:
    began = time.perf_counter()
    server.ask(http, url, [photograph], root, classes=1)
    return time.perf_counter() - began


@contextmanager
def training_beside(data: Path, folder: Path) -> Iterator[None]:
    """A training at the lowest priority on half of the processors, as a server runs it, at its first step."""
    command = [sys.executable, "-m", "benchmarks.loop", "--data", str(data), "--train-in", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as child:  # noqa: S603 - our own module
        try:
            if not any(line.strip() == "step" for line in child.stdout or ()):
                raise RuntimeError(f"the training ended with {child.wait()}")
            yield
        finally:
            child.kill()


def train_for_ever(data: Path, folder: Path) -> None:
    """What :func:`training_beside` starts: says ``step`` at the first step, and goes on until it is killed."""
    lower_priority()
    examples = load(data)
    recipe = Recipe.for_data(len(examples.examples), epochs=1000)
    loop.train(examples, None, folder, recipe, on_progress=lambda _: print("step", flush=True))


def draw(measured: Mapping[str, Any], path: Path) -> None:
    """Two panels a data set: seconds of correction a photograph, and AP50, by round."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = [name for name in TITLES if "figures" in measured.get(name, {})]
    if not names:
        return
    figure, axes = plt.subplots(2, len(names), figsize=(5.2 * len(names), 6.2), squeeze=False, sharex=True)
    for (costs, accuracy), name in zip(axes.T, names, strict=True):
        rounds = measured[name]["figures"]
        numbers = [row["round"] for row in rounds]
        for arm, title in ARMS.items():
            costs.plot(numbers, [row[arm]["cost_s"] / PER_ROUND for row in rounds], marker="o", label=title)
        accuracy.plot(numbers, [row["ap50"] or 0 for row in rounds], marker="o", label="active version")
        refused = [(row["round"], row["candidate_ap50"] or 0) for row in rounds if not row["passed"]]
        accuracy.scatter(*zip(*refused, strict=True) if refused else ([], []), marker="x", label="refused candidate")
        costs.set(title=TITLES[name], ylabel="correction, s a photograph", ylim=(0, None))
        accuracy.set(xlabel="round of 20 photographs", ylabel="AP50, validation", ylim=(0, 1), xticks=numbers)
        for axis in (costs, accuracy):
            axis.grid(alpha=0.3)
            axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _rounds(rounds: Sequence[Mapping[str, Any]]) -> str:
    head: tuple[str, ...] = ("round", "photographs", "edits, learning (kept, moved, relabelled, deleted, drawn)")
    head += (*(f"s a photograph, {title}" for title in ARMS.values()), "training, s", "conversion and gate, s")
    head += ("trained on / held out", "candidate's AP50", "gate", "AP50 after")
    rows = [
        (
            row["round"],
            row["annotated"],
            ", ".join(str(row["learning"][edit]) for edit in EDITS),
            *(f"{row[arm]['cost_s'] / PER_ROUND:.1f}" for arm in ARMS),
            f"{row['train_s']:.0f}",
            f"{row['converted_s']:.0f}",
            f"{row['trained_on']} / {row['held_out']}",
            number(row["candidate_ap50"], ".3f"),
            "passed" if row["passed"] else "refused",
            number(row["ap50"], ".3f"),
        )
        for row in rounds
    ]
    minutes = ", ".join(
        f"{sum(row[arm]['cost_s'] for row in rounds) / 60:.1f} ({title}; "
        f"{sum(row[arm]['cost_s'] for row in rounds[1:]) / 60:.1f} without the first round)"
        for arm, title in ARMS.items()
    )
    reasons = "\n".join(f"- Round {row['round']}: {row['reason']}" for row in rounds)
    return f"{table(head, rows)}\nMinutes of correction in all: {minutes}.\n\nWhat the gate said:\n\n{reasons}"


def _speed(measured: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    rows = []
    for name, times in measured.items():
        medians = [median(times[kind]) for kind in ("idle", "beside")]
        tails = [quantiles(times[kind], n=20)[-1] for kind in ("idle", "beside")]
        looks = f"{len(times['idle'])} + {len(times['beside'])}"
        rows.append((name, *(f"{value:.3f}" for value in medians), f"{medians[1] / medians[0]:.2f}"))
        rows[-1] += (f"{tails[1] / tails[0]:.2f}", looks)
    head = ("served network", "idle, s", "beside a training, s", "times, median", "times, 95th percentile", "looks")
    return (
        "`spica serve` answers one opened photograph at a time (f32, nothing remembered), in turn without and with a "
        f"training at the lowest priority.\n\n{table(head, rows)}"
    )


def main() -> None:
    """Run what the command line asks for, and write the report."""
    chosen = options()
    if chosen.train_in is not None:
        train_for_ever(chosen.data, chosen.train_in)
        return
    if not (chosen.data / "bccd" / "train.json").is_file():
        sys.exit(f"There are no photographs with boxes in {chosen.data}; name their folder with --data.")
    with tempfile.TemporaryDirectory(prefix="spica-loop-", ignore_cleanup_errors=True) as name:
        parts: dict[str, Callable[[], Any]] = {part: partial(run_rounds, chosen, part, Path(name)) for part in TITLES}
        parts["speed"] = partial(speed, chosen, Path(name))
        measured = report.measure(chosen, {part: parts[part] for part in chosen.only})
    sections: dict[str, tuple[str, Callable[[Any], str]]] = {name: (title, _rounds) for name, title in TITLES.items()}
    sections["speed"] = ("Labelling while a training runs", _speed)
    introduction = (
        "A simulated annotator who knows the truth is shown the boxes of the active version (score 0.6 or more) on 20 "
        "new photographs a round, and corrects them; then a candidate is trained on all corrected photographs but the "
        "hold-out, and the gate decides. The cost of edits in seconds is that of `spica.assistance.edits`, assumed "
        "and not measured on people. AP50 is that of the version that is active after the round, on the validation "
        "part."
    )
    if chosen.results is not None:
        draw(measured, chosen.results.with_suffix(".png"))
        introduction += f"\n\n![cost of correction and AP50 by round]({chosen.results.with_suffix('.png').name})\n\n"
    report.publish(report.text("The loop, measured", introduction, measured, sections), chosen.results)


if __name__ == "__main__":
    main()
