"""How well objects are counted, and what a threshold keeps: the figures that a field count needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spica.boxes import Detections
from spica.evaluation.matching import Matches
from spica.evaluation.truth import Truth


@dataclass(frozen=True, slots=True, eq=False)
class Counting:
    """Predicted against true number of objects, image by image, all classes together.

    Attributes:
        true: int64 (images,).
        predicted: int64 (images,), boxes from the threshold on.
        threshold: lowest score that counts, in [0, 1].
    """

    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    threshold: float

    @property
    def bias(self) -> float | None:
        """Mean of predicted minus true, in objects an image; None without images."""
        return float((self.predicted - self.true).mean()) if len(self.true) else None

    @property
    def mae(self) -> float | None:
        """Mean absolute error, in objects an image; None without images."""
        return float(np.abs(self.predicted - self.true).mean()) if len(self.true) else None

    @property
    def rmse(self) -> float | None:
        """Root of the mean squared error, in objects an image; None without images."""
        return float(np.sqrt(((self.predicted - self.true) ** 2).mean())) if len(self.true) else None

    @property
    def r2(self) -> float | None:
        """Share of the variance of the true numbers that the predicted ones account for: 1 less the squared errors over
        the squared deviations from the mean. Negative if the mean were a better guess; None if all true numbers are
        the same.
        """
        spread = float(((self.true - self.true.mean()) ** 2).sum()) if len(self.true) else 0.0
        return 1.0 - float(((self.predicted - self.true) ** 2).sum()) / spread if spread else None

    def as_json(self) -> dict[str, Any]:
        """For cards and programs; rounded to four decimals."""
        sums = {"true": int(self.true.sum()), "predicted": int(self.predicted.sum())}
        return {"threshold": self.threshold, **sums, **_rounded(self, "bias", "mae", "rmse", "r2")}


def count(truths: Sequence[Truth], detections: Sequence[Detections], threshold: float) -> Counting:
    """Count the objects of each image, and its detections with a score of ``threshold`` and more."""
    return Counting(
        np.array([len(truth) for truth in truths], np.int64),
        np.array([int((image.scores >= threshold).sum()) for image in detections], np.int64),
        threshold,
    )


@dataclass(frozen=True, slots=True)
class AtThreshold:
    """What boxes from a threshold on are worth, all classes together.

    Attributes:
        threshold: lowest score, in [0, 1].
        right: boxes that hit an object of their class.
        wrong: boxes that hit none.
        missed: objects that no box hit.
    """

    threshold: float
    right: int
    wrong: int
    missed: int

    @property
    def precision(self) -> float | None:
        """Share of the boxes that are right; None without boxes."""
        return self.right / (self.right + self.wrong) if self.right + self.wrong else None

    @property
    def recall(self) -> float | None:
        """Share of the objects that are found; None without objects."""
        return self.right / (self.right + self.missed) if self.right + self.missed else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of both; None with neither boxes nor objects."""
        every = 2 * self.right + self.wrong + self.missed
        return 2 * self.right / every if every else None

    def as_json(self) -> dict[str, Any]:
        """For cards and programs; rounded to four decimals."""
        numbers = {"right": self.right, "wrong": self.wrong, "missed": self.missed}
        return {"threshold": round(self.threshold, 4), **numbers, **_rounded(self, "precision", "recall", "f1")}


def at_threshold(matches: Matches, threshold: float) -> AtThreshold:
    """What boxes from ``threshold`` on are worth.

    Leaving out boxes of low score does not change which objects those of high score hit, so the matches of all boxes
    serve every threshold.
    """
    shown = matches.scores >= threshold
    right = int((matches.hits & shown).sum())
    return AtThreshold(threshold, right, int(shown.sum()) - right, int(matches.objects.sum()) - right)


def best_f1(matches: Matches) -> AtThreshold | None:
    """The threshold at which F1 is highest, the higher one of equals; None without boxes or objects."""
    total = int(matches.objects.sum())
    if not total or not len(matches.scores):
        return None
    right = np.cumsum(matches.hits)
    f1 = 2 * right / (np.arange(1, len(right) + 1) + total)
    last_of_score = np.append(np.diff(matches.scores) < 0, True)  # a threshold can't part equal scores
    return at_threshold(matches, float(matches.scores[np.where(last_of_score, f1, -1.0).argmax()]))


def _rounded(source: object, *names: str) -> dict[str, float | None]:
    values: dict[str, float | None] = {name: getattr(source, name) for name in names}
    return {name: None if value is None else round(value, 4) for name, value in values.items()}
