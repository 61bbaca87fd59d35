"""What Label Studio is asked for after an exchange, in which order, and what must never be asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from pydantic import SecretStr

from scripted_detector import WAIT_S
from spica.errors import LabelConfigError, LabelStudioError, LabelStudioUnreachableError, SpicaError
from spica.labelstudio.api.records import Backend
from spica.labelstudio.api.transport import LabelStudioRefusedError
from spica.models.folders import ids
from spica.server import rollout as module
from spica.server.jobs import PrelabelRequest
from spica.server.rollout import AGAIN_S, Backoff, Rollouts
from spica.settings import Settings
from spica.training.runs import Runs
from tiny_versions import age, tiny_version

NEW, OLD = "new-0002.abcd", "old-0001.abcd"
GONE = LabelStudioError("Label Studio does not answer")


@dataclass(eq=False)
class Job:
    """A bulk job that ends when it is stopped, or as often as somebody has waited for it."""

    asked: list[str]
    name: str
    project: int = 1
    version: str = NEW
    watch: bool = False
    state: str = "running"
    ends: str | None = "done"
    reason: SpicaError | None = None
    finished: str | None = None

    def stop(self) -> None:
        """As a person does."""
        self.asked.append(f"stop {self.name}")
        self.ends = "stopped"

    def join(self, _timeout_s: float) -> bool:
        """Whether it has ended."""
        if self.ends is None:
            time.sleep(0.005)
            return False
        if self.finished is None:
            self.asked.append(f"{self.name} {self.ends}")
            self.state, self.finished = self.ends, "now"
        return True


@dataclass
class Jobs:
    """The bulk jobs of a server: one a project."""

    asked: list[str]
    all: list[Job] = field(default_factory=list)
    refuses: SpicaError | None = None
    outcome: dict[str, Any] = field(default_factory=dict)
    quicker: Job | None = None

    def start(self, request: PrelabelRequest) -> tuple[Job, bool]:
        """As `spica.server.jobs.Jobs.start`."""
        if self.quicker is not None:
            self.all.append(self.quicker)
            self.quicker = None
        running = [job for job in self.all if job.project == request.project and job.finished is None]
        if running:
            return running[0], False
        name = "watch" if request.watch else "predict"
        self.asked.append(name)
        if self.refuses is not None and not request.watch:
            raise self.refuses
        made = Job(self.asked, name, watch=request.watch, **({"ends": None} if request.watch else self.outcome))
        self.all.append(made)
        return made, True


class Studio:
    """Label Studio, its client, and the service that answers it; all remember what they were asked in one list."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.told: list[str] = []
        self.jobs = Jobs(self.asked)
        self.tasks = 3
        self.missing: SpicaError | None = None
        self.rows = [backend(NEW)]
        self.knows_params = False
        self.config_error: SpicaError | None = None
        self.served: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def project(self, _project: int) -> Any:
        """Its configuration."""
        if self.missing is not None:
            raise self.missing
        return SimpleNamespace(label_config="<View/>")

    def backends(self, _project: int) -> list[Backend]:
        """Listing them has Label Studio send the extra params."""
        self.asked.append("list models")
        self.knows_params = True
        return self.rows

    def connect_backend(self, _project: int, *, url: str, **_: Any) -> Any:
        """Sets the title."""
        self.asked.append(f"title of {url}")
        return SimpleNamespace(warnings=())

    def task_count(self, _project: int) -> int:
        """Of the project."""
        return self.tasks

    def plan(self, _project: int, _config: str) -> Any:
        """The version hangs on the extra params."""
        if self.config_error is not None:
            raise self.config_error
        return SimpleNamespace(version=NEW if self.knows_params else "new-0002.without")

    def remove(self, _client: Any, _project: int, version: str, *, annotated: bool, backup: Path) -> None:
        """In place of `remove_older`."""
        assert not annotated
        self.asked.append(f"remove but {version}")
        backup.write_text("{}")


def backend(version: str, url: str = "http://spica:8010") -> Backend:
    """A connected model."""
    return Backend(1, 1, url, "title", "CO", version, "", is_interactive=True)


@pytest.fixture
def studio(monkeypatch: pytest.MonkeyPatch) -> Studio:
    """In place of Label Studio and the service."""
    found = Studio()
    monkeypatch.setattr(module, "LabelStudioClient", lambda *_: found)
    monkeypatch.setattr(module, "remove_older", found.remove)
    return found


Make = Callable[..., Rollouts]


