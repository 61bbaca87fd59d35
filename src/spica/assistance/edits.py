"""What a person has to do to turn the boxes they are shown into the truth, and how long that takes.

A shown box is *kept* if it is where the object is and says what it is; *moved* if it is near enough to be dragged;
*relabelled* if it says something else; *deleted* if it belongs to no object. Objects without a box are *drawn*. Boxes
and objects are paired one to one so that the person's time is the least: people take the short way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spica.boxes import Detections
from spica.evaluation.matching import iou_float64
from spica.evaluation.truth import Truth

KEEP_IOU: Final = 0.7
"""From this overlap on a box is left as it is: at which Open Images took boxes that people had only verified
(Kuznetsova et al., IJCV 2020, "The Open Images Dataset V4": IoU > 0.7)."""

MOVE_IOU: Final = 0.3
"""Under this overlap a new box is drawn rather than the old one dragged: most of its four sides would have to be set
anew. Our own choice; between the two the cost of a box falls by steps, so the exact place matters little."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds for each kind of edit, all at least 0.

    The defaults stand for somebody used to Label Studio until their own are measured. Known times of drawing a box:
    7 s by four clicks on the object's extremes (Papadopoulos et al., "Extreme clicking for efficient object
    annotation", ICCV 2017), 25.5 s by dragging corners for ImageNet, 42.4 s with checks by others (Su et al.,
    "Crowdsourcing annotations for visual object detection", AAAI workshop 2012, medians). Labels chosen by a key and
    many like objects are the fast end. The others are estimates in proportion: a glance; two sides dragged, half of a
    drawing; a click and a key; a click and a key with less thought.
    """

    kept: float = 0.5
    moved: float = 4.0
    relabelled: float = 2.5
    deleted: float = 1.5
    drawn: float = 7.0

    def __post_init__(self) -> None:
        if min(astuple(self)) < 0:
            raise ValueError(f"negative seconds in {asdict(self)}")


DEFAULT_COSTS: Final = Costs()

Savings = NDArray[np.float64]
"""float64 (N, M): seconds that each pair of a box and an object saves; 0 or less: better left apart."""


@dataclass(frozen=True, slots=True)
class Edits:
    """How many of each, as above, all at least 0; ``both`` are moved and relabelled, and counted in each of these."""

    kept: int = 0
    moved: int = 0
    relabelled: int = 0
    deleted: int = 0
    drawn: int = 0
    both: int = 0

    def __add__(self, other: Edits) -> Edits:
        return Edits(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    @property
    def shown(self) -> int:
        """Boxes that the person was shown."""
        return self.kept + self.moved + self.relabelled - self.both + self.deleted

    @property
    def objects(self) -> int:
        """Boxes there are in the end."""
        return self.kept + self.moved + self.relabelled - self.both + self.drawn

    def as_json(self) -> dict[str, int]:
        """The numbers by kind."""
        return asdict(self)


def edits(shown: Detections, truth: Truth, costs: Costs = DEFAULT_COSTS) -> Edits:
    """The cheapest edits that make ``truth`` of the boxes ``shown``, whose scores don't matter."""
    overlap = iou_float64(shown.boxes_xyxy, truth.boxes_xyxy)  # (N, M)
    right = shown.class_ids[:, None] == truth.class_ids[None, :]
    in_place = overlap >= KEEP_IOU
    partner = assign(_savings(overlap, right, in_place, costs))
    rows = np.flatnonzero(partner >= 0)
    right, in_place = right[rows, partner[rows]], in_place[rows, partner[rows]]
    return Edits(
        kept=int((right & in_place).sum()),
        moved=int((~in_place).sum()),
        relabelled=int((~right).sum()),
        deleted=len(shown) - len(rows),
        drawn=len(truth) - len(rows),
        both=int((~right & ~in_place).sum()),
    )


def cost_s(done: Edits, costs: Costs = DEFAULT_COSTS) -> float:
    """Expected seconds that the edits take."""
    return (
        done.kept * costs.kept
        + done.moved * costs.moved
        + done.relabelled * costs.relabelled
        + done.deleted * costs.deleted
        + done.drawn * costs.drawn
    )


def image_costs_s(
    detections: Sequence[Detections], truths: Sequence[Truth], threshold: float, costs: Costs = DEFAULT_COSTS
) -> list[float]:
    """Expected seconds of correction for each image, if the boxes from ``threshold`` on are shown."""
    return [
        cost_s(edits(image.where(image.scores >= threshold), truth, costs), costs)
        for image, truth in zip(detections, truths, strict=True)
    ]


def assign(savings: Savings) -> NDArray[np.int64]:
    """For each row its column, int64 (N,), -1 for none; no column twice; the sum of the savings is the largest."""
    from scipy.optimize import linear_sum_assignment  # takes a moment to load

    columns = np.full(savings.shape[0], -1, np.int64)
    rows, chosen = linear_sum_assignment(np.maximum(savings, 0.0), maximize=True)
    saves = savings[rows, chosen] > 0
    columns[rows[saves]] = chosen[saves]
    return columns


_PREFERENCE: Final = 1e-6
"""Of two equally cheap pairings the one with more overlap; less than any difference between costs."""


def _savings(overlap: Savings, right: NDArray[np.bool_], in_place: NDArray[np.bool_], costs: Costs) -> Savings:
    """Seconds that correcting a box saves against deleting it and drawing the object, (N, M); 0 where that is not
    possible.
    """
    correcting = np.where(in_place, 0.0, costs.moved) + np.where(right, 0.0, costs.relabelled)
    correcting[right & in_place] = costs.kept
    saved = costs.deleted + costs.drawn - correcting
    return np.where((overlap >= MOVE_IOU) & (saved > 0), saved + _PREFERENCE * overlap, 0.0)
