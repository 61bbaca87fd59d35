"""What a training may put in front of people, and what it must leave as a person has chosen it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from model_server import ANSWER
from project_keys import ONE, known
from scripted_detector import WAIT_S, ScriptedDetector
from spica.errors import LabelStudioError, StorageError
from spica.inference import Engine
from spica.models import active
from spica.predictor import Predictor
from spica.server import learning as module
from spica.server.jobs import Jobs
from spica.server.learning import Learning
from spica.server.learning_routes import learning_state
from spica.server.pool import ModelPool
from spica.server.service import Service
from spica.server.trainer import step_of
from spica.settings import Settings
from spica.training.process import Request
from spica.training.runs import Run, Runs
from tiny_versions import tiny_version

BASE = "base-00000001"


class PassingWorker:
    """Trains when it may; its version passes the gate."""

    def __init__(self, request: Request, version: str) -> None:
        self.request = request
        self.version = version
        self.go = threading.Event()

    def run(self, _tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """The report."""
        assert self.go.wait(WAIT_S)
        verdict = {"accepted": True, "sentence": "it is better"}
        return {"version": self.version, "verdict": verdict, "learned": {"1": "2026-11-23T00:00:00Z"}}

    def end(self, _why: str = "") -> None:
        """Let it go on."""
        self.go.set()


@dataclass
class Lab:
    """A store with three versions, of which the first is active, and servers without a Label Studio."""

    data_dir: Path
    stack: ExitStack
    workers: list[PassingWorker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.old, self.candidate, self.other = (tiny_version(self.data_dir, name) for name in ("old", "new", "other"))
        self.choose(self.old)

    def choose(self, version: str | None, why: str = "I like it") -> None:
        """As a person does with `spica models activate`."""
        active.activate(self.data_dir, ONE, version, base=BASE, why=why, by="a person")

    def roll_back(self) -> None:
        """As a person does with `spica models rollback`."""
        active.rollback(self.data_dir, ONE, by="a person")

    @property
    def active(self) -> str | None:
        """What is active."""
        pointer = active.read(self.data_dir, ONE)
        assert pointer is not None
        return pointer.version

    def worker(self, request: Request) -> PassingWorker:
        """The next process."""
        self.workers.append(PassingWorker(request, self.candidate))
        return self.workers[-1]

    def predictor(self, version: str) -> Predictor:
        """What answers with a version."""
        engine = self.stack.enter_context(
            Engine(version, lambda: ScriptedDetector(ANSWER), queue_size=10, memory_bytes=1000)
        )
        media: Any = None  # nothing is read
        return Predictor(
            model_id=version, classes=("spike",), engine=engine, media=media, threshold=0.6, max_pixels=1000
        )

    def server(self) -> Learning:
        """The learning of a server that has just been started; no project has asked it yet."""
        settings = Settings(
            label_studio_url="http://127.0.0.1:9", label_studio_api_key=SecretStr("secret"), data_dir=self.data_dir
        )
        pool = ModelPool(
            self.predictor(BASE),
            resolve=lambda project: active.resolve(self.data_dir, project, BASE),
            load=self.predictor,
        )
        service = Service(pool.default, weights="x", pool=pool)
        self.stack.callback(service.close)
        learning = Learning(service, Jobs(service, settings), settings, worker=self.worker, every_s=1e9)
        self.stack.callback(learning.close)
        self.service = service
        return learning

    def finish(self, learning: Learning) -> Run:
        """Let the training under way come to its end."""
        self.workers[-1].go.set()
        assert learning.trainer.join(WAIT_S)
        return learning.trainer.runs.of(ONE)[0]

    def left_behind(self) -> Run:
        """A training whose server was killed right after the gate had let it pass."""
        runs = Runs(self.data_dir)
        step = step_of(self.data_dir, ONE)
        run = runs.begin(ONE, title="field", cause="x", new=3, parent=self.old, active=step)
        verdict = {"accepted": True, "sentence": "it is better"}
        run = replace(run, state="passed", version=self.candidate, verdict=verdict, settled=False)
        runs.write(run)
        (runs.folder(run) / "loop").mkdir()
        return run

    def recovered(self, run: Run) -> Run:
        """The same training after the next server's start."""
        learning = self.server()
        learning.start()
        until(lambda: not (Runs(self.data_dir).folder(run) / "loop").exists())
        found = Run.read(Runs(self.data_dir).folder(run))
        assert found is not None
        return found


def until(condition: Callable[[], Any]) -> Any:
    """Wait for what another thread does."""
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)
    return found


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """See there; nobody is told of what has changed."""
    monkeypatch.setattr("spica.server.rollout.Rollouts.roll_out", lambda _self, _project: None)
    with ExitStack() as stack:
        yield Lab(tmp_path, stack)


def test_what_passes_is_put_in_front_of_people(lab: Lab) -> None:
    """Where nobody has chosen anything meanwhile, what has passed becomes active."""
    learning = lab.server()
    learning.trainer.begin(ONE, title="field", cause="x", new=3)
    run = lab.finish(learning)
    assert (run.state, run.settled, run.notes) == ("passed", False, ())
    assert lab.active == lab.candidate
    assert learning.trainer.runs.of(ONE)[0].finished is not None


