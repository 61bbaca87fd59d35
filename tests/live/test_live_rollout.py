"""What a rollout does in a real Label Studio, beside a real model server: titles, predictions, jobs in the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from bulk_live import wait_until
from label_studio_helpers import create_annotation
from live_model import ANSWER, Folder, LiveModel, ServeModel
from project_keys import ONE, known
from scripted_backend import ScriptedBackend
from scripted_detector import ScriptedDetector
from spica.errors import LabelStudioError
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.records import Project
from spica.models.version import ids
from spica.server.jobs import Jobs, PrelabelRequest
from spica.server.rollout import Rollouts
from spica.settings import Settings
from spica.training.runs import Runs
from tiny_versions import age, tiny_version

pytestmark = pytest.mark.label_studio


@dataclass
class Made:
    """Rollouts beside a model server, and what they told."""

    rollouts: Rollouts
    jobs: Jobs
    told: list[str] = field(default_factory=list)


Make = Callable[..., Made]


@pytest.fixture
def make(label_studio: LabelStudioProcess, tmp_path: Path) -> Iterator[Make]:
    """Rollouts of a model server's service."""
    with ExitStack() as stack:

        def made(model: LiveModel, *, url: str | None = None, token: bool = True, **settings: Any) -> Made:
            chosen = Settings(
                label_studio_url=url or label_studio.url,
                label_studio_api_key=SecretStr(label_studio.credentials.token) if token else None,
                data_dir=tmp_path / "own",
                **settings,
            )
            jobs = Jobs(model.service, chosen)
            told: list[str] = []
            rollouts = Rollouts(model.service, jobs, chosen, tell=lambda _, text: told.append(text), again_s=0.05)
            stack.callback(model.service.workers.close)
            return Made(rollouts, jobs, told)

        yield made


@pytest.fixture
def settled(tmp_path: Path, project: Project) -> Callable[[], bool]:
    """Whether a training that has passed, and was to be shown, is shown."""
    runs = Runs(tmp_path / "own")
    run = runs.begin(project.key, title="field", cause="x", new=3, parent=None)
    runs.write(replace(run, state="passed", settled=False))
    return lambda: runs.of(project.key)[0].settled


def versions_of(client: LabelStudioClient, tasks: Sequence[int]) -> list[list[str]]:
    """The versions stored of each task."""
    return [[each.model_version for each in client.predictions_of_task(task)] for task in tasks]


def older(client: LabelStudioClient, project: int, tasks: Sequence[int]) -> None:
    """Predictions of an older version, which the project shows."""
    items = [{"task": task, "model_version": "older", "score": 0.5, "result": []} for task in tasks]
    client.create_predictions(project, items)


def test_a_rollout_deletes_nothing(
    client: LabelStudioClient,
    project: Project,
    folder: Folder,
    model: LiveModel,
    make: Make,
    settled: Callable[[], bool],
) -> None:
    """Title and project's choice move, unlabelled tasks get the new version's boxes, and what was there stays."""
    *tasks, annotated = folder.tasks(client, project.id, ["a.png", "b.png", "c.png"])
    older(client, project.id, [*tasks, annotated])
    create_annotation(client, annotated, [])
    row = client.connect_backend(project.id, url=model.url)
    client.call("PATCH", f"/api/ml/{row.id}", json={"url": row.url, "project": project.id, "title": "older"})
    found = make(model)
    found.rollouts.roll_out(project.key)
    assert versions_of(client, [*tasks, annotated]) == [["older", row.model_version]] * 2 + [["older"]]
    (now,) = client.backends(project.id)
    assert now.title == now.model_version == client.project(project.id).model_version == row.model_version
    assert (found.told, settled()) == ([], True)
    before = versions_of(client, tasks)
    found.rollouts.roll_out(project.key)
    assert versions_of(client, tasks) == before


