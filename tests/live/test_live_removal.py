"""Which predictions go and which stay, against a real Label Studio."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from label_studio_helpers import LABEL_CONFIG, create_annotation
from scripted_backend import box
from spica.cli import app
from spica.labelstudio.backup import restore
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.data_folder import DATABASE_NAME
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.records import Project
from spica.prelabel.removal import Left, thin

pytestmark = pytest.mark.label_studio

Upload = Callable[..., list[int]]
LONG_AGO = datetime.min.replace(tzinfo=UTC)


def store(client: LabelStudioClient, project: int, tasks: Sequence[int], *versions: str) -> list[int]:
    """A prediction of each task and version, versions in this order; the ids of the last version's."""
    for version in versions:
        items = [{"task": task, "model_version": version, "score": 0.5, "result": [box("spike")]} for task in tasks]
        assert client.create_predictions(project, items) == len(tasks)
    return [client.predictions_of_task(task)[-1].id for task in tasks]


def age(label_studio: LabelStudioProcess, project: int, versions: Iterable[str], hours: float = 25) -> None:
    """Have predictions look as if they had been stored so many hours ago."""
    with contextlib.closing(sqlite3.connect(label_studio.data_dir / DATABASE_NAME, timeout=60)) as database, database:
        for version in versions:
            database.execute(
                "UPDATE prediction SET created_at = datetime(created_at, ?) WHERE project_id = ? AND model_version = ?",
                (f"-{hours} hours", project, version),
            )


def versions_of(client: LabelStudioClient, tasks: Sequence[int]) -> list[list[str]]:
    """The versions stored of each task."""
    return [[each.model_version for each in client.predictions_of_task(task)] for task in tasks]


def thinned(client: LabelStudioClient, project: int, *, left: Left | None = None, at_most: int = 100) -> int:
    """Thin all versions that begin with an s."""
    return thin(
        client,
        project,
        ours=lambda version: version.startswith("s"),
        left=left or (lambda _: LONG_AGO),
        at_most=at_most,
        go_on=lambda: True,
    )


def test_what_nobody_can_have_open_is_thinned(
    client: LabelStudioClient, project: Project, label_studio: LabelStudioProcess, upload_images: Upload
) -> None:
    """Of unannotated tasks, our versions' predictions go a day after a later one was stored. The others stay: what is
    shown, what was shown within a day, other people's, annotated tasks', and what a skipped task's annotation names.
    """
    plain, annotated, skipped = tasks = upload_images(3)
    others = store(client, project.id, tasks, "s1", "theirs", "s2")
    create_annotation(client, annotated, [])
    create_annotation(client, skipped, [], was_cancelled=True, parent_prediction=others[2])
    store(client, project.id, tasks, "s3", "s4")
    client.update_project(project.id, model_version="s4")
    assert thinned(client, project.id) == 0
    age(label_studio, project.id, ["s1", "theirs", "s2", "s3"])
    assert thinned(client, project.id) == 3
    assert versions_of(client, tasks) == [
        ["theirs", "s3", "s4"],
        ["s1", "theirs", "s2", "s3", "s4"],
        ["theirs", "s2", "s3", "s4"],
    ]
    assert {row.id: row.total_predictions for row in client.iter_tasks(project.id)} == {
        plain: 3,
        annotated: 5,
        skipped: 4,
    }
    age(label_studio, project.id, ["s4"])
    assert thinned(client, project.id) == 2
    assert versions_of(client, [plain, skipped]) == [["theirs", "s4"], ["theirs", "s2", "s4"]]


def test_thinning_is_bounded_and_goes_on(
    client: LabelStudioClient, project: Project, label_studio: LabelStudioProcess, upload_images: Upload
) -> None:
    """It stops after so many, and the next time takes up the rest."""
    tasks = upload_images(4)
    store(client, project.id, tasks, "s1", "s2")
    client.update_project(project.id, model_version="s2")
    age(label_studio, project.id, ["s1", "s2"])
    assert [thinned(client, project.id, at_most=3) for _ in range(3)] == [3, 1, 0]
    assert versions_of(client, tasks) == [["s2"]] * 4


def test_what_was_gone_back_to_stays_a_day(
    client: LabelStudioClient, project: Project, label_studio: LabelStudioProcess, upload_images: Upload
) -> None:
    """A version that a rollback has shown again counts from when it was left, not from the first time."""
    tasks = upload_images(1)
    store(client, project.id, tasks, "s1", "s2", "s3")
    client.update_project(project.id, model_version="s3")
    age(label_studio, project.id, ["s1", "s2", "s3"])
    assert thinned(client, project.id, left=lambda version: datetime.now(UTC) if version == "s1" else LONG_AGO) == 1
    assert versions_of(client, tasks) == [["s1", "s3"]]


def test_delete_spares_what_may_be_open(
    client: LabelStudioClient,
    project: Project,
    label_studio: LabelStudioProcess,
    upload_images: Upload,
    tmp_path: Path,
) -> None:
    """`spica predictions delete` leaves what is shown, what was shown within a day, and what an annotation was made
    from, and counts them; with ``--now`` the last alone stays. What it deleted can be put back.
    """

    def delete(*options: str) -> str:
        env = {"LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": label_studio.credentials.token}
        backup = ["--backup", str(tmp_path / f"{len(options)}.jsonl")]
        line = ["predictions", "delete", "--project", str(project.id), "--yes", *backup, *options]
        result = CliRunner().invoke(app, line, env={**env, "COLUMNS": "400"})
        assert result.exit_code == 0, result.output
        return result.output

    tasks = upload_images(2)
    store(client, project.id, tasks, "s1", "")
    (named, _) = store(client, project.id, tasks, "s2", "s3")
    create_annotation(client, tasks[0], [], parent_prediction=named)
    client.update_project(project.id, model_version="s3")
    said = delete()
    assert "Spared 6: they were shown in the last 24 hours" in said
    assert "Spared 1: Label Studio shows them" in said
    age(label_studio, project.id, ["s1", "", "s2"])
    assert "Spared 2" in delete("--version", "s1")
    age(label_studio, project.id, ["s3"])
    said = delete()
    assert "Deleted 6" in said
    assert "Spared 1" in said
    assert "Kept 1" in said
    assert versions_of(client, tasks) == [["s3"], ["s3"]]
    assert client.project(project.id).model_version == "s3"
    assert restore(client, tmp_path / "0.jsonl").restored == 6
    said = delete("--now")
    assert "Deleted 7" in said
    assert "Kept 1" in said
    assert versions_of(client, tasks) == [["s3"], []]
    assert {row.id: row.total_predictions for row in client.iter_tasks(project.id)} == {tasks[0]: 1, tasks[1]: 0}
    (annotation,) = client.call("GET", f"/api/tasks/{tasks[0]}/annotations/")
    assert annotation["parent_prediction"] == named


def test_a_backup_tells_what_annotations_were_made_from(
    client: LabelStudioClient, upload_images: Upload, project: Project, tmp_path: Path
) -> None:
    """What deleting in Label Studio itself forgets stands in the file that is written before: which annotations name a
    prediction.
    """
    from spica.labelstudio.backup import backup

    assert project.label_config == LABEL_CONFIG
    (task,) = upload_images(1)
    (named,) = store(client, project.id, [task], "s1")
    annotation = create_annotation(client, task, [], parent_prediction=named)
    store(client, project.id, [task], "s2")
    assert backup(client, project.id, None, tmp_path / "all.jsonl") == 2
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text("utf-8").splitlines()]
    assert [line["annotations"] for line in lines] == [[annotation], []]
