"""Whatever happens to a request, each prediction is stored once or named as failed."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from spica import retry
from spica.errors import (
    AuthenticationError,
    ImageError,
    LabelStudioError,
    LabelStudioRefusedError,
    LabelStudioUnreachableError,
    SpicaError,
)
from spica.labelstudio.client import LabelStudioClient
from spica.predictor import Outcome
from spica.prelabel import storing
from spica.prelabel.claim import Claim, State
from spica.prelabel.pipeline import Stage
from spica.prelabel.progress import JobCounter, Patience
from spica.prelabel.storing import Storer

Answer = Callable[["FakeLabelStudio", Sequence[int]], int]


class FakeLabelStudio:
    """Stores predictions as it is told: one answer a request, then as a healthy one does."""

    def __init__(self, *answers: Answer, gone: Iterable[int] = (), before: Iterable[int] = ()) -> None:
        self.stored: list[int] = list(before)
        self.requests: list[list[int]] = []
        self._answers = list(answers)
        self._gone = set(gone)

    def create_predictions(self, _project: int, items: Sequence[Mapping[str, Any]]) -> int:
        tasks = [int(item["task"]) for item in items]
        self.requests.append(tasks)
        if self._answers:
            return self._answers.pop(0)(self, tasks)
        if self._gone & set(tasks):
            raise LabelStudioRefusedError("Label Studio refused a request", 400)
        return store(self, tasks)

    def having_prediction(self, _project: int, _version: str, tasks: Iterable[int], **_: object) -> set[int]:
        return set(tasks) & set(self.stored)

    def has_confusable_versions(self, _project: int, _version: str) -> bool:
        return False

    def existing_tasks(self, _project: int, tasks: Iterable[int]) -> set[int]:
        return set(tasks) - self._gone

    def project(self, _project: int) -> object:
        class Project:
            label_config = (
                '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">'
                '<Label value="spike"/></RectangleLabels></View>'
            )

        return Project


def store(studio: FakeLabelStudio, tasks: Sequence[int]) -> int:
    """All of them, confirmed."""
    studio.stored += tasks
    return len(tasks)


def store_and(cause: Exception, *, status: int | None = None) -> Answer:
    """All of them, but nobody hears of it."""

    def answer(studio: FakeLabelStudio, tasks: Sequence[int]) -> int:
        store(studio, tasks)
        return failing(cause, status=status)(studio, tasks)

    return answer


def failing(cause: Exception, *, status: int | None = None) -> Answer:
    """Nothing is stored, and the request ends so."""

    def answer(_studio: FakeLabelStudio, _tasks: Sequence[int]) -> int:
        if status is not None:
            raise LabelStudioRefusedError("Label Studio refused a request", status)
        error = LabelStudioUnreachableError("Label Studio can't be reached")
        raise error from cause

    return answer


def leaving_out(*dropped: int) -> Answer:
    """All but these, without a word."""
    return lambda studio, tasks: store(studio, [task for task in tasks if task not in dropped])


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = functools.partial(retry.retrying, first_s=0.0, longest_s=0.0)
    monkeypatch.setattr("spica.prelabel.progress.retrying", quick)
    monkeypatch.setattr(storing, "_SETTLE_S", 0.05)
    monkeypatch.setattr(storing, "_SETTLE_STEP_S", 0.001)


@pytest.fixture
def claim(tmp_path: Path) -> Iterator[Claim]:
    """On the project."""
    with Claim.take(tmp_path, "http://127.0.0.1:8080", 1, by="a test", version="v") as taken:
        yield taken


def run(
    studio: FakeLabelStudio, outcomes: Sequence[Outcome], claim: Claim, *, limit_s: float = 60
) -> tuple[JobCounter, dict[int, SpicaError]]:
    """Store outcomes; what was counted and what failed."""
    counter, failed = JobCounter(), dict[int, SpicaError]()
    stage = Stage("test", outcomes, lambda outcome: outcome, capacity=len(outcomes) + 1)
    stage.start()
    storer = Storer(
        cast("LabelStudioClient", studio),
        1,
        "v",
        counter=counter,
        patience=Patience(counter, threading.Event(), limit_s),
        claim=claim,
        on_failure=failed.__setitem__,
        on_progress=lambda: None,
    )
    storer.run(stage)
    return counter, failed


def predicted(*tasks: int) -> list[Outcome]:
    """A prediction with one box for each."""
    return [Outcome(task, {"result": [], "score": 0.5, "model_version": "v"}, None, boxes=1) for task in tasks]


@pytest.mark.parametrize(
    ("answers", "requests"),
    [
        pytest.param([], 1, id="healthy"),
        pytest.param([store_and(httpx.ReadTimeout("late"))], 1, id="stored, but the answer was lost"),
        pytest.param([store_and(httpx.RemoteProtocolError("cut"))], 1, id="stored, then cut off"),
        pytest.param([store_and(OSError(), status=504)], 1, id="stored, but a proxy gave up"),
        pytest.param([store_and(OSError(), status=500)], 1, id="stored, then locked"),
        pytest.param([failing(httpx.ReadTimeout("late"))], 2, id="lost"),
        pytest.param([failing(httpx.ConnectError("refused"))] * 3, 4, id="stopped for a while"),
        pytest.param([failing(OSError(), status=500)] * 2, 3, id="locked for a while"),
        pytest.param([failing(OSError(), status=413)], 3, id="too large for a proxy"),
    ],
)
def test_each_prediction_is_stored_once(answers: list[Answer], requests: int, claim: Claim) -> None:
    """However a request ends, what is stored is found out before anything is sent again."""
    studio = FakeLabelStudio(*answers)
    counter, failed = run(studio, predicted(1, 2, 3, 4), claim)
    assert sorted(studio.stored) == [1, 2, 3, 4]
    assert len(studio.requests) == requests
    assert (counter.progress.stored, counter.progress.boxes, failed) == (4, 4, {})


def test_what_somebody_stored_meanwhile_is_not_sent(claim: Claim) -> None:
    """A task that was opened, and so predicted, since it was listed is left as it is, and counts."""
    studio = FakeLabelStudio(before=[2])
    counter, _ = run(studio, predicted(1, 2, 3), claim)
    assert studio.requests == [[1, 3]]
    assert counter.progress.stored == 3


def test_what_is_left_out_is_named(claim: Claim) -> None:
    """A prediction that Label Studio silently drops is a failed task; the others count."""
    studio = FakeLabelStudio(leaving_out(2))
    counter, failed = run(studio, predicted(1, 2, 3), claim)
    assert (counter.progress.stored, list(failed)) == (2, [2])
    assert "left this prediction out" in failed[2].what
    assert len(studio.requests) == 1


def test_deleted_tasks_spoil_no_batch(claim: Claim) -> None:
    """Tasks that are gone are taken out, and the rest is sent again."""
    studio = FakeLabelStudio(gone=[2, 4])
    counter, failed = run(studio, predicted(1, 2, 3, 4, 5), claim)
    assert sorted(studio.stored) == [1, 3, 5]
    assert (counter.progress.gone, counter.progress.stored, failed) == (2, 3, {})


def test_one_prediction_that_is_refused_is_found_by_halves(claim: Claim) -> None:
    """A request that is refused for one of its predictions is divided until only that one fails."""

    def refuse_three(studio: FakeLabelStudio, tasks: Sequence[int]) -> int:
        if 3 in tasks:
            raise LabelStudioRefusedError("Label Studio refused a request", 400)
        return store(studio, tasks)

    studio = FakeLabelStudio(*([refuse_three] * 20))
    counter, failed = run(studio, predicted(1, 2, 3, 4, 5, 6, 7), claim)
    assert sorted(studio.stored) == [1, 2, 4, 5, 6, 7]
    assert (counter.progress.stored, list(failed)) == (6, [3])


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(AuthenticationError("Label Studio refused the token"), id="token revoked"),
        pytest.param(LabelStudioRefusedError("Label Studio refused a request", 403), id="no permission"),
        pytest.param(LabelStudioRefusedError("Label Studio refused a request", 404), id="project gone"),
    ],
)
def test_a_clear_refusal_ends_the_job(error: LabelStudioError | AuthenticationError, claim: Claim) -> None:
    """What will not pass is raised at once, without another request."""

    def refuse(_studio: FakeLabelStudio, _tasks: Sequence[int]) -> int:
        raise error

    studio = FakeLabelStudio(refuse)
    with pytest.raises(type(error)):
        run(studio, predicted(1, 2), claim)
    assert len(studio.requests) == 1


def test_label_studio_stays_away_for_too_long(claim: Claim) -> None:
    """After the limit the failure is raised."""
    studio = FakeLabelStudio(*[failing(httpx.ConnectError("refused"))] * 5)
    with pytest.raises(LabelStudioUnreachableError):
        run(studio, predicted(1), claim, limit_s=0)


def test_failed_tasks_are_told_and_never_sent(claim: Claim) -> None:
    """A task without a prediction reaches nobody but the report."""
    studio = FakeLabelStudio()
    broken = Outcome(2, None, ImageError("the image is damaged"))
    counter, failed = run(studio, [*predicted(1), broken, *predicted(3)], claim)
    assert studio.requests == [[1, 3]]
    assert list(failed) == [2]
    assert (counter.progress.answered, counter.progress.done) == (3, 3)


def test_the_claim_knows_before_label_studio_does(claim: Claim) -> None:
    """What is about to be sent is on disk first, and no longer once it is confirmed; batches are bounded."""
    noted: list[tuple[int, ...]] = []

    def look(studio: FakeLabelStudio, tasks: Sequence[int]) -> int:
        state = State.read(claim.folder)
        assert state is not None
        noted.append(state.sending)
        return store(studio, tasks)

    studio = FakeLabelStudio(look, look)
    run(studio, predicted(*range(1, 20)), claim)
    assert [len(request) for request in studio.requests] == [16, 3]
    assert [sorted(tasks) for tasks in noted] == [list(range(1, 17)), list(range(17, 20))]
    state = State.read(claim.folder)
    assert state is not None
    assert state.sending == ()


def test_the_request_of_a_process_that_was_killed_is_waited_for(tmp_path: Path) -> None:
    """What it has stored in the end is not sent again, and what it has not is."""
    first = Claim.take(tmp_path, "http://127.0.0.1:8080", 1, by="a test", version="v")
    first.sending([1, 2], 0.5)
    first.release()
    studio = FakeLabelStudio()
    late = threading.Timer(0.1, lambda: studio.stored.append(1))
    late.start()
    with Claim.take(tmp_path, "http://127.0.0.1:8080", 1, by="a test", version="v") as claim:
        counter, _ = run(studio, predicted(1, 2, 3), claim)
        assert claim.pending == set()
    assert studio.requests == [[2, 3]]
    assert sorted(studio.stored) == [1, 2, 3]
    assert counter.progress.stored == 3
