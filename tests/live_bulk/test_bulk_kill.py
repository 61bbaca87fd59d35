"""Killed at random moments, stopped by Ctrl-C, run twice: the job loses at most a batch and doubles nothing."""

from __future__ import annotations

import random
import signal
import sys
import threading
from pathlib import Path

import pytest

from bulk_live import MODEL, StartWorker, command, fill, ids_by_task, versions_by_task, wait_until
from live_model import Folder
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess
from spica.labelstudio.records import Project

pytestmark = [pytest.mark.label_studio, pytest.mark.slow]

SEED = 20261123


@pytest.mark.parametrize(
    ("kills", "count"), [pytest.param(3, 120), pytest.param(20, 300, marks=pytest.mark.exhaustive)]
)
def test_kills_leave_exactly_one_prediction_a_task(
    kills: int,
    count: int,
    label_studio: LabelStudioProcess,
    client: LabelStudioClient,
    bulk_project: Project,
    folder: Folder,
    start_worker: StartWorker,
    tmp_path: Path,
) -> None:
    """After kills at seeded random moments and one run to the end, each task has one prediction of the version, and a
    further run leaves every one of them as it is.
    """
    moments = random.Random(SEED)  # noqa: S311 - seeded on purpose
    tasks = fill(folder, client, bulk_project.id, count, tmp_path / "rendered")
    killed = 0
    stored = 0
    for _ in range(kills):
        worker = start_worker(label_studio, command(bulk_project.id, cost_ms=5))
        # Half of them while predictions are being sent, where most can go wrong.
        mark, times = moments.choice([("sending", 1), ("image", moments.randint(1, 30))])
        begun = worker.wait_for(mark, times)
        threading.Event().wait(moments.uniform(0.0, 0.15))
        running = worker.process.poll() is None
        worker.kill()
        killed += begun and running
        now = len(versions_by_task(client, bulk_project.id))
        assert now >= stored, "a kill made stored predictions vanish"
        stored = now
    assert killed == kills, "every kill was to hit a working process"
    assert stored < count, "the kills were to fall before the last batch"
    status, said = start_worker(label_studio, command(bulk_project.id)).finish()
    assert status == 0, said
    ids = ids_by_task(client, bulk_project.id)
    assert versions_by_task(client, bulk_project.id).keys() == set(tasks)
    assert {len(each) for each in ids.values()} == {1}
    (version,) = client.prediction_versions(bulk_project.id)
    assert version.startswith(MODEL)
    status, said = start_worker(label_studio, command(bulk_project.id)).finish()
    assert status == 0, said
    assert "Nothing to do" in said
    assert ids_by_task(client, bulk_project.id) == ids


@pytest.mark.skipif(sys.platform == "win32", reason="Windows can't send Ctrl-C to one process")
def test_ctrl_c_stores_what_is_in_hand_and_the_next_run_goes_on(
    label_studio: LabelStudioProcess,
    client: LabelStudioClient,
    bulk_project: Project,
    folder: Folder,
    start_worker: StartWorker,
    tmp_path: Path,
) -> None:
    """Ctrl-C ends the job with what is in hand stored and a word on how to go on; the next run completes it."""
    tasks = fill(folder, client, bulk_project.id, 60, tmp_path / "rendered")
    worker = start_worker(label_studio, command(bulk_project.id, cost_ms=50))
    assert worker.wait_for("image")
    worker.process.send_signal(signal.SIGINT)
    status, said = worker.finish()
    assert status == 130, said
    assert "run the same command to go on" in said
    first = ids_by_task(client, bulk_project.id)
    assert 0 < len(first) < len(tasks), "something is in hand at the first image, and it is stored"
    status, said = start_worker(label_studio, command(bulk_project.id)).finish()
    assert status == 0, said
    after = ids_by_task(client, bulk_project.id)
    assert after.keys() == set(tasks)
    assert {task: after[task] for task in first} == first


def test_two_runs_at_once_are_one(
    label_studio: LabelStudioProcess,
    client: LabelStudioClient,
    bulk_project: Project,
    folder: Folder,
    start_worker: StartWorker,
    tmp_path: Path,
) -> None:
    """While one process works on a project, a second says who does, follows it to its end, and stores nothing."""
    tasks = fill(folder, client, bulk_project.id, 60, tmp_path / "rendered")
    first = start_worker(label_studio, command(bulk_project.id, cost_ms=250))
    assert first.wait_for("image")
    second = start_worker(label_studio, command(bulk_project.id))
    status, said = second.finish()
    assert f"process {first.process.pid}" in said
    assert "image\n" not in said, "the second process ran its network"
    assert status == 0, said
    assert first.finish()[0] == 0
    assert {len(each) for each in ids_by_task(client, bulk_project.id).values()} == {1}
    assert ids_by_task(client, bulk_project.id).keys() == set(tasks)
    wait_until(lambda: first.process.poll() is not None, "the first process has ended")
