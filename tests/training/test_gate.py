"""The gate: never gets worse unnoticed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from simulated_detectors import detect, scenes
from spica.boxes import Detections
from spica.evaluation.bootstrap import draws, interval, mean_of
from spica.evaluation.truth import Truth
from spica.training import gate
from spica.training.gate import AP50_MARGIN, COST_MARGIN, COST_MARGIN_S, Comparison, Drift, Verdict, judge

RESAMPLES = 200


def compare(
    seed: int, images: int, active: float | None, candidate: float, *, objects: float = 12, blur: float = 2.0
) -> Verdict:
    """The verdict on detectors that find so large a share of the objects."""
    rng = np.random.default_rng(seed)
    truths = scenes(rng, images, objects=objects)
    ours = detect(rng, truths, recall=active, blur=blur) if active is not None else None
    return judge(
        truths, ours, detect(rng, truths, recall=candidate), ["ear"], threshold=0.5, resamples=RESAMPLES, seed=seed
    )


def test_better_passes() -> None:
    """A candidate that finds much more becomes active, and why is told in numbers."""
    verdict = compare(0, 30, 0.5, 0.9)
    assert (verdict.passed, verdict.decided, verdict.against) == (True, True, "active")
    assert verdict.ap50 is not None
    assert verdict.cost_s is not None
    assert verdict.ap50.low > 0.1
    assert verdict.cost_s.high < 0
    assert verdict.ap50.difference == pytest.approx(verdict.ap50.candidate - verdict.ap50.active)
    assert verdict.reason.startswith("Passed: better in AP50 and in the cost of correction.")
    assert f"AP50 {verdict.ap50.candidate:.3f} against the active version's {verdict.ap50.active:.3f}" in verdict.reason
    assert (verdict.images, verdict.threshold) == (30, 0.5)


def test_worse_is_refused() -> None:
    """A candidate that finds much less is refused."""
    verdict = compare(0, 30, 0.9, 0.5)
    assert (verdict.passed, verdict.decided) == (False, True)
    assert verdict.reason.startswith("Refused: worse in AP50 and in the cost of correction.")


def test_shuffled_labels_are_refused() -> None:
    """A candidate that finds everything, but has the labels mixed up, is refused."""
    rng = np.random.default_rng(0)
    truths = scenes(rng, 20, classes=3)
    active = detect(rng, truths, recall=0.8)
    candidate = [replace_classes(answer, rng) for answer in detect(rng, truths, recall=0.95)]
    verdict = judge(truths, active, candidate, ["a", "b", "c"], threshold=0.5, resamples=RESAMPLES)
    assert (verdict.passed, verdict.decided) == (False, True)


def replace_classes(answer: Detections, rng: np.random.Generator) -> Detections:
    return Detections(answer.boxes_xyxy, answer.scores, rng.permutation(answer.class_ids))


def test_the_same_passes() -> None:
    """A candidate with the very same answers is not worse."""
    rng = np.random.default_rng(0)
    truths = scenes(rng, 15)
    answers = detect(rng, truths, recall=0.8)
    verdict = judge(truths, answers, answers, ["ear"], threshold=0.5, resamples=RESAMPLES)
    assert (verdict.passed, verdict.decided) == (True, True)
    assert verdict.reason.startswith("Passed, not worse.")


def test_small_but_certain_losses_are_refused() -> None:
    """A loss smaller than any margin is refused if every resample shows it: many of them would add up."""
    rng = np.random.default_rng(0)
    truths = scenes(rng, 60, objects=30)
    active = detect(rng, truths, recall=0.6, false=0)
    candidate = [
        answer if at % 4 else answer.where(np.arange(len(answer)) > 0) for at, answer in enumerate(active)
    ]  # of every fourth image the best box is gone
    verdict = judge(truths, active, candidate, ["ear"], threshold=0.0, resamples=RESAMPLES)
    assert verdict.cost_s is not None
    assert 0 < verdict.cost_s.difference < COST_MARGIN * verdict.cost_s.active
    assert (verdict.passed, verdict.decided) == (False, True)


def test_mirrored() -> None:
    """With the parts exchanged, differences and intervals are the same with the other sign."""
    rng = np.random.default_rng(0)
    truths = scenes(rng, 15)
    one, two = detect(rng, truths, recall=0.8), detect(rng, truths, recall=0.7)
    there = judge(truths, one, two, ["ear"], threshold=0.5, resamples=RESAMPLES)
    back = judge(truths, two, one, ["ear"], threshold=0.5, resamples=RESAMPLES)
    for forth, other in ((there.ap50, back.ap50), (there.cost_s, back.cost_s)):
        assert forth is not None
        assert other is not None
        assert other.difference == pytest.approx(-forth.difference)
        assert (other.low, other.high) == pytest.approx((-forth.high, -forth.low))
    assert there == judge(truths, one, two, ["ear"], threshold=0.5, resamples=RESAMPLES)


def test_false_acceptance() -> None:
    """Of candidates that miss one object in ten more, next to none passes, whatever the number of images held out."""
    for images, most in ((6, 3), (20, 1)):
        passed = sum(compare(seed, images, 0.85, 0.75).passed for seed in range(24))
        assert passed <= most, f"{passed} of 24 on {images} images"


def test_true_acceptance() -> None:
    """Of candidates that find one object in ten more, nearly all pass; of first ones that find most, all."""
    assert sum(compare(seed, 20, 0.75, 0.85).passed for seed in range(12)) >= 10
    assert all(compare(seed, 6, 0.1, 0.7).passed for seed in range(6))


def test_undecided() -> None:
    """Versions that differ by chance alone are told to be undecided, and pass only if nothing speaks against it."""
    verdicts = [compare(seed, 12, 0.8, 0.8) for seed in range(16)]
    undecided = [verdict for verdict in verdicts if not verdict.decided]
    assert len(undecided) > 8
    assert {verdict.passed for verdict in undecided} == {True, False}
    for verdict in undecided:
        assert verdict.ap50 is not None
        assert verdict.cost_s is not None
        assert verdict.reason.startswith("Too little data to tell (the interval of ")
        assert verdict.passed == (verdict.ap50.difference >= 0 and verdict.cost_s.difference <= 0)


def test_scarce_data_is_told() -> None:
    """With few images or objects nothing is decided, however clear it looks."""
    good, bad = compare(0, 5, 0.3, 0.9), compare(0, 5, 0.9, 0.3)
    assert (good.passed, good.decided, bad.passed, bad.decided) == (True, False, False, False)
    assert "5 images with" in good.reason
    assert "it passes, for now" in good.reason
    assert "it stays out" in bad.reason
    few = compare(0, 20, 0.3, 0.9, objects=1)
    assert few.objects < 30
    assert not few.decided


def test_no_gain_on_scarce_data() -> None:
    """With too little data a candidate that is just the same stays out."""
    truths = scenes(np.random.default_rng(0), 3)
    answers = detect(np.random.default_rng(1), truths, recall=0.8)
    verdict = judge(truths, answers, answers, ["ear"], threshold=0.5, resamples=RESAMPLES)
    assert (verdict.passed, verdict.decided) == (False, False)


def test_measures_that_disagree() -> None:
    """A candidate with the better AP50 whose shown boxes cost more to correct is refused."""
    rng = np.random.default_rng(0)
    truths = scenes(rng, 30)
    active = detect(rng, truths, recall=0.8, false=0)
    candidate = []
    for answer in detect(rng, truths, recall=0.9, false=0):  # finds more, but below what is shown
        scores = (answer.scores * 0.4).astype(np.float32)
        candidate.append(Detections(answer.boxes_xyxy, scores, answer.class_ids))
    verdict = judge(truths, active, candidate, ["ear"], threshold=0.5, resamples=RESAMPLES)
    assert verdict.ap50 is not None
    assert verdict.ap50.low > 0
    assert not verdict.passed
    assert verdict.reason.startswith("Refused: worse in the cost of correction.")


def test_no_active_version() -> None:
    """Without an active version that answers, the candidate must be better than no help at all."""
    good, bad = compare(0, 20, None, 0.8), compare(0, 20, None, 0.0)
    assert (good.passed, good.against) == (True, "nothing")
    assert "against the bare image's 0.000" in good.reason
    assert not bad.passed


def test_new_labels() -> None:
    """Objects of a label that the active version does not know count as missed by it."""
    rng = np.random.default_rng(0)
    truths = scenes(rng, 20, classes=2)
    every = detect(rng, truths, recall=0.8)
    old = [answer.where(answer.class_ids == 0) for answer in every]
    verdict = judge(truths, old, every, ["ear", "weed"], threshold=0.5, resamples=RESAMPLES)
    assert (verdict.passed, verdict.decided) == (True, True)


@pytest.mark.parametrize(
    ("truths", "told"),
    [
        ([], "has no images"),
        (scenes(np.random.default_rng(0), 12, objects=0), "12 images show no objects"),
    ],
    ids=["no images", "no objects"],
)
def test_nothing_to_judge_by(truths: list[Truth], told: str) -> None:
    """A hold-out that says nothing leaves the candidate out, in a sentence."""
    answers = [Detections.empty()] * len(truths)
    verdict = judge(truths, answers, answers, ["ear"], threshold=0.5, resamples=RESAMPLES)
    assert (verdict.passed, verdict.decided, verdict.ap50) == (False, False, None)
    assert told in verdict.reason
    assert json.loads(json.dumps(verdict.as_json()))["reason"] == verdict.reason


def test_one_class_of_several() -> None:
    """Labels without objects in the hold-out are named."""
    rng = np.random.default_rng(0)
    truths = scenes(rng, 15)
    answers = detect(rng, truths, recall=0.8)
    verdict = judge(truths, answers, answers, ["ear", "weed", "stone"], threshold=0.5, resamples=RESAMPLES)
    assert verdict.passed
    assert "no objects of weed, stone" in verdict.reason


def test_groups_widen_the_interval() -> None:
    """Tiles of one photograph are one witness, not four."""
    rng = np.random.default_rng(0)
    truths = [truth for truth in scenes(rng, 10) for _ in range(4)]
    one, two = detect(rng, truths[::4], recall=0.8), detect(rng, truths[::4], recall=0.78)
    one, two = ([answer for answer in answers for _ in range(4)] for answers in (one, two))
    groups = [str(at // 4) for at in range(40)]
    widths = []
    for known in (None, groups):
        found = judge(truths, one, two, ["ear"], threshold=0.5, resamples=RESAMPLES, groups=known).cost_s
        assert found is not None
        widths.append(found.high - found.low)
    assert widths[1] > 1.5 * widths[0]


def test_json() -> None:
    """What is written into the card is plain, to five decimals; its drift is read back."""
    verdict = compare(0, 12, 0.8, 0.85)
    written = json.loads(json.dumps(verdict.as_json()))
    assert verdict.ap50 is not None
    assert written["ap50"]["low"] == pytest.approx(verdict.ap50.low, abs=1e-5)
    assert Drift.of({**written, "accepted": True}).ap50 == pytest.approx(verdict.drift.ap50, abs=1e-5)


def without_the_best_box(answers: Sequence[Detections], image: int) -> list[Detections]:
    """The same answers, but of one image the box with the highest score is gone."""
    return [answer.where(np.arange(len(answer)) > 0) if at == image else answer for at, answer in enumerate(answers)]


@pytest.mark.parametrize(
    ("threshold", "told"),
    [
        pytest.param(0.5, "s of correction an image in all", id="in cost"),
        pytest.param(0.99, "of AP50 in all", id="in AP50, where nothing is shown"),
    ],
)
def test_small_losses_do_not_add_up(threshold: float, told: str) -> None:
    """However many candidates come, each a little worse than the one before, what is lost in all is within a margin."""
    rng = np.random.default_rng(0)
    truths = scenes(rng, 80)
    best = active = detect(rng, truths, recall=0.9, false=0)
    drift, verdicts = Drift(), []
    for image in range(24):
        candidate = without_the_best_box(active, image)
        found = judge(truths, active, candidate, ["ear"], threshold=threshold, resamples=RESAMPLES, drift=drift)
        verdicts.append(found)
        if found.passed:
            active, drift = candidate, found.drift
    assert verdicts[0].passed  # one alone is let through
    refused = next(verdict for verdict in verdicts if not verdict.passed)
    assert refused.decided
    assert refused.reason.startswith("Refused: a small loss, but ")
    assert f"{told} since the best version before it." in refused.reason
    whole = judge(truths, best, active, ["ear"], threshold=threshold, resamples=RESAMPLES)
    assert whole.ap50 is not None
    assert whole.cost_s is not None
    assert whole.ap50.difference >= -AP50_MARGIN
    assert whole.cost_s.difference <= max(COST_MARGIN_S, COST_MARGIN * whole.cost_s.active)


def test_gains_count_against_losses() -> None:
    """What a line has lost is paid back by what it gains, and no more than that."""
    loss, gain = Comparison(0.8, 0.796, -0.004, 0, 0), Comparison(0.8, 0.803, 0.003, 0, 0)
    dearer, cheaper = Comparison(9, 9.2, 0.2, 0, 0), Comparison(9, 8.5, -0.5, 0, 0)
    once = Drift().after(loss, dearer)
    assert (once.ap50, once.cost_s) == pytest.approx((0.004, 0.2))
    twice = once.after(gain, cheaper)
    assert (twice.ap50, twice.cost_s) == pytest.approx((0.001, 0))
    assert twice.after(None, None) == twice


def test_what_is_better_than_the_active_version_is_not_kept_out_by_drift() -> None:
    """A candidate that finds more passes, whatever the versions before have lost."""
    rng = np.random.default_rng(0)
    truths = scenes(rng, 30)
    active, candidate = detect(rng, truths, recall=0.5), detect(rng, truths, recall=0.9)
    assert judge(truths, active, candidate, ["ear"], threshold=0.5, resamples=RESAMPLES, drift=Drift(0.5, 60)).passed


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        pytest.param(None, Drift(), id="never judged"),
        pytest.param({"accepted": True}, Drift(), id="of an older Spica"),
        pytest.param({"accepted": True, "drift": "much"}, Drift(), id="not readable"),
        pytest.param({"accepted": True, "drift": {"ap50": 0.004, "cost_s": 0.2}}, Drift(0.004, 0.2), id="passed"),
        pytest.param({"accepted": False, "drift": {"ap50": 0.4, "cost_s": 9}}, Drift(), id="activated by hand"),
    ],
)
def test_drift_from_a_card(verdict: dict[str, Any] | None, expected: Drift) -> None:
    """A line goes on with the drift that its card tells, and begins anew where a person has decided."""
    assert Drift.of(verdict) == expected


def test_intervals_from_few_images_are_wide_enough() -> None:
    """With ten images, 95 % intervals of a mean hold the truth about as often as they say, which plain ones do not."""
    rng = np.random.default_rng(0)
    samples, weights = rng.standard_normal((300, 10)), draws(10, resamples=1000)
    shares = []
    for level in (gate.LEVEL, gate.level_for(10)):
        found = [interval(mean_of(values), weights, level=level) for values in samples]
        shares.append(sum(each.low <= 0 <= each.high for each in found) / len(found))
    assert shares[0] < 0.92
    assert shares[1] > 0.93
