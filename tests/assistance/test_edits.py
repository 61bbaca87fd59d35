"""What a person has to do, and what it costs."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripted_detector import detections
from simulated_detectors import detect, random_answers, scenes
from spica.assistance.edits import (
    DEFAULT_COSTS,
    KEEP_IOU,
    MOVE_IOU,
    Costs,
    Edits,
    cost_s,
    edits,
    image_costs_s,
)
from spica.boxes import Detections
from spica.evaluation.matching import iou_float64
from spica.evaluation.truth import Truth

BOX = (0.0, 0.0, 100.0, 100.0)
FAR = (200.0, 200.0, 300.0, 300.0)


def truth(*boxes: tuple[float, float, float, float], class_id: int = 0) -> Truth:
    return Truth(np.array(boxes, np.float32).reshape(-1, 4), np.full(len(boxes), class_id, np.int64), 400, 400)


@pytest.mark.parametrize(
    ("shown", "objects", "expected"),
    [
        (Detections.empty(), truth(), Edits()),
        (Detections.empty(), truth(BOX, FAR), Edits(drawn=2)),
        (detections((*BOX, 0.9)), truth(), Edits(deleted=1)),
        (detections((*BOX, 0.9)), truth(BOX), Edits(kept=1)),
        (detections((0, 0, 100, 70, 0.9)), truth(BOX), Edits(kept=1)),
        (detections((0, 0, 100, 69, 0.9)), truth(BOX), Edits(moved=1)),
        (detections((0, 0, 100, 30, 0.9)), truth(BOX), Edits(moved=1)),
        (detections((0, 0, 100, 29, 0.9)), truth(BOX), Edits(deleted=1, drawn=1)),
        (detections((*BOX, 0.9)), truth(BOX, class_id=1), Edits(relabelled=1)),
        (detections((0, 0, 100, 50, 0.9)), truth(BOX, class_id=1), Edits(moved=1, relabelled=1, both=1)),
        (detections((*BOX, 0.9), (0, 0, 100, 99, 0.8)), truth(BOX), Edits(kept=1, deleted=1)),
        (detections((*BOX, 0.9)), truth(FAR), Edits(deleted=1, drawn=1)),
    ],
    ids=["nothing", "all missing", "too much", "kept", "at the level", "under it", "at the lower level", "under that",
         "wrong label", "wrong label and place", "double", "elsewhere"],
)  # fmt: skip
def test_edits(shown: Detections, objects: Truth, expected: Edits) -> None:
    """Each kind of edit is counted as what it is, at its level and on both sides of it."""
    assert edits(shown, objects) == expected


def test_people_take_the_short_way() -> None:
    """A box that fits two objects goes to the one that leaves less work with the others."""
    objects = truth((0, 0, 100, 100), (30, 0, 130, 100))
    shown = detections((15, 0, 115, 100, 0.9), (-30, 0, 70, 100, 0.8))  # the second fits the first object only
    assert edits(shown, objects) == Edits(kept=1, moved=1)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_nothing_is_cheaper(seed: int) -> None:
    """No other pairing of boxes and objects takes less time, and the counts add up."""
    rng = np.random.default_rng(seed)
    objects, shown = random_answers(rng, int(rng.integers(0, 5)), int(rng.integers(0, 5)), 2)
    found = edits(shown, objects)
    assert (found.shown, found.objects) == (len(shown), len(objects))
    assert found.both <= min(found.moved, found.relabelled)
    assert cost_s(found) == pytest.approx(_cheapest(shown, objects))


def _cheapest(shown: Detections, objects: Truth) -> float:
    """By trying every pairing."""
    overlap = iou_float64(shown.boxes_xyxy, objects.boxes_xyxy)
    costs, lowest = DEFAULT_COSTS, np.inf
    for chosen in itertools.product(range(-1, len(objects)), repeat=len(shown)):
        used = [column for column in chosen if column >= 0]
        if len(set(used)) < len(used):
            continue
        seconds = costs.drawn * (len(objects) - len(used))
        for row, column in enumerate(chosen):
            if column < 0:
                seconds += costs.deleted
            elif overlap[row, column] < MOVE_IOU:
                seconds = np.inf
            else:
                right = shown.class_ids[row] == objects.class_ids[column]
                near = overlap[row, column] >= KEEP_IOU
                seconds += costs.kept if right and near else (not near) * costs.moved + (not right) * costs.relabelled
        lowest = min(lowest, seconds)
    return float(lowest)


def test_own_costs_decide() -> None:
    """Who drags slowly draws anew."""
    shown, objects = detections((0, 0, 100, 50, 0.9)), truth(BOX)
    assert edits(shown, objects, Costs(moved=20)) == Edits(deleted=1, drawn=1)


def test_cost() -> None:
    """The cost is the sum over all edits, each at its own price; one both moved and relabelled takes both times."""
    costs = Costs(kept=1, moved=10, relabelled=100, deleted=1000, drawn=10000)
    done = Edits(kept=1, moved=2, relabelled=3, deleted=4, drawn=5, both=1)
    assert cost_s(done, costs) == 1 + 20 + 300 + 4000 + 50000
    assert done + done == Edits(2, 4, 6, 8, 10, 2)
    assert json.loads(json.dumps(done.as_json()))["drawn"] == 5


def test_negative_costs() -> None:
    """Seconds below zero are refused."""
    with pytest.raises(ValueError, match="negative"):
        Costs(kept=-1)


def test_default_costs_are_sensible() -> None:
    """A good box helps, and every way of mending a box is quicker than to delete it and draw another."""
    costs = DEFAULT_COSTS
    assert costs.kept < costs.relabelled < costs.moved < costs.drawn
    assert costs.moved + costs.relabelled < costs.deleted + costs.drawn


def test_better_detectors_cost_less() -> None:
    """The more a detector finds, the less is left to do; one that finds nothing right costs more than no help."""
    rng = np.random.default_rng(0)
    truths = scenes(rng, 20)
    bare = sum(image_costs_s([Detections.empty()] * 20, truths, 0.5))
    seconds = [sum(image_costs_s(detect(rng, truths, recall=recall), truths, 0.5)) for recall in (0.0, 0.5, 0.9)]
    assert seconds[0] > bare > seconds[1] > seconds[2]


def test_the_threshold() -> None:
    """Only boxes from the threshold on are shown."""
    answer = detections((*BOX, 0.5), (*FAR, 0.4))
    assert image_costs_s([answer], [truth(BOX)], 0.5) == [DEFAULT_COSTS.kept]


def test_a_dense_scene() -> None:
    """800 boxes for 800 objects: each is accounted for, and nearly all are where they should be."""
    rng = np.random.default_rng(0)
    (scene,) = scenes(rng, 1, objects=800)
    (answer,) = detect(rng, [scene], recall=1.0, blur=1.0, false=0)
    found = edits(answer, scene)
    assert (found.shown, found.objects) == (len(scene), len(scene))
    assert found.kept > 0.95 * len(scene)
