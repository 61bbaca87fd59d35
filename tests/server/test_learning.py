"""When a training starts and what becomes of it: a scripted Label Studio, a scripted process that trains."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from pydantic import SecretStr

from model_server import ANSWER
from project_keys import ONE
from scripted_detector import WAIT_S, ScriptedDetector
from spica.errors import AuthenticationError, DataSetError, NotFoundError, StorageError, TrainingError, WeightsError
from spica.inference import Engine
from spica.labelstudio.protocol import WebhookRequest
from spica.models import active
from spica.models.folders import ids
from spica.predictor import Predictor
from spica.project import ProjectKey
from spica.server import learning as module
from spica.server.jobs import Jobs
from spica.server.learning import Learning, NothingToLearnError
from spica.server.page import Page
from spica.server.service import Service
from spica.server.trainer import TrainingOverError, TrainingRunningError
from spica.server.triggers import START, Triggers
from spica.settings import Settings
from spica.training.process import CancelledError, Request, WorkerProcess
from spica.training.runs import Run, Runs
from tiny_versions import age, tiny_version

REPORT = {
    "images": 20,
    "boxes": 40,
    "version": "trained-00000001",
    "learned": {str(number): "2026-11-23T00:00:00Z" for number in range(20)},
    "verdict": {"accepted": False, "sentence": "it is worse"},
}


CREATED = "2023-11-14T22:13:20.281866Z"
"""When the project was created."""


class ScriptedWorker:
    """Trains when it may, and ends as it is told."""

    def __init__(self, request: Request, outcome: Any) -> None:
        self.request = request
        self.outcome = outcome
        self.go = threading.Event()
        self.ended: str | None = None

    def run(self, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Progress, then the outcome."""
        tell({"stage": "training", "epoch": 1, "epochs": 3, "losses": {"loss": 0.5}, "eta_s": 9.0, "images": 20})
        assert self.go.wait(WAIT_S)
        if self.ended is not None:
            raise CancelledError("the training was ended", got=self.ended)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        if isinstance(self.outcome, list):
            return WorkerProcess(self.request, self.outcome).run(tell)
        return dict(self.outcome)

    def end(self, why: str = "") -> None:
        """Ends it."""
        self.ended = why
        self.go.set()


class Studio:
    """What is asked of Label Studio: a project, its switch, and how many annotations it has."""

    url = "http://127.0.0.1:8080"

    def __init__(self) -> None:
        self.every = 1
        self.annotations = 0
        self.workers: list[ScriptedWorker] = []
        self.outcome: Any = REPORT
        self.refuses: Exception | None = None
        self.counted = 0
        self.asked = 0
        self.page: Callable[[], str] = str

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, _method: str, path: str, **_: Any) -> Any:
        """Projects."""
        self.asked += 1
        body = {"id": 1, "title": "field", "min_annotations_to_start_training": self.every, "created_at": CREATED}
        return {"results": [body], "next": None} if path == "/api/projects/" else body

    def backends(self, _project: int) -> list[Any]:
        """None; nobody is asked."""
        return []

    def count(self, learned: Mapping[int, str]) -> Any:
        """As `spica.training.submissions.count_new`."""
        from spica.training.submissions import NewSubmissions

        self.counted += 1
        return NewSubmissions(self.annotations - len(learned), 0)

    def worker(self, request: Request) -> ScriptedWorker:
        """The next process."""
        if isinstance(self.refuses, Exception):
            raise self.refuses
        self.workers.append(ScriptedWorker(request, self.outcome))
        return self.workers[-1]


Make = Callable[..., Learning]


@pytest.fixture
def studio(monkeypatch: pytest.MonkeyPatch) -> Studio:
    """In place of Label Studio."""
    found = Studio()
    monkeypatch.setattr("spica.server.learning.LabelStudioClient", lambda *_: found)
    monkeypatch.setattr("spica.training.submissions.count_new", lambda _client, _project, learned: found.count(learned))
    return found


