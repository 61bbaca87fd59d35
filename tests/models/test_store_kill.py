"""Killed at random moments, two at a time: the store stays whole, and one version is active."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from project_keys import known
from spica.models import active, space
from spica.models.listing import list_versions
from spica.models.version import open_version
from store_worker import BASE, PROJECT

SEED = 20261124
WORKER = Path(__file__).resolve().parent.parent / "store_worker.py"


def start(data_dir: Path, seed: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(data_dir), seed],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


@pytest.mark.slow
@pytest.mark.parametrize("kills", [6, pytest.param(20, marks=pytest.mark.exhaustive)])
def test_kills_leave_a_whole_store(kills: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After each of the kills of processes that add, judge, activate, go back and clean up, two at a time: every
    version in the store has the bytes that its card says, the record of what is active is whole, and the version that
    it names is there; and the next two processes go on.
    """
    data_dir = tmp_path / "データ"
    moments = random.Random(SEED)  # noqa: S311 - seeded on purpose
    said: list[str] = []
    for number in range(kills // 2):
        pair = [start(data_dir, f"worker-{number}-{each}") for each in "ab"]
        try:
            for each in pair:
                for _ in range(moments.randint(1, 8)):
                    assert each.stdout is not None
                    said.append(each.stdout.readline())
            for each in pair:
                threading.Event().wait(moments.uniform(0.0, 0.02))
                assert each.poll() is None, each.communicate()[1]
                each.kill()
        finally:
            for each in pair:
                each.kill()
                each.communicate()
        with caplog.at_level(logging.WARNING):
            assert_whole(data_dir)
        assert caplog.text == ""
    if kills == 20:
        assert "rolled back\n" in said
        assert any(line.startswith("deleted ") and line != "deleted 0\n" for line in said), "nothing was cleaned up"
    pruned = space.prune(data_dir, 0, young_s=0)
    assert pruned.problems == ()
    assert_whole(data_dir)


def assert_whole(data_dir: Path) -> None:
    """Every listed version opens, and the active one is among them."""
    listed = list_versions(data_dir)
    assert [each.damaged for each in listed if each.damaged is not None] == []
    for each in listed:
        open_version(data_dir, each.id)
    pointer = active.read(data_dir, known(PROJECT))
    if pointer is None:  # killed before the first activation
        return
    assert active.resolve(data_dir, known(PROJECT), BASE).version == pointer.version
    if pointer.version is not None:
        assert pointer.version in {each.id for each in listed}
        assert [use.project for each in listed if each.id == pointer.version for use in each.active] == [known(PROJECT)]
