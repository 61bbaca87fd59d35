"""Which connected models `spica up` touches, in a real Label Studio."""

from __future__ import annotations

import pytest

from fake_spica import FakeSpica
from scripted_backend import ScriptedBackend
from spica.labelstudio.api.records import Project
from spica.labelstudio.client import LabelStudioClient
from spica.up import _connect

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
        _connect(client, project, ours.url, notes.append)
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
        _connect(client, project, before.url, notes.append)
        (made,) = client.backends(project.id)
        client.connect_backend(project.id, url=before.url, extra_params=THEIRS)
    with FakeSpica() as now:
        _connect(client, project, now.url, notes.append)
        (moved,) = client.backends(project.id)
        assert moved.is_connected
        assert (moved.id, moved.url) == (made.id, now.url)
        assert client.call("GET", f"/api/ml/{moved.id}")["extra_params"] == THEIRS
        assert hooks(client, project) == [f"{now.url}/webhook"]
        assert client.project(project.id).model_version == now.version
    assert notes == []


def test_a_connection_made_by_hand_is_used_and_not_doubled(client: LabelStudioClient, project: Project) -> None:
    """Where `spica connect` has connected the very address, that row serves, and a former run's own goes."""
    notes: list[str] = []
    with FakeSpica() as before:
        _connect(client, project, before.url, notes.append)
    with FakeSpica() as now:
        by_hand = client.connect_backend(project.id, url=now.url)
        _connect(client, project, now.url, notes.append)
        assert [backend.id for backend in client.backends(project.id)] == [by_hand.id]
        assert hooks(client, project) == [f"{now.url}/webhook"]
    with FakeSpica() as later:
        _connect(client, project, later.url, notes.append)
        assert by_hand.id in [backend.id for backend in client.backends(project.id)]
