"""Trainings as they are kept on disk: a folder each, with a state file that is replaced whole.

``<data_dir>/training/<number>.<created>/<run>/run.json``; beside it, while it runs, the checkpoint. A server that was
killed finds there what it had begun. When a run is over, the state file alone stays.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

from spica.errors import StorageError
from spica.files import read_text, write_text
from spica.project import ProjectKey
from spica.settings import Settings
from spica.training.footprint import threads_of

RUN = "run.json"
"""Name of the state file in a run's folder."""

KEPT = 20
"""Runs of a project that are over are kept up to this number."""

_ID = re.compile(r"(\d{8}T\d{6}\.\d{3})Z-[0-9a-f]{4}")

State = Literal["running", "passed", "refused", "cancelled", "failed"]


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """What the process that trains is given.

    Attributes:
        run: id of the run, ``folder`` is its folder.
        parent: folder of the version to start from and to compare with, None for none; ``parent_id`` is its id.
        settings: the server's.
        recipe: fields of :class:`spica.training.recipe.Recipe` that are not the defaults.
    """

    project: ProjectKey
    run: str
    folder: Path
    parent: Path | None
    parent_id: str | None
    settings: Settings
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def threads(self) -> int:
        """At most."""
        return threads_of(self.settings.train_threads)

    def as_json(self) -> dict[str, Any]:
        """With the access token, which is the child's only secret."""
        token = self.settings.label_studio_api_key
        settings = self.settings.model_dump(mode="json", exclude={"basic_auth"})
        return {
            "project": asdict(self.project),
            "run": self.run,
            "folder": str(self.folder),
            "parent": str(self.parent) if self.parent is not None else None,
            "parent_id": self.parent_id,
            "settings": {**settings, "label_studio_api_key": token.get_secret_value() if token is not None else None},
            "recipe": dict(self.recipe),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainingJob:
        """From :meth:`as_json`."""
        parent = Path(values["parent"]) if values["parent"] is not None else None
        known = {"project": ProjectKey(**values["project"]), "folder": Path(values["folder"]), "parent": parent}
        return cls(**{**values, **known, "settings": Settings(**values["settings"])})


@dataclass(frozen=True, slots=True)
class Run:
    """A training, under way or over.

    Attributes:
        id: in order of time within a project.
        cause: why it was started, for people.
        started: ISO 8601, UTC, as ``finished``.
        state: ``passed`` and ``refused`` are the gate's.
        stage: what it is doing, in a few words.
        parent: id of the version that it starts from and is compared with, None if there is none.
        active: what the project's pointer said when it began, a :class:`spica.models.active.Step`; None if nothing.
        new: submissions that no version had learned from, when it was started.
        images: that it learns from, with ``boxes``; ``holdout`` images are kept to judge by.
        epoch: the one under way, from 1; 0 before the first.
        eta_s: seconds to go, None if that can't be said yet.
        version: id of what came out of it.
        verdict: what the gate said: ``accepted``, ``sentence`` and its figures.
        reason: why it failed or was cancelled: the inner part of the one JSON shape of errors.
        learned: what it has learned from, as :func:`spica.training.submissions.count_new` takes it.
        attempts: how often its process was started.
        settled: whether Label Studio shows what came out of it; True where nothing is to be shown.
        notes: for people, the latest last.
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
        reason = self.reason or {}
        return ". ".join(str(reason[name]) for name in ("message", "got", "hint") if reason.get(name))

    def as_json(self) -> dict[str, Any]:
        """For pages and programs; what it has learned from is left out, which may be long."""
        shown = self.state_file()
        del shown["learned"]
        return shown

    def state_file(self) -> dict[str, Any]:
        """All of it."""
        return {**asdict(self), "project": self.project.number, "created": self.project.created}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Run:
        """From :meth:`as_json` or :meth:`state_file`, also of another version of Spica."""
        known = {attribute.name for attribute in fields(cls)}
        run = cls(**{name: value for name, value in values.items() if name in known})
        return replace(run, notes=tuple(run.notes), project=ProjectKey(values["project"], values.get("created", 0)))

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
    """The runs in Spica's data folder."""

    def __init__(self, data_dir: Path) -> None:
        self.base = data_dir / "training"

    def project_folder(self, project: ProjectKey) -> Path:
        """Where a project's runs are."""
        return self.base / project.stem

    def folder(self, run: Run) -> Path:
        """Where a run's files are."""
        return self.project_folder(run.project) / run.id

    def begin(self, project: ProjectKey, **attributes: Any) -> Run:
        """A new run with these attributes, written. Call it while the project is locked.

        Raises:
            StorageError: the folder can't be written; nothing is left of the run.
        """
        now = moment = datetime.now(UTC)
        for folder in self.project_folder(project).glob("*"):  # the clock may have been set back
            begun = started(folder.name)
            if begun is not None:
                moment = max(moment, begun + timedelta(milliseconds=1))
        name = f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03}Z-{secrets.token_hex(2)}"
        run = Run(id=name, project=project, started=now.isoformat(timespec="seconds"), **attributes)
        try:
            self.write(run)
        except StorageError:
            self.remove(run)
            raise
        return run

    def write(self, run: Run) -> None:
        """Replace a run's state file.

        Raises:
            StorageError: the folder can't be written.
        """
        write_text(self.folder(run) / RUN, json.dumps(run.state_file(), ensure_ascii=False))

    def remove(self, run: Run) -> None:
        """Remove all of a run; what can't be removed stays."""
        with suppress(OSError):  # first: without it the rest is no run
            (self.folder(run) / RUN).unlink(missing_ok=True)
        shutil.rmtree(self.folder(run), ignore_errors=True)

    def of(self, project: ProjectKey) -> list[Run]:
        """A project's runs, the latest first."""
        folders = sorted(self.project_folder(project).glob("*-????"), reverse=True)
        return [run for folder in folders if (run := Run.read(folder)) is not None]

    def projects(self, *, known: bool = True) -> list[ProjectKey]:
        """Projects that have runs; if not ``known``, those whose runs are kept under the number alone."""
        keys = [ProjectKey.parse(folder.name) for folder in self.base.glob("*") if folder.is_dir()]
        return sorted(key for key in keys if key is not None and (key.created > 0) == known)

    def unfinished(self) -> list[Run]:
        """Runs that say that they are under way; whether a process works on them is known by the project's lock."""
        return [run for project in self.projects() for run in self.of(project) if not run.is_over]

    def tidy(self, project: ProjectKey) -> None:
        """Leave of a project's runs that are over their state files only, and of the oldest nothing."""
        for number, run in enumerate(run for run in self.of(project) if run.is_over):
            folder = self.folder(run)
            if number >= KEPT:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            for path in folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name != RUN:
                    with suppress(OSError):  # a scanner may hold it open; the next time will do
                        path.unlink()


def started(run: str) -> datetime | None:
    """When the run of this id was begun; None if it is no such id."""
    match = _ID.fullmatch(run)
    try:
        return datetime.strptime(f"{match[1]}+0000", "%Y%m%dT%H%M%S.%f%z") if match is not None else None
    except ValueError:  # no date, though it looks like one
        return None
