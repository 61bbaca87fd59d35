"""The client against the real Label Studio of this run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from label_studio_helpers import LABEL_CONFIG, LabelStudioFactory, delete_project, import_tasks, png
from scripted_backend import ScriptedBackend, box
from spica.errors import AuthenticationError, LabelStudioError
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.records import Project

pytestmark = pytest.mark.label_studio

Upload = Callable[..., list[int]]


def prediction(task: int, version: str, label: str = "spike", score: float = 0.5) -> dict[str, object]:
    return {"task": task, "model_version": version, "score": score, "result": [box(label)]}


# Account and projects


def test_whoami_and_version(client: LabelStudioClient, label_studio: LabelStudioProcess) -> None:
    """The token belongs to the account that Label Studio was started with, and the release is known."""
    assert client.whoami().email == label_studio.credentials.email
    assert client.version() == "1.23.2"


def test_wrong_token(label_studio: LabelStudioProcess) -> None:
    """A wrong token is an AuthenticationError that does not show the token."""
    wrong = "f" * 40
    with (
        LabelStudioClient(label_studio.url, wrong) as stranger,
        pytest.raises(AuthenticationError) as caught,
    ):
        stranger.whoami()
    assert wrong not in str(caught.value)
    assert caught.value.hint is not None


def test_find_project(client: LabelStudioClient, project: Project) -> None:
    """A project is found by its exact title only."""
    assert client.find_project(project.title) == project
    assert client.find_project(project.title[:-1]) is None


def test_projects_are_paged(client: LabelStudioClient, project: Project) -> None:
    """All projects come, also when they take several pages."""
    others = [client.create_project(f"page {number}", LABEL_CONFIG) for number in range(2)]
    try:
        assert {project.id, *(other.id for other in others)} <= {found.id for found in client.projects(page_size=1)}
    finally:
        for other in others:
            delete_project(client, other.id)


@pytest.mark.parametrize("title", ["ab", "x" * 51, "  a  "], ids=["short", "long", "blank"])
def test_title_length(client: LabelStudioClient, title: str) -> None:
    """A title that Label Studio would refuse is refused with its limits."""
    with pytest.raises(LabelStudioError, match="3 to 50"):
        client.create_project(title, LABEL_CONFIG)


def test_unknown_project(client: LabelStudioClient) -> None:
    """A number without a project is named in the error."""
    with pytest.raises(LabelStudioError, match="no project 999999"):
        client.project(999999)


def test_refusal_carries_label_studios_words(client: LabelStudioClient) -> None:
    """What Label Studio says about a bad configuration is in the error."""
    with pytest.raises(LabelStudioError, match="label_config") as caught:
        client.create_project("bad configuration", "<View><Nonsense")
    assert "400" in str(caught.value.got)


# Connected models


def test_connect(client: LabelStudioClient, project: Project, backend: ScriptedBackend) -> None:
    """After connecting, title, version and the project's selection are equal, and the webhook exists."""
    connected = client.connect_backend(project.id, url=backend.url)
    assert connected.is_connected
    assert connected.title == connected.model_version == backend.version
    assert connected.is_interactive
    assert connected.warnings == ()
    now = client.project(project.id)
    assert now.model_version == backend.version
    assert now.show_collab_predictions
    assert [hook.url for hook in client.webhooks(project.id)] == [f"{backend.url}/webhook"]


def test_connect_twice(client: LabelStudioClient, project: Project, backend: ScriptedBackend) -> None:
    """Connecting again, also by another spelling of the address, keeps one model and one webhook."""
    first = client.connect_backend(project.id, url=backend.url)
    again = client.connect_backend(project.id, url=backend.url + "/")
    renamed = client.connect_backend(project.id, url=backend.url.replace("127.0.0.1", "localhost"))
    assert first.id == again.id == renamed.id
    assert len(client.backends(project.id)) == 1
    assert len(client.webhooks(project.id)) == 1


def test_connect_follows_a_new_version(client: LabelStudioClient, project: Project, backend: ScriptedBackend) -> None:
    """When the model's version has changed, connecting again moves title and selection to it."""
    client.connect_backend(project.id, url=backend.url)
    backend.version = "scripted-2"
    connected = client.connect_backend(project.id, url=backend.url)
    assert connected.title == connected.model_version == "scripted-2"
    assert client.project(project.id).model_version == "scripted-2"


def test_connect_takes_over_the_selection(
    client: LabelStudioClient, project: Project, backend: ScriptedBackend, upload_images: Upload
) -> None:
    """A project that showed an older stored version shows the connected model's afterwards."""
    client.create_predictions(project.id, [prediction(upload_images(1)[0], "old")])
    client.update_project(project.id, model_version="old", show_collab_predictions=True)
    client.connect_backend(project.id, url=backend.url)
    assert client.project(project.id).model_version == backend.version


