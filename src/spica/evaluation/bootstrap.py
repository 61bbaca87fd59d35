"""Intervals by resampling images: how much a number would differ with other photographs of the same kind.

Percentile intervals (Efron and Tibshirani 1993, chapter 13): simple, and the same for a difference read backwards. With
fewer than about 20 images they are somewhat too narrow; whoever decides by them must ask for more images than that or
be careful.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[np.int64]], float]
"""A number for images of which each counts so often: int64 (images,) to a float, NaN if nothing can be said."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A number and how sure it is.

    Attributes:
        estimate: from the images as they are; NaN if nothing can be said.
        low: of the interval, ``estimate`` may lie outside it; NaN if nothing can be said.
        high: likewise.
        level: share of repetitions whose interval would hold the truth, in (0, 1).
        resamples: that had a number.
    """

    estimate: float
    low: float
    high: float
    level: float
    resamples: int


def draws(
    images: int, *, resamples: int = 2000, seed: int = 0, groups: Sequence[object] | None = None
) -> NDArray[np.int64]:
    """How often each image counts in each resample, int64 (resamples, images).

    Args:
        images: how many there are.
        resamples: how many to draw.
        seed: equal seeds draw alike.
        groups: one an image; images of one group (tiles of one photograph) are drawn together, for they are no
            independent witnesses. None in it, or at all, for an image of its own.
    """
    keys = [("image", at) if group is None else ("group", group) for at, group in enumerate(groups or [None] * images)]
    if len(keys) != images:
        raise ValueError(f"{len(keys)} groups for {images} images")
    number = {key: at for at, key in enumerate(dict.fromkeys(keys))}
    units = len(number)
    if not units:
        return np.zeros((resamples, 0), np.int64)
    counts = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=resamples)
    return np.asarray(counts[:, [number[key] for key in keys]], np.int64)


def interval(statistic: Statistic, weights: NDArray[np.int64], *, level: float = 0.95) -> Interval:
    """The interval of a statistic.

    Args:
        statistic: computed for every resample.
        weights: int64 (resamples, images), from :func:`draws`.
        level: in (0, 1).

    Resamples in which nothing can be said (no image with an object was drawn) are left out.
    """
    estimate = statistic(np.ones(weights.shape[1], np.int64))
    values = np.array([statistic(row) for row in weights], np.float64)
    known = values[~np.isnan(values)]
    if math.isnan(estimate) or not known.size:
        return Interval(estimate, math.nan, math.nan, level, len(known))
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), level, len(known))


def difference(first: Statistic, second: Statistic, weights: NDArray[np.int64], *, level: float = 0.95) -> Interval:
    """The interval of ``second`` minus ``first``, both on the same images in each resample, which cancels what makes
    images easy or hard for both. Arguments and gaps as in :func:`interval`.
    """
    return interval(lambda row: second(row) - first(row), weights, level=level)


def mean_of(values: NDArray[np.float64]) -> Statistic:
    """The mean of a number that every image has, float64 (images,), as a statistic."""

    def mean(weights: NDArray[np.int64]) -> float:
        total = int(weights.sum())
        return float(weights @ values) / total if total else float("nan")

    return mean
