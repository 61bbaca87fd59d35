"""Everything overlaps, nothing piles up, and a failure ends all steps in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from scripted_detector import ScriptedDetector, detections
from spica.errors import LabelStudioError, ModelUnavailableError
from spica.inference import Engine
from spica.labelstudio.protocol import Task
from spica.labelstudio.records import TaskRow
from spica.predictor import Outcome
from spica.prelabel.pipeline import BEGUN_AHEAD, LISTED_AHEAD, READERS, EndOfStage, Pipeline, Stage

WAIT_S = 30


@pytest.fixture
def engine() -> Iterator[Engine]:
    """A running engine."""
    with Engine("test", lambda: ScriptedDetector(detections()), queue_size=9, memory_bytes=9) as running:
        running.wait_ready(WAIT_S)
        yield running


def rows(count: int, seen: list[int] | None = None, error: Exception | None = None) -> Iterator[TaskRow]:
    """So many tasks, and then a failure perhaps."""
    for number in range(1, count + 1):
        if seen is not None:
            seen.append(number)
        yield TaskRow(id=number)
    if error is not None:
        raise error


def answer(task: Task) -> Callable[[], Outcome]:
    """A prediction at once."""
    return lambda: Outcome(task.id, {"result": []}, None)


def drain(pipeline: Pipeline) -> list[int]:
    """The tasks that come out, to the end."""
    found: list[int] = []
    while True:
        try:
            outcome = pipeline.outcomes.get()
        except EndOfStage:
            return found
        assert outcome is not None
        assert outcome.task_id is not None
        found.append(outcome.task_id)


def test_every_task_comes_out_once(engine: Engine) -> None:
    """Of two thousand tasks each comes out exactly once."""
    with Pipeline(rows(2000), answer, engine, threading.Event()) as pipeline:
        assert sorted(drain(pipeline)) == list(range(1, 2001))
        assert pipeline.all_listed
    assert pipeline.outcomes.error is None


def test_no_more_is_taken_than_fits(engine: Engine) -> None:
    """While nothing is stored, listing and decoding stop after a bounded number of tasks."""
    seen: list[int] = []
    begun: list[int] = []
    full = threading.Event()
    hold = threading.Event()

    def begin(task: Task) -> Callable[[], Outcome]:
        begun.append(task.id or 0)
        if len(begun) == READERS + BEGUN_AHEAD + 1:
            full.set()

        def wait() -> Outcome:
            assert hold.wait(WAIT_S)
            return Outcome(task.id, {"result": []}, None)

        return wait

    with Pipeline(rows(5000, seen), begin, engine, threading.Event()) as pipeline:
        assert full.wait(WAIT_S)
        assert len(begun) <= READERS + BEGUN_AHEAD + 1
        assert len(seen) <= LISTED_AHEAD + len(begun) + 1
        hold.set()
        assert len(drain(pipeline)) == 5000


def test_what_was_listed_before_a_failure_still_comes_out(engine: Engine) -> None:
    """When listing fails, what is in the later steps comes out, and then the failure is known."""
    failure = LabelStudioError("Label Studio refused a request")
    with Pipeline(rows(3, error=failure), answer, engine, threading.Event()) as pipeline:
        assert set(drain(pipeline)) <= {1, 2, 3}
    assert pipeline.outcomes.error is failure
    assert not pipeline.all_listed


def test_a_model_that_is_gone_ends_the_job_and_fails_no_task(engine: Engine) -> None:
    """A closed engine is not the tasks' fault: none comes out as failed, and the job learns why it ends."""
    error = ModelUnavailableError("the model server is stopping")
    engine.close()

    def begin(task: Task) -> Callable[[], Outcome]:
        return lambda: Outcome(task.id, None, error)

    with Pipeline(rows(100), begin, engine, threading.Event()) as pipeline:
        assert drain(pipeline) == []
    assert pipeline.outcomes.error is error


def test_a_network_that_fails_on_one_image_goes_on(engine: Engine) -> None:
    """With the engine ready, a failed image is that task's own affair."""
    error = ModelUnavailableError("the network failed on this image")

    def begin(task: Task) -> Callable[[], Outcome]:
        return answer(task) if task.id != 2 else lambda: Outcome(task.id, None, error)

    with Pipeline(rows(5), begin, engine, threading.Event()) as pipeline:
        assert sorted(drain(pipeline)) == [1, 2, 3, 4, 5]
    assert pipeline.outcomes.error is None


def test_stop_ends_with_what_is_in_hand(engine: Engine) -> None:
    """After the stop no more tasks are begun; those that were come out."""
    stop = threading.Event()
    begun: list[int] = []

    def begin(task: Task) -> Callable[[], Outcome]:
        begun.append(task.id or 0)
        if task.id == 10:
            stop.set()
        return answer(task)

    with Pipeline(rows(5000), begin, engine, stop) as pipeline:
        found = drain(pipeline)
    assert sorted(found) == sorted(begun)
    assert 10 in found
    assert len(found) < 20


def test_threads_end_when_the_block_is_left_early(engine: Engine) -> None:
    """Leaving in the middle leaves no thread behind."""
    with Pipeline(rows(5000), answer, engine, threading.Event()) as pipeline:
        assert pipeline.outcomes.get() is not None
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("spica-bulk")] == []


def test_a_wait_for_a_result_can_be_bounded() -> None:
    """With nothing to take, a bounded wait gives None, and the stage goes on."""
    go = threading.Event()

    def items() -> Iterator[int]:
        assert go.wait(WAIT_S)
        yield 7

    stage = Stage("test", items(), str, capacity=1)
    stage.start()
    assert stage.get(0) is None
    assert stage.get(0.01) is None
    go.set()
    assert stage.get(WAIT_S) == "7"
    with pytest.raises(EndOfStage):
        stage.get()


def test_a_failed_step_ends_all_threads_of_its_stage() -> None:
    """What one thread fails on ends the stage, however much the others could still take."""
    failure = LabelStudioError("Label Studio refused a request")

    def step(number: int) -> int:
        if number == 3:
            raise failure
        return number

    stage = Stage("test", iter(range(1000)), step, capacity=2000, threads=2)
    stage.start()
    with pytest.raises(LabelStudioError):
        assert len(list(stage)) < 1000
    assert stage.error is failure
