"""Images as a real Label Studio addresses them: local files and uploads, on disk and over HTTP, with both tokens."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import httpx
import pytest
from PIL import Image as PILImage

from label_studio_helpers import upload_images
from live_model import (
    ORIENTATION,
    SIZE,
    TIMEOUT_S,
    Folder,
    LiveModel,
    ServeModel,
    open_task,
    photograph,
    retrieve,
    shade,
    stored,
)
from spica.connect import connect
from spica.errors import AuthenticationError
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess, personal_token
from spica.labelstudio.records import Project

pytestmark = pytest.mark.label_studio

NAMES = [
    "plain.png",
    "小麦の穂 2026年.png",
    "with spaces.png",
    "a+b.png",
    "100%.png",
    "50%25.png",
    "row#3.png",
    "q&a=1.png",
    "畑 1/北側/穂 #7 50%+.png",
]
"""Names that people give; the last in a sub-folder of a sub-folder."""

Revoke = Callable[[], None]


@pytest.fixture
def personal(label_studio: LabelStudioProcess) -> Iterator[tuple[str, Revoke]]:
    """A personal access token, and how to revoke it; revoked after the test."""
    token = personal_token(label_studio.url, label_studio.credentials)

    def revoke() -> None:
        with label_studio.client() as client:
            client.call("POST", "/api/token/blacklist/", json={"refresh": token})

    revoked = False

    def revoke_once() -> None:
        nonlocal revoked
        if not revoked:
            revoked = True
            revoke()

    yield token, revoke_once
    revoke_once()


def fetch(label_studio: LabelStudioProcess, address: str) -> bytes:
    """What the browser gets for an address in a task."""
    headers = {"Authorization": f"Token {label_studio.credentials.token}"}
    answer = httpx.get(label_studio.url + address, headers=headers, trust_env=False, timeout=TIMEOUT_S)
    return answer.raise_for_status().content


@pytest.mark.parametrize("over_http", [False, True], ids=["on disk", "over HTTP"])
def test_local_files(
    client: LabelStudioClient,
    project: Project,
    folder: Folder,
    label_studio: LabelStudioProcess,
    serve_model: ServeModel,
    over_http: bool,
) -> None:
    """Every image of a synced folder gets its boxes, whatever its name and however deep it lies."""
    for number, name in enumerate(NAMES):
        folder.photograph(name, shade(number))
    storage = client.ensure_local_storage(project.id, folder.path)
    assert client.sync_storage(storage.id).added == len(NAMES)
    model = serve_model(label_studio, over_http=over_http)
    connect(client, project.id, model_url=model.url)
    retrieve(client, project.id)
    tasks = list(client.iter_tasks(project.id))
    assert {task.data["image"] for task in tasks} == {folder.address(name) for name in NAMES}
    assert [len(ids) for ids in stored(client, [task.id for task in tasks]).values()] == [1] * len(NAMES)
    assert model.detector.calls == len(NAMES)
    assert model.service.failures == []


@pytest.mark.parametrize("over_http", [False, True], ids=["on disk", "over HTTP"])
def test_uploads(
    client: LabelStudioClient,
    project: Project,
    label_studio: LabelStudioProcess,
    serve_model: ServeModel,
    over_http: bool,
) -> None:
    """Every uploaded image gets its boxes, whatever its name."""
    names = [name for name in NAMES if "/" not in name]
    tasks = upload_images(client, project.id, {name: photograph(shade(n)) for n, name in enumerate(names)})
    model = serve_model(label_studio, over_http=over_http)
    connect(client, project.id, model_url=model.url)
    retrieve(client, project.id)
    assert [len(ids) for ids in stored(client, tasks).values()] == [1] * len(names)
    assert model.detector.calls == len(names)


def test_personal_token(
    client: LabelStudioClient,
    project: Project,
    label_studio: LabelStudioProcess,
    serve_model: ServeModel,
    personal: tuple[str, Revoke],
) -> None:
    """A personal access token fetches images; once revoked, nothing is stored and the page names the reason."""
    token, revoke = personal
    first, second = upload_images(client, project.id, {"a.png": photograph(shade(1)), "b.png": photograph(shade(2))})
    model = serve_model(label_studio, over_http=True, token=token)
    connect(client, project.id, model_url=model.url)
    assert len(open_task(client, first)["predictions"]) == 1
    revoke()
    restarted = serve_model(label_studio, over_http=True, token=token)
    client.disconnect_backend(client.backends(project.id)[0])
    connect(client, project.id, model_url=restarted.url)
    assert open_task(client, second)["predictions"] == []
    assert stored(client, [second]) == {second: []}
    assert "refused the personal access token" in restarted.page()
    assert "Personal Access Token" in restarted.page()
    assert token not in restarted.page()


def test_wrong_legacy_token(
    client: LabelStudioClient, project: Project, label_studio: LabelStudioProcess, serve_model: ServeModel
) -> None:
    """With a token that Label Studio does not know, the page says that it refused the token, without showing it."""
    (task,) = upload_images(client, project.id, {"a.png": photograph(shade(1))})
    token = "f" * 40
    model = serve_model(label_studio, over_http=True, token=token)
    connect(client, project.id, model_url=model.url)
    assert open_task(client, task)["predictions"] == []
    assert "refused the legacy token" in model.page()
    assert token not in model.page()


def test_revoked_token_in_a_command(
    label_studio: LabelStudioProcess, personal: tuple[str, Revoke], client: LabelStudioClient
) -> None:
    """A connection made with a revoked token ends in a refusal that says what to do."""
    token, revoke = personal
    revoke()
    with (
        LabelStudioClient(label_studio.url, token) as revoked,
        pytest.raises(AuthenticationError, match="refused the personal access token") as caught,
    ):
        revoked.whoami()
    assert "Create a personal access token" in str(caught.value.hint)
    assert client.whoami().email == label_studio.credentials.email


def test_turned_photographs(
    client: LabelStudioClient, project: Project, label_studio: LabelStudioProcess, model: LiveModel
) -> None:
    """A photograph turned by EXIF has boxes on the image as the browser shows it, and its width and height."""
    sizes = {1: SIZE, 3: SIZE, 6: SIZE[::-1], 8: SIZE[::-1]}
    photographs = {f"{way}.jpg": photograph(shade(way), kind="JPEG", orientation=way) for way in sizes}
    tasks = upload_images(client, project.id, photographs)
    connect(client, project.id, model_url=model.url)
    retrieve(client, project.id)
    for task, (way, size) in zip(tasks, sizes.items(), strict=True):
        opened = open_task(client, task)
        region = opened["predictions"][0]["result"][0]
        assert (region["original_width"], region["original_height"]) == size
        assert region["value"]["x"] == pytest.approx(10 / size[0] * 100)
        assert region["value"]["y"] == pytest.approx(10 / size[1] * 100)
        served = PILImage.open(io.BytesIO(fetch(label_studio, opened["data"]["image"])))
        assert served.getexif()[ORIENTATION] == way  # so the browser turns it too (CSS image-orientation)
