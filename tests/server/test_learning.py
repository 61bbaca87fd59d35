"""When a training starts and what becomes of it: a Label Studio from memory, a training as the test wants it."""

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
from scripted_detector import WAIT_S, ScriptedDetector
from scripted_label_studio import CREATED, KEY, ScriptedLabelStudio
from spica.errors import (
    AuthenticationError,
    DataSetError,
    ModelUnavailableError,
    NotFoundError,
    StorageError,
    TrainingError,
    WeightsError,
)
from spica.inference import Engine
from spica.labelstudio.protocol import WebhookRequest
from spica.models import active
from spica.models.version import ids
from spica.predictor import Predictor
from spica.project import ProjectKey
from spica.server.jobs import Jobs
from spica.server.learning import Learning, NothingToLearnError
from spica.server.page import Page
from spica.server.pool import ModelPool
from spica.server.service import Service
from spica.server.trainer import TrainingOverError, TrainingRunningError, step_of
from spica.server.triggers import START, Triggers
from spica.settings import Settings
from spica.training.runs import Run, Runs, TrainingJob
from tiny_versions import age, tiny_version

BASE = "base-00000001"
REFUSED = {"accepted": False, "sentence": "it is worse"}
PASSED = {"accepted": True, "sentence": "it is better"}


@dataclass
class Training:
    """One that goes on when the test lets it."""

    job: TrainingJob
    go: threading.Event = field(default_factory=threading.Event)


@dataclass
class Lab:
    """A data folder with three versions, of which the first is active; a Label Studio; servers that learn."""

    data_dir: Path
    studio: ScriptedLabelStudio
    stack: ExitStack
    outcome: Any = None
    trainings: list[Training] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.old, self.candidate, self.other = (tiny_version(self.data_dir, name) for name in ("old", "new", "other"))
        self.choose(self.old)
        self.ends(REFUSED)

    def ends(self, verdict: dict[str, Any], version: str | None = None) -> None:
        """Have trainings end with this verdict."""
        learned = {str(number): f"2026-11-23T00:00:{number:02}Z" for number in range(1, 21)}
        self.outcome = {"images": 20, "version": version or self.candidate, "learned": learned, "verdict": verdict}

    def choose(self, version: str | None, why: str = "I like it") -> None:
        """As a person does with `spica models activate`."""
        active.activate(self.data_dir, KEY, version, base=BASE, why=why, by="a person")

    @property
    def active(self) -> str | None:
        """What is active."""
        pointer = active.read(self.data_dir, KEY)
        assert pointer is not None
        return pointer.version

    def train(
        self, job: TrainingJob, report: Callable[[dict[str, Any]], None], stop: threading.Event
    ) -> dict[str, Any]:
        """In place of the process that trains."""
        training = Training(job)
        self.trainings.append(training)
        report({"stage": "training", "epoch": 1, "epochs": 3, "losses": {"loss": 0.5}, "eta_s": 9.0, "images": 20})
        deadline = time.monotonic() + WAIT_S
        while not training.go.wait(0.005):
            assert time.monotonic() < deadline
            if stop.is_set():
                raise ModelUnavailableError("the training was stopped")
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return dict(self.outcome)

    def predictor(self, version: str) -> Predictor:
        """What answers with a version."""
        engine = self.stack.enter_context(
            Engine(version, lambda: ScriptedDetector(ANSWER), queue_size=10, memory_bytes=1000)
        )
        media: Any = None  # nothing is read
        return Predictor(
            model_id=version, classes=("spike",), engine=engine, media=media, threshold=0.6, max_pixels=1000
        )

    def server(self, *, token: str | None = "secret", start: bool = True, **settings: Any) -> Learning:  # noqa: S107
        """The learning of a server that has just been started; no project has asked it yet."""
        chosen = Settings(
            label_studio_url=self.studio.url,
            label_studio_api_key=SecretStr(token) if token else None,
            data_dir=self.data_dir,
            **{"models_bytes": 10**9, **settings},
        )
        pool = ModelPool(
            self.predictor(BASE),
            resolve=lambda project: active.resolve(self.data_dir, project, BASE),
            load=self.predictor,
        )
        service = Service(pool.default, weights="x", pool=pool)
        self.stack.callback(service.close)
        jobs = Jobs(service, chosen)
        learning = Learning(service, jobs, chosen, triggers=Triggers(quiet_s=0), train=self.train, every_s=1e9)
        learning.trainer._again_s = 0.01
        self.stack.callback(learning.close)
        self.page: Callable[[], str] = Page(service, jobs, learning).render_status
        if start:
            learning.start()
        return learning

    def begun(self, learning: Learning, new: int = 3) -> Run:
        """A training under way that a program has asked for."""
        before = len(self.trainings)
        self.studio.annotated = new
        run = learning.ask(1)
        until(lambda: len(self.trainings) > before)
        return run

    def finish(self, learning: Learning) -> Run:
        """Let the training under way come to its end."""
        run = learning.trainer.current
        assert run is not None
        self.trainings[-1].go.set()
        return self.ended(learning, run)

    def ended(self, learning: Learning, run: Run) -> Run:
        """A training when it has ended."""

        def over() -> Run | None:
            read = Run.read(learning.trainer.runs.folder(run))
            return read if read is not None and read.is_over and learning.trainer.current is None else None

        found: Run = until(over)
        return found

    def left_behind(self) -> Run:
        """A training whose server was killed right after the gate had let it pass."""
        runs = Runs(self.data_dir)
        step = step_of(self.data_dir, KEY)
        run = runs.begin(KEY, title="field", cause="x", new=3, parent=self.old, active=step)
        run = replace(run, state="passed", version=self.candidate, verdict=PASSED, settled=False)
        runs.write(run)
        (runs.folder(run) / "loop").mkdir()
        return run

    def recovered(self, run: Run) -> Run:
        """The same training after the next server's start."""
        self.server()
        until(lambda: not (Runs(self.data_dir).folder(run) / "loop").exists())
        found = Run.read(Runs(self.data_dir).folder(run))
        assert found is not None
        return found


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """See there; what has changed is rolled out nowhere."""
    monkeypatch.setattr("spica.server.rollout.Rollouts.roll_out", lambda _self, _project: None)
    with ExitStack() as stack:
        yield Lab(tmp_path, stack.enter_context(ScriptedLabelStudio()), stack)