def test_another_model_and_no_tasks(
    client: LabelStudioClient,
    project: Project,
    folder: Folder,
    model: LiveModel,
    backend: ScriptedBackend,
    make: Make,
    settled: Callable[[], bool],
) -> None:
    """A project without tasks is done with its title. Where no connected model answers the version that is said, with
    what is connected, and boxes are made anyway.
    """
    client.connect_backend(project.id, url=backend.url)
    found = make(model)
    found.rollouts.roll_out(project.key)
    assert f"{backend.url} ({backend.version})" in found.told[0]
    assert settled()
    (task,) = folder.tasks(client, project.id, ["a.png"])
    found.rollouts.roll_out(project.key)
    assert versions_of(client, [task]) == [[model.spec(client, project.id).version]]
    assert [row.title for row in client.backends(project.id)] == [backend.version]


def test_who_waited_for_tasks_waits_again(
    client: LabelStudioClient, project: Project, folder: Folder, model: LiveModel, make: Make
) -> None:
    """A job that stays for added tasks makes way, and another one stays for them afterwards."""
    folder.tasks(client, project.id, ["a.png"])
    found = make(model)
    watching, _ = found.jobs.start(PrelabelRequest(project=project.id, watch=True))
    found.rollouts.roll_out(project.key)
    assert watching.finished is not None
    latest, *_ = found.jobs.all
    assert (latest.watch, latest.finished) == (True, None)


def test_a_server_that_stops_leaves_the_rest(
    client: LabelStudioClient,
    project: Project,
    folder: Folder,
    label_studio: LabelStudioProcess,
    serve_model: ServeModel,
    make: Make,
    settled: Callable[[], bool],
) -> None:
    """What is left to do when the server stops is not called done: the next server does it."""
    detector = ScriptedDetector(ANSWER)
    detector.go.clear()
    model = serve_model(label_studio, detector)
    folder.tasks(client, project.id, ["a.png"])
    found = make(model)
    thread = threading.Thread(target=found.rollouts.roll_out, args=(project.key,))
    thread.start()
    wait_until(detector.begun.is_set, "the job is under way")
    model.service.workers.stopping.set()
    thread.join(30)
    detector.go.set()
    assert not thread.is_alive()
    assert not settled()


def test_what_failed_is_tried_again(
    client: LabelStudioClient,
    project: Project,
    folder: Folder,
    model: LiveModel,
    make: Make,
    settled: Callable[[], bool],
) -> None:
    """A project that can't be predicted is said, and is rolled out without a restart once it can."""
    (task,) = folder.tasks(client, project.id, ["a.png"])
    rectangles = project.label_config
    client.update_project(project.id, label_config='<View><Text name="t" value="$image"/></View>')
    found = make(model)
    found.rollouts.start()
    found.rollouts.add(project.key)
    wait_until(lambda: len(found.told) > 1, "the failure is told more than once")
    assert not settled()
    client.update_project(project.id, label_config=rectangles)
    wait_until(settled, "the rollout is tried again")
    assert versions_of(client, [task]) == [[model.spec(client, project.id).version]]


def test_a_project_that_is_gone_is_said_once(model: LiveModel, make: Make) -> None:
    """It is not tried again."""
    found = make(model)
    found.rollouts.start()
    found.rollouts.add(known(999_999))
    wait_until(lambda: bool(found.told), "it is told")
    time.sleep(0.5)
    assert len(found.told) == 1


@pytest.mark.parametrize("fails", [False, True], ids=["without a token", "failed"])
def test_refused_versions_go_at_the_end_of_every_rollout(
    model: LiveModel, make: Make, tmp_path: Path, fails: bool
) -> None:
    """Space is made also where Label Studio was told nothing; a store whose state is in doubt is left alone."""
    data_dir = tmp_path / "own"

    def refused() -> list[str]:
        made = [tiny_version(data_dir, f"r{number}", gate={"accepted": False}) for number in range(3)]
        for version in made:
            age(data_dir, version)
        return made

    refused()
    found = make(model, url="http://127.0.0.1:9" if fails else None, token=fails, models_bytes=1)

    def roll_out() -> None:
        if fails:
            with pytest.raises(LabelStudioError):
                found.rollouts.roll_out(ONE)
        else:
            found.rollouts.roll_out(ONE)
            assert "no access token" in found.told[0]

    roll_out()
    assert ids(data_dir) == []
    left = refused()
    (data_dir / "active").mkdir(exist_ok=True)
    (data_dir / "active" / "1.json").write_bytes(b"{")
    roll_out()
    assert ids(data_dir) == sorted(left)
