"""The engine: order of service, memory, failures, and an end in order."""

from __future__ import annotations

import threading
import tracemalloc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

from spica.boxes import Detections
from spica.detectors.contract import Detector, RGBImage
from spica.errors import DetectorContractError, ModelUnavailableError, QueueFullError, WeightsError
from spica.images import Image, digest_of
from spica.inference import DetectionCache, Engine, ImageDetections, Priority

WAIT_S = 30


def an_image(mark: int) -> Image:
    return Image(pixels=np.full((4, 6, 3), mark, np.uint8), digest=f"digest-{mark}")


def one_box(score: float) -> Detections:
    return Detections(np.array([[0, 0, 2, 2]], np.float32), np.array([score], np.float32), np.array([0], np.int64))


class ScriptedDetector:
    """Answers with a score made of the image's first pixel; remembers what it was asked; waits when told to."""

    classes = ("spike",)
    input_size = 1333

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Event()

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        (image,) = images
        mark = int(image[0, 0, 0])
        self.asked.append(mark)
        self.begun.set()
        assert self.go.wait(WAIT_S)
        if mark == 13:
            raise ZeroDivisionError("unlucky")
        if mark == 15:
            raise DetectorContractError("a detector gave an answer that breaks its contract")
        return [one_box(mark / 255)]


@contextmanager
def engine_of(detector: Detector, *, queue_size: int = 100, memory_bytes: int = 10_000) -> Iterator[Engine]:
    with Engine("test", lambda: detector, queue_size=queue_size, memory_bytes=memory_bytes) as engine:
        yield engine


def test_an_image_is_computed_once_and_remembered_afterwards() -> None:
    """The second question about the same content does not run the network."""
    detector = ScriptedDetector()
    with engine_of(detector) as engine:
        first = engine.submit(an_image(100), Priority.OPENED).result(WAIT_S)
        second = engine.submit(an_image(100), Priority.OPENED).result(WAIT_S)
        assert detector.asked == [100]
        assert first is second
        assert (first.width, first.height) == (6, 4)
        assert engine.status.images == 1
        assert engine.status.remembered == 1


def test_the_urgent_overtake_the_waiting_and_equals_keep_their_order() -> None:
    """Behind the image in hand, lower priorities wait for higher ones; equal ones are served as they came."""
    detector = ScriptedDetector()
    detector.go.clear()
    with engine_of(detector) as engine:
        futures = [engine.submit(an_image(1), Priority.BULK)]
        assert detector.begun.wait(WAIT_S)
        order = [
            (2, Priority.BULK),
            (3, Priority.BATCH),
            (4, Priority.BATCH),
            (5, Priority.INTERACTIVE),
            (6, Priority.OPENED),
        ]
        futures += [engine.submit(an_image(mark), priority) for mark, priority in order]
        detector.go.set()
        for future in futures:
            future.result(WAIT_S)
    assert detector.asked == [1, 5, 6, 3, 4, 2]


def test_a_waiting_image_moves_forward_when_somebody_more_urgent_wants_it() -> None:
    """A bulk job's image that a person opens is served at the person's turn, and once."""
    detector = ScriptedDetector()
    detector.go.clear()
    with engine_of(detector) as engine:
        futures = [engine.submit(an_image(1), Priority.BULK)]
        assert detector.begun.wait(WAIT_S)
        futures += [engine.submit(an_image(mark), Priority.BULK) for mark in (2, 3)]
        futures.append(engine.submit(an_image(3), Priority.OPENED))
        detector.go.set()
        for future in futures:
            future.result(WAIT_S)
    assert detector.asked == [1, 3, 2]


def test_requests_wait_while_the_model_is_loading() -> None:
    """What comes before the model is ready is answered when it is."""
    loaded = threading.Event()
    detector = ScriptedDetector()

    def load() -> Detector:
        assert loaded.wait(WAIT_S)
        return detector

    with Engine("test", load, queue_size=10, memory_bytes=1000) as engine:
        future = engine.submit(an_image(7), Priority.OPENED)
        assert engine.status.state == "loading"
        assert not future.done()
        loaded.set()
        assert len(future.result(WAIT_S).detections) == 1
        engine.wait_ready(WAIT_S)


def test_a_model_that_fails_to_load_tells_why_to_everyone() -> None:
    """Requests that wait, later requests, and the caller of wait_ready all get the reason."""
    go = threading.Event()

    def load() -> Detector:
        assert go.wait(WAIT_S)
        raise WeightsError("the weights are truncated")

    with Engine("test", load, queue_size=10, memory_bytes=1000) as engine:
        waiting = engine.submit(an_image(1), Priority.OPENED)
        go.set()
        with pytest.raises(WeightsError, match="truncated"):
            waiting.result(WAIT_S)
        with pytest.raises(WeightsError, match="truncated"):
            engine.wait_ready(WAIT_S)
        with pytest.raises(WeightsError, match="truncated"):
            engine.submit(an_image(2), Priority.OPENED).result(WAIT_S)
        assert engine.status.state == "failed"