def until(condition: Callable[[], Any]) -> Any:
    """Wait for what another thread does."""
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)
    return found


def event(lab: Lab, action: str, total: int, **project: Any) -> WebhookRequest:
    """From Label Studio, which has this many annotations."""
    lab.studio.annotated = total
    annotation = None if action == START else {"id": total, "updated_at": f"{action} {total}"}
    body = {"action": action, "project": {**lab.studio.project, **project}, "annotation": annotation}
    return WebhookRequest.model_validate(body)


def hear(learning: Learning, lab: Lab, action: str, total: int) -> None:
    """Let it hear an event, and wait until it has counted."""
    counted = lab.studio.counted
    learning.hear(event(lab, action, total), proven=action != START)
    until(lambda: lab.studio.counted > counted)


@pytest.mark.parametrize(
    ("every", "action", "new", "starts"),
    [
        pytest.param(1, "ANNOTATION_CREATED", 19, False, id="the switch, one too few"),
        pytest.param(1, "ANNOTATION_CREATED", 20, True, id="the switch, enough"),
        pytest.param(5, "ANNOTATION_UPDATED", 25, True, id="the switch by API"),
        pytest.param(0, "ANNOTATION_CREATED", 100, False, id="no switch"),
        pytest.param(0, START, 1, True, id="the button, no switch"),
        pytest.param(1, START, 1, True, id="the button beside the switch"),
        pytest.param(0, START, 0, False, id="the button, nothing to learn"),
    ],
)
def test_when_a_training_starts(lab: Lab, every: int, action: str, new: int, starts: bool) -> None:
    """The switch starts a training after enough new submissions, the button at once, and neither without any."""
    learning = lab.server()
    lab.studio.every = every
    hear(learning, lab, action, new)
    status = until(lambda: learning.statuses and learning.statuses[0])
    assert (status.new, status.switch) == (new, every > 0)
    if starts:
        until(lambda: lab.trainings)
        assert learning.trainer.current is not None
    else:
        learning.close()  # whatever it has begun is over then
        assert lab.trainings == []