@pytest.fixture
def make_learning(studio: Studio, tmp_path: Path) -> Iterator[Make]:
    """Learnings of a server that is not there; each ends with the test."""
    with ExitStack() as stack:

        def make(
            *,
            token: str | None = "secret",  # noqa: S107
            train_after: int = 20,
            models_bytes: int = 10**9,
            start: bool = True,
            **more: Any,
        ) -> Learning:
            settings = Settings(
                label_studio_url="http://127.0.0.1:9",
                label_studio_api_key=SecretStr(token) if token else None,
                data_dir=tmp_path,
                train_after=train_after,
                models_bytes=models_bytes,
                **more,
            )
            engine = stack.enter_context(
                Engine("base-0001", lambda: ScriptedDetector(ANSWER), queue_size=10, memory_bytes=1000)
            )
            model = Predictor(
                model_id="base-0001",
                classes=("spike",),
                engine=engine,
                media=None,  # type: ignore[arg-type]  # nothing is read
                threshold=0.6,
                max_pixels=1000,
            )
            service = Service(model, weights="x")
            stack.callback(service.close)
            jobs = Jobs(service, settings)
            learning = Learning(
                service,
                jobs,
                settings,
                triggers=Triggers(quiet_s=0),
                worker=studio.worker,
                every_s=1e9,
            )
            stack.callback(learning.close)
            studio.page = partial(Page(service, jobs, learning).render, "status.html")
            if start:
                learning.start()
            return learning

        yield make


def until(condition: Callable[[], Any]) -> Any:
    """Wait for what another thread does."""
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)
    return found


def event(action: str, *, every: int, total: int) -> WebhookRequest:
    """From Label Studio."""
    project = {
        "id": 1,
        "created_at": CREATED,
        "min_annotations_to_start_training": every,
        "total_annotations_number": total,
        "skipped_annotations_number": 0,
    }
    annotation = None if action == "START_TRAINING" else {"id": total, "updated_at": f"{action} {total}"}
    return WebhookRequest.model_validate({"action": action, "project": project, "annotation": annotation})


def hear(learning: Learning, studio: Studio, action: str, total: int) -> None:
    """Let it hear an event, and wait until it has looked."""
    counted = studio.counted
    studio.annotations = total
    learning.hear(event(action, every=studio.every, total=total), proven=action != START)
    until(lambda: studio.counted > counted)


@pytest.mark.parametrize(
    ("every", "action", "new", "starts"),
    [
        pytest.param(1, "ANNOTATION_CREATED", 19, False, id="the switch, one too few"),
        pytest.param(1, "ANNOTATION_CREATED", 20, True, id="the switch, enough"),
        pytest.param(5, "ANNOTATION_UPDATED", 25, True, id="the switch by API"),
        pytest.param(0, "ANNOTATION_CREATED", 100, False, id="no switch"),
        pytest.param(0, "START_TRAINING", 1, True, id="the button, no switch"),
        pytest.param(1, "START_TRAINING", 1, True, id="the button beside the switch"),
        pytest.param(0, "START_TRAINING", 0, False, id="the button, nothing to learn"),
    ],
)
def test_when_a_training_starts(
    studio: Studio, make_learning: Make, every: int, action: str, new: int, starts: bool
) -> None:
    """The switch starts a training after enough new submissions, the button at once, and neither without any."""
    learning = make_learning()
    studio.every = every
    hear(learning, studio, action, new)
    standing = until(lambda: learning.standings and learning.standings[0])
    assert (standing.new, standing.switch) == (new, every > 0)
    if starts:
        until(lambda: studio.workers)
        assert learning.trainer.current is not None
        studio.workers[0].end()
    else:
        learning.close()  # whatever it has begun is over then
        assert studio.workers == []


@pytest.mark.parametrize("claimed", [None, "2026-11-23T06:35:28Z", "2026-11-23T06:35:28.281867Z"])
@pytest.mark.parametrize("submitted", [False, True])
def test_a_forged_button_starts_nothing(
    studio: Studio, make_learning: Make, claimed: str | None, submitted: bool
) -> None:
    """Who can't say when the project was created is not Label Studio: its button is not one, whatever else comes."""
    learning = make_learning()
    studio.every, studio.annotations = 0, 5
    asked = studio.asked
    forged = event(START, every=0, total=5)
    assert forged.project is not None
    learning.hear(forged.model_copy(update={"project": {**forged.project, "created_at": claimed}}), proven=False)
    if submitted:
        learning.hear(event("ANNOTATION_CREATED", every=0, total=5), proven=True)
    until(lambda: studio.counted if submitted else studio.asked > asked)
    learning.close()
    assert (studio.workers, studio.counted) == ([], int(submitted))


