"""How many predictions go to Label Studio at once, and how often."""

from __future__ import annotations

FIRST = 16
SMALLEST = 8
LARGEST = 500
"""What Label Studio stores in one go: of a larger request a part could be stored and the rest refused."""

REGIONS = 20_000
"""Regions in one request at most: some 8 MB of JSON, whatever the number of tasks."""

_QUICK_S = 1.0
_SLOW_S = 2.0
_PAYS = 0.75
"""A larger batch has to save a quarter of the time per prediction to be worth a longer request."""

_HOLD_S = (2.0, 60.0)
_SHARE = 10.0
"""With a slow model Label Studio is left alone at least so many times as long as it took to store the last batch."""


class Pace:
    """The size of batches, found by trying.

    Label Studio counts all tasks of a project anew for every import, so a request costs a part that grows with the
    project and a part that grows with the batch. Batches grow while requests are quick; when they are slow, they grow
    further only while that makes a prediction cheaper, and shrink otherwise.

    Attributes:
        size: predictions in the next full batch.
    """

    def __init__(self) -> None:
        self.size = FIRST
        self._cost: dict[int, float] = {}
        self._last_s = 0.0

    @property
    def hold_s(self) -> float:
        """So long a prediction may wait for its batch to fill, in seconds."""
        shortest, longest = _HOLD_S
        return min(max(_SHARE * self._last_s, shortest), longest)

    @property
    def last_s(self) -> float:
        """Seconds that the last request took."""
        return self._last_s

    def note(self, count: int, seconds: float) -> None:
        """Learn from a request that stored ``count`` predictions."""
        self._last_s = seconds
        if count < self.size:
            return
        self._cost[self.size] = seconds / count
        if self._should_grow(seconds):
            self.size = min(2 * self.size, LARGEST)
        elif seconds > _SLOW_S:
            self.size = max(self.size // 2, SMALLEST)

    def _should_grow(self, seconds: float) -> bool:
        if seconds < _QUICK_S:
            return True
        if seconds <= _SLOW_S:
            return False
        cost = self._cost[self.size]
        bigger, smaller = self._cost.get(2 * self.size), self._cost.get(self.size // 2)
        if bigger is not None:
            return bigger < _PAYS * cost
        if self.size == LARGEST:  # stay, if it was worth getting here
            return smaller is None or cost < _PAYS * smaller
        return smaller is None or cost < _PAYS * smaller