def test_lost_events_are_made_up_for(lab: Lab) -> None:
    """Projects with the switch are looked at when the server starts, if it is connected with them."""
    lab.studio.annotated = 20
    learning = lab.server(start=False)
    asked: list[ProjectKey] = []

    def is_ours(_client: Any, project: ProjectKey) -> bool:
        asked.append(project)
        return True

    learning._is_ours = is_ours  # type: ignore[method-assign, assignment]  # Label Studio would ask the server back
    learning.start()
    until(lambda: lab.trainings)
    assert (asked, lab.trainings[0].job.project) == ([KEY], KEY)


@pytest.mark.parametrize("claimed", [None, "2026-11-23T06:35:28Z", CREATED.replace("866Z", "867Z")])
@pytest.mark.parametrize("submitted", [False, True])
def test_a_forged_button_starts_nothing(lab: Lab, claimed: str | None, submitted: bool) -> None:
    """Who can't say when the project was created is not Label Studio: its button is not one, whatever else comes."""
    learning = lab.server()
    lab.studio.every = 0
    asked = lab.studio.asked
    learning.hear(event(lab, START, 5, created_at=claimed), proven=False)
    if submitted:
        learning.hear(event(lab, "ANNOTATION_CREATED", 5), proven=True)
    until(lambda: lab.studio.counted if submitted else lab.studio.asked > asked)
    learning.close()
    assert lab.trainings == []
    assert bool(lab.studio.counted) == submitted


def test_what_may_be_forged_is_refused(lab: Lab) -> None:
    """Without the secret nothing but the button is heard, and no more of them than are soon looked into."""
    learning = lab.server(start=False)
    with pytest.raises(AuthenticationError, match="secret"):
        learning.hear(event(lab, "ANNOTATION_CREATED", 20), proven=False)
    heard = [learning.hear(event(lab, START, 1, id=number), proven=False)["heard"] for number in range(30)]
    assert heard == ["noted"] * 20 + ["ignored"] * 10


def test_projects_that_nobody_knows_leave_no_trace(lab: Lab) -> None:
    """A button of a project that Label Studio does not have is not shown: anybody may send any number."""
    learning = lab.server()
    learning.hear(event(lab, START, 1, id=99), proven=False)
    until(lambda: any("/api/projects/99/" in asked.path for asked in lab.studio._server.asked))
    hear(learning, lab, "ANNOTATION_CREATED", 1)
    assert [status.project for status in until(lambda: learning.statuses)] == [KEY]


def test_an_event_of_another_label_studio_trains_nothing(lab: Lab) -> None:
    """Its project 1 is not the one whose annotations this server can fetch; that is said."""
    learning = lab.server()
    learning.hear(event(lab, "ANNOTATION_CREATED", 30, created_at="2026-01-01"), proven=True)
    status = until(lambda: learning.statuses and learning.statuses[0])
    assert "project 1 is another one here" in status.note
    learning.close()
    assert lab.trainings == []


def test_a_job_has_what_the_server_serves_by(lab: Lab) -> None:
    """Precision and tiles of the server, and the active version to begin with."""
    learning = lab.server(precision="bf16", tile="512", overlap=0.3)
    run = lab.begun(learning)
    job = lab.trainings[0].job
    assert (job.settings.precision, job.settings.tile, job.settings.overlap) == ("bf16", "512", 0.3)
    assert (run.parent, job.parent_id, job.parent) == (lab.old, lab.old, lab.data_dir / "models" / lab.old)


def test_what_was_refused_is_not_learned_at_once_again(lab: Lab) -> None:
    """After a refused training the switch counts from there; the button may try the same submissions again."""
    learning = lab.server()
    hear(learning, lab, "ANNOTATION_CREATED", 20)
    until(lambda: lab.trainings)
    run = lab.finish(learning)
    assert (run.state, run.why, run.version) == ("refused", "it is worse", lab.candidate)
    until(lambda: learning.statuses[0].new == 0)  # it has counted again after the end
    hear(learning, lab, "ANNOTATION_CREATED", 39)
    until(lambda: learning.statuses[0].new == 19)
    assert len(lab.trainings) == 1
    hear(learning, lab, START, 39)
    until(lambda: len(lab.trainings) == 2)


FAILURES = [
    pytest.param(TrainingError("it broke"), "it broke", id="the training"),
    pytest.param(DataSetError("no box is left", hint="draw some"), "no box is left. draw some", id="the data"),
    pytest.param(
        WeightsError("these weights are of another architecture", got="yolo"),
        "these weights are of another architecture. yolo",
        id="the weights",
    ),
    pytest.param(ValueError("a bug"), "the training failed. ValueError", id="a bug"),
]


