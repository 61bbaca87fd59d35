"""What `spica up` asks of a real Label Studio: which connected models it touches, what it counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fake_spica import FakeSpica
from scripted_backend import ScriptedBackend
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.records import Project
from spica.up import connect_model, count_predicted

pytestmark = pytest.mark.label_studio

THEIRS = {"score_threshold": 0.4}


def hooks(client: LabelStudioClient, project: Project) -> list[str]:
    return sorted(hook.url for hook in client.webhooks(project.id))


def test_a_stopped_model_of_somebody_else_stays(client: LabelStudioClient, project: Project) -> None:
    """Its address, extra params and webhook are as before, and it is said that Label Studio asks it first."""
    with ScriptedBackend() as stopped:
        theirs = client.connect_backend(project.id, url=stopped.url, extra_params=THEIRS)
    notes: list[str] = []
    with FakeSpica() as ours:
        connect_model(client, project, ours.url, notes.append)
        kept, made = client.backends(project.id)
        assert hooks(client, project) == sorted([f"{stopped.url}/webhook", f"{ours.url}/webhook"])
    assert (kept.id, kept.url, made.url) == (theirs.id, theirs.url, ours.url)
    assert client.call("GET", f"/api/ml/{kept.id}")["extra_params"] == THEIRS
    (note,) = notes
    assert theirs.url in note
    assert "Settings > Model" in note


def test_the_connection_of_a_former_run_follows_to_another_port(client: LabelStudioClient, project: Project) -> None:
    """The row, its extra params and one webhook go on at the new address; no second model appears."""
    notes: list[str] = []
    with FakeSpica() as before:
        connect_model(client, project, before.url, notes.append)
        (made,) = client.backends(project.id)
        client.connect_backend(project.id, url=before.url, extra_params=THEIRS)
    with FakeSpica() as now:
        connect_model(client, project, now.url, notes.append)
        (moved,) = client.backends(project.id)
        assert moved.is_connected
        assert (moved.id, moved.url) == (made.id, now.url)
        assert client.call("GET", f"/api/ml/{moved.id}")["extra_params"] == THEIRS
        assert hooks(client, project) == [f"{now.url}/webhook"]
        assert client.project(project.id).model_version == now.version
    assert notes == []


def test_label_studio_is_told_the_password_of_the_model_server(client: LabelStudioClient, project: Project) -> None:
    """At the first start and after a move; the connection works."""
    notes: list[str] = []
    for _ in range(2):
        with FakeSpica() as ours:
            ours.basic_auth = "user:pass:word"
            connect_model(client, project, ours.url, notes.append, ("user", "pass:word"))
            (backend,) = client.backends(project.id)
            assert (backend.is_connected, backend.url) == (True, ours.url)


def test_a_connection_made_by_hand_is_used_and_not_doubled(client: LabelStudioClient, project: Project) -> None:
    """Where `spica connect` has connected the very address, that row serves, and a former run's own goes."""
    notes: list[str] = []
    with FakeSpica() as before:
        connect_model(client, project, before.url, notes.append)
    with FakeSpica() as now:
        by_hand = client.connect_backend(project.id, url=now.url)
        connect_model(client, project, now.url, notes.append)
        assert [backend.id for backend in client.backends(project.id)] == [by_hand.id]
        assert hooks(client, project) == [f"{now.url}/webhook"]
    with FakeSpica() as later:
        connect_model(client, project, later.url, notes.append)
        assert by_hand.id in [backend.id for backend in client.backends(project.id)]


def test_predicted_photographs_are_counted_without_reading_predictions(
    client: LabelStudioClient, project: Project, upload_images: Callable[..., list[int]]
) -> None:
    """Neither other versions whose name contains this one nor a doubled prediction count, and no list is read."""
    first, second, third = upload_images(3)
    stored = [(first, "v1"), (first, "v1"), (second, "v1-bf16"), (third, "other")]
    rows = [{"task": task, "result": [], "score": 0.5, "model_version": version} for task, version in stored]
    client.create_predictions(project.id, rows)
    asked: list[str] = []
    client._http.event_hooks["request"].append(lambda request: asked.append(str(request.url)))
    assert count_predicted(client, project.id, "v1-bf16") == (3, 1)
    assert count_predicted(client, project.id, "v2") == (3, 0)
    assert count_predicted(client, project.id, "other") == (3, 1)
    assert not [url for url in asked if "/api/predictions" in url or "fields=all" in url]
