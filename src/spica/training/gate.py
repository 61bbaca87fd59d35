"""The gate: whether a candidate takes the active version's place.

Both answer for the hold-out, images that neither was trained on. Compared are two things, image by image: AP50, and the
seconds that a person needs to correct the boxes they would be shown (:mod:`spica.assistance.edits`). The difference of
each has a 95 % interval from a bootstrap over the images in which both versions always meet the same ones.

For each of the two measures:

* **worse**, if the interval of the difference lies wholly on the bad side, however little that be: many small steps
  down would pass one by one;
* **not worse**, if the whole interval is better than a margin: one point of AP50, three percent of the active version's
  seconds or half a second an image, whichever is more;
* **undecided** otherwise.

The candidate is refused if it is worse in either, and becomes active if it is not worse in both. If a measure is
undecided, or the hold-out has fewer than 10 images or 30 objects, there is too little data to tell. Images that show
the same thing (tiles of one photo, near-duplicates) are drawn together, and count as one of the 10. Then the candidate
becomes active only if what can be seen speaks for it: better in one of the two, and not at all worse in the other. In
the beginning, when versions differ much, that lets the first corrections count at once; later, when they hardly differ,
it keeps the version that people know unless both measures favour the new one. Either way the verdict says that it is
not decided, and a person can activate or go back by hand.

"Not worse" allows small losses, and many of them in a row would add up. So a version's verdict carries its drift: what
its line has lost in each measure since its best version, gains counted against losses (the cumulative sum of Page 1954,
Biometrika 41). A candidate that is lower than the active version is also refused if with it the drift would be more
than the margin. A version that was activated by hand against the gate begins with no drift: a person has decided.

Percentile intervals from few images are too narrow. They are taken at a higher level instead, as the expanded
percentile interval is (Hesterberg 2015, The American Statistician 69, 371-386): with Student's t for the normal
quantile, and n / (n - 1) for the variance.

Of simulated candidates that miss five objects in a hundred more than the active version (``scripts/measure_gate.py``),
20 of 100 pass on 6 images, 12 on 10, 7 on 20, one on 50; of those that miss two in a hundred more, 33, 26, 23 and 14.

A hold-out without objects tells nothing of the boxes that matter: the candidate stays out. Where there is no active
version that answers, the candidate is compared with no help at all: with drawing every object by hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from spica.assistance.edits import DEFAULT_COSTS, Costs, image_costs_s
from spica.boxes import Detections
from spica.evaluation.bootstrap import Interval, Statistic, difference, draws, mean_of
from spica.evaluation.matching import match_all
from spica.evaluation.truth import Truth

AP50_MARGIN: Final = 0.01
"""So much lower AP50 is as good. Our own choice: twice what the int8 form of one and the same network may lose."""
COST_MARGIN: Final = 0.03
"""So much more of the active version's seconds an image is as good."""
COST_MARGIN_S: Final = 0.5
"""But not less than this many seconds an image: nobody notices them."""
MIN_IMAGES: Final = 10
"""With fewer, tiles of one photo counted as one, intervals by resampling are not believed, however wide."""
MIN_OBJECTS: Final = 30
LEVEL: Final = 0.95

