"""Which project of which Label Studio is meant, over HTTP: by its number and by when it was created."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from model_server import CONFIG, ModelServer
from project_keys import CREATED, ONE
from scripted_detector import ScriptedDetector, detections
from spica.inference import Engine
from spica.models import active
from spica.predictor import Predictor
from spica.project import ProjectKey
from spica.server.build import resolve
from spica.server.pool import ModelPool
from spica.server.service import Service
from spica.training import holdout
from spica.training.holdout import Decision
from spica.training.runs import Runs
from spica.training.takeover import take_over
from tiny_versions import tiny_version

BASE = "test-0001"
OLD = ProjectKey(1)
"""As earlier versions of Spica knew it."""

LATER = 4_000_000_000
"""A project that is created after everything that happens here."""


@pytest.fixture
def serving(make_server: Callable[..., ModelServer], tmp_path: Path) -> Iterator[ModelServer]:
    """A server whose data folder is the test's own; versions of its store find one box."""
    with ExitStack() as stack:

        def pooled(service: Service) -> None:
            def load(version: str) -> Predictor:
                detector = ScriptedDetector(detections((10, 10, 50, 30, 0.9)))
                engine = Engine(version, lambda: detector, queue_size=10, memory_bytes=1000)
                stack.enter_context(engine)
                media = service.predictor.media
                return Predictor(
                    model_id=version, classes=("spike",), engine=engine, media=media, threshold=0.6, max_pixels=10**6
                )

            service.pool = ModelPool(
                service.predictor, resolve=lambda project: resolve(tmp_path, project, BASE), load=load
            )

        yield make_server(prepare=pooled)


def version_of(server: ModelServer, project: str | int) -> str:
    """What `/setup` tells a project, and `/predict` answers it with."""
    setup = server.client.post("/setup", json={"project": project, "schema": CONFIG}).raise_for_status().json()
    task = {"id": 1, "data": {"image": server.photograph("a.png")}}
    body = {"tasks": [task], "project": project, "label_config": CONFIG}
    (result,) = server.client.post("/predict", json=body).raise_for_status().json()["results"]
    assert result["model_version"] == setup["model_version"]
    return str(result["model_version"]).rpartition(".")[0]


def test_two_label_studios_have_a_project_1(serving: ModelServer, tmp_path: Path) -> None:
    """The version of one project never answers another of its number, nor a request that does not tell which."""
    version = tiny_version(tmp_path, "own")
    active.activate(tmp_path, ONE, version, base=BASE, why="better", by="training")
    assert version_of(serving, f"1.{CREATED}") == version
    assert version_of(serving, f"1.{CREATED + 1}") == BASE
    assert version_of(serving, "1") == BASE
    assert version_of(serving, 1) == BASE
    served = {(each["project"], each["created"]): each["version"] for each in state(serving)["served"]}
    assert served == {(1, CREATED): version, (1, CREATED + 1): BASE, (1, 0): BASE}


def test_extra_params_are_of_one_project(serving: ModelServer) -> None:
    """What stands in the model's form of one Label Studio's project 1 does not show boxes in another's."""

    def boxes(project: str) -> int:
        body = {"tasks": [{"data": {"image": serving.photograph("a.png")}}], "project": project, "label_config": CONFIG}
        (result,) = serving.client.post("/predict", json=body).raise_for_status().json()["results"]
        return len(result["result"])

    for project, params in ((f"1.{CREATED}", {"score_threshold": 0.1}), ("1.1800000000", None)):
        body = {"project": project, "schema": CONFIG, "extra_params": params}
        serving.client.post("/setup", json=body).raise_for_status()
    assert (boxes(f"1.{CREATED}"), boxes("1.1800000000")) == (3, 2)


def state(server: ModelServer) -> dict[str, list[dict[str, object]]]:
    """Of the learning."""
    found: dict[str, list[dict[str, object]]] = server.client.get("/state").json()["learning"]
    return found


