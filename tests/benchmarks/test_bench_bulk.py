"""The benchmark of the bulk job, run in small, and the arithmetic behind its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.5, 10), (0.95, 19), (0.951, 20), (1.0, 20)], ids=lambda value: str(value)
)
def test_percentile(share: float, expected: int) -> None:
    """A percentile is the smallest value that at least this share of the values does not exceed."""
    from benchmarks.bulk import percentile

    assert percentile(list(range(20, 0, -1)), share) == expected


def test_extra_in_images() -> None:
    """What an answer beside the job takes longer is told in times of one image's inference."""
    from benchmarks.bulk import extra_images

    run = {"idle_s": [1.0, 1.0, 2.0], "busy_s": [2.0, 4.0, 3.0], "image_s": 0.5}
    assert extra_images(run, 0.5) == 4.0
    assert extra_images(run, 0.95) == 4.0


@pytest.mark.slow
@pytest.mark.label_studio
def test_in_small(migrated_data_dir: Callable[[Path], Path], tmp_path: Path) -> None:
    """A small run stores what it says, and its report follows from what it has counted and timed."""
    figures, results = tmp_path / "figures.json", tmp_path / "results.md"
    sizes = "--only scale network courtesy --tasks 30 --network-tasks 6 --heavy-tasks 0 --rounds 1 --probes 2"
    command = [sys.executable, "-m", "benchmarks.bulk", *sizes.split(), "--photographs", str(tmp_path / "none")]
    command += ["--figures", str(figures), "--results", str(results)]
    command += ["--label-studio", str(migrated_data_dir(tmp_path / "label-studio"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    measured, report = json.loads(figures.read_text("utf-8")), results.read_text("utf-8")
    assert "Not measured" not in report
    (scale,), (network,) = measured["scale"]["figures"], measured["network"]["figures"]
    for run, tasks in ((scale, 30), (network, 6)):
        assert (run["total"], run["stored"], run["failed"], run["counted"]) == (tasks, tasks, 0, tasks)
        assert 0 < run["network_s"] < run["seconds"]
    assert scale["images"] == 8
    assert network["images"] == 6
    (courtesy,) = measured["courtesy"]["figures"]
    assert len(courtesy["idle_s"]) == 2
    assert len(courtesy["busy_s"]) + courtesy["missed"] == 2
    assert f"| 30 | 30 | {scale['boxes']:,} | {30 / scale['seconds']:.1f} |" in report
    assert f"| 6 | {100 * (1 - network['network_s'] / network['seconds']):.1f} % |" in report