Against = Literal["active", "nothing"]
Finding = Literal["better", "not worse", "undecided", "worse"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure of both versions.

    Attributes:
        active: of the active version, or of no boxes at all.
        candidate: of the candidate.
        difference: candidate minus active.
        low: of the interval of the difference.
        high: likewise.
    """

    active: float
    candidate: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Drift:
    """What a line of versions has lost since its best one; 0 if nothing.

    Attributes:
        ap50: in AP50.
        cost_s: in seconds of correction an image.
    """

    ap50: float = 0.0
    cost_s: float = 0.0

    @classmethod
    def of(cls, gate: Mapping[str, Any] | None) -> Drift:
        """From the verdict in a version's card; none for one that the gate has not let through, or never saw."""
        if not gate or not gate.get("accepted"):
            return cls()
        told = gate.get("drift")
        found = [told.get(name) for name in ("ap50", "cost_s")] if isinstance(told, Mapping) else [0.0, 0.0]
        return cls(*(max(0.0, float(each)) if isinstance(each, int | float) else 0.0 for each in found))

    def after(self, ap50: Comparison | None, cost_s: Comparison | None) -> Drift:
        """With one version more, that differs so from the one before."""
        return Drift(
            self.ap50 if ap50 is None else max(0.0, self.ap50 - ap50.difference),
            self.cost_s if cost_s is None else max(0.0, self.cost_s + cost_s.difference),
        )


_NO_DRIFT: Final = Drift()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says.

    Attributes:
        passed: the candidate becomes active.
        decided: the data was enough to tell; if not, ``passed`` follows the rule for that.
        reason: sentences for people.
        ap50: in [0, 1], higher is better; None without objects.
        cost_s: expected seconds of correction an image, lower is better; None without images.
        images: of the hold-out that were judged.
        objects: in them.
        threshold: lowest score that is shown.
        against: ``nothing`` if no active version answered.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        drift: of the candidate's line, the candidate included.
    """

    passed: bool
    decided: bool
    reason: str
    ap50: Comparison | None
    cost_s: Comparison | None
    images: int
    objects: int
    threshold: float
    against: Against
    resamples: int
    seed: int
    drift: Drift = _NO_DRIFT

    def as_json(self) -> dict[str, Any]:
        """For the version's card; numbers rounded to five decimals."""
        told = asdict(self)
        for name in ("ap50", "cost_s", "drift"):
            if told[name] is not None:
                told[name] = {key: round(value, 5) for key, value in told[name].items()}
        return told

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Verdict:
        """What :meth:`as_json` wrote.

        Raises:
            KeyError: something is missing.
            TypeError: something is of another kind.
        """
        return cls(
            passed=bool(told["passed"]),
            decided=bool(told["decided"]),
            reason=str(told["reason"]),
            ap50=None if told["ap50"] is None else Comparison(**told["ap50"]),
            cost_s=None if told["cost_s"] is None else Comparison(**told["cost_s"]),
            images=int(told["images"]),
            objects=int(told["objects"]),
            threshold=float(told["threshold"]),
            against="active" if told["against"] == "active" else "nothing",
            resamples=int(told["resamples"]),
            seed=int(told["seed"]),
            drift=Drift(**told.get("drift", {})),
        )


def judge(
    truths: Sequence[Truth],
    active: Sequence[Detections] | None,
    candidate: Sequence[Detections],
    classes: Sequence[str],
    *,
    threshold: float,
    costs: Costs = DEFAULT_COSTS,
    groups: Sequence[str | None] | None = None,
    drift: Drift = _NO_DRIFT,
    resamples: int = 2000,
    seed: int = 0,
) -> Verdict:
    """Compare a candidate with the active version on the hold-out.

    Args:
        truths: of the hold-out, one an image. Images that either version failed on belong in none of the sequences.
        active: the active version's answers for the same images, down to a low score; None if there is none that
            answers. A label that it does not know is one it does not answer, and counts as missed.
        candidate: the candidate's, likewise.
        classes: names, by the class ids of all three.
        threshold: the lowest score that people are shown, in [0, 1].
        costs: seconds for each kind of edit.
        groups: one an image; images of one group (tiles of one photograph) are drawn together.
        drift: of the active version's line.
        resamples: of the bootstrap.
        seed: of the bootstrap; the verdict is the same for the same seed.

    Raises:
        ValueError: not as many answers as truths, or a class id that has no name.
    """
    shown: Sequence[Detections] = [Detections.empty()] * len(truths) if active is None else active
    weights = draws(len(truths), resamples=resamples, seed=seed, groups=groups)
    matches = [match_all(truths, answers, len(classes)) for answers in (shown, candidate)]
    seconds = [np.array(image_costs_s(answers, truths, threshold, costs)) for answers in (shown, candidate)]
    witnesses = _witnesses(len(truths), groups)
    level = level_for(witnesses)
    ap50 = _compared(matches[0].ap, matches[1].ap, weights, level)
    cost_s = _compared(mean_of(seconds[0]), mean_of(seconds[1]), weights, level)
    against: Against = "nothing" if active is None else "active"
    drifted = (drift if active is not None else _NO_DRIFT).after(ap50, cost_s)
    passed, decided, reason = _ruling(truths, witnesses, classes, ap50, cost_s, drifted, against)
    return Verdict(
        passed=passed,
        decided=decided,
        reason=reason,
        ap50=ap50,
        cost_s=cost_s,
        images=len(truths),
        objects=sum(map(len, truths)),
        threshold=threshold,
        against=against,
        resamples=resamples,
        seed=seed,
        drift=drifted,
    )


def _witnesses(images: int, groups: Sequence[str | None] | None) -> int:
    """How many images are independent of each other: those of one group are one."""
    if groups is None:
        return images
    return len({group for group in groups if group is not None}) + sum(group is None for group in groups)


def level_for(witnesses: int) -> float:
    """The level at which the percentile interval of so many images covers the truth in about ``LEVEL`` of the cases."""
    if witnesses < 2:
        return LEVEL
    return 2 * _NORMAL.cdf(math.sqrt(witnesses / (witnesses - 1)) * student_t(witnesses - 1)) - 1


_NORMAL: Final = NormalDist()


def student_t(freedom: int) -> float:
    """Between minus and plus this number lies Student's t in ``LEVEL`` of the cases; to 0.005 from 4 degrees on.

    Abramowitz and Stegun 1964, formula 26.7.5.
    """
    x = _NORMAL.inv_cdf((1 + LEVEL) / 2)
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return x + math.fsum(term / freedom**power for power, term in enumerate(terms, start=1))


def _compared(active: Statistic, candidate: Statistic, weights: NDArray[np.int64], level: float) -> Comparison | None:
    """None where nothing can be said."""
    once = np.ones(weights.shape[1], np.int64)
    found: Interval = difference(active, candidate, weights, level=level)
    if math.isnan(found.estimate) or not found.resamples:
        return None
    return Comparison(active(once), candidate(once), found.estimate, found.low, found.high)


def _ruling(
    truths: Sequence[Truth],
    witnesses: int,
    classes: Sequence[str],
    ap50: Comparison | None,
    cost_s: Comparison | None,
    drift: Drift,
    against: Against,
) -> tuple[bool, bool, str]:
    """Whether it passes, whether that is decided, and why."""
    if cost_s is None:
        return False, False, "The hold-out has no images: nothing can be compared, and the candidate stays out."
    if ap50 is None:
        return (
            False,
            False,
            f"The hold-out's {_counted(len(truths), 'image')} show no objects: nothing can be said of the boxes that "
            "matter, and the candidate stays out.",
        )
    cost_margin = max(COST_MARGIN * cost_s.active, COST_MARGIN_S)
    findings = {
        "AP50": _finding(ap50.low, ap50.high, AP50_MARGIN),
        "the cost of correction": _finding(-cost_s.high, -cost_s.low, cost_margin),
    }
    images, objects = len(truths), sum(map(len, truths))
    scarce = witnesses < MIN_IMAGES or objects < MIN_OBJECTS
    photos = f" of {_counted(witnesses, 'photograph')}" if witnesses < images else ""
    told = [_numbers(ap50, cost_s, images, objects, against), _absent(truths, classes)]
    worse = [measure for measure, finding in findings.items() if finding == "worse"]
    unclear = [measure for measure, finding in findings.items() if finding == "undecided"]
    if worse and not scarce:
        return False, True, _joined(f"Refused: worse in {' and in '.join(worse)}.", *told)
    if not scarce and not unclear:
        lost = _lost(ap50, cost_s, drift, cost_margin)
        if lost:
            return False, True, _joined(f"Refused: a small loss, but {lost} since the best version before it.", *told)
        better = [measure for measure, finding in findings.items() if finding == "better"]
        passed = f"Passed: better in {' and in '.join(better)}" if better else "Passed"
        return True, True, _joined(f"{passed}{', not worse' if len(better) < 2 else ''}.", *told)
    why = (
        f"Too little data to tell ({_counted(images, 'image')}{photos} with {_counted(objects, 'object')} held out, at "
        f"least {MIN_IMAGES} and {MIN_OBJECTS} are wanted)"
        if scarce
        else f"Too little data to tell (the interval of {' and of '.join(unclear)} is too wide)"
    )
    gains = (ap50.difference, -cost_s.difference)
    if worse or min(gains) < 0 or max(gains) == 0:
        return False, False, _joined(f"{why}, and what can be seen does not speak for it: it stays out.", *told)
    return True, False, _joined(f"{why}, but what can be seen speaks for it: it passes, for now.", *told)


def _finding(low: float, high: float, margin: float) -> Finding:
    """For the interval of a gain, which is good if positive."""
    if high < 0:
        return "worse"
    if low > 0:
        return "better"
    return "not worse" if low >= -margin else "undecided"


def _lost(ap50: Comparison, cost_s: Comparison, drift: Drift, cost_margin: float) -> str:
    """What the candidate's line has lost beyond the margins, where the candidate itself has lost; else nothing."""
    lost = []
    if ap50.difference < 0 and drift.ap50 > AP50_MARGIN:
        lost.append(f"{drift.ap50:.3f} of AP50")
    if cost_s.difference > 0 and drift.cost_s > cost_margin:
        lost.append(f"{drift.cost_s:.1f} s of correction an image")
    return f"{' and '.join(lost)} in all" if lost else ""


def _numbers(ap50: Comparison, cost_s: Comparison, images: int, objects: int, against: Against) -> str:
    other = "the active version's" if against == "active" else "the bare image's"
    return (
        f"On {_counted(images, 'image')} with {_counted(objects, 'object')}: AP50 {ap50.candidate:.3f} against {other} "
        f"{ap50.active:.3f} (difference {ap50.difference:+.3f}, 95 % interval {ap50.low:+.3f} to {ap50.high:+.3f}); "
        f"correcting an image takes about {cost_s.candidate:.1f} s against {cost_s.active:.1f} s "
        f"({cost_s.difference:+.1f} s, {cost_s.low:+.1f} to {cost_s.high:+.1f})."
    )


def _absent(truths: Sequence[Truth], classes: Sequence[str]) -> str:
    """The classes of which nothing is known."""
    present = {int(class_id) for truth in truths for class_id in truth.class_ids}
    absent = [name for class_id, name in enumerate(classes) if class_id not in present]
    return f"The hold-out has no objects of {', '.join(absent)}: nothing is said of them." if absent else ""


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _joined(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)