@pytest.fixture
def make(studio: Studio, tmp_path: Path) -> Iterator[Make]:
    """Rollouts of a server that is not there."""
    with ExitStack() as stack:

        def made(*, models_bytes: int = 10**9, again_s: float = 30) -> Rollouts:
            settings = Settings(
                label_studio_url="http://127.0.0.1:9",
                label_studio_api_key=SecretStr("secret"),
                data_dir=tmp_path,
                models_bytes=models_bytes,
            )
            service: Any = studio
            jobs: Any = studio.jobs
            rollouts = Rollouts(
                service, jobs, settings, tell=lambda _project, text: studio.told.append(text), again_s=again_s
            )
            stack.callback(rollouts.close)
            return rollouts

        yield made


def unsettled(data_dir: Path) -> bool:
    """Whether the last training still waits to be shown."""
    return not Runs(data_dir).of(1)[0].settled


@pytest.fixture
def passed(tmp_path: Path) -> Path:
    """A training that has passed and is not shown yet; the data folder."""
    from dataclasses import replace

    runs = Runs(tmp_path)
    run = runs.begin(1, title="field", cause="x", new=3, parent=None)
    runs.write(replace(run, state="passed", settled=False))
    return tmp_path


def test_the_order(studio: Studio, make: Make, passed: Path) -> None:
    """Models are listed, the title changes, predictions are stored, and only then older ones are removed."""
    make().roll_out(1)
    assert studio.asked == [
        "list models",
        "title of http://spica:8010",
        "predict",
        "predict done",
        f"remove but {NEW}",
    ]
    assert studio.told == []
    assert not unsettled(passed)


@pytest.mark.parametrize(
    ("outcome", "raised"),
    [
        pytest.param({"ends": "stopped"}, False, id="stopped"),
        pytest.param({"ends": "failed", "reason": GONE}, True, id="failed"),
        pytest.param({"ends": "failed"}, False, id="failed without a reason"),
    ],
)
def test_nothing_is_removed_unless_all_is_stored(
    studio: Studio, make: Make, passed: Path, outcome: dict[str, Any], raised: bool
) -> None:
    """After a job that was stopped or has failed every prediction is still there, and the training is not settled."""
    studio.jobs.outcome = outcome
    rollouts = make()
    if raised:
        with pytest.raises(LabelStudioError, match="does not answer"):
            rollouts.roll_out(1)
    else:
        rollouts.roll_out(1)
        assert "not complete" in studio.told[0]
    assert not any(each.startswith("remove") for each in studio.asked)
    assert unsettled(passed)


def test_nothing_is_removed_when_the_server_stops(studio: Studio, make: Make, passed: Path) -> None:
    """A job that has not ended when the server stops is left, and what is left to do is the next server's."""
    studio.jobs.outcome = {"ends": None}
    rollouts = make()
    thread = threading.Thread(target=rollouts.roll_out, args=(1,))
    thread.start()
    while "predict" not in studio.asked:
        thread.join(0.01)
    rollouts.close()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert studio.asked[-1] == "predict"
    assert unsettled(passed)


def test_jobs_in_the_way(studio: Studio, make: Make) -> None:
    """What makes older boxes, or would wait for ever, is stopped; what makes the right ones is waited for."""
    asked = studio.asked
    studio.jobs.all = [
        Job(asked, "older", version=OLD, ends=None),
        Job(asked, "right"),
        Job(asked, "another project's", project=2, ends=None),
        Job(asked, "waiting", watch=True, ends=None),
    ]
    make().roll_out(1)
    assert asked[2:] == [
        "stop older",
        "stop waiting",
        "older stopped",
        "right done",
        "waiting stopped",
        "predict",
        "predict done",
        "watch",
        f"remove but {NEW}",
    ]


def test_somebody_elses_job_is_not_taken_for_ours(studio: Studio, make: Make) -> None:
    """A job that was started in between may be over some tasks only: it is waited for, then all are predicted."""
    studio.jobs.quicker = Job(studio.asked, "quicker")
    make().roll_out(1)
    assert studio.asked[2:] == ["quicker done", "predict", "predict done", f"remove but {NEW}"]


def test_who_waited_for_tasks_waits_again(studio: Studio, make: Make) -> None:
    """Also where the job that was to come in between is refused."""
    studio.jobs.all = [Job(studio.asked, "waiting", watch=True, version=OLD, ends=None)]
    studio.jobs.refuses = GONE
    with pytest.raises(LabelStudioError, match="does not answer"):
        make().roll_out(1)
    assert studio.asked[2:] == ["stop waiting", "waiting stopped", "predict", "watch"]


