"""How much longer a person who opens an image waits while a job runs over the real network.

The model server is the real one, `spica serve`, in a process of its own. Rounds with a job and rounds without take
turns, so that a busier minute of the machine meets both. Every image that is opened is a new one to the server; both
kinds of rounds show the same photographs.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from spica.labelstudio.launch import LabelStudioProcess, free_port
from spica.labelstudio.records import Project

from .place import CONFIG, ROOT, clean_environment

_READY_S = 600.0
_POLL_S = 0.05
_ANSWER_S = 300.0
WARM_UP = 2
"""Images opened before anything is measured: the first ones pay for more than themselves."""


class Server:
    """A running `spica serve`.

    Args:
        http: a connection to it.
    """

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def network(self) -> tuple[int, float]:
        """Images that the network has computed since the start, and the seconds it took."""
        values = {"spica_images_total": 0.0, "spica_network_seconds_total": 0.0}
        for line in self._http.get("/metrics").raise_for_status().text.splitlines():
            name, _, value = line.partition(" ")
            if name in values:
                values[name] = float(value)
        return int(values["spica_images_total"]), values["spica_network_seconds_total"]

    def open(self, project: int, uri: str, number: int) -> float:
        """Seconds until one image is answered, as when a person opens a task."""
        body = {
            "tasks": [{"id": number, "data": {"image": uri}}],
            "project": f"{project}.1700000000",
            "label_config": CONFIG,
            "params": {"login": None, "password": None, "context": None},
        }
        began = time.perf_counter()
        answer = self._http.post("/predict", json=body)
        seconds = time.perf_counter() - began
        results = answer.raise_for_status().json()["results"]
        if len(results) != 1:
            raise RuntimeError(f"one prediction was expected for {uri}, got {answer.text[:300]}")
        return seconds

    @contextmanager
    def job(self, project: int) -> Iterator[str]:
        """A job that has begun to compute; stopped behind the block."""
        before = self.network()[0]
        job = str(self._http.post("/jobs/prelabel", json={"project": project}).raise_for_status().json()["id"])
        deadline = time.monotonic() + _ANSWER_S
        while self.network()[0] == before and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        try:
            yield job
        finally:
            self._http.post(f"/jobs/{job}/stop", json={}).raise_for_status()
            while self._state(job)["finished"] is None and time.monotonic() < deadline + _ANSWER_S:
                time.sleep(_POLL_S)

    def is_working(self, job: str) -> bool:
        """Whether a job has images left for the network."""
        state = self._state(job)
        return state["state"] == "running" and int(state["done"]) < int(state["total"])

    def _state(self, job: str) -> dict[str, Any]:
        state: dict[str, Any] = self._http.get(f"/jobs/{job}").raise_for_status().json()
        return state


@contextmanager
def served(process: LabelStudioProcess, weights: Path, work_dir: Path, *, threads: int = 0) -> Iterator[Server]:
    """`spica serve` beside a Label Studio, its model loaded."""
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "spica", "serve", "--weights", str(weights), "--port", str(port)]
    environment = clean_environment(
        LABEL_STUDIO_URL=process.url,
        LABEL_STUDIO_API_KEY=process.credentials.token,
        LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=str(process.document_root),
        SPICA_THREADS=str(threads),
    )
    log = work_dir / "serve.log"
    with log.open("wb") as output:
        child = subprocess.Popen(  # noqa: S603 - our own command
            [*command, "--data-dir", str(work_dir)], cwd=ROOT, env=environment, stdout=output, stderr=output
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=_ANSWER_S, trust_env=False) as http:
                _wait_ready(http, child, log)
                yield Server(http)
        finally:
            child.terminate()
            child.wait(60)


def _wait_ready(http: httpx.Client, child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if child.poll() is not None:
            break
        try:
            if http.get("/health").json()["model"]["state"] == "ready":
                return
        except httpx.TransportError:
            pass
        time.sleep(_POLL_S)
    raise SystemExit(f"the model server did not get ready:\n{log.read_text('utf-8', 'replace')[-2000:]}")


class _Visitor:
    """Opens images that the server has not seen, one after the other, at any moment of the job's image in hand.

    Args:
        server: that answers.
        project: whose configuration is sent along.
        uris: of the images.
    """

    def __init__(self, server: Server, project: Project, uris: Iterator[str]) -> None:
        self._server = server
        self._project = project
        self._uris = uris
        self._numbers = itertools.count(10_000_000)
        self._chance = random.Random(1)  # noqa: S311 - when to open the next image
        self.interval_s = 0.0

    def open(self) -> float:
        """Seconds until the next image is answered."""
        time.sleep(self._chance.uniform(0.2, 1.2) * self.interval_s)
        return self._server.open(self._project.id, next(self._uris), next(self._numbers))


def measure(server: Server, project: Project, uris: Sequence[str], *, rounds: int, probes: int) -> dict[str, Any]:
    """Open images in turn beside a job and without one.

    Args:
        server: with the model loaded.
        project: with enough tasks for the job to last.
        uris: of images that the server has not seen: :data:`WARM_UP`, then ``probes`` for each half of each round.
        rounds: with a job, and as many without.
        probes: images opened in each round.

    Returns:
        ``idle_s`` and ``busy_s``, seconds of each answer; ``image_s``, the network's mean seconds an image when idle;
        ``job_images``, that the job had computed meanwhile; ``missed``, openings beside a job that had ended.
    """
    visitor = _Visitor(server, project, iter(uris))
    for _ in range(WARM_UP):
        visitor.interval_s = visitor.open()
    measured: dict[str, Any] = {"idle_s": [], "busy_s": [], "job_images": 0, "missed": 0, "rounds": rounds}
    idle_images, idle_seconds = 0, 0.0
    for number in range(rounds):
        for with_job in (number % 2 == 1, number % 2 == 0):
            if with_job:
                _beside(server, project, visitor, probes, measured)
                continue
            before = server.network()
            measured["idle_s"] += [visitor.open() for _ in range(probes)]
            after = server.network()
            idle_images, idle_seconds = idle_images + after[0] - before[0], idle_seconds + after[1] - before[1]
    measured["image_s"] = idle_seconds / idle_images
    return measured


def _beside(server: Server, project: Project, visitor: _Visitor, probes: int, measured: dict[str, Any]) -> None:
    with server.job(project.id) as job:
        before = server.network()[0]
        for _ in range(probes):
            took = visitor.open()
            if server.is_working(job):
                measured["busy_s"].append(took)
            else:
                measured["missed"] += 1
        measured["job_images"] += server.network()[0] - before - probes


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def summary(measured: dict[str, Any]) -> dict[str, float]:
    """Median and 95th percentile of both kinds in seconds, and what is more in images' inference."""
    idle, busy, image_s = measured["idle_s"], measured["busy_s"], measured["image_s"]
    values = {
        "idle_median_s": statistics.median(idle),
        "busy_median_s": statistics.median(busy),
        "idle_p95_s": percentile(idle, 0.95),
        "busy_p95_s": percentile(busy, 0.95),
    }
    values["extra_median_images"] = (values["busy_median_s"] - values["idle_median_s"]) / image_s
    values["extra_p95_images"] = (values["busy_p95_s"] - values["idle_p95_s"]) / image_s
    return values