@pytest.mark.parametrize(("outcome", "sentence"), FAILURES)
def test_after_a_failure_the_next_submission_starts_anew(lab: Lab, outcome: Any, sentence: str) -> None:
    """What is active is untouched, the reason is shown, nothing is tried again by itself, the next event trains."""
    learning = lab.server()
    lab.outcome = outcome
    hear(learning, lab, "ANNOTATION_CREATED", 20)
    until(lambda: lab.trainings)
    counted = lab.studio.counted
    run = lab.finish(learning)
    assert run.state == "failed"
    assert sentence in run.why
    until(lambda: sentence in lab.page())
    until(lambda: lab.studio.counted > counted)  # it has counted again after the end
    assert (len(lab.trainings), lab.active) == (1, lab.old)
    lab.ends(REFUSED)
    hear(learning, lab, "ANNOTATION_CREATED", 21)
    until(lambda: len(lab.trainings) == 2)


def test_a_start_that_fails_leaves_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """No trace of it would be taken up as a training by the next server, and the next start is free to begin."""
    learning = lab.server()
    lab.studio.annotated = 3

    def broken(_project: ProjectKey) -> Any:
        raise OSError("no more files")

    with monkeypatch.context() as patch:
        patch.setattr(learning.trainer, "_parent_of", broken)
        with pytest.raises(OSError, match="no more"):
            learning.ask(1)
    assert Runs(lab.data_dir).unfinished() == []
    assert [path for path in Runs(lab.data_dir).project_folder(KEY).iterdir() if path.is_dir()] == []
    learning.ask(1)
    until(lambda: lab.trainings)


def test_an_end_that_cannot_be_written(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is shown with the reason, nothing is trained meanwhile, and it is written when it can be."""
    learning = lab.server()
    run = lab.begun(learning, 20)
    write = Runs.write

    def full(self: Runs, run: Run) -> None:
        if run.is_over:
            raise StorageError("a file could not be written", got="No space left on device")
        write(self, run)

    with monkeypatch.context() as patch:
        patch.setattr(Runs, "write", full)
        lab.trainings[0].go.set()
        until(lambda: "No space left on device" in lab.page())
        with pytest.raises(TrainingRunningError):
            learning.ask(1)
        with pytest.raises(TrainingOverError):
            learning.cancel(1)
    ended = lab.ended(learning, run)
    assert (ended.state, ended.notes) == ("refused", ())
    until(lambda: learning.statuses[0].new == 0)
    assert len(lab.trainings) == 1


def test_cancel(lab: Lab) -> None:
    """A training that is cancelled ends as such; where there is none, that is said."""
    learning = lab.server(train_after=1)
    with pytest.raises(NotFoundError):
        learning.cancel(1)
    run = lab.begun(learning)
    with pytest.raises(TrainingRunningError):
        learning.ask(1)
    learning.cancel(1)
    assert lab.ended(learning, run).state == "cancelled"


def test_it_is_too_late_to_cancel(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the result is there nobody is told that the training was cancelled: it goes its way."""
    activating, go = threading.Event(), threading.Event()
    activate = active.activate

    def hanging(*arguments: Any, **options: Any) -> Any:
        activating.set()
        assert go.wait(WAIT_S)
        return activate(*arguments, **options)

    monkeypatch.setattr(active, "activate", hanging)
    lab.ends(PASSED)
    learning = lab.server()
    run = lab.begun(learning)
    lab.trainings[0].go.set()
    assert activating.wait(WAIT_S)
    with pytest.raises(TrainingOverError, match="can't be cancelled any more"):
        learning.cancel(1)
    go.set()
    assert lab.ended(learning, run).state == "passed"


def test_progress_is_shown_and_written(lab: Lab) -> None:
    """What the process reports is what the page shows and what stands on the disk, without the token."""
    learning = lab.server()
    run = lab.begun(learning)
    folder = Runs(lab.data_dir).folder(run)
    for shown in (until(lambda: (r := Run.read(folder)) and r.epoch == 1 and r), learning.trainer.current):
        assert shown is not None
        assert (shown.stage, shown.epochs, shown.losses, shown.eta_s) == ("training", 3, {"loss": 0.5}, 9.0)
    assert "secret" not in (folder / "run.json").read_text("utf-8")


def test_a_restart_begins_the_training_again(lab: Lab) -> None:
    """A server that stops leaves its training unfinished; the next one begins it again, by what is active then."""
    first = lab.server()
    run = lab.begun(first)
    first.close()
    assert [unfinished.id for unfinished in Runs(lab.data_dir).unfinished()] == [run.id]
    lab.choose(lab.other)
    lab.ends(PASSED)
    second = lab.server()
    until(lambda: len(lab.trainings) == 2)
    assert [(training.job.run, training.job.parent_id) for training in lab.trainings] == [
        (run.id, lab.old),
        (run.id, lab.other),
    ]
    ended = lab.finish(second)
    assert (ended.id, ended.state, ended.parent, ended.attempts) == (run.id, "passed", lab.other, 2)
    assert lab.active == lab.candidate


@pytest.mark.parametrize("created", [KEY.created, 4_000_000_000], ids=["its own", "another's"])
def test_a_training_that_an_older_spica_has_begun(lab: Lab, monkeypatch: pytest.MonkeyPatch, created: int) -> None:
    """Kept under the number alone, it is begun again as the project's; begun before the project was created, it is
    left.
    """
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(created))
    monkeypatch.setattr("scripted_label_studio.CREATED", CREATED if created == KEY.created else moment)
    runs = Runs(lab.data_dir)
    run = runs.begin(ProjectKey(1), title="field", cause="x", new=3, parent=None)
    learning = lab.server()
    if created == KEY.created:
        until(lambda: lab.trainings)
        assert (lab.trainings[0].job.project, lab.trainings[0].job.run) == (KEY, run.id)
    else:
        status = until(lambda: learning.statuses and learning.statuses[0])
        assert "not known to be this one's" in status.note
        learning.close()
        assert (lab.trainings, runs.of(ProjectKey(1))) == ([], [run])


