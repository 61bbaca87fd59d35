"""The job on a model server beside a real Label Studio: over HTTP, on the page, and by the commands."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from bulk_live import CONFIG, ids_by_task, wait_until
from label_studio_helpers import delete_project, import_tasks
from live_model import ANSWER, TIMEOUT_S, Folder, LiveModel, ServeModel, shade, stored
from scripted_detector import ScriptedDetector
from spica.boxes import Detections
from spica.cli import app
from spica.detectors.contract import RGBImage
from spica.errors import SpicaError
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.records import Json, Project
from spica.labelstudio.tasks_query import UNLABELLED

pytestmark = pytest.mark.label_studio

Run = Callable[..., Result]


@pytest.fixture
def run(label_studio: LabelStudioProcess, model: LiveModel) -> Run:
    """The command line against the model server; failures that it knows come back as ``exception``."""

    def command(*arguments: str, url: str | None = None, token: str | None = None) -> Result:
        env = {
            "LABEL_STUDIO_URL": label_studio.url,
            "LABEL_STUDIO_API_KEY": token or label_studio.credentials.token,
            "COLUMNS": "400",
        }
        return CliRunner().invoke(app, [*arguments, "--model-url", url or model.url], env=env)

    return command


def exit_code(result: Result) -> int:
    """The exit status that ``main`` would give."""
    return result.exception.exit_code if isinstance(result.exception, SpicaError) else result.exit_code


def told(result: Result) -> str:
    """All that a command said, its error included."""
    return result.output + (str(result.exception) if isinstance(result.exception, SpicaError) else "")


def start(model: LiveModel, label_studio: LabelStudioProcess, **body: object) -> httpx.Response:
    """Ask the server for a job."""
    headers = {"X-Api-Key": label_studio.credentials.token}
    return model.http.post("/jobs/prelabel", json=body, headers=headers)


def finish(model: LiveModel, job: str) -> Json:
    """The job when it is over."""
    last: Json = {}

    def over() -> bool:
        nonlocal last
        last = model.http.get(f"/jobs/{job}").raise_for_status().json()
        return last["finished"] is not None

    wait_until(over, "the job is over")
    return last


@pytest.fixture
def held(serve_model: ServeModel, label_studio: LabelStudioProcess) -> Iterator[tuple[LiveModel, ScriptedDetector]]:
    """A model server whose network waits for the test."""
    detector = ScriptedDetector(ANSWER)
    detector.go.clear()
    yield serve_model(label_studio, detector), detector
    detector.go.set()


def test_a_whole_project_over_http(
    client: LabelStudioClient,
    bulk_project: Project,
    folder: Folder,
    model: LiveModel,
    label_studio: LabelStudioProcess,
) -> None:
    """A posted job predicts every task, with the broken one named and linked on the page; a second one finds only that
    one to do, and leaves all the others as they are.
    """
    tasks = folder.tasks(client, bulk_project.id, [f"{number:02}.png" for number in range(40)])
    (folder.path / "07.png").write_bytes(b"no image")
    begun = start(model, label_studio, project=bulk_project.id)
    assert begun.status_code == 202, begun.text
    assert begun.json()["started_now"] is True
    job = finish(model, begun.json()["id"])
    assert (job["state"], job["total"], job["stored"], job["failed"], job["counted"]) == ("done", 40, 39, 1, 39)
    (failure,) = job["failures"]
    assert failure["task"] == tasks[7]
    assert failure["url"] == f"{label_studio.url}/projects/{bulk_project.id}/data?task={tasks[7]}"
    assert f'href="{failure["url"]}"' in model.page()
    lines = model.http.get(f"/jobs/{job['id']}/failures").json()["lines"]
    assert [json.loads(line)["task"] for line in lines] == [tasks[7]]
    ids = ids_by_task(client, bulk_project.id)
    again = finish(model, start(model, label_studio, project=bulk_project.id).json()["id"])
    assert (again["total"], again["stored"], again["failed"]) == (1, 0, 1)
    assert ids_by_task(client, bulk_project.id) == ids


def test_two_at_once_are_one_and_a_stopped_one_goes_on(
    client: LabelStudioClient,
    bulk_project: Project,
    folder: Folder,
    held: tuple[LiveModel, ScriptedDetector],
    label_studio: LabelStudioProcess,
) -> None:
    """While a job works on a project, asking again gives that very job. Stopped, it stores what is in hand; another
    one completes the rest.
    """
    model, detector = held
    tasks = folder.tasks(client, bulk_project.id, [f"{number:02}.png" for number in range(40)])
    first = start(model, label_studio, project=bulk_project.id).json()
    second = start(model, label_studio, project=bulk_project.id).json()
    assert (first["started_now"], second["started_now"], second["id"]) == (True, False, first["id"])
    assert detector.begun.wait(TIMEOUT_S)
    stopping = model.http.post(f"/jobs/{first['id']}/stop", json={})
    assert (stopping.status_code, stopping.json()["state"]) == (202, "stopping")
    detector.go.set()
    job = finish(model, first["id"])
    assert job["state"] == "stopped"
    assert 0 < job["stored"] < len(tasks)
    assert finish(model, start(model, label_studio, project=bulk_project.id).json()["id"])["state"] == "done"
    assert [len(ids) for ids in stored(client, tasks).values()] == [1] * len(tasks)


def test_an_opened_image_comes_before_the_job(
    client: LabelStudioClient,
    bulk_project: Project,
    folder: Folder,
    held: tuple[LiveModel, ScriptedDetector],
    label_studio: LabelStudioProcess,
) -> None:
    """A request for one image that comes while the job's images wait is computed right after the image in hand."""
    model, detector = held
    folder.tasks(client, bulk_project.id, [f"{number:02}.png" for number in range(12)])
    opened = folder.photograph("opened.png", shade(150))
    job = start(model, label_studio, project=bulk_project.id).json()
    engine = model.predictor.engine
    wait_until(lambda: engine.status.waiting >= 4, "images of the job wait")
    seen: list[int] = [-1]

    def settled() -> bool:
        time.sleep(0.5)
        seen.append(engine.status.waiting)
        return seen[-1] == seen[-2]

    wait_until(settled, "no more images of the job come")
    order: list[int] = []
    original = detector.detect

    def noting(images: Sequence[RGBImage]) -> list[Detections]:
        order.append(int(images[0].max()))
        return original(images)

    detector.detect = noting  # type: ignore[method-assign]  # the same, noting the order
    answers: list[httpx.Response] = []
    body = {"tasks": [{"id": 1, "data": {"image": opened}}], "label_config": CONFIG, "project": "1.1"}
    person = threading.Thread(target=lambda: answers.append(model.http.post("/predict", json=body)))
    waiting = engine.status.waiting
    person.start()
    wait_until(lambda: engine.status.waiting > waiting, "the opened image waits too")
    detector.go.set()
    person.join(TIMEOUT_S)
    assert answers[0].status_code == 200
    assert order[0] == 200, f"the opened image, of brightness 200, was not computed first: {order}"
    assert finish(model, job["id"])["stored"] == 12


