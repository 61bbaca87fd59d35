"""Intervals by resampling images."""

from __future__ import annotations

import math

import numpy as np
import pytest

from spica.evaluation.bootstrap import difference, draws, interval, mean_of


def test_draws() -> None:
    """Each resample draws as many images as there are, the same for the same seed."""
    weights = draws(7, resamples=50, seed=3)
    assert weights.shape == (50, 7)
    assert (weights.sum(axis=1) == 7).all()
    np.testing.assert_array_equal(weights, draws(7, resamples=50, seed=3))
    assert (weights != draws(7, resamples=50, seed=4)).any()


def test_groups_are_drawn_together() -> None:
    """Images of one group always count equally often; images without a group each for itself."""
    weights = draws(5, resamples=200, seed=0, groups=["a", "a", None, None, "a"])
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 0] == weights[:, 4]).all()
    assert (weights[:, 2] != weights[:, 3]).any()


def test_groups_for_each_image() -> None:
    """Groups for another number of images are refused."""
    with pytest.raises(ValueError, match="2 groups for 3 images"):
        draws(3, groups=["a", "b"])


def test_interval_of_a_mean() -> None:
    """The interval of a mean is about as wide as theory says: 2 x 1.96 standard errors."""
    values = np.random.default_rng(0).normal(5, 2, 100)
    found = interval(mean_of(values), draws(100, resamples=2000, seed=1))
    assert found.estimate == pytest.approx(values.mean())
    assert found.low < found.estimate < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 10, rel=0.1)


def test_coverage() -> None:
    """About 95 of 100 intervals hold the true mean."""
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        found = interval(mean_of(rng.normal(5, 2, 40)), draws(40, resamples=300, seed=seed))
        held += found.low <= 5 <= found.high
    assert 0.88 <= held / 200 <= 0.98


def test_pairs() -> None:
    """A small difference that every image shows is certain, however much the images differ."""
    hard = np.random.default_rng(0).normal(50, 30, 40)
    weights = draws(40, resamples=500, seed=0)
    found = difference(mean_of(hard), mean_of(hard + 1), weights)
    assert (found.low, found.estimate, found.high) == pytest.approx((1, 1, 1))
    back = difference(mean_of(hard + 1), mean_of(hard), weights)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_nothing_to_say() -> None:
    """Without images the interval is unknown, not an error."""
    found = interval(mean_of(np.zeros(0)), draws(0, resamples=10))
    assert math.isnan(found.estimate)
    assert math.isnan(found.low)


def test_gaps() -> None:
    """Resamples in which nothing can be said are left out."""
    found = interval(lambda row: 1.0 if row[0] else math.nan, draws(3, resamples=100, seed=0))
    assert (found.low, found.high) == (1.0, 1.0)
    assert 50 < found.resamples < 90