@pytest.mark.parametrize(
    ("attempts", "token", "why"),
    [pytest.param(3, "secret", "3 times", id="too often"), pytest.param(1, None, "no access token", id="no token")],
)
def test_a_training_that_cannot_be_begun_again_is_cleared(lab: Lab, attempts: int, token: str | None, why: str) -> None:
    """It is marked as failed, with the reason, and its files are removed."""
    runs = Runs(lab.data_dir)
    run = runs.begin(KEY, title="field", cause="x", new=3, parent=None, attempts=attempts)
    (runs.folder(run) / "loop").mkdir()
    learning = lab.server(token=token)
    ended = lab.ended(learning, run)
    assert ended.state == "failed"
    assert why in ended.why
    until(lambda: sorted(path.name for path in runs.folder(run).iterdir()) == ["run.json"])
    assert lab.trainings == []


def test_two_servers_on_one_folder(lab: Lab) -> None:
    """One training a project at a time, whichever server began it; the other one does not take it up."""
    first, second = lab.server(), lab.server()
    lab.begun(first)
    with pytest.raises(TrainingRunningError, match="another server"):
        second.ask(1)
    third = lab.server()
    hear(third, lab, "ANNOTATION_CREATED", 1)
    assert third.trainer.current is None
    assert len(lab.trainings) == 1


def test_without_a_token(lab: Lab) -> None:
    """Events are taken, nothing is learned, and the reason is said where the event came and on the page."""
    learning = lab.server(token=None)
    answer = learning.hear(event(lab, START, 3), proven=False)
    assert (answer["status"], answer["heard"]) == ("ok", "ignored")
    assert "access token" in answer["note"]
    assert "LABEL_STUDIO_API_KEY" in lab.page()
    with pytest.raises(AuthenticationError):
        learning.ask(1)


def test_nothing_to_learn_is_said(lab: Lab) -> None:
    """Asked for on the page, it is an error with a reason."""
    learning = lab.server()
    with pytest.raises(NothingToLearnError, match="nothing new"):
        learning.ask(1)
    assert "nothing new" in (learning.statuses[0].note or "")


def test_the_webhook_never_waits(lab: Lab) -> None:
    """Events are answered at once while a training runs and Label Studio does not answer."""
    learning = lab.server()
    lab.begun(learning)
    lab.studio.broken = True
    began = time.monotonic()
    assert learning.hear(event(lab, START, 1), proven=False)["job"] == lab.trainings[0].job.run
    heard = [learning.hear(event(lab, "ANNOTATION_CREATED", n), proven=True)["heard"] for n in range(3)]
    assert heard == ["noted"] * 3
    assert time.monotonic() - began < 1