def test_events(
    client: LabelStudioClient, bulk_project: Project, folder: Folder, model: LiveModel, label_studio: LabelStudioProcess
) -> None:
    """The page is sent anew when a job has changed, without asking."""
    folder.tasks(client, bulk_project.id, ["a.png"])
    with model.http.stream("GET", "/events") as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        lines = events.iter_lines()
        assert next(lines) == "event: page"
        job = start(model, label_studio, project=bulk_project.id).json()
        pages = (json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: "))
        assert next(page for page in pages if job["id"] in page and "<strong>1</strong> of 1 tasks" in page)


def test_commands_follow_the_server(
    client: LabelStudioClient, bulk_project: Project, folder: Folder, model: LiveModel, run: Run, tmp_path: Path
) -> None:
    """`prelabel` has the server do it: says what it would do, does it with the failures in the report, tells by its
    exit status that some failed, then that none could be stored; `status` shows the jobs.
    """
    number = str(bulk_project.id)
    folder.tasks(client, bulk_project.id, [f"{each}.png" for each in range(10)])
    for name in ("3.png", "5.png"):
        (folder.path / name).write_bytes(b"")
    dry = run("prelabel", "--project", number, "--dry-run")
    assert (exit_code(dry), "10 tasks would be predicted" in told(dry)) == (0, True), told(dry)
    assert ids_by_task(client, bulk_project.id) == {}
    report = tmp_path / "failed.jsonl"
    some = run("prelabel", "--project", number, "--report", str(report))
    assert exit_code(some) == 3, told(some)
    assert "8 of 10 tasks predicted" in told(some)
    assert [json.loads(line)["code"] for line in report.read_text("utf-8").splitlines()] == ["image", "image"]
    assert exit_code(run("prelabel", "--project", number)) == 4
    status = run("status", "--json")
    state = json.loads(status.stdout)
    assert exit_code(status) == 0
    assert [(job["stored"], job["failed"]) for job in state["jobs"]] == [(0, 2), (8, 2)]
    assert len(state["failures"]) == 4
    assert "8 of 10" not in told(run("status"))
    assert "10 of 10 tasks" in told(run("status"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_for_the_report_stores_all_the_same(
    client: LabelStudioClient, bulk_project: Project, folder: Folder, run: Run
) -> None:
    """When the report can't be written, that is said, and everything that can be predicted is stored."""
    folder.tasks(client, bulk_project.id, ["a.png", "b.png"])
    (folder.path / "b.png").write_bytes(b"")
    result = run("prelabel", "--project", str(bulk_project.id), "--report", "/dev/full")
    assert exit_code(result) == 3, told(result)
    assert "not complete" in told(result)
    assert len(ids_by_task(client, bulk_project.id)) == 1


def annotate(client: LabelStudioClient, task: int) -> None:
    """Submit an empty annotation, as somebody who sees no object does."""
    client.call("POST", f"/api/tasks/{task}/annotations/", json={"result": [], "lead_time": 1})


def test_what_is_left_alone_and_what_narrows(
    client: LabelStudioClient, bulk_project: Project, folder: Folder, run: Run
) -> None:
    """Annotated tasks are left alone unless asked for; `--task` and `--filter` do only those; views of either
    conjunction are understood.
    """
    number = str(bulk_project.id)
    tasks = folder.tasks(client, bulk_project.id, [f"{each}.png" for each in range(8)])
    annotate(client, tasks[0])

    def view(conjunction: str, *filters: Json) -> str:
        data = {"title": conjunction, "filters": {"conjunction": conjunction, "items": list(filters)}}
        return str(client.call("POST", "/api/dm/views/", json={"project": bulk_project.id, "data": data})["id"])

    def below(task: int) -> Json:
        return {"filter": "filter:tasks:id", "operator": "less", "type": "Number", "value": task}

    def above(task: int) -> Json:
        return {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": task}

    def done() -> list[int]:
        return sorted(tasks.index(task) for task in ids_by_task(client, bulk_project.id))

    assert exit_code(run("prelabel", "--project", number, "--task", str(tasks[3]), "--task", str(tasks[5]))) == 0
    assert done() == [3, 5]
    both = view("and", below(tasks[5]), above(tasks[3]))
    assert exit_code(run("prelabel", "--project", number, "--tab", both)) == 0
    assert done() == [3, 4, 5]
    either = view("or", below(tasks[2]), above(tasks[6]), UNLABELLED)
    dry = run("prelabel", "--project", number, "--tab", either, "--dry-run")
    assert exit_code(dry) == 0, told(dry)
    some = view("or", below(tasks[2]), above(tasks[6]))
    assert exit_code(run("prelabel", "--project", number, "--tab", some)) == 0
    assert done() == [1, 3, 4, 5, 7]
    dry = run("prelabel", "--project", number, "--dry-run")
    assert "2 tasks would be predicted" in told(dry)
    assert "Left alone, since annotated: 1 task;" in told(dry)
    assert exit_code(run("prelabel", "--project", number)) == 0
    assert done() == [1, 2, 3, 4, 5, 6, 7]
    assert exit_code(run("prelabel", "--project", number, "--include-annotated")) == 0
    assert done() == list(range(8))


def test_bad_input(client: LabelStudioClient, bulk_project: Project, folder: Folder, run: Run) -> None:
    """Each thing that can't be done is a sentence and an exit status, and changes nothing."""
    number = str(bulk_project.id)

    def refused(*arguments: str, **options: str) -> tuple[int, str]:
        result = run("prelabel", *arguments, **options)
        return exit_code(result), told(result)

    code, said = refused("--project", "999999")
    assert (code, "there is no project 999999" in said) == (1, True), said
    code, said = refused("--project", number)
    assert (code, "has no tasks" in said) == (2, True), said
    (task,) = import_tasks(client, bulk_project.id, [{"data": {"image": "/data/local-files/?d=gone.png"}}])
    code, said = refused("--project", number, "--task", "999999")
    assert (code, "no such tasks" in said, "999999" in said) == (2, True, True), said
    code, said = refused("--project", number, "--tab", "999999")
    assert (code, "no such tab" in said) == (2, True), said
    code, said = refused("--project", number, token="0" * 40)
    assert (code, "refused the legacy token" in said) == (1, True), said
    code, said = refused("--project", number, "--report", "/nowhere/at/all.jsonl")
    assert (code, "the report can't be written" in said) == (2, True), said
    code, said = refused("--project", number, url="http://127.0.0.1:9")
    assert (code, "no model server answers" in said) == (1, True), said
    code, said = refused("--project", number)
    assert (code, f"task {task}" in said) == (4, True), said
    text = client.create_project("texts", '<View><Text name="text" value="$text"/></View>')
    import_tasks(client, text.id, [{"data": {"text": "no image"}}])
    try:
        code, said = refused("--project", str(text.id))
        assert (code, "rectangle" in said.lower()) == (1, True), said
    finally:
        delete_project(client, text.id)
    other = client.create_project("others", CONFIG.replace('value="$image"', 'value="$photo"', 1))
    try:
        (task,) = import_tasks(client, other.id, [{"data": {"photo": "/data/local-files/?d=gone.png"}}])
        client.call("PATCH", f"/api/tasks/{task}/", json={"data": {"picture": "/data/local-files/?d=gone.png"}})
        code, said = refused("--project", str(other.id))
        assert (code, 'no image under "photo"' in said) == (4, True), said
    finally:
        delete_project(client, other.id)
    assert ids_by_task(client, bulk_project.id) == {}


def test_refresh_after_a_change_of_version(
    client: LabelStudioClient, bulk_project: Project, folder: Folder, run: Run, tmp_path: Path
) -> None:
    """Unlabelled tasks get the new version's boxes, which Label Studio shows then, and lose the old ones, if not now
    then with ``--now``; an annotated task and one whose image is gone keep theirs; what was deleted can be put back.
    """
    good, broken, annotated = tasks = folder.tasks(client, bulk_project.id, ["a.png", "b.png", "c.png"])
    client.create_predictions(
        bulk_project.id, [{"task": task, "result": [], "score": 0.5, "model_version": "old"} for task in tasks]
    )
    (folder.path / "b.png").write_bytes(b"")
    annotate(client, annotated)
    backup = tmp_path / "old.jsonl"
    client.update_project(bulk_project.id, model_version="old")

    def refresh(*options: str) -> Result:
        line = ["predictions", "refresh", "--project", str(bulk_project.id), "--backup", str(backup), "--yes"]
        return run(*line, *options)

    def versions(task: int) -> list[str]:
        return [each.model_version.split("-")[0] for each in client.predictions_of_task(task)]

    result = refresh()
    assert exit_code(result) == 3, told(result)
    assert "Spared 1" in told(result)
    assert (versions(good), backup.exists()) == (["old", "live"], False)
    assert client.project(bulk_project.id).model_version.startswith("live-0001")
    asked = run("predictions", "refresh", "--project", str(bulk_project.id), "--backup", str(backup), "--now")
    assert (exit_code(asked), versions(good), backup.exists()) == (2, ["old", "live"], False), told(asked)
    assert "--yes" in told(asked)
    assert "1 older prediction would be deleted" in told(refresh("--now", "--dry-run"))
    assert "Deleted 1 older prediction;" in told(refresh("--now"))
    assert (versions(good), versions(broken), versions(annotated)) == (["live"], ["old"], ["old"])
    row = client.call("GET", "/api/tasks/", params={"project": bulk_project.id, "include": "id,total_predictions"})
    assert {each["id"]: each["total_predictions"] for each in row["tasks"]} == dict.fromkeys(tasks, 1)
    (line,) = backup.read_text("utf-8").splitlines()
    assert json.loads(line)["task"] == good
    everything = run(
        "predictions",
        "refresh",
        "--project",
        str(bulk_project.id),
        "--include-annotated",
        "--now",
        "--yes",
        "--backup",
        f"{backup}.2",
    )
    assert "Deleted 1 older" in told(everything)
    assert versions(annotated) == ["live"]
    again = run("predictions", "refresh", "--project", str(bulk_project.id))
    assert "no older predictions" in told(again)
