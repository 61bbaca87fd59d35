"""What can happen to a job while it runs: restarts, broken images, refusals, new tasks."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from bulk_live import CONFIG, StartWorker, command, fill, ids_by_task, versions_by_task, wait_until
from label_studio_helpers import create_annotation, delete_task, import_tasks
from live_model import ANSWER, TIMEOUT_S, Folder, LiveModel, ServeModel, prelabel, shade, stored
from scripted_detector import ScriptedDetector
from spica.boxes import Detections
from spica.detectors.contract import RGBImage
from spica.errors import AuthenticationError
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.records import Project
from spica.prelabel.claim import Claim
from spica.prelabel.job import BulkJob
from spica.prelabel.progress import Progress
from spica.prelabel.selection import Selection, prepare

pytestmark = pytest.mark.label_studio


class Gate(ScriptedDetector):
    """Stops after so many images, until it may go on."""

    def __init__(self, first: int) -> None:
        super().__init__(ANSWER)
        self._first = first
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        """The scripted answer."""
        if self.calls >= self._first:
            self.reached.set()
            assert self.go_on.wait(TIMEOUT_S)
        return super().detect(images)


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A detector that stops after 20 images."""
    detector = Gate(20)
    yield detector
    detector.go_on.set()


def work_on(
    client: LabelStudioClient,
    model: LiveModel,
    project: int,
    *,
    stop: threading.Event | None = None,
    watch: bool = False,
    said: list[str] | None = None,
    claim: Claim | None = None,
) -> tuple[BulkJob, Callable[[], BaseException | None]]:
    """A job under way on a thread of its own, and what waits for its end and gives the failure that ended it."""
    spec = prepare(client, project, model.predictor.spec, Selection())
    stack = ExitStack()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    if claim is None:
        claim = stack.enter_context(
            Claim.take(folder, client.url, project, by="a test", version=spec.prediction.version)
        )
    say = (lambda _line: None) if said is None else said.append
    job = BulkJob(
        client, model.predictor, spec, claim, stop=stop or threading.Event(), watch=watch, say=say, watch_s=0.2
    )
    ended: list[BaseException | None] = []

    def run() -> None:
        try:
            job.run()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            ended.append(error)
        else:
            ended.append(None)

    thread = threading.Thread(target=run)
    thread.start()

    def end() -> BaseException | None:
        thread.join(TIMEOUT_S)
        stack.close()
        assert ended, "the job does not end"
        return ended[0]

    return job, end


def test_label_studio_restarts_in_the_middle_and_the_token_is_revoked_in_the_end(
    label_studio_factory: Callable[..., LabelStudioProcess], serve_model: ServeModel, gate: Gate
) -> None:
    """A job outlives a restart of Label Studio, its images over HTTP included, and stores each prediction once. When
    the token is revoked under a later job, that ends with a sentence, and everything stored before stays.
    """
    with label_studio_factory() as process:
        root, data_dir, port = process.document_root, process.data_dir, process.port
        photographs = Folder(root / "images", root)
        with process.client() as client:
            project = client.create_project("restarted", CONFIG)
            names = [f"{number:02}.png" for number in range(60)]
            tasks = photographs.tasks(client, project.id, names)
            client.ensure_local_storage(project.id, photographs.path)
            model = serve_model(process, gate, over_http=True)
            job, end = work_on(client, model, project.id)
            assert gate.reached.wait(TIMEOUT_S)
            wait_until(lambda: job.progress.stored > 0, "something is stored")
            process.close()
            gate.go_on.set()
            wait_until(lambda: job.progress.note is not None, "the job waits for Label Studio")
            with LabelStudioProcess.start(data_dir, port=port, document_root=root) as again, again.client() as later:
                assert end() is None
                assert (job.progress.stored, job.progress.failed) == (60, 0)
                assert [len(ids) for ids in stored(later, tasks).values()] == [1] * 60

                gate.calls = 0
                gate.go_on.clear()
                gate.reached.clear()
                more = photographs.tasks(later, project.id, [f"more-{number:02}.png" for number in range(60)])
                for number in range(60):  # other images than before, which are remembered
                    photographs.photograph(f"more-{number:02}.png", (120, 60 + number, 60))
                job, end = work_on(client, model, project.id)
                assert gate.reached.wait(TIMEOUT_S)
                wait_until(lambda: job.progress.stored > 0, "something is stored")
                later.call("POST", "/api/current-user/reset-token/")
                gate.go_on.set()
                failure = end()
                assert isinstance(failure, AuthenticationError), failure
                assert "refused the legacy token" in str(failure)
                assert process.credentials.token not in str(failure)
                confirmed = job.progress.stored
                with LabelStudioClient(again.url, _token_of(data_dir)) as third:
                    kept = [len(ids) for ids in stored(third, more).values()]
                assert sum(kept) == confirmed > 0


