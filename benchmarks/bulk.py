"""The bulk job against a real Label Studio: at scale, with a real network, and what it costs whoever opens an image.

``python -m benchmarks.bulk`` from the root of the repository; ``--help`` tells how to run less of it. The job is the
product's own: ``POST /jobs/prelabel`` of a ``spica serve`` in a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from spica.bench.machine import load, status_bytes
from spica.bench.photographs import ARCHITECTURE
from spica.bench.server import server
from spica.demo import model_folder
from spica.demo.field import write_images
from spica.labelstudio.launch import LARGE_PROJECT_TASKS, LabelStudioProcess, large_project_switches

from . import report
from .report import DATA, number, percent, say, table, write_untrained

CONFIG = (
    '<View><Image name="image" value="$image"/>'
    '<RectangleLabels name="label" toName="image"><Label value="spike"/></RectangleLabels></View>'
)
_CHUNK = 2000  # tasks in one import
_SHOWN = 8
"""Photographs that the tasks of the first part show in turn: their detections are remembered, the network rests."""
_PATIENCE_S = 600.0


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bulk", description=__doc__)
    add = parser.add_argument
    report.add_options(parser, ("scale", "switched", "network", "courtesy"))
    add("--tasks", nargs="+", type=int, default=[1_000, 10_000], help="sizes of projects, part scale")
    add("--switched-tasks", nargs="+", type=int, default=[1_000, 10_000, 100_000], help="the same, part switched")
    add("--network-tasks", type=int, default=300, help="images for the demonstration's detector")
    add("--heavy-tasks", type=int, default=100, help=f"images for {ARCHITECTURE}, needs torch; 0 leaves it out")
    add("--rounds", type=int, default=5, help="of courtesy, with a job and without one")
    add("--probes", type=int, default=8, help="images opened in each round")
    add("--label-studio", type=Path, help="its data folder; a new one by default, which takes a minute to prepare")
    add("--photographs", type=Path, default=DATA, help="folder of JPEGs; rendered ones if there is none")
    return parser.parse_args(arguments)


class Bench:
    """Label Studio, the photographs and the networks of one run.

    Args:
        chosen: from :func:`options`.
        scratch: a folder for everything that need not stay.
    """

    def __init__(self, chosen: argparse.Namespace, scratch: Path) -> None:
        self.chosen = chosen
        self.scratch = scratch
        originals = sorted(path for path in chosen.photographs.rglob("*.jpg")) if chosen.photographs.is_dir() else []
        random.Random(0).shuffle(originals)  # noqa: S311 - so that a short run sees every kind
        self.originals = originals or write_images(scratch / "rendered", 24, first_seed=1)
        self._copies = itertools.count()

    @contextmanager
    def label_studio(self, *, switched: bool = False) -> Iterator[LabelStudioProcess]:
        """A running Label Studio, with Spica's switches for large projects or without."""
        documents = self.scratch / "documents"
        documents.mkdir(exist_ok=True)
        extra = large_project_switches(LARGE_PROJECT_TASKS if switched else 0)
        data_dir = self.chosen.label_studio or self.scratch / "label-studio"
        with LabelStudioProcess.start(
            data_dir, port=0, document_root=documents, timeout_s=_PATIENCE_S, extra_env=extra
        ) as process:
            yield process

    def files(self, originals: Sequence[Path]) -> list[Path]:
        """New files below the document root with the originals' pictures, no two of the same content."""
        folder = self.scratch / "documents" / f"{next(self._copies)}"
        folder.mkdir(parents=True)
        paths = [folder / f"{index:06}.jpg" for index in range(len(originals))]
        for path, original in zip(paths, originals, strict=True):
            path.write_bytes(original.read_bytes() + f"\n{path}".encode())  # decoders stop at the end mark before it
        return paths

    def cycled(self, count: int) -> list[Path]:
        """As many files, the originals in turn."""
        return self.files(list(itertools.islice(itertools.cycle(self.originals), count)))

    def networks(self) -> list[tuple[str, Path, int]]:
        """Name, weights and number of tasks of each."""
        networks = [("the demonstration's detector", model_folder(), self.chosen.network_tasks)]
        if self.chosen.heavy_tasks:
            weights = self.scratch / "untrained.pth"
            if not weights.exists():
                write_untrained(weights)
            networks.append((ARCHITECTURE, weights, self.chosen.heavy_tasks))
        return networks

    def scale(self, sizes: Sequence[int], *, switched: bool) -> list[dict[str, Any]]:
        """Jobs over projects of these sizes, whose few photographs are remembered after the first of each."""
        measured = []
        with self.label_studio(switched=switched) as process:
            files = self.cycled(_SHOWN)
            for count in sizes:
                before = load()
                project, import_s = make_project(process, files, count)
                with self.served(process, model_folder()) as model:
                    run = model.job(project)
                measured.append({"tasks": count, "import_s": import_s, "load": before, **run})
                say(f"{count} tasks: {run['stored'] / run['seconds']:.1f} a second, peak {run['peak_bytes']} bytes")
        return measured

    def network(self) -> list[dict[str, Any]]:
        """Jobs in which every task shows a file of its own, against the network with nothing else to do."""
        measured = []
        with self.label_studio() as process:
            for name, weights, count in self.networks():
                before = load()
                project, _ = make_project(process, self.cycled(count), count)
                with self.served(process, weights) as model:
                    idle = model.idle_image_s([address(path, process) for path in self.cycled(12)], project)
                    run = model.job(project)
                measured.append({"name": name, "load": before, "idle_image_s": idle, **run})
                say(f"{name}: the network waits {100 * waiting(run):.1f} % of the time")
        return measured

    def courtesy(self) -> list[dict[str, Any]]:
        """Images opened in turn beside a job and without one; both kinds of rounds show the same pictures."""
        rounds, probes = self.chosen.rounds, self.chosen.probes
        measured = []
        with self.label_studio() as process:
            for name, weights, _ in self.networks():
                count = 6 * rounds * probes + 50  # beside each opened image the job computes one to two, or more
                project, _ = make_project(process, self.cycled(count), count)
                before, turn = load(), itertools.cycle(self.originals)
                run: dict[str, Any] = {"name": name, "load": before, "idle_s": [], "busy_s": [], "missed": 0}
                with self.served(process, weights) as model:
                    warm_up = [address(path, process) for path in self.cycled(4)]
                    run["image_s"] = model.idle_image_s(warm_up, project)
                    chance = random.Random(1)  # noqa: S311 - at any moment of the image that the job computes

                    def visit(paths: Sequence[Path]) -> Iterator[float]:
                        for path in paths:
                            time.sleep(chance.uniform(0.2, 1.2) * run["image_s"])  # noqa: B023 - used in this turn only
                            yield model.open(address(path, process), project)  # noqa: B023

                    for _ in range(rounds):
                        pictures = list(itertools.islice(turn, probes))
                        run["idle_s"] += list(visit(self.files(pictures)))
                        with model.running(project) as job:
                            for seconds in visit(self.files(pictures)):
                                still = model.state(job)
                                if still["state"] == "running" and still["done"] < still["total"]:
                                    run["busy_s"].append(seconds)
                                else:
                                    run["missed"] += 1
                measured.append(run)
        return measured

    @contextmanager
    def served(self, process: LabelStudioProcess, weights: Path) -> Iterator[Model]:
        """`spica serve` beside a Label Studio, its model loaded."""
        environment = {"LABEL_STUDIO_URL": process.url, "LABEL_STUDIO_API_KEY": process.credentials.token}
        arguments = ["--weights", str(weights), "--data-dir", str(self.scratch / "spica")]
        with (
            server(process.document_root, arguments, environment) as running,
            httpx.Client(base_url=running.url, timeout=_PATIENCE_S, trust_env=False) as http,
        ):
            running.wait_healthy()
            wait_until(lambda: http.get("/health").json()["model"]["state"] == "ready")
            yield Model(http, running.process.pid)


