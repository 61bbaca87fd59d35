"""Reading images, and both kinds of token, with a real Label Studio."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from label_studio_helpers import import_tasks, upload_images
from spica.errors import AuthenticationError, MediaError
from spica.labelstudio.auth import LabelStudioAuth, token_kind
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess, personal_token
from spica.labelstudio.media import MediaReader
from spica.labelstudio.records import Project

pytestmark = pytest.mark.label_studio

NAMES = ["a.jpg", "圃場/穂 1.jpg", "a+b.jpg", "50%.jpg", "100%25.jpg", "#1 & co.jpg", "a=b;c.jpg", "deep/er/ünï.jpg"]

Reader = Callable[..., MediaReader]


@pytest.fixture
def reader(label_studio: LabelStudioProcess) -> Iterator[Reader]:
    """Makes readers for the running Label Studio that have its token and no folder, if not told otherwise."""
    with ExitStack() as stack:

        def make(**options: Any) -> MediaReader:
            usual: dict[str, Any] = {
                "label_studio_url": label_studio.url,
                "auth": LabelStudioAuth(label_studio.url, label_studio.credentials.token),
                "document_root": None,
                "media_dir": None,
                "max_bytes": 10**6,
                "timeout_s": 60.0,
            }
            return stack.enter_context(MediaReader(**{**usual, **options}))

        yield make


@pytest.fixture
def photos(label_studio: LabelStudioProcess, client: LabelStudioClient, project: Project) -> None:
    """A folder of files, each holding its own name, made tasks of the project by a local storage."""
    folder = label_studio.document_root / f"photos-{project.id}"
    for name in NAMES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    client.sync_storage(client.ensure_local_storage(project.id, folder).id)


def addresses(client: LabelStudioClient, project: Project) -> list[str]:
    return [str(task.data["image"]) for task in client.iter_tasks(project.id)]


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("way", ["disk", "http"])
def test_every_synced_photograph_is_read(
    way: str, reader: Reader, label_studio: LabelStudioProcess, client: LabelStudioClient, project: Project
) -> None:
    """What Label Studio wrote into its tasks is read back on disk, and from itself, to the right file each time."""
    on_disk = {"document_root": label_studio.document_root, "auth": None}
    images = reader(**(on_disk if way == "disk" else {}))
    read = [images.read(address).decode() for address in addresses(client, project)]
    assert sorted(read) == sorted(NAMES)


@pytest.mark.parametrize("way", ["disk", "http", "absolute"])
def test_every_upload_is_read(
    way: str, reader: Reader, label_studio: LabelStudioProcess, client: LabelStudioClient, project: Project
) -> None:
    """Uploaded photographs with awkward names are read on disk, from Label Studio, and by an absolute address."""
    names = ["a.png", "穂 1+2.png", "50% #3.png"]
    upload_images(client, project.id, {name: name.encode() for name in names})
    images = reader(**({"media_dir": label_studio.data_dir / "media", "auth": None} if way == "disk" else {}))
    host = label_studio.url if way == "absolute" else ""
    read = [images.read(host + address).decode() for address in addresses(client, project)]
    assert sorted(read) == sorted(names)


def test_a_file_that_no_storage_covers(reader: Reader, label_studio: LabelStudioProcess) -> None:
    """A file below the root that no storage covers is read on disk; over HTTP its absence is explained."""
    (label_studio.document_root / "alone").mkdir(exist_ok=True)
    (label_studio.document_root / "alone" / "a.jpg").write_bytes(b"alone")
    address = "/data/local-files/?d=alone/a.jpg"
    assert reader(document_root=label_studio.document_root).read(address) == b"alone"
    with pytest.raises(MediaError, match="404 not found") as refusal:
        reader().read(address)
    assert "local storage" in str(refusal.value.hint)


def test_an_upload_that_is_gone(reader: Reader) -> None:
    """Label Studio's 500 for an upload that it does not know is explained."""
    with pytest.raises(MediaError, match="500") as refusal:
        reader().read("/data/upload/1/00000000-gone.png")
    assert "knows no upload" in str(refusal.value.hint)


def test_a_bucket_without_a_storage(reader: Reader, client: LabelStudioClient, project: Project) -> None:
    """An object in a bucket that the project has no storage for is explained."""
    (task,) = import_tasks(client, project.id, [{"data": {"image": "s3://bucket/a.jpg"}}])
    with pytest.raises(MediaError, match="404") as refusal:
        reader().read("s3://bucket/a.jpg", task_id=task)
    assert "No storage of the task's project" in str(refusal.value.hint)


def test_a_wrong_token_is_refused(label_studio: LabelStudioProcess) -> None:
    """A token that Label Studio does not know is an AuthenticationError."""
    with (
        httpx.Client(auth=LabelStudioAuth(label_studio.url, "0" * 40), trust_env=False) as http,
        pytest.raises(AuthenticationError, match="refused the legacy token"),
    ):
        http.get(f"{label_studio.url}/api/current-user/whoami")


def test_both_kinds_of_token_and_their_switch(label_studio_factory: Callable[..., LabelStudioProcess]) -> None:
    """A legacy token works until it is switched off, which is told; a personal one works, and is told when revoked."""
    label_studio = label_studio_factory()  # its own: the switch is the whole organization's
    whoami, settings = "/api/current-user/whoami", "/api/jwt/settings"

    def auth(token: str) -> LabelStudioAuth:
        return LabelStudioAuth(label_studio.url, token)

    with httpx.Client(base_url=label_studio.url, trust_env=False, timeout=60.0) as http:
        legacy = label_studio.credentials.token
        personal = personal_token(label_studio.url, label_studio.credentials)
        assert (token_kind(legacy), token_kind(personal)) == ("legacy", "personal")
        assert http.get(whoami, auth=auth(legacy)).status_code == 200
        assert http.get(whoami, auth=auth(personal)).status_code == 200
        off = {"api_tokens_enabled": True, "legacy_api_tokens_enabled": False}
        http.post(settings, auth=auth(personal), json=off).raise_for_status()
        with pytest.raises(AuthenticationError, match="switched off"):
            http.get(whoami, auth=auth(legacy))
        http.post("/api/token/blacklist/", auth=auth(personal), json={"refresh": personal}).raise_for_status()
        with pytest.raises(AuthenticationError, match="blacklisted"):
            http.get(whoami, auth=auth(personal))