def test_no_model_of_ours(studio: Studio, make: Make) -> None:
    """Where no connected model answers the version that is said, with what is connected; boxes are renewed anyway."""
    studio.rows = [backend("someone-elses", "http://other:9090")]
    make().roll_out(1)
    (told,) = studio.told
    assert NEW in told
    assert "http://other:9090 (someone-elses)" in told
    assert studio.asked == ["list models", "predict", "predict done", f"remove but {NEW}"]


def test_a_project_without_tasks(studio: Studio, make: Make, passed: Path) -> None:
    """It has a title alone, and is done."""
    studio.tasks = 0
    make().roll_out(1)
    assert studio.asked == ["list models", "title of http://spica:8010"]
    assert not unsettled(passed)


def until(condition: Callable[[], Any]) -> Any:
    """Wait for what another thread does."""
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)
    return found


@pytest.mark.parametrize("trouble", [LabelStudioUnreachableError("no answer"), OSError("a bug")], ids=["told", "a bug"])
def test_what_failed_is_tried_again(studio: Studio, make: Make, passed: Path, trouble: Any) -> None:
    """A rollout that fails a few times is made without a restart, each time later, and others do not wait for it."""
    studio.missing = trouble
    rollouts = make(again_s=0.02)
    rollouts.start()
    rollouts.add(1)
    until(lambda: len(studio.told) >= 3)
    assert "does not show the new version yet" in studio.told[0]
    studio.missing = None
    until(lambda: not unsettled(passed))
    assert studio.asked[-1] == f"remove but {NEW}"


def test_a_project_that_is_gone_is_not_tried_again(studio: Studio, make: Make) -> None:
    """It is said once; the next project follows."""
    studio.missing = LabelStudioRefusedError("there is no such project", 404)
    rollouts = make(again_s=0)
    rollouts.start()
    rollouts.add(1)
    until(lambda: studio.told)
    studio.missing = None
    rollouts.add(2)
    until(lambda: any(each.startswith("remove") for each in studio.asked))
    assert len(studio.told) == 1
    assert studio.asked.count("list models") == 1


def test_tries_come_less_and_less_often() -> None:
    """Half a minute, then twice as long each time, up to ten minutes; after a success from the beginning."""
    now = [1000.0]
    failed = Backoff(AGAIN_S, clock=lambda: now[0])
    assert failed.wait_s() is None
    waits: list[float | None] = []
    for _ in range(7):
        failed.put_off(1)
        waits.append(failed.wait_s())
        failed.begin(1)
    assert waits == [30, 60, 120, 240, 480, 600, 600]
    assert failed.wait_s() is None
    failed.put_off(1)
    failed.put_off(2)
    assert (failed.first, failed.wait_s()) == (2, 30)
    now[0] += 40
    assert failed.wait_s() == 0
    failed.forget(2)
    assert (failed.first, failed.wait_s()) == (1, 560)
    failed.forget(1)
    assert failed.wait_s() is None
    failed.put_off(1)
    assert failed.wait_s() == 30


@pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
def test_refused_versions_go_even_if_the_refresh_fails(studio: Studio, make: Make, tmp_path: Path, fails: bool) -> None:
    """Space is made at the end of every rollout."""
    refused = [tiny_version(tmp_path, f"r{number}", gate={"accepted": False}) for number in range(3)]
    for version in refused:
        age(tmp_path, version)
    rollouts = make(models_bytes=1)
    if fails:
        studio.missing = GONE
        with pytest.raises(LabelStudioError):
            rollouts.roll_out(1)
    else:
        rollouts.roll_out(1)
    assert ids(tmp_path) == []


def test_a_store_that_cannot_be_cleared_spoils_nothing(
    studio: Studio, make: Make, tmp_path: Path, passed: Path
) -> None:
    """While it is unknown what is active nothing is deleted, and the rollout is done nevertheless."""
    version = tiny_version(tmp_path, "r", gate={"accepted": False})
    age(tmp_path, version)
    (tmp_path / "active").mkdir(exist_ok=True)
    (tmp_path / "active" / "1.json").write_bytes(b"{")
    make(models_bytes=1).roll_out(1)
    assert ids(tmp_path) == [version]
    assert not unsettled(passed)


def test_a_configuration_without_rectangles(studio: Studio, make: Make, passed: Path) -> None:
    """It is an error that is told and tried again: the configuration may be mended."""
    studio.config_error = LabelConfigError("no rectangles")
    with pytest.raises(LabelConfigError):
        make().roll_out(1)
    assert unsettled(passed)