def _token_of(data_dir: Path) -> str:
    """The token that a reset has made, from Label Studio's database."""
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(data_dir / "label_studio.sqlite3")) as database:
        return str(database.execute("SELECT key FROM authtoken_token").fetchone()[0])


def test_six_broken_images_among_sixty(
    label_studio: LabelStudioProcess,
    client: LabelStudioClient,
    bulk_project: Project,
    folder: Folder,
    start_worker: StartWorker,
    tmp_path: Path,
) -> None:
    """54 tasks are stored, the 6 with broken images are named with their reasons and left without a prediction; the
    next run tries just those, stores the repaired ones, and touches no other.
    """
    tasks = fill(folder, client, bulk_project.id, 60, tmp_path / "rendered")
    broken = tasks[5::10]
    assert len(broken) == 6
    paths = [folder.path / f"{tasks.index(task):04}.jpg" for task in broken]
    sound = [path.read_bytes() for path in paths]
    for number, path in enumerate(paths):
        if number % 3 == 0:
            path.write_bytes(b"")
        elif number % 3 == 1:
            path.write_bytes(path.read_bytes()[:500])
        else:
            path.unlink()
    report = tmp_path / "failed.jsonl"
    status, said = start_worker(label_studio, command(bulk_project.id, "--report", str(report))).finish()
    assert status == 3, said
    assert "54 of 60 tasks predicted" in said
    lines = [json.loads(line) for line in report.read_text("utf-8").splitlines()]
    assert sorted(line["task"] for line in lines) == broken
    assert {line["code"] for line in lines} == {"image", "media"}
    ids = ids_by_task(client, bulk_project.id)
    assert ids.keys() == set(tasks) - set(broken)
    for path, content in zip(paths, sound, strict=True):
        path.write_bytes(content)
    status, said = start_worker(label_studio, command(bulk_project.id)).finish()
    assert status == 0, said
    assert "6 of 6 tasks predicted" in said
    after = ids_by_task(client, bulk_project.id)
    assert {task: after[task] for task in ids} == ids
    assert {len(each) for each in after.values()} == {1}
    assert after.keys() == set(tasks)


def test_tasks_are_predicted_as_they_are_added(
    client: LabelStudioClient, bulk_project: Project, folder: Folder, model: LiveModel
) -> None:
    """A watching job predicts what a storage sync and an import add, says so, leaves a broken one in peace, and ends
    when it is told to.
    """
    stop, said = threading.Event(), list[str]()
    storage = client.ensure_local_storage(bulk_project.id, folder.path)
    folder.photograph("a.png")
    client.sync_storage(storage.id)
    job, end = work_on(client, model, bulk_project.id, stop=stop, watch=True, said=said)

    def predicted() -> int:
        return len(versions_by_task(client, bulk_project.id))

    wait_until(lambda: predicted() == 1, "the first task is predicted")
    folder.photograph("b.png", shade(1))
    folder.photograph("c.png", shade(2))
    (folder.path / "d.png").write_bytes(b"")
    assert client.sync_storage(storage.id).added == 3
    wait_until(lambda: predicted() == 3, "the synced tasks are predicted")
    import_tasks(client, bulk_project.id, [{"data": {"image": folder.photograph("e/f.png", shade(3))}}])
    wait_until(lambda: predicted() == 4, "the imported task is predicted")
    stop.set()
    assert end() is None
    assert (job.state, job.progress.stored, job.progress.failed) == ("done", 4, 1)
    assert any("new task" in line for line in said)
    assert [len(ids) for ids in ids_by_task(client, bulk_project.id).values()] == [1] * 4


def test_what_label_studio_leaves_out_without_a_word_is_named(
    client: LabelStudioClient,
    bulk_project: Project,
    folder: Folder,
    serve_model: ServeModel,
    label_studio: LabelStudioProcess,
) -> None:
    """When the labels are changed under the job, Label Studio drops its predictions silently: they are counted as
    failed, with the reason, and nothing is claimed to be stored.
    """
    detector = Gate(0)
    model = serve_model(label_studio, detector)
    tasks = folder.tasks(client, bulk_project.id, [f"{number}.png" for number in range(5)])
    job, end = work_on(client, model, bulk_project.id)
    assert detector.reached.wait(TIMEOUT_S)
    client.update_project(bulk_project.id, label_config=CONFIG.replace("spike", "awn"))
    detector.go_on.set()
    assert end() is None
    assert (job.progress.stored, job.progress.failed, job.progress.counted) == (0, 5, 0)
    for task, error in job.progress.failures:
        assert task in tasks
        assert "left this prediction out" in str(error)
        assert "spike" in str(error)