def test_a_failure_on_one_image_is_that_images(caplog: pytest.LogCaptureFixture) -> None:
    """The network's exception reaches the one who asked, as our own, and the next image is served."""
    detector = ScriptedDetector()
    with engine_of(detector) as engine:
        with pytest.raises(ModelUnavailableError, match="failed on this image"):
            engine.submit(an_image(13), Priority.OPENED).result(WAIT_S)
        assert len(engine.submit(an_image(14), Priority.OPENED).result(WAIT_S).detections) == 1
        assert engine.status.failures == 1
    assert "unlucky" in caplog.text


def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    """Beyond the bound there is a clear refusal, and places come free again."""
    with engine_of(ScriptedDetector(), queue_size=3) as engine, engine.places(2):
        with pytest.raises(QueueFullError) as refused, engine.places(2):
            pass
        assert refused.value.retry_after_s >= 1
        assert refused.value.status == 503
        with engine.places(1):
            assert engine.status.admitted == 3
        assert engine.status.admitted == 2


def test_a_request_larger_than_the_queue_is_served_when_nothing_else_is() -> None:
    """A single large request is not refused for ever."""
    with engine_of(ScriptedDetector(), queue_size=3) as engine, engine.places(5):
        assert engine.status.admitted == 5


def test_closing_answers_everybody_and_may_happen_twice() -> None:
    """Nobody waits for ever on a server that stops."""
    detector = ScriptedDetector()
    detector.go.clear()
    engine = Engine("test", lambda: detector, queue_size=10, memory_bytes=1000)
    engine.start()
    in_hand = engine.submit(an_image(1), Priority.BULK)
    assert detector.begun.wait(WAIT_S)
    waiting = engine.submit(an_image(2), Priority.BULK)
    closer = threading.Thread(target=engine.close)
    closer.start()
    detector.go.set()
    closer.join(WAIT_S)
    assert len(in_hand.result(WAIT_S).detections) == 1
    with pytest.raises(ModelUnavailableError, match="stopping"):
        waiting.result(WAIT_S)
    engine.close()
    with pytest.raises(ModelUnavailableError):
        engine.submit(an_image(3), Priority.BULK).result(WAIT_S)


def test_closing_twice_at_once_answers_the_image_in_hand() -> None:
    """However many close an engine at the same time, the image in hand is answered and the thread ends by itself."""
    detector = ScriptedDetector()
    detector.go.clear()
    engine = Engine("test", lambda: detector, queue_size=10, memory_bytes=1000)
    engine.start()
    in_hand = engine.submit(an_image(1), Priority.BULK)
    assert detector.begun.wait(WAIT_S)
    closers = [threading.Thread(target=engine.close) for _ in range(3)]
    for closer in closers:
        closer.start()
    closers[0].join(0.2)  # all are in close() by now
    assert not in_hand.done()
    detector.go.set()
    for closer in closers:
        closer.join(WAIT_S)
    assert len(in_hand.result(WAIT_S).detections) == 1


@pytest.mark.parametrize("begun", [False, True], ids=["while it waits", "while it is computed"])
def test_whoever_cancels_ends_it_for_nobody_else(begun: bool) -> None:
    """A cancelled question neither ends the engine's thread nor fails another who asked about the same image."""
    detector = ScriptedDetector()
    detector.go.clear()
    with engine_of(detector) as engine:
        first = engine.submit(an_image(1), Priority.BULK)
        assert detector.begun.wait(WAIT_S)
        if not begun:
            first = engine.submit(an_image(2), Priority.BULK)
        second = engine.submit(an_image(2 - begun), Priority.BULK)
        assert first.cancel()
        detector.go.set()
        assert len(second.result(WAIT_S).detections) == 1
        assert len(engine.submit(an_image(3), Priority.BULK).result(WAIT_S).detections) == 1


def test_an_image_that_nobody_waits_for_any_more_is_not_computed() -> None:
    """A question cancelled while it waits costs nothing, and may be asked again."""
    detector = ScriptedDetector()
    detector.go.clear()
    with engine_of(detector) as engine:
        engine.submit(an_image(1), Priority.BULK)
        assert detector.begun.wait(WAIT_S)
        assert engine.submit(an_image(2), Priority.BULK).cancel()
        last = engine.submit(an_image(3), Priority.BULK)
        detector.go.set()
        last.result(WAIT_S)
        assert detector.asked == [1, 3]
        assert engine.status.waiting == 0
        engine.submit(an_image(2), Priority.BULK).result(WAIT_S)


