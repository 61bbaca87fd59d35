"""The gate: whether a candidate takes the active version's place.

Both detect on the hold-out, images that neither was trained on. Compared are AP50, and the seconds that a person needs
to correct the boxes they would be shown (:mod:`spica.assistance.edits`). The difference of each has a 95 % interval
from a paired bootstrap over the images. Each measure is

* **worse**, if the interval lies wholly on the bad side, however little that be;
* **not worse**, if the whole interval is better than a margin: one point of AP50, three percent of the active version's
  seconds or half a second an image, whichever is more;
* **undecided** otherwise.

The candidate is refused if it is worse in either, and becomes active if it is not worse in both. If a measure is
undecided, or the hold-out has fewer than 10 images or 30 objects (images of one group count as one), there is too
little data to tell: then it becomes active only if it is better in one measure and not at all worse in the other.

"Not worse" allows small losses, and many of them would add up. So a verdict carries its drift: what the line of
versions has lost in each measure since its best one, gains counted against losses (the cumulative sum of Page 1954,
Biometrika 41). A candidate that is lower than the active version is also refused if with it the drift would be more
than the margin. A version that was activated by hand against the gate begins with no drift.

Percentile intervals from few images are too narrow, so they are taken at a higher level: the expanded percentile
interval (Hesterberg 2015, The American Statistician 69, 371-386), with Student's t for the normal quantile, and
n / (n - 1) for the variance.

Of simulated candidates that miss five objects in a hundred more than the active version (``scripts/measure_gate.py``),
20 of 100 pass on 6 images, 12 on 10, 7 on 20, one on 50; of those that miss two in a hundred more, 33, 26, 23 and 14.

A hold-out without objects says nothing of the boxes that matter: the candidate stays out. Where no active version
answers, the candidate is compared with drawing every object by hand.
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
from spica.evaluation.bootstrap import Statistic, difference, draws, mean_of
from spica.evaluation.matching import match_all
from spica.evaluation.truth import Truth

AP50_MARGIN: Final = 0.01
"""Our own choice: twice what the int8 form of one and the same network may lose."""
COST_MARGIN: Final = 0.03
"""Share of the active version's seconds an image."""
COST_MARGIN_S: Final = 0.5
"""But not less than this many seconds an image: nobody notices them."""
MIN_IMAGES: Final = 10
"""With fewer, images of one group counted as one, intervals by resampling are not believed, however wide."""
MIN_OBJECTS: Final = 30
LEVEL: Final = 0.95