def test_tasks_that_are_deleted_meanwhile_cost_nobody_else(
    client: LabelStudioClient,
    bulk_project: Project,
    folder: Folder,
    serve_model: ServeModel,
    label_studio: LabelStudioProcess,
) -> None:
    """Label Studio refuses a whole request for one task that is gone; the others are stored all the same."""
    detector = Gate(0)
    model = serve_model(label_studio, detector)
    tasks = folder.tasks(client, bulk_project.id, [f"{number}.png" for number in range(6)])
    job, end = work_on(client, model, bulk_project.id)
    assert detector.reached.wait(TIMEOUT_S)
    delete_task(client, tasks[2])
    detector.go_on.set()
    assert end() is None
    assert (job.progress.stored, job.progress.gone, job.progress.failed) == (5, 1, 0)


def test_the_last_request_of_a_killed_run_is_waited_for(
    client: LabelStudioClient, bulk_project: Project, folder: Folder, model: LiveModel, tmp_path: Path
) -> None:
    """What a killed process was sending may still be carried out: the next run waits for it, and does nothing twice."""
    tasks = folder.tasks(client, bulk_project.id, [f"{number}.png" for number in range(5)])
    version = model.spec(client, bulk_project.id).version

    def claim(by: str) -> Claim:
        return Claim.take(tmp_path / "jobs", client.url, bulk_project.id, by=by, version=version)

    killed = claim("a process that is killed")
    killed.sending(tasks, TIMEOUT_S)
    killed.release()
    with claim("the next one") as following:
        job, end = work_on(client, model, bulk_project.id, claim=following)
        wait_until(lambda: job.progress.note is not None, "the job waits")
        late = [{"task": task, "result": [], "score": 0.5, "model_version": version} for task in tasks]
        client.create_predictions(bulk_project.id, late)
        assert end() is None
        assert following.pending == set()
    assert model.detector.calls == 0
    assert [len(ids) for ids in stored(client, tasks).values()] == [1] * 5


def test_what_was_stored_twice_stays(
    client: LabelStudioClient, bulk_project: Project, folder: Folder, model: LiveModel
) -> None:
    """Copies of a prediction, as Label Studio makes them when it repeats a request, are left, for a task may be open
    with either: a submit that names one or the other is stored.
    """
    tasks = folder.tasks(client, bulk_project.id, ["a.png", "b.png"])
    prelabel(client, model.predictor, bulk_project.id)
    for task in tasks:
        (one,) = client.predictions_of_task(task)
        copy = {"task": task, "result": one.result, "score": one.score, "model_version": one.model_version}
        client.create_predictions(bulk_project.id, [copy])
    assert prelabel(client, model.predictor, bulk_project.id).counted == 4
    for place, task in enumerate(tasks):
        named = stored(client, [task])[task][place]
        create_annotation(client, task, [], parent_prediction=named)
        (annotation,) = client.call("GET", f"/api/tasks/{task}/annotations/")
        assert annotation["parent_prediction"] == named


def test_a_server_without_a_token_uses_the_caller_s(
    client: LabelStudioClient,
    bulk_project: Project,
    folder: Folder,
    serve_model: ServeModel,
    label_studio: LabelStudioProcess,
) -> None:
    """A model server that has no token of its own asks for one, and works, images included, with the caller's."""
    model = serve_model(label_studio, over_http=True, own_token=False, basic_auth="me:secret")
    client.ensure_local_storage(bulk_project.id, folder.path)
    folder.tasks(client, bulk_project.id, ["a.png"])
    body = {"project": bulk_project.id}
    assert model.http.post("/jobs/prelabel", json=body).json()["error"]["code"] == "authentication"
    user = ("me", "secret")
    without = model.http.post("/jobs/prelabel", json=body, auth=user)
    assert (without.status_code, without.json()["error"]["code"]) == (401, "authentication")
    headers = {"X-Api-Key": label_studio.credentials.token}
    job = model.http.post("/jobs/prelabel", json=body, auth=user, headers=headers).json()["id"]
    wait_until(lambda: model.http.get(f"/jobs/{job}", auth=user).json()["finished"] is not None, "the job is over")
    told = model.http.get(f"/jobs/{job}", auth=user).json()
    assert (told["stored"], told["failed"]) == (1, 0), told
    assert label_studio.credentials.token not in json.dumps(told)


def test_progress_is_told_while_it_runs(
    client: LabelStudioClient, bulk_project: Project, folder: Folder, model: LiveModel
) -> None:
    """The numbers that are shown never run backwards, and end complete."""
    folder.tasks(client, bulk_project.id, [f"{number:02}.png" for number in range(40)])
    shown: list[Progress] = []
    prelabel(client, model.predictor, bulk_project.id, on_progress=shown.append)
    done = [each.done for each in shown]
    assert done == sorted(done)
    assert (shown[0].done, shown[-1].done, shown[-1].total, shown[-1].counted) == (0, 40, 40, 40)
