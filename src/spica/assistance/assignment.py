"""Who goes with whom, so that the sum of the savings is the largest: the assignment problem."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Savings = NDArray[np.float64]
"""float64 (N, M): what each pair saves; 0 or less: better left apart."""


def assign(savings: Savings) -> NDArray[np.int64]:
    """For each row its column, int64 (N,), -1 for none; no column twice; the sum of the savings is the largest.

    Boxes overlap few others, so the pairs that save anything fall apart into small groups that have nothing to do with
    each other. Each is solved by itself, which makes a scene of 800 boxes a matter of milliseconds.
    """
    columns = np.full(savings.shape[0], -1, np.int64)
    for rows, candidates in _groups(savings > 0):
        if len(rows) == 1:
            columns[rows[0]] = candidates[savings[rows[0], candidates].argmax()]
        elif len(candidates) == 1:
            columns[rows[savings[rows, candidates[0]].argmax()]] = candidates[0]
        else:
            columns[rows] = _solved(savings, rows, candidates)
    return columns


def _groups(linked: NDArray[np.bool_]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows and columns of each part that hangs together; those linked to nothing are left out."""
    rows, columns = np.nonzero(linked)
    group_of_row, group_of_column = np.arange(linked.shape[0]), np.full(linked.shape[1], linked.shape[0])
    while True:  # the lowest row of a part spreads along its links
        np.minimum.at(group_of_column, columns, group_of_row[rows])
        before = group_of_row.copy()
        np.minimum.at(group_of_row, rows, group_of_column[columns])
        if (before == group_of_row).all():
            break
    row_parts, column_parts = _members(group_of_row), _members(group_of_column)
    return [(row_parts[group], column_parts[group]) for group in row_parts if group in column_parts]


def _members(groups: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """The places of each group's number, ascending."""
    order = np.argsort(groups, kind="stable")
    numbers, starts = np.unique(groups[order], return_index=True)
    return dict(zip(numbers.tolist(), np.split(order, starts[1:]), strict=True)) if groups.size else {}


def _solved(savings: Savings, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """The columns of some rows among some columns."""
    part = np.maximum(savings[np.ix_(rows, columns)], 0.0)
    if len(rows) <= len(columns):
        chosen = _hungarian(-part)
        return np.where(part[np.arange(len(rows)), chosen] > 0, columns[chosen], -1)
    chosen = _hungarian(-part.T)
    answer = np.full(len(rows), -1, np.int64)
    saves = part[chosen, np.arange(len(columns))] > 0
    answer[chosen[saves]] = columns[saves]
    return answer


def _hungarian(costs: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each row its column, int64 (N,), at the least total cost; ``costs`` is (N, M) with N <= M.

    Shortest augmenting paths on reduced costs (Crouse, "On implementing 2D rectangular assignment algorithms", IEEE
    Transactions on Aerospace and Electronic Systems 52, 2016), begun with every row whose cheapest column is free.
    """
    cheapest = costs.argmin(axis=1)
    row_price, column_price = costs.min(axis=1), np.zeros(costs.shape[1])
    row_of, column_of = np.full(costs.shape[1], -1, np.int64), np.full(len(costs), -1, np.int64)
    taken, first = np.unique(cheapest, return_index=True)
    row_of[taken], column_of[first] = first, taken
    for start in np.flatnonzero(column_of < 0):
        _augment(int(start), costs, row_price, column_price, row_of, column_of)
    return column_of


def _augment(
    start: int,
    costs: NDArray[np.float64],
    row_price: NDArray[np.float64],
    column_price: NDArray[np.float64],
    row_of: NDArray[np.int64],
    column_of: NDArray[np.int64],
) -> None:
    """Give the row ``start`` a column, moving others where that is cheaper; changes the last four arrays."""
    distance, came_from = np.full(costs.shape[1], np.inf), np.full(costs.shape[1], -1, np.int64)
    ahead = np.zeros(costs.shape[1])  # infinite where the way has been
    row, length = start, 0.0
    while True:
        through = costs[row] - column_price + (length - row_price[row])
        shorter = through + ahead < distance
        distance[shorter], came_from[shorter] = through[shorter], row
        column = int((distance + ahead).argmin())
        length, ahead[column] = float(distance[column]), np.inf
        if row_of[column] < 0:
            break
        row = int(row_of[column])
    been = np.flatnonzero(ahead)
    inner = been[row_of[been] >= 0]
    row_price[start] += length
    row_price[row_of[inner]] += length - distance[inner]
    column_price[been] -= length - distance[been]
    while column >= 0:
        row = int(came_from[column])
        row_of[column] = row
        column, column_of[row] = int(column_of[row]), column