def test_a_failed_model_tells_its_reason_to_each_in_an_exception_of_its_own() -> None:
    """An exception grows with each place that it is raised at: a thousand requests raise a thousand of them."""

    def load() -> Detector:
        raise WeightsError("the weights are truncated", where="a.pth", hint="export them again")

    raised: list[WeightsError] = []
    with Engine("test", load, queue_size=10, memory_bytes=1000) as engine:
        for ask in (engine.wait_ready, lambda: engine.submit(an_image(1), Priority.OPENED).result(WAIT_S)) * 3:
            with pytest.raises(WeightsError) as caught:
                ask()
            raised.append(caught.value)
    assert len({id(error) for error in raised}) == len(raised)
    assert {(error.what, error.where, error.hint) for error in raised} == {
        ("the weights are truncated", "a.pth", "export them again")
    }


def test_an_engine_at_rest_holds_no_image() -> None:
    """Once it is answered, failed or moved forward, nothing holds the pixels any more."""
    detector = ScriptedDetector()
    detector.go.clear()
    with engine_of(detector) as engine:
        images = {mark: an_image(mark) for mark in (1, 15, 2, 3)}
        alive = [weakref.ref(image.pixels) for image in images.values()]
        futures = [engine.submit(image, Priority.BULK) for image in images.values()]
        assert detector.begun.wait(WAIT_S)
        futures.append(engine.submit(images[3], Priority.OPENED))
        images.clear()
        detector.go.set()
        for future in futures:
            future.exception(WAIT_S)
        assert [ref() is None for ref in alive] == [True] * 4


def test_memory_counts_what_it_takes() -> None:
    """The bound in bytes is one of the process's memory, the objects around small answers included."""
    memory = DetectionCache(limit_bytes=10**9)
    tracemalloc.start()
    for number in range(2000):
        memory.put(digest_of(str(number).encode()), ImageDetections(one_box(0.5), 1000 + number, 3000 + number))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken <= memory.nbytes <= 2 * taken


def test_memory_forgets_the_least_recently_used_beyond_its_bound() -> None:
    """The bound in bytes holds, and what was asked for lately stays."""
    seen = ImageDetections(one_box(0.5), 6, 4)
    memory = DetectionCache(limit_bytes=3 * seen.nbytes)
    for name in "abc":
        memory.put(name, seen)
    assert memory.get("a") is seen
    memory.put("d", seen)
    assert memory.get("b") is None
    assert [name for name in "acd" if memory.get(name) is None] == []
    assert memory.nbytes == 3 * seen.nbytes


@pytest.mark.parametrize("limit", [0, 10], ids=["none", "smaller than one entry"])
def test_a_memory_too_small_for_anything_holds_nothing(limit: int) -> None:
    """An entry larger than the bound is not kept."""
    memory = DetectionCache(limit_bytes=limit)
    memory.put("a", ImageDetections(one_box(0.5), 6, 4))
    assert len(memory) == 0
    assert memory.nbytes == 0


def test_putting_the_same_twice_counts_its_bytes_once() -> None:
    """Replacing an entry does not leak its size into the count."""
    seen = ImageDetections(one_box(0.5), 6, 4)
    memory = DetectionCache(limit_bytes=10_000)
    memory.put("a", seen)
    memory.put("a", seen)
    assert memory.nbytes == seen.nbytes


@pytest.mark.parametrize(("waiting", "expected"), [(False, [7, 100]), (True, [100])], ids=["nobody waits", "one waits"])
def test_somebody_who_waits_already_is_not_kept_waiting_for_a_warm_up(waiting: bool, expected: list[int]) -> None:
    """Warming up computes an image; whoever has asked before the model was loaded gets theirs at once instead."""
    detector = ScriptedDetector()
    loaded = threading.Event()

    def load() -> Detector:
        assert loaded.wait(WAIT_S)
        return detector

    def warm(given: Detector) -> None:
        given.detect([an_image(7).pixels])

    with Engine("test", load, queue_size=9, memory_bytes=10_000, warm=warm) as engine:
        asked = engine.submit(an_image(100), Priority.OPENED) if waiting else None
        loaded.set()
        engine.wait_ready(WAIT_S)
        (asked or engine.submit(an_image(100), Priority.OPENED)).result(WAIT_S)
    assert detector.asked == expected


def test_a_warm_up_that_fails_is_a_model_that_failed() -> None:
    """The reason is told as if loading had failed."""

    def warm(given: Detector) -> None:
        given.detect([an_image(13).pixels])

    with (
        Engine("test", ScriptedDetector, queue_size=9, memory_bytes=9, warm=warm) as engine,
        pytest.raises(ModelUnavailableError),
    ):
        engine.wait_ready(WAIT_S)


def test_started_twice_is_started_once() -> None:
    """The foreground server and a ``with`` block may both start an engine."""
    loads: list[int] = []

    def load() -> Detector:
        loads.append(1)
        return ScriptedDetector()

    with Engine("test", load, queue_size=9, memory_bytes=9) as engine:
        engine.start()
        engine.wait_ready(WAIT_S)
    engine.start()
    assert loads == [1]