class Model:
    """A running `spica serve`.

    Args:
        http: a connection to it.
        pid: of its process.
    """

    def __init__(self, http: httpx.Client, pid: int) -> None:
        self._http = http
        self._pid = pid

    def network(self) -> tuple[int, float]:
        """Images that the network has computed since the start, and the seconds it took."""
        lines = self._http.get("/metrics").raise_for_status().text.splitlines()
        values = {name: float(value) for name, _, value in (line.partition(" ") for line in lines) if name[:1] != "#"}
        return int(values["spica_images_total"]), values["spica_network_seconds_total"]

    def open(self, uri: str, project: int) -> float:
        """Seconds until one image is answered, as when a person opens a task."""
        body = {
            "tasks": [{"id": 10_000_000, "data": {"image": uri}}],
            "project": f"{project}.1700000000",
            "label_config": CONFIG,
            "params": {"login": None, "password": None, "context": None},
        }
        began = time.perf_counter()
        answer = self._http.post("/predict", json=body)
        seconds = time.perf_counter() - began
        if len(answer.raise_for_status().json()["results"]) != 1:
            raise RuntimeError(f"one prediction was expected for {uri}, got {answer.text[:300]}")
        return seconds

    def idle_image_s(self, uris: Sequence[str], project: int) -> float:
        """The network's mean seconds an image with nothing else to do; the first, which pays for more, left out."""
        self.open(uris[0], project)
        images, seconds = self.network()
        for uri in uris[1:]:
            self.open(uri, project)
        after = self.network()
        return (after[1] - seconds) / (after[0] - images)

    def job(self, project: int) -> dict[str, Any]:
        """Run a job to its end: its counts and seconds, the network's part, and the server's memory in bytes."""
        resident, before, began = status_bytes("VmRSS", self._pid), self.network(), time.perf_counter()
        job = self._start(project)
        wait_until(lambda: self.state(job)["finished"] is not None)
        seconds, after, state = time.perf_counter() - began, self.network(), self.state(job)
        if state["state"] != "done":
            raise RuntimeError(f"the job of project {project} ended as {state['state']}: {state['reason']}")
        return {
            "project": project,
            **{name: state[name] for name in ("version", "total", "stored", "failed", "boxes", "counted")},
            "seconds": seconds,
            "images": after[0] - before[0],
            "network_s": after[1] - before[1],
            "before_bytes": resident,
            "peak_bytes": status_bytes("VmHWM", self._pid),
        }

    @contextmanager
    def running(self, project: int) -> Iterator[str]:
        """A job whose network has begun to compute; stopped behind the block."""
        before = self.network()[0]
        job = self._start(project)
        wait_until(lambda: self.network()[0] > before or self.state(job)["finished"] is not None)
        try:
            yield job
        finally:
            self._http.post(f"/jobs/{job}/stop", json={}).raise_for_status()
            wait_until(lambda: self.state(job)["finished"] is not None)

    def state(self, job: str) -> dict[str, Any]:
        """What the server says of a job."""
        state: dict[str, Any] = self._http.get(f"/jobs/{job}").raise_for_status().json()
        return state

    def _start(self, project: int) -> str:
        return str(self._http.post("/jobs/prelabel", json={"project": project}).raise_for_status().json()["id"])


