"""Counting."""

from __future__ import annotations

import threading

import pytest

from spica.errors import ImageError, LabelStudioRefusedError
from spica.prelabel.progress import KEPT, JobCounter, Patience, Progress


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_speed_is_that_of_the_last_half_minute() -> None:
    """A slow first hour does not make the remaining time look long."""
    clock = Clock()
    counter = JobCounter(clock=clock)
    counter.expect(1000)
    for _ in range(100):
        clock.now += 36
        counter.add(answered=1)
    for _ in range(400):
        clock.now += 0.1
        counter.add(answered=1)
    progress = counter.progress
    assert progress.images_per_s == pytest.approx(10, rel=0.05)
    counter.add(stored=500)
    assert counter.progress.eta_s == pytest.approx(50, rel=0.05)


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
    counter = JobCounter()
    for task in range(3 * KEPT):
        counter.fail(task, ImageError("the image is damaged"))
    progress = counter.progress
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
    counter = JobCounter(clock=clock)
    clock.now += 10
    counter.add(answered=20, stored=20)
    counter.end()
    before = counter.progress
    clock.now += 1000
    assert counter.progress == before
    assert before.seconds == pytest.approx(10)
    assert before.images_per_s == pytest.approx(2)


def test_trouble_that_passes_is_waited_out_and_shown() -> None:
    """While Label Studio is away the progress says so; afterwards it says nothing."""
    counter, seen = JobCounter(), list[str | None]()

    def ask() -> int:
        seen.append(counter.progress.note)
        if len(seen) < 2:
            raise LabelStudioRefusedError("Label Studio refused a request", 503)
        return 7

    assert Patience(counter, threading.Event())(ask) == 7
    assert seen[0] is None
    assert "refused a request; trying again" in str(seen[1])
    assert counter.progress.note is None


@pytest.mark.parametrize("reason", ["limit", "stop", "refused"])
def test_gives_up(reason: str) -> None:
    """After the limit, when the job is stopped, or for what will not pass, the failure itself is raised at once."""
    stop = threading.Event()
    if reason == "stop":
        stop.set()
    failure = LabelStudioRefusedError("Label Studio refused a request", 403 if reason == "refused" else 503)

    def ask() -> int:
        raise failure

    with pytest.raises(LabelStudioRefusedError) as caught:
        Patience(JobCounter(), stop, 0 if reason == "limit" else 1000)(ask)
    assert caught.value is failure