@pytest.mark.parametrize(
    ("meanwhile", "left"),
    [
        pytest.param(lambda lab: lab.choose(lab.other), "other", id="another version"),
        pytest.param(lambda lab: lab.roll_back(), None, id="rolled back"),
        pytest.param(lambda lab: lab.choose(None), None, id="the weights of the server"),
        pytest.param(
            lambda lab: (lab.choose(lab.other), lab.choose(lab.old, "back")), "old", id="another one and back"
        ),
    ],
)
def test_a_choice_made_meanwhile_is_respected(lab: Lab, meanwhile: Callable[[Lab], Any], left: str | None) -> None:
    """What a person has made active while a training ran stays so; the candidate is kept, and it is told why."""
    learning = lab.server()
    learning.trainer.begin(ONE, title="field", cause="x", new=3)
    meanwhile(lab)
    run = lab.finish(learning)
    assert lab.active == (getattr(lab, left) if left else None)
    assert (run.state, run.version, run.settled) == ("passed", lab.candidate, True)
    assert lab.data_dir.joinpath("models", lab.candidate).is_dir()
    (shown,) = learning_state(lab.service, learning)["runs"]
    assert "somebody chose another version meanwhile" in shown["notes"][-1]
    assert f"spica models activate {lab.candidate} --project 1" in shown["notes"][-1]
    lab.choose(lab.candidate)
    assert lab.active == lab.candidate


@pytest.mark.parametrize("step", ["activate", "read"])
def test_a_full_disk_at_the_activation(lab: Lab, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """What has passed waits with the reason, what was active stays so meanwhile, and then it is made active."""
    learning = lab.server()
    learning.trainer.begin(ONE, title="field", cause="x", new=3)

    def full(*_: Any, **__: Any) -> Any:
        raise StorageError("a file could not be written", got="No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(active, step, full)
        run = lab.finish(learning)
    assert lab.active == lab.old
    assert (run.state, run.settled, run.notes) == ("passed", False, ())
    (shown,) = learning.trainer.of(ONE)
    assert "tried again" in shown.notes[-1]
    assert "No space left on device" in shown.notes[-1]
    learning.trainer.retry()
    assert lab.active == lab.candidate
    (run,) = learning.trainer.of(ONE)
    assert (run.state, run.settled, run.notes) == ("passed", False, ())


def test_a_project_with_its_own_version_is_remembered(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events with other numbers do not push out what is told of a project that has a version of its own."""

    def failing(_self: Any, _project: object) -> None:
        raise LabelStudioError("no answer")

    monkeypatch.setattr("spica.server.rollout.Rollouts.roll_out", failing)
    monkeypatch.setattr(module, "PROJECTS", 2)
    learning = lab.server()
    lab.service.pool.refresh(ONE)
    learning.start()
    for project in range(1, 6):
        learning.rollouts.add(known(project))
    until(lambda: [standing.project.number for standing in learning.standings] == [1, 5])


def test_killed_before_the_activation(lab: Lab) -> None:
    """What had passed when the server was killed is made active by the next one, without another training."""
    run = lab.recovered(lab.left_behind())
    assert lab.active == lab.candidate
    assert (run.state, run.notes) == ("passed", ())
    assert lab.workers == []


def test_killed_after_the_activation(lab: Lab) -> None:
    """What the killed server had made active already stays active, and nothing is held against it."""
    run = lab.left_behind()
    active.activate(lab.data_dir, ONE, lab.candidate, base=BASE, why="it is better", by="training")
    before = active.read(lab.data_dir, ONE)
    assert lab.recovered(run).notes == ()
    assert active.read(lab.data_dir, ONE) == before


def test_rolled_back_while_no_server_was_there(lab: Lab) -> None:
    """A rollback between the kill and the next start is not undone by that start."""
    run = lab.left_behind()
    active.activate(lab.data_dir, ONE, lab.candidate, base=BASE, why="it is better", by="training")
    lab.roll_back()
    run = lab.recovered(run)
    assert lab.active == lab.old
    assert run.settled
    assert "somebody chose another version meanwhile" in run.notes[-1]


def test_a_training_begins_with_the_active_version(lab: Lab) -> None:
    """Also of a project that has not asked the server for anything since its start."""
    learning = lab.server()
    run = learning.trainer.begin(ONE, title="field", cause="x", new=3)
    request = lab.workers[0].request
    assert (run.parent, request.parent_id) == (lab.old, lab.old)
    assert request.parent is not None
    assert Path(request.parent).name == lab.old
    lab.finish(learning)


def test_a_training_that_is_taken_up_begins_with_what_is_active_then(lab: Lab) -> None:
    """Neither with the server's weights nor with what was active before a person chose: then it may take its place."""
    runs = Runs(lab.data_dir)
    begun = runs.begin(ONE, title="field", cause="x", new=3, parent=lab.old, active=step_of(lab.data_dir, ONE))
    runs.write(replace(begun, attempts=1))
    lab.choose(lab.other)
    second = lab.server()
    second.start()
    until(lambda: second.trainer.current)
    assert lab.workers[0].request.parent_id == lab.other
    run = lab.finish(second)
    assert (run.id, run.parent, run.attempts) == (begun.id, lab.other, 2)
    assert lab.active == lab.candidate
