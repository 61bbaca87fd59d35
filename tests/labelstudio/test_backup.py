"""Predictions written to a file before they are deleted, and put back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from label_studio_helpers import LABEL_CONFIG, delete_project, delete_task, import_tasks
from scripted_backend import ScriptedBackend, box
from spica.errors import LabelStudioError, StorageError, UsageError
from spica.labelstudio.backup import backup, restore
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.records import Json, Prediction, Project
from spica.prelabel.removal import Removal, remove

Upload = Callable[..., list[int]]


def item(task: int, version: str, label: str = "spike", score: float = 0.5) -> dict[str, object]:
    return {"task": task, "model_version": version, "score": score, "result": [box(label)]}


def stored(client: LabelStudioClient, project: int) -> list[tuple[int, str, float | None, str]]:
    return sorted(
        (found.task, found.model_version, found.score, json.dumps(found.result))
        for found in client.iter_predictions(project)
    )


def delete(client: LabelStudioClient, project: int, version: str | None, path: Path) -> Removal:
    """Delete one version, or all, whoever may have a task open."""
    return remove(
        client, project, lambda each, _: version is None or each.model_version == version, backup=path, now=True
    )


class FullDisk(LabelStudioClient):
    """Counts and lists predictions as it is told, and never deletes."""

    def __init__(self, counted: dict[str, int], listed: list[Prediction]) -> None:
        super().__init__("http://127.0.0.1:9")
        self.counted = counted
        self.listed = listed

    def prediction_versions(self, project: int) -> dict[str, int]:
        """As told."""
        return self.counted

    def project(self, project: int) -> Project:
        """Any."""
        return Project(id=project, title="any", label_config="<View/>")

    def predictions_by_task(
        self, project: int, filters: tuple[Json, ...] = (), *, page_size: int = 50
    ) -> Iterator[list[Prediction]]:
        """As told."""
        yield self.listed

    def delete_predictions(self, project: int, version: str) -> int:
        """Not to be called."""
        raise AssertionError("deleted although the backup failed")


ONE = Prediction(id=1, task=1, project=1, model_version="v1", score=0.5, result=[])


def test_changed_meanwhile(tmp_path: Path) -> None:
    """When Label Studio counts something else than was written, nothing is deleted and no file is left."""
    path = tmp_path / "backup.jsonl"
    with FullDisk({"v1": 2}, [ONE]) as client, pytest.raises(LabelStudioError, match="changed while"):
        backup(client, 1, "v1", path)
    assert list(tmp_path.iterdir()) == []


def test_never_overwritten(tmp_path: Path) -> None:
    """A file that exists is not replaced, and nothing is deleted."""
    path = tmp_path / "backup.jsonl"
    path.write_text("precious", encoding="utf-8")
    with FullDisk({"v1": 1}, [ONE]) as client, pytest.raises(StorageError, match="never overwritten"):
        delete(client, 1, "v1", path)
    assert path.read_text(encoding="utf-8") == "precious"


def test_unwritable(tmp_path: Path) -> None:
    """Where no file can be made, nothing is deleted."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    with FullDisk({"v1": 1}, [ONE]) as client, pytest.raises(StorageError, match="nothing was deleted"):
        delete(client, 1, "v1", tmp_path / "file" / "backup.jsonl")


