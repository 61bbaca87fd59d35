"""Counting."""

from __future__ import annotations

import pytest

from spica.errors import ImageError
from spica.prelabel.progress import KEPT, Progress, Tally


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_speed_is_that_of_the_last_half_minute() -> None:
    """A slow first hour does not make the remaining time look long."""
    clock = Clock()
    tally = Tally(clock=clock)
    tally.expect(1000)
    for _ in range(100):
        clock.now += 36
        tally.add(answered=1)
    for _ in range(400):
        clock.now += 0.1
        tally.add(answered=1)
    progress = tally.progress
    assert progress.images_per_s == pytest.approx(10, rel=0.05)
    tally.add(stored=500)
    assert tally.progress.eta_s == pytest.approx(50, rel=0.05)


@pytest.mark.parametrize(
    ("progress", "eta_s"),
    [
        pytest.param(Progress(total=0), 0.0, id="nothing to do"),
        pytest.param(Progress(total=5), None, id="nothing known yet"),
        pytest.param(Progress(total=5, stored=3, failed=1, gone=1), 0.0, id="over"),
        pytest.param(Progress(total=6, stored=1, answered=2, images_per_s=2.0), 2.0, id="under way"),
    ],
)
def test_eta(progress: Progress, eta_s: float | None) -> None:
    """Seconds to go count what is not computed yet; without a speed they are not known."""
    assert progress.eta_s == eta_s


def test_failures_are_bounded_but_counted() -> None:
    """Of many failed tasks the last are kept, and all are counted."""
    tally = Tally()
    for task in range(3 * KEPT):
        tally.fail(task, ImageError("the image is damaged"))
    progress = tally.progress
    assert progress.failed == 3 * KEPT
    assert [task for task, _ in progress.failures] == list(range(2 * KEPT, 3 * KEPT))


def test_other_processes_read_what_was_written() -> None:
    """What a job tells as JSON is understood again: counts, note, failures with their reason."""
    progress = Progress(
        total=9, stored=3, boxes=7, failed=1, failures=[(4, ImageError("the image is damaged"))], gone=1, note="waits"
    )
    read = Progress.from_json(progress.as_json())
    assert (read.total, read.done, read.boxes, read.note) == (9, 5, 7, "waits")
    ((task, error),) = read.failures
    assert (task, error.what) == (4, "the image is damaged")


def test_the_clock_of_a_job_that_is_over_stands_still() -> None:
    """What is shown of a finished job does not change while people look at it."""
    clock = Clock()
    tally = Tally(clock=clock)
    clock.now += 10
    tally.add(answered=20, stored=20)
    tally.end()
    before = tally.progress
    clock.now += 1000
    assert tally.progress == before
    assert before.seconds == pytest.approx(10)
    assert before.images_per_s == pytest.approx(2)
