"""The bulk job against a real Label Studio: at scale, with a real network, and its courtesy to people.

``python -m benchmarks.bulk`` from the root of the repository; ``--help`` tells how to run less of it.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spica.bench.machine import load
from spica.bench.photographs import untrained_weights
from spica.demo import model_folder
from spica.labelstudio.launch import LabelStudioProcess

from . import courtesy, report
from .machine import conditions
from .place import (
    ROOT,
    Photographs,
    address,
    label_studio,
    make_project,
    run_worker,
)

PARTS = ("scale", "network", "courtesy")
SHOWN = 8
"""Photographs that the tasks of the first part show in turn."""
ALONE = 30
DEMO = "the demonstration's detector"
HEAVY = "fasterrcnn_resnet50_fpn"


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bulk", description=__doc__)
    add = parser.add_argument
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run; all by default")
    add(
        "--tasks",
        nargs="*",
        type=int,
        default=[1_000, 10_000],
        help="sizes of projects, Label Studio as Spica starts it",
    )
    add(
        "--switched-tasks",
        nargs="*",
        type=int,
        default=[1_000, 10_000, 100_000],
        help="sizes of projects, with Label Studio's switch for light imports",
    )
    add("--network-tasks", type=int, default=300, help="images for the demonstration's detector; 0 leaves it out")
    add("--heavy-tasks", type=int, default=100, help="images for fasterrcnn_resnet50_fpn, needs torch; 0 leaves it out")
    add("--rounds", type=int, default=5, help="of courtesy, with a job and without one")
    add("--probes", type=int, default=8, help="images opened in each round")
    add("--threads", type=int, default=0, help="of the network; 0 lets the runtime choose")
    add("--photographs", type=Path, default=ROOT.parent / "shared" / "data", help="folder of JPEGs; else rendered ones")
    add("--data-dir", type=Path, help="Label Studio's folder; a temporary one by default")
    add("--weights", type=Path, help="instead of untrained ones of fasterrcnn_resnet50_fpn; one class")
    add("--network-runs", type=int, default=3, help="jobs over the demonstration's detector")
    add("--add-to", type=Path, help="a file that --json has written: its figures are reported too")
    add("--json", type=Path, help="write all that was measured to this file")
    add("--results", type=Path, help="write the report, Markdown, to this file")
    return parser.parse_args(arguments)


class Bench:
    """One run.

    Args:
        chosen: from :func:`options`.
        scratch: a folder for everything that need not stay.
    """

    def __init__(self, chosen: argparse.Namespace, scratch: Path) -> None:
        self.chosen = chosen
        self.work_dir = scratch / "spica"
        self.work_dir.mkdir()
        self.data_dir: Path = chosen.data_dir or scratch / "label-studio"
        self.photographs = Photographs.find(chosen.photographs, scratch / "rendered")
        self.scratch = scratch
        self._weights: Path | None = chosen.weights
        self.measured: dict[str, Any] = {
            "commands": [],
            "conditions": [
                *conditions(),
                ("threads of the network", str(chosen.threads or "chosen by OpenVINO")),
                ("photographs", self.photographs.what),
            ],
            **{part: [] for part in PARTS},
        }
        if chosen.add_to is not None:
            self.measured = json.loads(chosen.add_to.read_text("utf-8"))
        self.measured["commands"].append(f"{command(sys.argv[1:])}` on {datetime.now(UTC):%Y-%m-%d at %H:%M} UTC")

    def run(self) -> dict[str, Any]:
        """All parts that were chosen; what was measured so far is kept in :attr:`measured`."""
        chosen = self.chosen
        if "scale" in chosen.only:
            for sizes, switched in ((chosen.tasks, False), (chosen.switched_tasks, True)):
                if sizes:
                    with self._place(switched=switched) as (process, folder):
                        self._scale(process, folder, sizes, switched=switched)
        if "network" in chosen.only or "courtesy" in chosen.only:
            with self._place() as (process, folder):
                if "network" in chosen.only:
                    self._network(process, folder)
                if "courtesy" in chosen.only:
                    self._courtesy(process, folder)
        return self.measured

    @contextmanager
    def _place(self, *, switched: bool = False) -> Iterator[tuple[LabelStudioProcess, Path]]:
        """A running Label Studio, and a folder below its document root that goes with the run."""
        with label_studio(self.data_dir, switched=switched) as process:
            folder = process.document_root / self.scratch.name
            try:
                yield process, folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _keep(self, part: str, run: dict[str, Any]) -> None:
        self.measured[part].append({"at": f"{datetime.now(UTC):%H:%M}", **run})
        if self.chosen.json is not None:  # as it goes, so that a long run that breaks off leaves what it had
            self.chosen.json.write_text(json.dumps(self.measured, ensure_ascii=False, indent=1), "utf-8")

    def _networks(self) -> list[tuple[str, Path, int]]:
        """Name, weights and number of tasks of each."""
        found = []
        if self.chosen.network_tasks:
            found.append((DEMO, model_folder(), self.chosen.network_tasks))
        if self.chosen.heavy_tasks:
            if self._weights is None:
                self._weights = untrained_weights(self.scratch / "random.pth")
            found.append((HEAVY, self._weights, self.chosen.heavy_tasks))
        return found

    def _scale(self, process: LabelStudioProcess, folder: Path, sizes: Sequence[int], *, switched: bool) -> None:
        files = self.photographs.copies(folder / f"shown-{switched}", SHOWN)
        for count in sizes:
            title = f"{self.scratch.name[-12:]} scale {count}{' switched' if switched else ''}"
            before = load()
            project, import_s = make_project(process, title, files, count)
            tell(f"{title}: {count} tasks imported in {import_s:.0f} s")
            run = run_worker(process, project, self.work_dir)
            self._keep(
                "scale",
                {
                    "tasks": count,
                    "switched": switched,
                    "project": project.id,
                    "import_s": import_s,
                    "load": before,
                    **run,
                },
            )
            tell(
                f"{title}: {report.rate(run):.1f} tasks/s, {100 * report.share_outside(run):.1f} % of the time outside "
                f"Label Studio, peak memory {(run['memory']['peak'] or 0) >> 20} MiB"
            )

    def _network(self, process: LabelStudioProcess, folder: Path) -> None:
        for name, weights, count in self._networks():
            for number in range(self.chosen.network_runs if name == DEMO else 1):
                files = self.photographs.copies(folder / f"network-{weights.stem}-{number}", count)
                project, _ = make_project(process, f"{self.scratch.name[-12:]} {name} {number}"[:50], files, count)
                alone = self.photographs.copies(self.scratch / "alone", min(ALONE, count))
                known = {"name": name, "project": project.id, "load": load()}
                threads = self.chosen.threads
                run = run_worker(process, project, self.work_dir, weights=weights, alone=alone, threads=threads)
                self._keep("network", {**known, **run})
                tell(f"{name}: waits {100 * report.waiting(run):.1f} % of the time")

    def _courtesy(self, process: LabelStudioProcess, folder: Path) -> None:
        rounds, probes = self.chosen.rounds, self.chosen.probes
        for name, weights, _ in self._networks():
            # Beside each opened image the job computes one to two; when the network is quick, more.
            count = 6 * rounds * probes + 50
            files = self.photographs.copies(folder / f"courtesy-{weights.stem}", count)
            project, _ = make_project(process, f"{self.scratch.name[-12:]} courtesy, {name}"[:50], files, count)
            opened = self.photographs.pairs(folder / f"opened-{weights.stem}", rounds, probes, before=courtesy.WARM_UP)
            uris = [address(path, process.document_root) for path in opened]
            before = load()
            with courtesy.served(process, weights, self.work_dir, threads=self.chosen.threads) as server:
                run = courtesy.measure(server, project, uris, rounds=rounds, probes=probes)
            self._keep("courtesy", {"name": name, "project": project.id, "load": before, **run})
            values = courtesy.summary(run)
            tell(f"{name}: opening an image beside the job takes {values['extra_median_images']:.2f} images longer")


def command(arguments: Sequence[str]) -> str:
    """The command line, without where the answers go."""
    kept = [
        word
        for before, word in zip(["", *arguments], arguments, strict=False)
        if not {before, word} & {"--json", "--results", "--add-to"}
    ]
    return " ".join(["python -m benchmarks.bulk", *kept])


def tell(line: str) -> None:
    """How far it is, for people."""
    print(f"{datetime.now(UTC):%H:%M:%S} {line}", file=sys.stderr, flush=True)


def write(chosen: argparse.Namespace, measured: dict[str, Any]) -> None:
    """The report, to the screen and to the file that was asked for."""
    text = report.markdown(measured)
    print(text)
    if chosen.results is not None:
        chosen.results.write_text(text, "utf-8")


def main() -> None:
    """Run the benchmarks that the command line asks for."""
    chosen = options()
    if platform.system() == "Windows":
        tell("the job's memory is not measured on Windows")
    with tempfile.TemporaryDirectory(prefix="spica-bench-", ignore_cleanup_errors=True) as scratch:
        write(chosen, Bench(chosen, Path(scratch)).run())


if __name__ == "__main__":
    main()