def test_connect_with_basic_auth(client: LabelStudioClient, project: Project, backend: ScriptedBackend) -> None:
    """User and password reach the model, and a missing password is explained."""
    backend.basic_auth = "user:secret"
    with pytest.raises(LabelStudioError, match="user and password"):
        client.connect_backend(project.id, url=backend.url)
    assert client.connect_backend(project.id, url=backend.url, basic_auth=("user", "secret")).is_connected


def test_connect_nobody(client: LabelStudioClient, project: Project) -> None:
    """A model that does not run gives Label Studio's reason, without mark-up."""
    with ScriptedBackend() as gone:
        url = gone.url
    with pytest.raises(LabelStudioError, match="health check failed") as caught:
        client.connect_backend(project.id, url=url)
    assert "<a" not in str(caught.value)


def test_extra_params_are_kept(client: LabelStudioClient, project: Project, backend: ScriptedBackend) -> None:
    """Extra params reach the model's /setup, and connecting again without any keeps them."""
    client.connect_backend(project.id, url=backend.url, extra_params={"score_threshold": 0.4})
    client.connect_backend(project.id, url=backend.url)
    client.backends(project.id)
    assert backend.bodies("/setup")[-1]["extra_params"] == {"score_threshold": 0.4}


def test_disconnect(client: LabelStudioClient, project: Project, backend: ScriptedBackend) -> None:
    """Disconnecting removes the webhook too."""
    client.disconnect_backend(client.connect_backend(project.id, url=backend.url))
    assert client.backends(project.id) == []
    assert client.webhooks(project.id) == []


def test_default_switches_refuse(label_studio_factory: LabelStudioFactory, backend: ScriptedBackend) -> None:
    """A Label Studio with its default switches refuses the model with the switches that would let it in."""
    closed = label_studio_factory(
        extra_env={
            "LABEL_STUDIO_USE_DEFAULT_BANNED_SUBNETS": "",
            "LABEL_STUDIO_USER_ADDITIONAL_BANNED_SUBNETS": "",
        }
    )
    with closed.client() as client:
        created = client.create_project("closed", LABEL_CONFIG)
        with pytest.raises(LabelStudioError, match="refuses to connect") as caught:
            client.connect_backend(created.id, url=backend.url)
        assert "LABEL_STUDIO_USE_DEFAULT_BANNED_SUBNETS=false" in str(caught.value.hint)
        assert "LABEL_STUDIO_SSRF_PROTECTION_ENABLED=false" in str(caught.value.hint)
        assert client.backends(created.id) == []


def test_half_open_switches(label_studio_factory: LabelStudioFactory, backend: ScriptedBackend) -> None:
    """With ML_BLOCK_LOCAL_IP=false alone, the 403 that leaves a connected model behind is seen through: one model,
    with version and title equal, and the missing webhook explained.
    """
    half = label_studio_factory(
        extra_env={
            "LABEL_STUDIO_USE_DEFAULT_BANNED_SUBNETS": "",
            "LABEL_STUDIO_USER_ADDITIONAL_BANNED_SUBNETS": "",
            "LABEL_STUDIO_ML_BLOCK_LOCAL_IP": "false",
        }
    )
    with half.client() as client:
        created = client.create_project("half open", LABEL_CONFIG)
        connected = client.connect_backend(created.id, url=backend.url)
        assert connected.title == connected.model_version == backend.version
        assert any("403 although" in warning for warning in connected.warnings)
        assert any("no webhook" in warning for warning in connected.warnings)
        again = client.connect_backend(created.id, url=backend.url)
        assert again.id == connected.id
        assert len(client.backends(created.id)) == 1


# Storages


def test_storage(client: LabelStudioClient, project: Project, label_studio: LabelStudioProcess) -> None:
    """A folder becomes tasks: sub-folders, any letter case of extensions and odd names included, other files and
    hidden ones not; a second sync adds what is new and doubles nothing.
    """
    folder = label_studio.document_root / f"storage {project.id}"
    (folder / "圃場 その1").mkdir(parents=True)
    for name in ("a.png", "B.JPG", "圃場 その1/穂 50%+#1.jpeg"):
        (folder / name).write_bytes(png())
    for name in ("notes.txt", "scan.tif", "._a.png", "apng"):
        (folder / name).write_bytes(b"not for a browser")
    storage = client.ensure_local_storage(project.id, folder)
    assert client.sync_storage(storage.id).added == 3
    (folder / "c.webp").write_bytes(png())
    assert client.ensure_local_storage(project.id, folder).id == storage.id
    assert client.sync_storage(storage.id).added == 1
    assert client.task_count(project.id) == 4
    assert len(client.local_storages(project.id)) == 1
    assert all(task.data["image"].startswith("/data/local-files/?d=") for task in client.iter_tasks(project.id))