def test_what_may_be_forged_is_refused(studio: Studio, make_learning: Make) -> None:
    """Without the secret nothing but the button is heard, and no more of them than are soon looked into."""
    learning = make_learning(start=False)
    with pytest.raises(AuthenticationError, match="secret"):
        learning.hear(event("ANNOTATION_CREATED", every=1, total=20), proven=False)
    buttons = [event(START, every=0, total=1).model_copy(update={"project": {"id": each}}) for each in range(30)]
    heard = [learning.hear(each, proven=False)["heard"] for each in buttons]
    assert heard == ["noted"] * 20 + ["ignored"] * 10


def test_a_training_is_told_how_photographs_are_looked_at(studio: Studio, make_learning: Make) -> None:
    """Precision and tiles of the server: the gate compares what people would be shown."""
    learning = make_learning(precision="bf16", tile="512", overlap=0.3)
    hear(learning, studio, "START_TRAINING", 1)
    until(lambda: studio.workers)
    told = studio.workers[0].request.settings
    assert (told["precision"], told["tile"], told["overlap"]) == ("bf16", "512", 0.3)
    studio.workers[0].end()


def test_what_was_refused_is_not_learned_at_once_again(studio: Studio, make_learning: Make) -> None:
    """After a refused training the switch counts from there; the button may try the same submissions again."""
    learning = make_learning()
    hear(learning, studio, "ANNOTATION_CREATED", 20)
    until(lambda: studio.workers)
    studio.workers[0].go.set()
    run = until(lambda: next((run for run in learning.runs if run.is_over), None))
    assert (run.state, run.why, run.version) == ("refused", "it is worse", "trained-00000001")
    hear(learning, studio, "ANNOTATION_CREATED", 39)
    assert until(lambda: learning.standings[0].new == 19)
    assert len(studio.workers) == 1
    studio.every = 0
    hear(learning, studio, "START_TRAINING", 39)
    until(lambda: len(studio.workers) == 2)
    studio.workers[1].end()


KILLED = [sys.executable, "-c", "import sys; sys.exit(137)"]
"""A process that ends as one that the system has killed for want of memory."""

FAILURES = [
    pytest.param(TrainingError("it broke"), "it broke", id="the training"),
    pytest.param(DataSetError("no box is left", hint="draw some"), "no box is left. draw some", id="the data"),
    pytest.param(StorageError("a file could not be written", hint="free some space"), "free some space", id="the disk"),
    pytest.param(
        WeightsError("these weights are of another architecture", got="yolo"),
        "these weights are of another architecture. yolo",
        id="the weights",
    ),
    pytest.param(KILLED, "it was killed, perhaps by the system for want of memory", id="killed"),
    pytest.param(ValueError("a bug"), "the training failed. ValueError", id="a bug"),
]


@pytest.mark.parametrize(("outcome", "sentence"), FAILURES)
def test_after_a_failure_the_next_submission_starts_anew(
    studio: Studio, make_learning: Make, tmp_path: Path, outcome: Any, sentence: str
) -> None:
    """What is active is untouched, the reason is told, nothing is tried again by itself, the next event trains."""
    version = tiny_version(tmp_path, "a")
    active.activate(tmp_path, ONE, version, base="base-0001", why="better", by="test")
    files = {path: path.read_bytes() for path in (tmp_path / "active").glob("1.*.json*")}
    studio.outcome = outcome
    learning = make_learning()
    hear(learning, studio, "ANNOTATION_CREATED", 20)
    until(lambda: studio.workers)
    studio.workers[0].go.set()
    run = until(lambda: next((run for run in learning.runs if run.is_over), None))
    assert run.state == "failed"
    assert sentence in run.why
    assert sentence in studio.page()
    until(lambda: studio.counted == 2)  # it has counted again after the end
    assert len(studio.workers) == 1
    assert {path: path.read_bytes() for path in (tmp_path / "active").glob("1.*.json*")} == files
    studio.outcome = REPORT
    hear(learning, studio, "ANNOTATION_CREATED", 21)
    until(lambda: len(studio.workers) == 2)
    studio.workers[1].end()


