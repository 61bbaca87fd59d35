"""The size of batches follows what requests cost."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from spica.prelabel.storing import FIRST, LARGEST, SMALLEST, Pace


def settle(cost: Callable[[int], float], batches: int = 30) -> Pace:
    """A pace after so many full batches that take ``cost(size)`` seconds."""
    pace = Pace()
    for _ in range(batches):
        pace.note(pace.size, cost(pace.size))
    return pace


@pytest.mark.parametrize(
    ("cost", "size"),
    [
        pytest.param(lambda n: 0.001 * n, LARGEST, id="quick requests grow to the largest"),
        pytest.param(lambda n: 5 + 0.001 * n, LARGEST, id="a large project: only few large requests pay"),
        pytest.param(lambda n: 0.25 * n, SMALLEST, id="slow predictions: nothing is won by more at once"),
        pytest.param(lambda n: 0.05 * n, 2 * FIRST, id="between one and two seconds is right"),
    ],
)
def test_settles(cost: Callable[[int], float], size: int) -> None:
    """Batches grow while that saves time, and shrink while requests are slow and larger ones don't."""
    assert settle(cost).size == size


def test_a_batch_that_was_not_full_teaches_nothing_about_size() -> None:
    """The rest at the end of a job changes no size."""
    pace = Pace()
    pace.note(1, 0.01)
    assert pace.size == FIRST


@pytest.mark.parametrize(
    ("seconds", "hold_s"), [(0.01, 2.0), (0.5, 5.0), (60.0, 60.0)], ids=["at least", "ten times", "at most"]
)
def test_label_studio_is_left_alone_for_a_while(seconds: float, hold_s: float) -> None:
    """Predictions wait ten times as long as the last request took, but neither too short nor too long."""
    pace = Pace()
    pace.note(1, seconds)
    assert pace.hold_s == hold_s