def test_storage_of_a_sub_folder(client: LabelStudioClient, project: Project, label_studio: LabelStudioProcess) -> None:
    """A folder inside one that is scanned already needs no second storage; one around it would double its images."""
    outer = label_studio.document_root / f"outer-{project.id}"
    inner = outer / "inner"
    inner.mkdir(parents=True)
    stored = client.ensure_local_storage(project.id, inner)
    with pytest.raises(LabelStudioError, match="doubled"):
        client.ensure_local_storage(project.id, outer)
    client.call("DELETE", f"/api/storages/localfiles/{stored.id}")
    covering = client.ensure_local_storage(project.id, outer)
    assert client.ensure_local_storage(project.id, inner).id == covering.id


def test_storage_becomes_recursive(
    client: LabelStudioClient, project: Project, label_studio: LabelStudioProcess
) -> None:
    """A storage that somebody made without sub-folders is changed instead of doubled."""
    folder = label_studio.document_root / f"flat-{project.id}"
    folder.mkdir()
    flat = client.ensure_local_storage(project.id, folder)
    flat_too = {"project": project.id, "path": str(folder), "recursive_scan": False}
    client.call("PATCH", f"/api/storages/localfiles/{flat.id}", json=flat_too)
    assert [storage.recursive for storage in client.local_storages(project.id)] == [False]
    deep = client.ensure_local_storage(project.id, folder)
    assert deep.id == flat.id
    assert deep.recursive


@pytest.mark.parametrize("where", ["root", "outside", "missing"])
def test_storage_refused(
    client: LabelStudioClient, project: Project, label_studio: LabelStudioProcess, tmp_path: Path, where: str
) -> None:
    """The document root itself, a folder elsewhere and a missing one are refused with the rule."""
    root = label_studio.document_root
    folder = {"root": root, "outside": tmp_path, "missing": root / "nowhere"}[where]
    with pytest.raises(LabelStudioError, match="strictly below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"):
        client.ensure_local_storage(project.id, folder)


# Tasks


def without_version(client: LabelStudioClient, project: Project, version: str) -> list[int]:
    """The numbers of the tasks without a prediction of exactly this version, as a job lists them."""
    ways = [functools.partial(client.worklist_page, project.id, version, page_size=8)]
    if client.has_confusable_versions(project.id, version):
        ways.append(functools.partial(client.confusable_page, project.id, version))
    listed: list[int] = []
    for ask in ways:
        after, is_last = 0, False
        while not is_last:
            page = ask(after=after)
            after, is_last = page.last, page.is_last
            listed += [row.id for row in page.rows]
    return listed


def test_no_tasks(client: LabelStudioClient, project: Project) -> None:
    """An empty project has no tasks, none without a prediction and no versions."""
    assert client.task_count(project.id) == 0
    assert list(client.iter_tasks(project.id)) == []
    assert without_version(client, project, "v1") == []
    assert client.prediction_versions(project.id) == {}


@pytest.mark.parametrize("page_size", [1, 3, 7, 500])
def test_iter_tasks(client: LabelStudioClient, project: Project, upload_images: Upload, page_size: int) -> None:
    """Every task comes once, by ascending id, whatever the size of a page."""
    tasks = upload_images(7)
    rows = list(client.iter_tasks(project.id, page_size=page_size))
    assert [row.id for row in rows] == sorted(tasks)
    assert all(row.data["image"].startswith("/data/upload/") for row in rows)
    assert {row.total_predictions for row in rows} == {0}


def test_listing_asks_no_model(
    client: LabelStudioClient, project: Project, backend: ScriptedBackend, upload_images: Upload
) -> None:
    """Listing tasks, however it is done, makes Label Studio ask no predictions of the connected model."""
    upload_images(2)
    client.connect_backend(project.id, url=backend.url)
    list(client.iter_tasks(project.id))
    without_version(client, project, backend.version)
    list(client.iter_predictions(project.id))
    assert "/predict" not in backend.paths()