def test_a_start_that_fails_leaves_nothing(studio: Studio, make_learning: Make, tmp_path: Path) -> None:
    """No trace of it would be taken up as a training by the next server, and the next start is free to begin."""
    learning = make_learning()
    studio.annotations = 3
    studio.refuses = OSError("no more processes")
    with pytest.raises(OSError, match="no more"):
        learning.ask(1)
    assert list(Runs(tmp_path).unfinished()) == []
    assert [path for path in Runs(tmp_path).project_folder(ONE).iterdir() if path.is_dir()] == []
    studio.refuses = None
    learning.ask(1)
    studio.workers[0].end()


def full_once_over(patch: pytest.MonkeyPatch) -> None:
    """Have the disk be full when a training is over."""
    write = Runs.write

    def full(self: Runs, run: Run) -> None:
        if run.is_over:
            raise StorageError("a file could not be written", got="No space left on device")
        write(self, run)

    patch.setattr(Runs, "write", full)


def test_an_end_that_cannot_be_written(
    studio: Studio, make_learning: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is shown with the reason, is not tried again by the look every few minutes, and is written when it can be."""
    studio.outcome = TrainingError("it broke")
    learning = make_learning()
    studio.annotations = 20
    run = learning.ask(1)
    with monkeypatch.context() as patch:
        full_once_over(patch)
        studio.workers[0].go.set()
        ended = until(lambda: next((run for run in learning.runs if run.is_over), None))
        assert (ended.id, ended.state) == (run.id, "failed")
        assert "it broke" in studio.page()
        assert "No space left on device" in studio.page()
        until(lambda: studio.counted == 2)  # the look after the end, which finds the 20 still new
        learning.trainer.retry()
        learning.close()  # whatever that look has begun is over then
        assert len(studio.workers) == 1
    assert next(Runs(tmp_path).unfinished()).id == run.id
    learning.trainer.retry()
    (written,) = Runs(tmp_path).of(ONE)
    assert (written.state, written.notes) == ("failed", ())
    assert learning.trainer.of(ONE) == [written]


def test_a_refusal_that_cannot_be_written(studio: Studio, make_learning: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was learned from counts as learned, though it stands in memory alone."""
    learning = make_learning()
    studio.annotations = 20
    learning.ask(1)
    full_once_over(monkeypatch)
    studio.workers[0].go.set()
    ended = until(lambda: next((run for run in learning.runs if run.is_over), None))
    assert ended.state == "refused"
    until(lambda: learning.standings[0].new == 0)
    assert len(studio.workers) == 1


def test_cancel(studio: Studio, make_learning: Make) -> None:
    """A training that is cancelled ends as such; where there is none, that is said."""
    learning = make_learning(train_after=1)
    with pytest.raises(NotFoundError):
        learning.cancel(1)
    studio.annotations = 3
    run = learning.ask(1)
    with pytest.raises(TrainingRunningError):
        learning.ask(1)
    learning.cancel(1)
    ended = until(lambda: next((each for each in learning.runs if each.is_over), None))
    assert (ended.id, ended.state) == (run.id, "cancelled")
    assert learning.trainer.current is None


def test_it_is_too_late_to_cancel(studio: Studio, make_learning: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the report is there nobody is told that the training was cancelled: it goes its way."""
    activating, go = threading.Event(), threading.Event()

    def hanging(self: Learning, run: Run, version: str) -> None:
        activating.set()
        assert go.wait(WAIT_S)

    monkeypatch.setattr(Learning, "_activate", hanging)
    studio.outcome = {**REPORT, "verdict": {"accepted": True, "sentence": "it is better"}}
    learning = make_learning()
    studio.annotations = 3
    learning.ask(1)
    studio.workers[0].go.set()
    assert activating.wait(WAIT_S)
    with pytest.raises(TrainingOverError, match="can't be cancelled any more"):
        learning.cancel(1)
    go.set()
    assert learning.trainer.join(WAIT_S)
    assert learning.trainer.of(ONE)[0].state == "passed"


def test_cancelled_at_the_last_moment(studio: Studio, make_learning: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is told that it is cancelled finds it cancelled, also where the report was on its way already."""
    learning = make_learning()
    studio.annotations = 3
    learning.ask(1)
    monkeypatch.setattr(ScriptedWorker, "end", lambda self, _why="": self.go.set())
    learning.cancel(1)
    assert learning.trainer.join(WAIT_S)
    assert learning.trainer.of(ONE)[0].state == "cancelled"


def test_progress_is_shown_and_written(studio: Studio, make_learning: Make, tmp_path: Path) -> None:
    """What the process tells is what the page shows and what stands on the disk."""
    learning = make_learning()
    studio.annotations = 3
    run = learning.ask(1)
    folder = Runs(tmp_path).folder(run)
    until(lambda: (Run.read(folder) or run).epoch == 1)
    for told in (Run.read(folder), learning.trainer.current):
        assert told is not None
        assert (told.stage, told.epochs, told.losses, told.eta_s) == ("training", 3, {"loss": 0.5}, 9.0)
        assert told.parent == "base-0001"
    assert "secret" not in (Runs(tmp_path).folder(run) / "run.json").read_text("utf-8")
    studio.workers[0].end()


def test_a_restart_takes_the_training_up(studio: Studio, make_learning: Make) -> None:
    """A server that stops leaves its training unfinished; the next one goes on in the same folder."""
    first = make_learning()
    studio.annotations = 3
    run = first.ask(1)
    until(lambda: studio.workers)
    first.close()
    assert next(first.trainer.runs.unfinished()).id == run.id
    second = make_learning()
    until(lambda: len(studio.workers) == 2)
    assert [worker.request.run for worker in studio.workers] == [run.id, run.id]
    assert second.trainer.current is not None
    assert second.trainer.current.attempts == 2
    studio.workers[1].go.set()
    ended = until(lambda: next((each for each in second.runs if each.is_over), None))
    assert (ended.id, ended.state) == (run.id, "refused")


@pytest.mark.parametrize(
    ("created", "taken"), [(ONE.created, True), (4_000_000_000, False)], ids=["its own", "another's"]
)
def test_a_training_that_an_older_spica_has_begun(
    studio: Studio, make_learning: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, created: int, taken: bool
) -> None:
    """Kept under the number alone, it goes on as the project's; begun before the project was created, it is left."""
    monkeypatch.setattr(
        studio, "project", lambda number: SimpleNamespace(key=ProjectKey(number, created)), raising=False
    )
    runs = Runs(tmp_path)
    run = runs.begin(ProjectKey(1), title="field", cause="x", new=3, parent=None)
    learning = make_learning()
    if taken:
        until(lambda: studio.workers)
        assert (studio.workers[0].request.project, studio.workers[0].request.run) == (ONE, run.id)
        studio.workers[0].end()
    else:
        standing = until(lambda: learning.standings and learning.standings[0])
        assert "not known to be this one's" in standing.note
        learning.close()
        assert (studio.workers, runs.of(ProjectKey(1))) == ([], [run])


def test_an_event_of_another_label_studio_trains_nothing(studio: Studio, make_learning: Make) -> None:
    """Its project 1 is not the one whose annotations this server can fetch; that is said."""
    learning = make_learning()
    studio.annotations = 30
    told = event("ANNOTATION_CREATED", every=1, total=30)
    learning.hear(
        told.model_copy(update={"project": {**(told.project or {}), "created_at": "2026-01-01"}}), proven=True
    )
    standing = until(lambda: learning.standings and learning.standings[0])
    assert "project 1 is another one here" in standing.note
    learning.close()
    assert studio.workers == []


@pytest.mark.parametrize(
    ("attempts", "token", "why"),
    [pytest.param(3, "secret", "3 times", id="too often"), pytest.param(1, None, "no access token", id="no token")],
)
def test_a_training_that_cannot_be_taken_up_is_cleared(
    studio: Studio, make_learning: Make, tmp_path: Path, attempts: int, token: str | None, why: str
) -> None:
    """It is marked as failed, with the reason, and its files are removed."""
    from dataclasses import replace

    runs = Runs(tmp_path)
    run = replace(runs.begin(ONE, title="field", cause="x", new=3, parent=None), attempts=attempts)
    runs.write(run)
    (runs.folder(run) / "checkpoints").mkdir()
    learning = make_learning(token=token)
    ended = until(lambda: next((each for each in learning.runs if each.is_over), None))
    assert ended.state == "failed"
    assert why in ended.why
    assert sorted(path.name for path in runs.folder(run).iterdir()) == ["run.json"]
    assert studio.workers == []


def test_two_servers_on_one_folder(studio: Studio, make_learning: Make) -> None:
    """One training a project at a time, whichever server began it; the other one does not take it up."""
    first, second = make_learning(), make_learning()
    studio.annotations = 3
    first.ask(1)
    with pytest.raises(TrainingRunningError, match="another server"):
        second.ask(1)
    third = make_learning()
    assert third.trainer.current is None
    assert len(studio.workers) == 1
    studio.workers[0].end()


def test_without_a_token(studio: Studio, make_learning: Make) -> None:
    """Events are taken, nothing is learned, and the reason is said where the event came and on the page."""
    learning = make_learning(token=None)
    answer = learning.hear(event("START_TRAINING", every=0, total=3), proven=False)
    assert (answer["status"], answer["heard"]) == ("ok", "ignored")
    assert "access token" in answer["note"]
    assert "LABEL_STUDIO_API_KEY" in studio.page()
    with pytest.raises(AuthenticationError):
        learning.ask(1)


def test_nothing_to_learn_is_said(studio: Studio, make_learning: Make) -> None:
    """Asked for on the page, it is an error with a reason."""
    learning = make_learning()
    with pytest.raises(NothingToLearnError, match="nothing new"):
        learning.ask(1)
    assert "nothing new" in (learning.standings[0].note or "")


def test_the_webhook_never_waits(studio: Studio, make_learning: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are answered while Label Studio itself does not answer."""
    go, asked = threading.Event(), threading.Event()

    def hanging(*_: Any, **__: Any) -> Any:
        asked.set()
        assert go.wait(WAIT_S)
        raise TrainingError("gone")

    learning = make_learning()
    monkeypatch.setattr(studio, "call", hanging)
    learning.hear(event("START_TRAINING", every=0, total=1), proven=False)
    assert asked.wait(WAIT_S)
    events = [event("ANNOTATION_CREATED", every=0, total=number) for number in range(3)]
    assert [learning.hear(each, proven=True)["heard"] for each in events] == ["noted"] * 3
    go.set()


def test_refused_versions_do_not_fill_the_disk(
    studio: Studio, make_learning: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After every training that was judged the oldest refused ones go, though nothing is ever rolled out."""
    refused = [tiny_version(tmp_path, f"r{number}", gate={"accepted": False}) for number in range(4)]
    for version in refused[:3]:
        age(tmp_path, version)
    learning = make_learning(models_bytes=1)
    studio.annotations = 3
    studio.outcome = {**REPORT, "version": refused[3]}
    learning.ask(1)
    studio.workers[0].go.set()
    assert learning.trainer.join(WAIT_S)
    assert learning.trainer.of(ONE)[0].state == "refused"
    assert ids(tmp_path) == [refused[3]]


def test_strangers_are_forgotten(studio: Studio, make_learning: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many numbers events come with, the last ones are remembered."""
    monkeypatch.setattr(module, "PROJECTS", 3)
    monkeypatch.setattr(studio, "call", lambda *_, **__: {"title": ""})
    learning = make_learning()
    for project in [*range(1, 8), 5]:
        with pytest.raises(NothingToLearnError):
            learning.ask(project)
    assert [standing.project.number for standing in learning.standings] == [5, 6, 7]
