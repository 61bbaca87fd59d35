"""From tasks to predictions: real images in files' bytes, bounded in memory, missing ones told."""

from __future__ import annotations

import gc
import io
import logging
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import PIL.Image
import pytest

import spica.predictor
from scripted_detector import WAIT_S, ScriptedDetector, detections
from spica.boxes import Detections
from spica.detectors.contract import RGBImage
from spica.images import Image, decode
from spica.inference import Engine, Priority
from spica.labelstudio.protocol import Task
from spica.labelstudio.records import TaskRow
from spica.predictor import Outcome, PredictionSpec, Predictor
from spica.prelabel.pipeline import EndOfStage, Pipeline

ONE = (
    '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image"><Label value="spike"/>'
    "</RectangleLabels></View>"
)
PAGES = ONE.replace('value="$image"', 'valueList="$pages"')
TWO = (
    '<View><Image name="left" value="$a"/><RectangleLabels name="l" toName="left"><Label value="spike"/>'
    '</RectangleLabels><Image name="right" value="$b"/><RectangleLabels name="r" toName="right">'
    '<Label value="spike"/></RectangleLabels></View>'
)
WIDTH, HEIGHT = 120, 90
NBYTES = 3 * WIDTH * HEIGHT


class Album:
    """Images by address, each of its own colour; an address that begins with "broken" is half a file."""

    def read(self, uri: str, *, task_id: int | None = None) -> bytes:
        """A PNG."""
        picture = np.full((HEIGHT, WIDTH, 3), np.frombuffer(f"{uri:>9}".encode()[-3:], np.uint8), np.uint8)
        picture[::7, ::5] = np.random.default_rng(len(uri)).integers(0, 256, (13, 24, 3), np.uint8)
        file = io.BytesIO()
        PIL.Image.fromarray(picture).save(file, "PNG")
        data = file.getvalue()
        return data[: len(data) // 2] if uri.startswith("broken") else data


class PatientDetector:
    """One box, as wide as the colour of the image says; begins once so many bytes of images are alive."""

    classes = ("spike",)
    input_size = 1333

    def __init__(self, reached: threading.Event) -> None:
        self._reached = reached

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        """Of each."""
        assert self._reached.wait(WAIT_S)
        return [detections((0, 0, float(image[1, 1, 2]) / 4 + 1, 9, 0.9)) for image in images]


class Alive:
    """Counts the bytes of decoded images that somebody holds."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.now = self.most = self.images = 0
        self._reached, self._awaited = threading.Event(), 0

    def awaiting(self, nbytes: int) -> threading.Event:
        """Begin anew; an event that is set when so many bytes are alive at once."""
        self._reached, self._awaited, self.most = threading.Event(), nbytes, 0
        return self._reached

    def __call__(self, data: bytes, **more: Any) -> Image:
        """Decode, and count."""
        image = decode(data, **more)
        with self._lock:
            self.images += 1
            self.now += image.pixels.nbytes
            self.most = max(self.most, self.now)
            if self.now >= self._awaited:
                self._reached.set()
        weakref.finalize(image.pixels, self._gone, image.pixels.nbytes)
        return image

    def _gone(self, nbytes: int) -> None:
        with self._lock:
            self.now -= nbytes


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Alive:
    """The count, from now on."""
    counted = Alive()
    monkeypatch.setattr(spica.predictor, "decode", counted)
    return counted


def predictor_of(engine: Engine) -> Predictor:
    return Predictor(
        model_id="test-0001", classes=("spike",), engine=engine, media=Album(), threshold=0.6, max_pixels=10**6
    )


@pytest.fixture
def predictor() -> Iterator[Predictor]:
    """A predictor whose detector answers at once."""
    with Engine("test", lambda: ScriptedDetector(detections((9, 9, 30, 30, 0.9))), queue_size=9, memory_bytes=9) as it:
        yield predictor_of(it)


def pages(number: int, count: int) -> Task:
    return Task(id=number, data={"pages": [f"{number}-{page}" for page in range(count)]})


def outcomes(bound: int, tasks: Sequence[Task], reached: threading.Event) -> list[Outcome]:
    with Engine("test", lambda: PatientDetector(reached), queue_size=99, memory_bytes=0, decoded_bytes=bound) as engine:
        predictor = predictor_of(engine)
        return list(predictor.predict(tasks, predictor.spec(PAGES), Priority.BATCH))


@pytest.mark.parametrize(
    ("bound", "most"),
    [(5 * NBYTES, 5 * NBYTES), (5 * NBYTES - 1, 4 * NBYTES), (1, NBYTES)],
    ids=["five images", "a byte less", "less than one"],
)
def test_a_task_of_sixty_pages_holds_no_more_than_the_bound(alive: Alive, bound: int, most: int) -> None:
    """However many pages a task has, the bytes of its decoded ones are bounded, and the answers are the same.

    One that is larger than the bound goes alone.
    """
    tasks = [pages(1, 60), pages(2, 3)]
    unbounded = outcomes(10**12, tasks, alive.awaiting(63 * NBYTES))
    bounded = outcomes(bound, tasks, alive.awaiting(most))
    assert alive.most == most
    assert alive.now == 0
    assert bounded == unbounded
    assert [outcome.boxes for outcome in bounded] == [60, 3]


def drain(pipeline: Pipeline) -> list[int]:
    found: list[int] = []
    while True:
        try:
            outcome = pipeline.outcomes.get()
        except EndOfStage:
            return found
        assert outcome is not None
        assert outcome.error is None
        found.append(outcome.boxes)


def test_the_bulk_job_holds_no_more_than_the_bound(alive: Alive) -> None:
    """Its readers share the bound, whatever mixture of pages the tasks have."""
    rows = [TaskRow(id=number, data=pages(number, 1 + number % 9).data) for number in range(1, 31)]
    reached = alive.awaiting(4 * NBYTES)
    with Engine(
        "test", lambda: PatientDetector(reached), queue_size=9, memory_bytes=0, decoded_bytes=4 * NBYTES
    ) as engine:
        predictor = predictor_of(engine)
        spec = predictor.spec(PAGES)
        with Pipeline(
            rows, lambda task: predictor.begin(task, spec, Priority.BULK), engine, threading.Event()
        ) as pipeline:
            assert sum(drain(pipeline)) == sum(1 + number % 9 for number in range(1, 31)) == alive.images
    assert alive.most == 4 * NBYTES


def test_a_person_does_not_wait_for_room_behind_a_job(alive: Alive) -> None:
    """While a job's images fill the bound, the image that somebody opens is decoded and stands before them."""
    detector = ScriptedDetector(detections((9, 9, 30, 30, 0.9)))
    detector.go.clear()
    with Engine("test", lambda: detector, queue_size=9, memory_bytes=0, decoded_bytes=NBYTES) as engine:
        predictor = predictor_of(engine)
        spec = predictor.spec(PAGES)
        job = threading.Thread(target=lambda: predictor.begin(pages(1, 20), spec, Priority.BULK)())
        job.start()
        assert detector.begun.wait(WAIT_S)
        wait = predictor.begin(pages(2, 1), spec, Priority.OPENED)
        assert alive.images == 2
        detector.go.set()
        assert wait().boxes == 1
        assert detector.calls < 5
        job.join(WAIT_S)


def test_a_failure_that_is_kept_holds_no_image(predictor: Predictor) -> None:
    """The last failures are kept for the page; the bytes and half-decoded pixels of their images are not."""
    (outcome,) = predictor.predict([Task(id=1, data={"image": "broken"})], predictor.spec(ONE), Priority.OPENED)
    assert outcome.error is not None
    assert outcome.error.code == "image"
    gc.collect()
    opened = [found for found in gc.get_objects() if issubclass(type(found), PIL.Image.Image)]
    assert [found for found in opened if found.size == (WIDTH, HEIGHT)] == []


NOTHING = [
    pytest.param(PAGES, {"pages": []}, "an empty list", id="empty list"),
    pytest.param(PAGES, {"pages": [None, ""]}, "null", id="list of nothing"),
    pytest.param(PAGES, {"pages": None}, 'no image under "pages"', id="null list"),
    pytest.param(ONE, {"image": None}, 'no image under "image"', id="null"),
    pytest.param(ONE, {"image": " "}, "not the address", id="blank"),
    pytest.param(TWO, {"a": None}, 'no image under "a"', id="neither of two"),
    pytest.param(TWO, {"a": "a.png", "b": 3}, 'task\'s "b" is not the address', id="no address beside an image"),
    pytest.param(TWO, {"a": "a.png", "b": "broken.png"}, "damaged", id="one of two can't be read"),
    pytest.param(PAGES, {"pages": ["a.png", "broken.png"]}, "damaged", id="one of a list can't be read"),
]


@pytest.mark.parametrize(("config", "data", "words"), NOTHING)
def test_nothing_to_look_at_is_a_failure(predictor: Predictor, config: str, data: dict[str, Any], words: str) -> None:
    """A task without an image, or with one that can't be read, fails with a reason and is never "no objects"."""
    (outcome,) = predictor.predict([Task(id=7, data=data)], predictor.spec(config), Priority.OPENED)
    assert outcome.prediction is None
    assert words in str(outcome.error)


SOME = [
    pytest.param(TWO, {"a": None, "b": "b.png"}, [("right", None)], id="null"),
    pytest.param(TWO, {"a": "a.png"}, [("left", None)], id="missing key"),
    pytest.param(TWO, {"a": "a.png", "b": ""}, [("left", None)], id="empty cell of a table"),
    pytest.param(PAGES, {"pages": ["p0", None, "p2"]}, [("image", 0), ("image", 2)], id="null in a list"),
    pytest.param(PAGES, {"pages": ["", "p1"]}, [("image", 1)], id="blank in a list"),
]


@pytest.mark.parametrize(("config", "data", "places"), SOME)
def test_images_that_are_there_get_their_boxes(
    predictor: Predictor,
    config: str,
    data: dict[str, Any],
    places: list[tuple[str, int | None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where one image of several does not exist, the others are answered at their own places, and the lack is told."""
    spec: PredictionSpec = predictor.spec(config)
    with caplog.at_level(logging.WARNING):
        (outcome,) = predictor.predict([Task(id=7, data=data)], spec, Priority.OPENED)
    assert outcome.prediction is not None
    assert [(item["to_name"], item.get("item_index")) for item in outcome.prediction["result"]] == places
    assert "task 7: an image is missing" in caplog.text