def test_tasks_without_prediction(client: LabelStudioClient, project: Project) -> None:
    """Exactly the tasks without this version come, also where another version contains its text."""
    tasks = import_tasks(client, project.id, [{"data": {"image": f"/data/{number}.png"}} for number in range(50)])
    versions = {
        "v1": tasks[:20],
        "v10": tasks[16:30],
        "V1": tasks[30:40],
        "other,v1": tasks[40:45],
        "other": [],
        "v2": [],
    }
    client.create_predictions(
        project.id, [prediction(task, version) for version, having in versions.items() for task in having]
    )
    for version, having in versions.items():
        assert sorted(without_version(client, project, version)) == sorted({*tasks} - {*having}), version
        assert client.having_prediction(project.id, version, tasks) == {*having}, version


def test_tasks_without_prediction_while_they_are_stored(client: LabelStudioClient, project: Project) -> None:
    """Storing predictions while the list is read skips no task."""
    tasks = import_tasks(client, project.id, [{"data": {"image": f"/data/{number}.png"}} for number in range(25)])
    after, listed, is_last = 0, [], False
    while not is_last:
        page = client.worklist_page(project.id, "v1", after=after, page_size=4)
        after, is_last = page.last, page.is_last
        listed += [row.id for row in page.rows]
        client.create_predictions(project.id, [prediction(row.id, "v1") for row in page.rows])
    assert listed == tasks
    assert client.prediction_versions(project.id) == {"v1": 25}


# Predictions


def test_predictions_round_trip(client: LabelStudioClient, project: Project, upload_images: Upload) -> None:
    """What is stored comes back as it was sent, by version, and is counted."""
    first, second = upload_images(2)
    sent = [prediction(first, "v1", score=0.25), prediction(first, "v2"), prediction(second, "v1")]
    assert client.create_predictions(project.id, sent) == 3
    assert client.prediction_versions(project.id) == {"v1": 2, "v2": 1}
    stored = list(client.iter_predictions(project.id, "v1"))
    assert [(item.task, item.score, item.result) for item in stored] == [
        (first, 0.25, [box("spike")]),
        (second, 0.5, [box("spike")]),
    ]
    assert len(list(client.iter_predictions(project.id, page_size=1))) == 3
    assert [item.model_version for item in client.predictions_of_task(first)] == ["v1", "v2"]


def test_create_no_predictions(client: LabelStudioClient, project: Project) -> None:
    """Storing nothing stores nothing."""
    assert client.create_predictions(project.id, []) == 0


def test_silently_dropped_predictions(client: LabelStudioClient, project: Project, upload_images: Upload) -> None:
    """Predictions that Label Studio drops without a word are counted and can be named, duplicates included."""
    first, second = upload_images(2)
    good, bad = prediction(first, "v1"), prediction(second, "v1", label="no such label")
    assert client.create_predictions(project.id, [good, bad]) == 1
    assert client.missing_predictions([good, bad, good]) == [bad, good]


def test_prediction_of_unknown_task(client: LabelStudioClient, project: Project, upload_images: Upload) -> None:
    """A task that does not exist refuses the whole import, and nothing is stored."""
    task = upload_images(1)[0]
    with pytest.raises(LabelStudioError, match="task"):
        client.create_predictions(project.id, [prediction(task, "v1"), prediction(task + 10_000, "v1")])
    assert client.prediction_versions(project.id) == {}


def test_delete_one_version(
    client: LabelStudioClient, project: Project, backend: ScriptedBackend, upload_images: Upload
) -> None:
    """Deleting a version leaves the others, the counters right and the connected model selected."""
    tasks = upload_images(3)
    client.connect_backend(project.id, url=backend.url)
    client.create_predictions(
        project.id, [prediction(task, version) for task in tasks for version in ("old", backend.version)]
    )
    assert client.delete_predictions(project.id, "old") == 3
    assert client.prediction_versions(project.id) == {backend.version: 3}
    assert {row.total_predictions for row in client.iter_tasks(project.id)} == {1}
    assert client.project(project.id).model_version == backend.version
    assert client.delete_predictions(project.id, "never was") == 0


def test_delete_the_selected_static_version(client: LabelStudioClient, project: Project, upload_images: Upload) -> None:
    """Deleting the version that the project itself had selected is no error."""
    client.create_predictions(project.id, [prediction(upload_images(1)[0], "static")])
    client.update_project(project.id, model_version="static")
    assert client.delete_predictions(project.id, "static") == 1
    assert client.project(project.id).model_version == ""


def test_delete_by_id(client: LabelStudioClient, project: Project, upload_images: Upload) -> None:
    """Single predictions are deleted; those already gone are not counted."""
    client.create_predictions(project.id, [prediction(task, "v1") for task in upload_images(2)])
    first, second = [item.id for item in client.iter_predictions(project.id)]
    assert client.delete_predictions_by_id([first, first]) == 1
    assert [item.id for item in client.iter_predictions(project.id)] == [second]