Against = Literal["active", "nothing"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure of the active version (or of no boxes at all) and of the candidate.

    ``difference`` is candidate minus active, ``low`` and ``high`` are of its interval.
    """

    active: float
    candidate: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Drift:
    """What a line of versions has lost since its best one, in AP50 and in seconds of correction an image; 0 or more."""

    ap50: float = 0.0
    cost_s: float = 0.0

    @classmethod
    def of(cls, verdict: Mapping[str, Any] | None) -> Drift:
        """From the verdict in a version's card; none for one that the gate has not let through, or never saw."""
        drift = verdict.get("drift") if verdict and verdict.get("accepted") else None
        if not isinstance(drift, Mapping):
            return cls()
        return cls(max(0.0, float(drift.get("ap50", 0))), max(0.0, float(drift.get("cost_s", 0))))

    def after(self, ap50: Comparison | None, cost_s: Comparison | None) -> Drift:
        """With one version more, that differs so from the one before."""
        return Drift(
            self.ap50 if ap50 is None else max(0.0, self.ap50 - ap50.difference),
            self.cost_s if cost_s is None else max(0.0, self.cost_s + cost_s.difference),
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says.

    Attributes:
        passed: the candidate becomes active.
        decided: the data was enough to tell; if not, ``passed`` follows the rule for that.
        reason: sentences for people.
        ap50: in [0, 1], higher is better; None without objects.
        cost_s: expected seconds of correction an image, lower is better; None without images.
        threshold: lowest score that is shown.
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
    drift: Drift

    def as_json(self) -> dict[str, Any]:
        """For the version's card; numbers rounded to five decimals."""
        fields = asdict(self)
        for name in ("ap50", "cost_s", "drift"):
            if fields[name] is not None:
                fields[name] = {key: round(value, 5) for key, value in fields[name].items()}
        return fields


def judge(
    truths: Sequence[Truth],
    active: Sequence[Detections] | None,
    candidate: Sequence[Detections],
    classes: Sequence[str],
    *,
    threshold: float,
    costs: Costs = DEFAULT_COSTS,
    groups: Sequence[str | None] | None = None,
    drift: Drift | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Verdict:
    """Compare a candidate with the active version on the hold-out.

    Args:
        truths: of the hold-out, one an image. Images that either version failed on belong in none of the sequences.
        active: the active version's detections on the same images, down to a low score; None if there is none that
            answers. A label that it does not know counts as missed.
        candidate: the candidate's, likewise.
        classes: names, by the class ids of all three.
        threshold: the lowest score that people are shown, in [0, 1].
        costs: seconds for each kind of edit.
        groups: one an image; images of one group (tiles of one photograph) are drawn together.
        drift: of the active version's line.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: not as many detections as truths, or a class id that has no name.
    """
    both = [Detections.empty()] * len(truths) if active is None else active, candidate
    weights = draws(len(truths), resamples=resamples, seed=seed, groups=groups)
    ap50s = [match_all(truths, detections, len(classes)).ap for detections in both]
    costs_s = [mean_of(np.array(image_costs_s(detections, truths, threshold, costs))) for detections in both]
    independent = _independent(len(truths), groups)
    level = level_for(independent)
    ap50 = _compared(ap50s[0], ap50s[1], weights, level)
    cost_s = _compared(costs_s[0], costs_s[1], weights, level)
    against: Against = "nothing" if active is None else "active"
    drift = (drift if drift is not None and active is not None else Drift()).after(ap50, cost_s)
    passed, decided, reason = _ruling(truths, independent, classes, ap50, cost_s, drift, against)
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
        drift=drift,
    )


def level_for(independent: int) -> float:
    """The level at which the percentile interval of this many images covers the truth in about ``LEVEL`` of cases."""
    from scipy.special import stdtrit  # Student's t: takes a moment to load

    if independent < 2:
        return LEVEL
    quantile = float(stdtrit(independent - 1, (1 + LEVEL) / 2))
    return 2 * NormalDist().cdf(math.sqrt(independent / (independent - 1)) * quantile) - 1


def _independent(images: int, groups: Sequence[str | None] | None) -> int:
    """How many images are independent of each other: those of one group are one."""
    if groups is None:
        return images
    return len({group for group in groups if group is not None}) + sum(group is None for group in groups)


def _compared(active: Statistic, candidate: Statistic, weights: NDArray[np.int64], level: float) -> Comparison | None:
    """None where nothing can be said."""
    interval = difference(active, candidate, weights, level=level)
    if math.isnan(interval.estimate) or not interval.resamples:
        return None
    once = np.ones(weights.shape[1], np.int64)
    return Comparison(active(once), candidate(once), interval.estimate, interval.low, interval.high)


def _ruling(
    truths: Sequence[Truth],
    independent: int,
    classes: Sequence[str],
    ap50: Comparison | None,
    cost_s: Comparison | None,
    drift: Drift,
    against: Against,
) -> tuple[bool, bool, str]:
    """Whether it passes, whether that is decided, and why."""
    images, objects = _counted(len(truths), "image"), _counted(sum(map(len, truths)), "object")
    if cost_s is None:
        return False, False, "The hold-out has no images: nothing can be compared, and the candidate stays out."
    if ap50 is None:
        why = f"The hold-out's {images} show no objects: nothing can be said of the boxes that matter"
        return False, False, f"{why}, and the candidate stays out."
    cost_margin = max(COST_MARGIN * cost_s.active, COST_MARGIN_S)
    gains = {  # low, high and margin of each gain, which is good if positive
        "AP50": (ap50.low, ap50.high, AP50_MARGIN),
        "the cost of correction": (-cost_s.high, -cost_s.low, cost_margin),
    }
    worse = [measure for measure, (_, high, _) in gains.items() if high < 0]
    better = [measure for measure, (low, _, _) in gains.items() if low > 0]
    unclear = [measure for measure, (low, high, margin) in gains.items() if high >= 0 and low < -margin]
    scarce = independent < MIN_IMAGES or sum(map(len, truths)) < MIN_OBJECTS
    facts = f"{_numbers(ap50, cost_s, images, objects, against)}{_absent(truths, classes)}"
    if worse and not scarce:
        return False, True, f"Refused: worse in {' and in '.join(worse)}. {facts}"
    if not scarce and not unclear:
        lost = _lost(ap50, cost_s, drift, cost_margin)
        if lost:
            return False, True, f"Refused: a small loss, but {lost} since the best version before it. {facts}"
        passed = f"Passed: better in {' and in '.join(better)}" if better else "Passed"
        return True, True, f"{passed}{', not worse' if len(better) < 2 else ''}. {facts}"
    photos = f" of {_counted(independent, 'photograph')}" if independent < len(truths) else ""
    why = (
        f"{images}{photos} with {objects} held out, at least {MIN_IMAGES} and {MIN_OBJECTS} are wanted"
        if scarce
        else f"the interval of {' and of '.join(unclear)} is too wide"
    )
    differences = (ap50.difference, -cost_s.difference)
    if worse or min(differences) < 0 or max(differences) == 0:
        end = "and what can be seen does not speak for it: it stays out."
        return False, False, f"Too little data to tell ({why}), {end} {facts}"
    return (
        True,
        False,
        f"Too little data to tell ({why}), but what can be seen speaks for it: it passes, for now. {facts}",
    )


def _lost(ap50: Comparison, cost_s: Comparison, drift: Drift, cost_margin: float) -> str:
    """What the candidate's line has lost beyond the margins, where the candidate itself has lost; else nothing."""
    lost = []
    if ap50.difference < 0 and drift.ap50 > AP50_MARGIN:
        lost.append(f"{drift.ap50:.3f} of AP50")
    if cost_s.difference > 0 and drift.cost_s > cost_margin:
        lost.append(f"{drift.cost_s:.1f} s of correction an image")
    return f"{' and '.join(lost)} in all" if lost else ""


def _numbers(ap50: Comparison, cost_s: Comparison, images: str, objects: str, against: Against) -> str:
    other = "the active version's" if against == "active" else "the bare image's"
    return (
        f"On {images} with {objects}: AP50 {ap50.candidate:.3f} against {other} {ap50.active:.3f} "
        f"(difference {ap50.difference:+.3f}, 95 % interval {ap50.low:+.3f} to {ap50.high:+.3f}); "
        f"correcting an image takes about {cost_s.candidate:.1f} s against {cost_s.active:.1f} s "
        f"({cost_s.difference:+.1f} s, {cost_s.low:+.1f} to {cost_s.high:+.1f})."
    )


def _absent(truths: Sequence[Truth], classes: Sequence[str]) -> str:
    """The classes of which nothing is known."""
    present = {int(class_id) for truth in truths for class_id in truth.class_ids}
    absent = [name for class_id, name in enumerate(classes) if class_id not in present]
    return f" The hold-out has no objects of {', '.join(absent)}: nothing is said of them." if absent else ""


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