def wait_until(done: Callable[[], bool], patience_s: float = 24 * 3600.0) -> None:
    """Ask twenty times a second until the answer is yes."""
    deadline = time.monotonic() + patience_s
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing came of it in {patience_s:.0f} s")
        time.sleep(0.05)


def address(path: Path, process: LabelStudioProcess) -> str:
    """Of a file, as Label Studio writes it into tasks."""
    return "/data/local-files/?d=" + quote(path.relative_to(process.document_root).as_posix())


def make_project(process: LabelStudioProcess, files: Sequence[Path], count: int) -> tuple[int, float]:
    """A project with as many tasks, the files in turn, imported through the API; its number, and seconds it took."""
    began = time.perf_counter()
    with process.client() as client:
        project = client.create_project(f"{files[0].parent.name}, {count} tasks", CONFIG).id
        addresses = itertools.cycle([address(path, process) for path in files])
        for start in range(0, count, _CHUNK):
            part = [{"data": {"image": next(addresses)}} for _ in range(min(_CHUNK, count - start))]
            client.call("POST", f"/api/projects/{project}/import", json=part, timeout_s=_PATIENCE_S)
    return project, time.perf_counter() - began


def waiting(run: dict[str, Any]) -> float:
    """Of the job's time, the share in which the network computed nothing."""
    return float(1 - run["network_s"] / run["seconds"])


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def extra_images(run: dict[str, Any], share: float) -> float:
    """What an answer beside the job takes longer than without, at a percentile, in times of one image's inference."""
    return (percentile(run["busy_s"], share) - percentile(run["idle_s"], share)) / float(run["image_s"])


