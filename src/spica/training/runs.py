"""Trainings as they are kept on disk: a folder each, with a state file that is replaced whole.

``<data_dir>/training/<number>.<created>/<run>/run.json``; beside it, while it runs, the images and the checkpoints. A
server that was killed finds there what it had begun. When a run is over, the state file alone stays.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

from spica.errors import StorageError
from spica.files import read_text, write_text
from spica.project import ProjectKey

logger = logging.getLogger(__name__)

RUN = "run.json"
"""Name of the state file in a run's folder."""

KEPT = 20
"""So many runs of a project that are over are remembered."""

_ID = re.compile(r"(\d{8}T\d{6}\.\d{3})Z-[0-9a-f]{4}")

State = Literal["running", "passed", "refused", "cancelled", "failed"]


@dataclass(frozen=True, slots=True)
class Run:
    """A training, under way or over.

    Attributes:
        id: of the run, in order of time within a project.
        project: which one; its folder says it.
        title: of the project.
        cause: why it was started, for people.
        started: ISO 8601, UTC.
        state: ``running``; ``passed`` or ``refused`` by the gate; ``cancelled`` or ``failed``.
        finished: ISO 8601, UTC; None while it runs.
        stage: what it is doing, in a few words.
        parent: id of the version that it starts from and is compared with, None if there is none.
        active: what the project's pointer said when it began, a :class:`spica.models.active.Step`; None if nothing.
        new: submissions that no version has learned from, when it was started.
        images: annotated images that it learns from.
        boxes: in these images.
        holdout: annotated images that are kept to judge by.
        epoch: the one under way, from 1; 0 before the first.
        epochs: how many there will be at most.
        losses: by name, of the last epoch.
        eta_s: seconds to go, None if that can't be said yet.
        version: id of what came out of it.
        verdict: what the gate said: ``accepted``, ``sentence`` and its figures.
        reason: why it failed or was cancelled: the inner part of the one JSON shape of errors.
        learned: what it has learned from, as :func:`spica.training.submissions.count_new` takes it.
        attempts: how often its process was started.
        settled: whether Label Studio shows what came out of it; True where nothing is to be shown.
        notes: what people should know, the latest last.
    """

    id: str
    project: ProjectKey
    title: str
    cause: str
    started: str
    state: State = "running"
    finished: str | None = None
    stage: str = ""
    parent: str | None = None
    active: Mapping[str, Any] | None = None
    new: int = 0
    images: int = 0
    boxes: int = 0
    holdout: int = 0
    epoch: int = 0
    epochs: int = 0
    losses: Mapping[str, float] = field(default_factory=dict)
    eta_s: float | None = None
    version: str | None = None
    verdict: Mapping[str, Any] | None = None
    reason: Mapping[str, Any] | None = None
    learned: Any = None
    attempts: int = 0
    settled: bool = True
    notes: tuple[str, ...] = ()

    @property
    def is_over(self) -> bool:
        """Whether nothing will come of it any more than what is there."""
        return self.state != "running"

    @property
    def is_judged(self) -> bool:
        """Whether it came to its end, and the gate has spoken."""
        return self.state in ("passed", "refused")

    @property
    def why(self) -> str:
        """The gate's sentence, or why there is none; "" while it runs."""
        if self.verdict is not None:
            return str(self.verdict.get("sentence", ""))
        if self.reason is None:
            return ""
        facts = [str(self.reason[name]) for name in ("message", "got", "hint") if self.reason.get(name)]
        return ". ".join(facts)

    def as_json(self) -> dict[str, Any]:
        """For pages and programs; what it has learned from is left out, which may be long."""
        told = self.state_file()
        del told["learned"]
        return told

    def state_file(self) -> dict[str, Any]:
        """All of it."""
        return {**asdict(self), "project": self.project.number, "created": self.project.created}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Run:
        """From :meth:`as_json`, also that of another version of Spica's."""
        known = {each.name for each in fields(cls)}
        run = cls(**{name: value for name, value in told.items() if name in known})
        return replace(run, notes=tuple(run.notes), project=ProjectKey(told["project"], told.get("created", 0)))

    @classmethod
    def read(cls, folder: Path) -> Run | None:
        """From a run's folder; None when there is nothing readable."""
        try:
            run = cls.from_json(json.loads(read_text(folder / RUN)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        project = ProjectKey.parse(folder.parent.name)
        if project is None or run.state not in get_args(State) or run.id != folder.name:
            return None
        return replace(run, project=project) if run.project.number == project.number else None


class Runs:
    """The runs in a data folder.

    Args:
        data_dir: Spica's.
    """

    def __init__(self, data_dir: Path) -> None:
        self.base = data_dir / "training"

    def project_folder(self, project: ProjectKey) -> Path:
        """Where a project's runs are."""
        return self.base / project.stem

    def folder(self, run: Run) -> Path:
        """Where a run's files are."""
        return self.project_folder(run.project) / run.id

    def begin(
        self,
        project: ProjectKey,
        *,
        title: str,
        cause: str,
        new: int,
        parent: str | None,
        active: Mapping[str, Any] | None = None,
    ) -> Run:
        """A new run, written, whose id comes after all of its project. Call it while the project is locked.

        Raises:
            StorageError: the folder can't be written; nothing is left of the run.
        """
        now = datetime.now(UTC)
        name = f"{self._next(project, now)}Z-{secrets.token_hex(2)}"
        run = Run(name, project, title, cause, now.isoformat(timespec="seconds"), new=new, parent=parent)
        run = replace(run, active=active)
        try:
            self.write(run)
        except StorageError:
            self.remove(run)
            raise
        return run

    def _next(self, project: ProjectKey, now: datetime) -> str:
        """The time, to the millisecond; a millisecond after the latest run's where it is not later than that."""
        times = [found[1] for each in self.project_folder(project).glob("*") if (found := _ID.fullmatch(each.name))]
        latest = max(times, default="")
        stamp = _stamp(now)
        if stamp > latest:
            return stamp
        last = started(f"{latest}Z-0000")
        try:
            return stamp if last is None else _stamp(last + timedelta(milliseconds=1))
        except OverflowError:  # no date, though it looks like one
            return stamp

    def write(self, run: Run) -> None:
        """Replace a run's state file.

        Raises:
            StorageError: the folder can't be written.
        """
        write_text(self.folder(run) / RUN, json.dumps(run.state_file(), ensure_ascii=False))

    def remove(self, run: Run) -> None:
        """Have a run never been; what can't be removed stays."""
        with suppress(OSError):  # first: without it the rest is no run
            (self.folder(run) / RUN).unlink(missing_ok=True)
        shutil.rmtree(self.folder(run), ignore_errors=True)

    def of(self, project: ProjectKey) -> list[Run]:
        """A project's runs, the latest first."""
        found = sorted(self.project_folder(project).glob("*-????"), reverse=True)
        return [run for folder in found if (run := Run.read(folder)) is not None]

    def projects(self, *, known: bool = True) -> list[ProjectKey]:
        """Projects that have runs; if not ``known``, those of whose runs only the number is told."""
        found = [ProjectKey.parse(each.name) for each in self.base.glob("*") if each.is_dir()]
        return sorted(key for key in found if key is not None and (key.created > 0) == known)

    def unfinished(self) -> Iterator[Run]:
        """Runs that say that they are under way; whether a process works on them is to be asked of the lock."""
        for project in self.projects():
            yield from (run for run in self.of(project) if not run.is_over)

    def tidy(self, project: ProjectKey, *, but: str | None = None) -> None:
        """Leave of the runs that are over their state files only, and of the oldest nothing.

        Args:
            project: which one.
            but: id of a run that is left alone.
        """
        over = [run for run in self.of(project) if run.is_over and run.id != but]
        for run in over[KEPT:]:
            shutil.rmtree(self.folder(run), ignore_errors=True)
        for run in over[:KEPT]:
            for path in self.folder(run).iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name != RUN:
                    with suppress(OSError):  # a scanner may hold it open; the next time will do
                        path.unlink()


def started(run: str) -> datetime | None:
    """When the run of this id was begun; None if it is no such id."""
    found = _ID.fullmatch(run)
    try:
        return datetime.strptime(f"{found[1]}+0000", "%Y%m%dT%H%M%S.%f%z") if found is not None else None
    except ValueError:  # no date, though it looks like one
        return None


def _stamp(when: datetime) -> str:
    return f"{when:%Y%m%dT%H%M%S}.{when.microsecond // 1000:03}"
