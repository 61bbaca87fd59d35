"""The assignment problem."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spica.assistance.edits import Savings, assign


def total(savings: Savings, columns: list[int]) -> float:
    return sum(float(savings[row, column]) for row, column in enumerate(columns) if column >= 0)


def best(savings: Savings) -> float:
    """The largest sum, by trying everything."""
    wide = np.maximum(savings if savings.shape[0] <= savings.shape[1] else savings.T, 0)
    rows, columns = wide.shape
    return float(
        max(
            sum(wide[row, chosen[row]] for row in range(rows))
            for chosen in itertools.permutations(range(columns), rows)
        )
    )


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), sparse=st.booleans())
def test_the_largest_sum(seed: int, sparse: bool) -> None:
    """No other assignment saves more; no column is given twice, no pair that saves nothing is made."""
    rng = np.random.default_rng(seed)
    savings = rng.integers(-8 if sparse else -1, 8, rng.integers(0, 7, 2)).astype(np.float64)
    found = assign(savings).tolist()
    given_away = [column for column in found if column >= 0]
    assert len(found) == savings.shape[0]
    assert len(set(given_away)) == len(given_away)
    assert all(savings[row, column] > 0 for row, column in enumerate(found) if column >= 0)
    assert total(savings, found) == pytest.approx(best(savings))


def test_greed_would_lose() -> None:
    """The best pair is given up where two good ones save more."""
    assert assign(np.array([[10.0, 9.0], [9.0, 0.0]])).tolist() == [1, 0]


def test_a_crowd() -> None:
    """800 rows that all hang together are assigned one to one, and no exchange of two columns saves more."""
    savings = np.random.default_rng(0).uniform(0, 1, (800, 800))
    found = assign(savings)
    assert sorted(found.tolist()) == list(range(800))
    kept = savings[np.arange(800), found]
    exchanged = savings[:, found]  # (i, j): row i with the column of row j
    assert (exchanged + exchanged.T <= kept[:, None] + kept[None, :] + 1e-9).all()