def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full, nothing is deleted and no half file is left."""

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with FullDisk({"v1": 1}, [ONE]) as client, pytest.raises(StorageError, match="No space left"):
        delete(client, 1, "v1", tmp_path / "backup.jsonl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    ["not json\n", "[1, 2]\n", '{"id": 1}\n', "\xff\xfe"],
    ids=["text", "list", "no task", "binary"],
)
def test_restore_damaged(tmp_path: Path, text: str) -> None:
    """A file that is no backup is refused before anything is asked of Label Studio."""
    path = tmp_path / "backup.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with FullDisk({}, []) as client, pytest.raises(UsageError, match=r"backup"):
        restore(client, path)


def test_restore_missing(tmp_path: Path) -> None:
    """A file that does not exist is named."""
    with FullDisk({}, []) as client, pytest.raises(UsageError, match=r"gone\.jsonl"):
        restore(client, tmp_path / "gone.jsonl")


@pytest.mark.label_studio
def test_round_trip(client: LabelStudioClient, project: Project, upload_images: Upload, tmp_path: Path) -> None:
    """One version is written, deleted and put back as it was, twice the same included; a second restore changes
    nothing, and the other version was never touched.
    """
    first, second = upload_images(2)
    client.create_predictions(
        project.id,
        [
            item(first, "v1", score=0.123456789),
            item(first, "v1"),
            item(first, "v1"),
            item(second, "v1"),
            item(second, "v2"),
        ],
    )
    before = stored(client, project.id)
    path = tmp_path / "穂" / "backup.jsonl"
    report = delete(client, project.id, "v1", path)
    assert (report.path, report.deleted) == (path, 4)
    assert client.prediction_versions(project.id) == {"v2": 1}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {tuple(line) for line in lines} == {
        ("id", "project", "task", "model_version", "score", "result", "created_at", "annotations")
    }
    report_back = restore(client, path)
    assert (report_back.restored, report_back.present, report_back.is_complete) == (4, 0, True)
    assert stored(client, project.id) == before
    again = restore(client, path)
    assert (again.restored, again.present) == (0, 4)
    assert stored(client, project.id) == before


@pytest.mark.label_studio
def test_all_versions_and_half_restored(
    client: LabelStudioClient, project: Project, upload_images: Upload, tmp_path: Path
) -> None:
    """All versions go into one file; what was put back before is not put back again, its double is."""
    tasks = upload_images(2)
    sent = [item(task, version) for task in tasks for version in ("v1", "v1", "v2")]
    client.create_predictions(project.id, sent)
    before = stored(client, project.id)
    path = tmp_path / "backup.jsonl"
    assert delete(client, project.id, None, path).deleted == 6
    client.create_predictions(project.id, sent[:1])
    report = restore(client, path)
    assert (report.restored, report.present) == (5, 1)
    assert stored(client, project.id) == before


@pytest.mark.label_studio
def test_nothing_to_delete(client: LabelStudioClient, project: Project, tmp_path: Path) -> None:
    """Where there is nothing to delete, no empty file is left behind."""
    report = delete(client, project.id, None, tmp_path / "backup.jsonl")
    assert (report.path, report.deleted) == (None, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.label_studio
def test_gone_tasks(client: LabelStudioClient, project: Project, upload_images: Upload, tmp_path: Path) -> None:
    """Predictions of tasks that are gone are named; the others are put back."""
    first, second = upload_images(2)
    client.create_predictions(project.id, [item(first, "v1"), item(second, "v1")])
    path = tmp_path / "backup.jsonl"
    delete(client, project.id, "v1", path)
    delete_task(client, first)
    report = restore(client, path)
    assert (report.restored, report.gone_tasks, report.is_complete) == (1, (first,), False)


@pytest.mark.label_studio
def test_gone_project(client: LabelStudioClient, tmp_path: Path) -> None:
    """When the project itself is gone, its tasks are named and nothing fails."""
    created = client.create_project("soon gone", LABEL_CONFIG)
    task = import_tasks(client, created.id, [{"data": {"image": "/data/a.png"}}])[0]
    client.create_predictions(created.id, [item(task, "v1")])
    path = tmp_path / "backup.jsonl"
    assert backup(client, created.id, None, path) == 1
    delete_project(client, created.id)
    report = restore(client, path)
    assert (report.restored, report.gone_tasks) == (0, (task,))


@pytest.mark.label_studio
def test_unchecked_predictions_come_back(
    client: LabelStudioClient, project: Project, backend: ScriptedBackend, upload_images: Upload, tmp_path: Path
) -> None:
    """What a connected model stored unchecked comes back too, although a bulk import would drop it."""
    good, odd = upload_images(2)
    client.create_prediction({"project": project.id, **item(odd, "v1", label="no such label")})
    client.create_predictions(project.id, [item(good, "v1")])
    before = stored(client, project.id)
    path = tmp_path / "backup.jsonl"
    assert delete(client, project.id, "v1", path).deleted == 2
    report = restore(client, path)
    assert (report.restored, report.is_complete) == (2, True)
    assert stored(client, project.id) == before
    assert restore(client, path).present == 2


@pytest.mark.label_studio
def test_restore_of_another_project(
    client: LabelStudioClient, project: Project, upload_images: Upload, tmp_path: Path
) -> None:
    """A file without anything of the project asked for is refused."""
    client.create_predictions(project.id, [item(upload_images(1)[0], "v1")])
    path = tmp_path / "backup.jsonl"
    backup(client, project.id, None, path)
    with pytest.raises(UsageError, match="nothing of this project"):
        restore(client, path, project=project.id + 1)