def _scale(runs: Sequence[dict[str, Any]]) -> str:
    head = ("tasks", "stored", "boxes", "tasks/s", "s", "memory before / peak, MiB", "import, s", "load before")
    rows = [
        (
            f"{run['tasks']:,}",
            f"{run['stored']:,}",
            f"{run['boxes']:,}",
            f"{run['stored'] / run['seconds']:.1f}",
            f"{run['seconds']:.0f}",
            " / ".join(number(run[name] and run[name] / 2**20, ".0f") for name in ("before_bytes", "peak_bytes")),
            f"{run['import_s']:.0f}",
            run["load"],
        )
        for run in runs
    ]
    return (
        "A handful of photographs shown by all tasks, so that their detections are remembered and the network rests. "
        "Memory is the whole server's. *Switched*: with the environment variable "
        "`fflag_fix_back_4620_memory_efficient_predictions_import_08012025_short=true`, as Spica starts Label Studio "
        "for folders of 2,000 photographs and more; without it each import of predictions counts all tasks of the "
        f"project anew.\n\n{table(head, rows)}"
    )


def _network(runs: Sequence[dict[str, Any]]) -> str:
    head = ("network", "tasks", "the network waits (goal < 5 %)", "its time an image : idle", "idle, ms", "load before")
    rows = [
        (
            run["name"],
            f"{run['stored']:,}",
            percent(waiting(run)),
            f"{run['network_s'] / run['images'] / run['idle_image_s']:.2f}",
            f"{run['idle_image_s'] * 1000:.0f}",
            run["load"],
        )
        for run in runs
    ]
    return (
        "Every task shows a file of its own. The network waits when it computes nothing between the job's start and "
        "end. Beside the job it shares the processor with reading, decoding and Label Studio itself.\n\n"
        + table(head, rows)
    )


def _courtesy(runs: Sequence[dict[str, Any]]) -> str:
    head: tuple[str, ...] = (
        "network",
        "idle / beside the job, median s",
        "95th percentile s",
        "extra, median, images (goal ≤ 1)",
    )
    head += ("extra, 95th percentile, images", "opened idle / beside / job had ended", "load before")
    rows = [
        (
            run["name"],
            " / ".join(f"{statistics.median(run[kind]):.3f}" for kind in ("idle_s", "busy_s")),
            " / ".join(f"{percentile(run[kind], 0.95):.3f}" for kind in ("idle_s", "busy_s")),
            f"{extra_images(run, 0.5):.2f}",
            f"{extra_images(run, 0.95):.2f}",
            f"{len(run['idle_s'])} / {len(run['busy_s'])} / {run['missed']}",
            run["load"],
        )
        for run in runs
    ]
    return (
        "`POST /predict` with one image that the server has not seen, at a random moment, beside a job over the same "
        "network and without one, in rounds that take turns and show the same photographs. *Extra*: what an answer "
        "beside the job takes longer, divided by the network's mean time for an image when idle.\n\n"
        + table(head, rows)
    )


def main() -> None:
    """Run the parts that the command line asks for."""
    chosen = options()
    with tempfile.TemporaryDirectory(prefix="spica-bench-", ignore_cleanup_errors=True) as folder:
        bench = Bench(chosen, Path(folder))
        parts: dict[str, Callable[[], Any]] = {
            "scale": partial(bench.scale, chosen.tasks, switched=False),
            "switched": partial(bench.scale, chosen.switched_tasks, switched=True),
            "network": bench.network,
            "courtesy": bench.courtesy,
        }
        measured = report.measure(chosen, {name: parts[name] for name in chosen.only})
    sections = {
        "scale": ("At scale, Label Studio as started by hand", _scale),
        "switched": ("At scale, switched", _scale),
        "network": ("With a real network", _network),
        "courtesy": ("Courtesy", _courtesy),
    }
    report.publish(
        report.text("The bulk job, measured", "A real Label Studio; conclusions are ratios.", measured, sections),
        chosen.results,
    )


if __name__ == "__main__":
    main()
