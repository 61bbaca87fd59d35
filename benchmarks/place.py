"""Where the benchmarks happen: a real Label Studio, photographs below its document root, projects with tasks."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from spica.labelstudio.launch import LARGE_PROJECT_TASKS, LabelStudioProcess, large_project_switches
from spica.labelstudio.records import Project

from .worker import Order

ROOT = Path(__file__).resolve().parent.parent
CONFIG = (
    '<View><Image name="image" value="$image"/>'
    '<RectangleLabels name="label" toName="image"><Label value="spike"/></RectangleLabels></View>'
)
CHUNK = 2000
"""Tasks in one import."""

_START_S = 600.0
_OURS = ("LABEL_STUDIO_", "SPICA_", "LOCAL_FILES_")


@contextmanager
def label_studio(data_dir: Path, *, switched: bool = False) -> Iterator[LabelStudioProcess]:
    """A Label Studio in a folder, the one that runs there already if there is one.

    Args:
        data_dir: its folder.
        switched: as Spica starts it for large projects; otherwise as it starts it for small ones.
    """
    documents = data_dir.parent / "documents"
    documents.mkdir(parents=True, exist_ok=True)
    extra = large_project_switches(LARGE_PROJECT_TASKS if switched else 0)
    with LabelStudioProcess.start(
        data_dir, port=0, document_root=documents, timeout_s=_START_S, extra_env=extra
    ) as process:
        if switched and process.adopted:
            raise SystemExit(f"a Label Studio runs in {data_dir} already, its switches can't be chosen")
        yield process


@dataclass(frozen=True)
class Photographs:
    """Image files to make tasks of.

    Attributes:
        paths: of the originals.
        what: they are, for people.
    """

    paths: tuple[Path, ...]
    what: str

    @classmethod
    def find(cls, folder: Path | None, scratch: Path) -> Photographs:
        """Those in a folder, sub-folders included; rendered ones where it is None or missing."""
        if folder is not None and folder.is_dir():
            paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
            if paths:
                return cls(tuple(paths), f"{len(paths)} photographs")
        from spica.demo.field import write_images

        scratch.mkdir(parents=True, exist_ok=True)
        rendered = write_images(scratch, 24, first_seed=1)
        return cls(tuple(rendered), f"{len(rendered)} rendered images")

    @property
    def mixed(self) -> list[Path]:
        """The originals, those of different folders in turn, so that a short run sees every kind."""
        return sorted(self.paths, key=lambda path: (_scatter(path.name), path))

    def copies(self, folder: Path, count: int) -> list[Path]:
        """So many files of different content, each original in turn."""
        return copies_of(list(itertools.islice(itertools.cycle(self.mixed), count)), folder)

    def pairs(self, folder: Path, rounds: int, size: int, *, before: int = 0) -> list[Path]:
        """Files of different content for rounds of two halves: in each, both halves show the same ``size`` originals.

        ``before`` more come first.
        """
        originals = itertools.cycle(self.mixed)
        chosen = list(itertools.islice(originals, before))
        for _ in range(rounds):
            chosen += 2 * list(itertools.islice(originals, size))
        return copies_of(chosen, folder)


def copies_of(originals: Sequence[Path], folder: Path) -> list[Path]:
    """A file for each, with the folder's name and a number behind the last byte, so that no two are alike."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number, original in enumerate(originals):
        copy = folder / f"{number:06}.jpg"
        # Decoders stop at the end mark before it.
        copy.write_bytes(original.read_bytes() + f"\n{folder.name} {number}".encode())
        made.append(copy)
    return made


def _scatter(text: str) -> int:
    return zlib.crc32(text.encode())


def address(path: Path, document_root: Path) -> str:
    """Of a file, as Label Studio writes it into tasks."""
    return "/data/local-files/?d=" + quote(path.relative_to(document_root).as_posix())


def make_project(process: LabelStudioProcess, title: str, files: Sequence[Path], count: int) -> tuple[Project, float]:
    """A project with so many tasks, the files in turn, imported through Label Studio's API; and the seconds it took."""
    began = time.perf_counter()
    with process.client() as client:
        project = client.create_project(title, CONFIG)
        addresses = itertools.cycle([address(path, process.document_root) for path in files])
        for start in range(0, count, CHUNK):
            part = [{"data": {"image": next(addresses)}} for _ in range(min(CHUNK, count - start))]
            client.call("POST", f"/api/projects/{project.id}/import", json=part)
    return project, time.perf_counter() - began


def run_worker(
    process: LabelStudioProcess,
    project: Project,
    work_dir: Path,
    *,
    weights: Path | None = None,
    alone: Sequence[Path] = (),
    threads: int = 0,
) -> dict[str, Any]:
    """One job in a process of its own; what :mod:`benchmarks.worker` has measured."""
    order = Order(
        url=process.url,
        token=process.credentials.token,
        project=project.id,
        document_root=str(process.document_root),
        work_dir=str(work_dir),
        weights=None if weights is None else str(weights),
        alone=[str(path) for path in alone],
        threads=threads,
    )
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.worker"],
        input=json.dumps(asdict(order)),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=clean_environment(),
        text=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"the job of project {project.id} failed, see above")
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without settings of the person who runs this."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(_OURS)}
    return {**kept, "PYTHONUTF8": "1", **more}