@pytest.fixture
def old_state(tmp_path: Path) -> str:
    """Active version, held-out images and a training, as an earlier Spica has kept them; gives the version."""
    version = tiny_version(tmp_path, "own")
    active.activate(tmp_path, OLD, version, base=BASE, why="better", by="training")
    holdout.write(holdout.path_of(tmp_path, OLD), {"0" * 64: Decision("holdout")})
    Runs(tmp_path).begin(OLD, title="field", cause="", new=1, parent=None)
    return version


def files_of(data_dir: Path, project: ProjectKey) -> list[bool]:
    """Whether there are a pointer, its copy, held-out images and trainings."""
    pointer = active.pointer_path(data_dir, project)
    others = (holdout.path_of(data_dir, project), Runs(data_dir).project_folder(project))
    return [path.exists() for path in (pointer, *others)]


def test_old_state_is_taken_over(serving: ModelServer, tmp_path: Path, old_state: str) -> None:
    """What was begun after the project was created is this project's: active version, trainings, held-out images."""
    assert version_of(serving, f"1.{CREATED}") == old_state
    assert (files_of(tmp_path, OLD), files_of(tmp_path, ONE)) == ([False] * 3, [True] * 3)
    assert [run.project for run in Runs(tmp_path).of(ONE)] == [ONE]
    assert version_of(serving, "1.1800000000") == BASE, "it is given to one project alone"


def test_old_state_of_an_earlier_label_studio_is_left_and_said(
    serving: ModelServer, tmp_path: Path, old_state: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What was begun before the project was created is another's: it is not served, and page, state and log say so."""
    assert version_of(serving, f"1.{LATER}") == BASE
    assert (files_of(tmp_path, OLD), files_of(tmp_path, ProjectKey(1, LATER))) == ([True] * 3, [False] * 3)
    (served,) = state(serving)["served"]
    assert "not known to be this one's" in str(served["problem"])
    page = serving.client.get("/").text
    assert "not known to be this one" in page
    assert "spica models activate VERSION --project 1 --token TOKEN" in page
    serving.service.pool.refresh(ProjectKey(1, LATER))
    assert "not known to be this one's" in caplog.text
    active.activate(tmp_path, ProjectKey(1, LATER), old_state, base=BASE, why="it is mine", by="a person")
    serving.service.pool.refresh(ProjectKey(1, LATER))
    assert version_of(serving, f"1.{LATER}") == old_state


@pytest.mark.parametrize("damage", ["pointer", "no dates"])
def test_old_state_that_nobody_can_date_is_left(tmp_path: Path, old_state: str, damage: str) -> None:
    """A damaged record, and held-out images without anything that was done with them, are nobody's."""
    for path in (tmp_path / "active").glob("1.json*"):
        path.write_bytes(b"{") if damage == "pointer" else path.unlink()
    if damage == "no dates":
        for run in Runs(tmp_path).of(OLD):
            Runs(tmp_path).remove(run)
    assert resolve(tmp_path, ONE, BASE).version is None
    assert resolve(tmp_path, ONE, BASE).problem is not None
    assert holdout.path_of(tmp_path, OLD).exists()


def test_several_servers_take_over_at_a_time(tmp_path: Path, old_state: str) -> None:
    """Whoever comes first does it; the others see the version, and nothing is lost or made twice."""
    versions: list[str | None] = []
    begin = threading.Barrier(8)

    def look() -> None:
        begin.wait()
        versions.append(resolve(tmp_path, ONE, BASE).version)

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert versions == [old_state] * 8
    assert (files_of(tmp_path, OLD), files_of(tmp_path, ONE)) == ([False] * 3, [True] * 3)


def test_killed_while_taking_over(tmp_path: Path, old_state: str) -> None:
    """After a kill in between, the next look moves what is left, by what still tells whose it is."""
    holdout.path_of(tmp_path, OLD).rename(holdout.path_of(tmp_path, ONE))
    Runs(tmp_path).project_folder(OLD).rename(Runs(tmp_path).project_folder(ONE))
    take_over(tmp_path, ONE)
    assert (files_of(tmp_path, OLD), files_of(tmp_path, ONE)) == ([False] * 3, [True] * 3)
    assert resolve(tmp_path, ONE, BASE).version == old_state