def test_refused_versions_do_not_fill_the_disk(lab: Lab) -> None:
    """After every training that was judged the oldest refused ones go, though nothing is ever rolled out."""
    refused = [tiny_version(lab.data_dir, f"r{number}", gate=REFUSED) for number in range(4)]
    for version in refused[:3]:
        age(lab.data_dir, version)
    learning = lab.server(models_bytes=1)
    lab.ends(REFUSED, refused[3])
    lab.begun(learning)
    lab.finish(learning)
    assert not set(refused[:3]) & set(ids(lab.data_dir))
    assert refused[3] in ids(lab.data_dir)


# --- what may be put in front of people -----------------------------------------------------------------------------


def test_what_passes_is_put_in_front_of_people(lab: Lab) -> None:
    """Where nobody has chosen anything meanwhile, what has passed becomes active."""
    learning = lab.server()
    lab.ends(PASSED)
    lab.begun(learning)
    run = lab.finish(learning)
    assert (run.state, run.settled, run.notes) == ("passed", False, ())
    assert lab.active == lab.candidate
    assert run.finished is not None


@pytest.mark.parametrize(
    ("meanwhile", "left"),
    [
        pytest.param(lambda lab: lab.choose(lab.other), "other", id="another version"),
        pytest.param(lambda lab: active.rollback(lab.data_dir, KEY, by="a person"), None, id="rolled back"),
        pytest.param(
            lambda lab: (lab.choose(lab.other), lab.choose(lab.old, "back")), "old", id="another one and back"
        ),
    ],
)
def test_a_choice_made_meanwhile_is_respected(lab: Lab, meanwhile: Callable[[Lab], Any], left: str | None) -> None:
    """What a person has made active while a training ran stays so; the candidate is kept, and the page says why."""
    learning = lab.server()
    lab.ends(PASSED)
    lab.begun(learning)
    meanwhile(lab)
    run = lab.finish(learning)
    assert lab.active == (getattr(lab, left) if left else None)
    assert (run.state, run.version, run.settled) == ("passed", lab.candidate, True)
    assert lab.data_dir.joinpath("models", lab.candidate).is_dir()
    assert "somebody chose another version meanwhile" in run.notes[-1]
    assert f"spica models activate {lab.candidate} --project 1" in run.notes[-1]


@pytest.mark.parametrize("step", ["activate", "read"])
def test_a_full_disk_at_the_activation(lab: Lab, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """What has passed waits with the reason, what was active stays so meanwhile, and then it is made active."""
    learning = lab.server()
    lab.ends(PASSED)
    run = lab.begun(learning)

    def full(*_: Any, **__: Any) -> Any:
        raise StorageError("a file could not be written", got="No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(active, step, full)
        lab.trainings[0].go.set()
        until(lambda: "No space left on device" in (learning.runs[0].stage if learning.runs else ""))
        assert "tried again" in learning.runs[0].stage
    assert lab.ended(learning, run).notes == ()
    assert lab.active == lab.candidate


def test_killed_before_the_activation(lab: Lab) -> None:
    """What had passed when the server was killed is made active by the next one, without another training."""
    run = lab.recovered(lab.left_behind())
    assert lab.active == lab.candidate
    assert (run.state, run.notes) == ("passed", ())
    assert lab.trainings == []


def test_killed_after_the_activation(lab: Lab) -> None:
    """What the killed server had made active already stays active, and nothing is held against it."""
    run = lab.left_behind()
    active.activate(lab.data_dir, KEY, lab.candidate, base=BASE, why="it is better", by="training")
    before = active.read(lab.data_dir, KEY)
    assert lab.recovered(run).notes == ()
    assert active.read(lab.data_dir, KEY) == before


def test_rolled_back_while_no_server_was_there(lab: Lab) -> None:
    """A rollback between the kill and the next start is not undone by that start."""
    run = lab.left_behind()
    active.activate(lab.data_dir, KEY, lab.candidate, base=BASE, why="it is better", by="training")
    active.rollback(lab.data_dir, KEY, by="a person")
    run = lab.recovered(run)
    assert lab.active == lab.old
    assert run.settled
    assert "somebody chose another version meanwhile" in run.notes[-1]
