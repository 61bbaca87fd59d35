"""The benchmark of the bulk job, run in small, and the arithmetic behind its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from label_studio_helpers import delete_project
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.launch import LabelStudioProcess

ROOT = Path(__file__).resolve().parents[2]
TASKS = 60
NETWORK_TASKS = 6


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_overlapping_requests_count_once() -> None:
    """The time in which any request is open counts what overlaps once, and the time between requests not at all."""
    from benchmarks.watch import Meter, Requests

    clock = Clock()
    meter = Meter(clock)
    first = meter.open("a")  # 0 to 3
    clock.now = 1.0
    second = meter.open("a")  # 1 to 5
    clock.now = 3.0
    first()
    clock.now = 5.0
    second()
    second()
    clock.now = 9.0
    third = meter.open("b")  # 9 to 10
    clock.now = 10.0
    assert meter.seconds == 6.0
    third()
    assert meter.seconds == 6.0
    assert meter.kinds == {"a": Requests(2, 7.0), "b": Requests(1, 1.0)}


class Slow(httpx.SyncByteStream):
    """An answer that takes two seconds to come."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __iter__(self) -> Iterator[bytes]:
        self._clock.now += 2.0
        yield b"{}"


def test_open_until_the_last_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is open from its sending until its answer is read, and when it fails until then."""
    from benchmarks.watch import Meter, WatchedTransport

    clock = Clock()
    meter = Meter(clock)

    def answer(_self: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        clock.now += 1.0
        if request.url.path == "/broken":
            raise httpx.ConnectError("no")
        return httpx.Response(200, stream=Slow(clock))

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", answer)
    with httpx.Client(transport=WatchedTransport(meter)) as http:
        http.get("http://127.0.0.1/api/version")
        assert meter.seconds == 3.0
        with pytest.raises(httpx.ConnectError):
            http.get("http://127.0.0.1/broken")
        clock.now += 100.0
        assert meter.seconds == 4.0


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.5, 10), (0.95, 19), (0.951, 20), (1.0, 20)], ids=lambda value: str(value)
)
def test_percentile(share: float, expected: int) -> None:
    """A percentile is the smallest value that at least this share of the values does not exceed."""
    from benchmarks.courtesy import percentile

    assert percentile(list(range(20, 0, -1)), share) == expected


def test_extra_in_images() -> None:
    """What an answer beside the job takes longer is told in times of one image's inference."""
    from benchmarks.courtesy import summary

    values = summary({"idle_s": [1.0, 1.0, 2.0], "busy_s": [2.0, 4.0, 3.0], "image_s": 0.5})
    assert values["extra_median_images"] == 4.0
    assert values["extra_p95_images"] == 4.0


def run(folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """What was measured, and the report."""
    measured, results = folder / "measured.json", folder / "results.md"
    command = [sys.executable, "-m", "benchmarks.bulk", "--json", str(measured), "--results", str(results), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(measured.read_text("utf-8")), results.read_text("utf-8")


@pytest.mark.slow
@pytest.mark.label_studio
def test_in_small(label_studio: LabelStudioProcess, client: LabelStudioClient, tmp_path: Path) -> None:
    """A small run stores what it says in Label Studio, and its figures follow from what it has counted and timed."""
    arguments = ["--data-dir", str(label_studio.data_dir), "--photographs", str(tmp_path / "none")]
    sizes = ["--tasks", str(TASKS), "--switched-tasks", "--network-tasks", str(NETWORK_TASKS), "--network-runs", "1"]
    measured, report = run(tmp_path, *arguments, *sizes, "--heavy-tasks", "0", "--rounds", "1", "--probes", "2")
    (scale,), (network,), (courtesy,) = measured["scale"], measured["network"], measured["courtesy"]
    try:
        for part, tasks in ((scale, TASKS), (network, NETWORK_TASKS)):
            assert (part["total"], part["stored"], part["failed"], part["counted"]) == (tasks, tasks, 0, tasks)
            assert client.prediction_versions(part["project"]) == {part["version"]: tasks}
            assert 0 < part["label_studio_seconds"] < part["seconds"]
        assert scale["boxes"] == 3 * TASKS
        assert scale["requests"]["store predictions"]["count"] >= 1
        assert network["network"]["images"] == NETWORK_TASKS
        assert 0 < network["network"]["busy_s"] <= network["network"]["span_s"] < network["seconds"]
        assert len(courtesy["idle_s"]) == 2
        assert len(courtesy["busy_s"]) + courtesy["missed"] == 2
        assert courtesy["image_s"] > 0
    finally:
        for part in (scale, network, courtesy):
            delete_project(client, part["project"])
    share = 1 - scale["label_studio_seconds"] / scale["seconds"]
    assert f"| {TASKS} | {TASKS} | {TASKS / scale['seconds']:.1f} |" in report
    assert f"{100 * share:.1f} %" in report
    waits = 1 - network["network"]["busy_s"] / network["network"]["span_s"]
    assert f"the network waits, the demonstration's detector | {100 * waits:.1f} % |" in report
    assert label_studio.credentials.token not in report + json.dumps(measured)
