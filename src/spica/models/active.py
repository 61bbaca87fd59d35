"""Which version each project of Label Studio is served with: one small file a project, replaced in one step.

``<data_dir>/active/<number>.<created>.json`` names the version, the weights that it descends from, when, why and by
whom it was made active, and what was active before. Rules:

* Without the file the server's ``--weights`` are served.
* The file applies only to a server whose ``--weights`` are its ``base`` (or where ``base`` is null: to any).
* A file that can't be read is an error with a remedy: a server goes on with what answers, and nothing is deleted from
  the store until somebody activates a version again.
* A version that is missing or damaged is not served.
* To a request that does not say when its project was created, the server's ``--weights`` answer.

Many may read while one writes (:func:`spica.models.locks.writing`).
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import EllipsisType
from typing import Any, NamedTuple

from spica.errors import SpicaError, StorageError, UsageError, WeightsError
from spica.files import read_text, write_text
from spica.models.card import is_id
from spica.models.locks import writing
from spica.models.version import open_version, peek
from spica.project import ProjectKey

logger = logging.getLogger(__name__)

HISTORY = 50
"""How many earlier steps are remembered for a project."""

FORMAT = 1
"""Number of this layout of the file."""


class ActiveChangedError(SpicaError):
    """Somebody else has activated another version meanwhile."""

    code = "active_changed"
    status = 409


@dataclass(frozen=True, slots=True)
class Step:
    """What was active at some time.

    Attributes:
        version: its id; None for the weights that the server was started with.
        base: id of the server's weights for which this holds; None for whatever they are.
        when: ISO 8601, UTC.
        why: for people, such as the gate's verdict.
        by: who did it, for people: ``training``, ``spica models activate``.
    """

    version: str | None
    base: str | None
    when: str
    why: str
    by: str


@dataclass(frozen=True, slots=True)
class Pointer:
    """What is active in a project, and before: the steps that a rollback goes back to, the latest first."""

    project: ProjectKey
    now: Step
    previous: tuple[Step, ...] = ()

    @property
    def version(self) -> str | None:
        """Id of the active version; None for the weights that the server was started with."""
        return self.now.version

    @property
    def base(self) -> str | None:
        """Id of the server's weights for which the pointer holds; None for whatever they are."""
        return self.now.base

    def as_json(self) -> dict[str, Any]:
        """What the file holds."""
        steps = [asdict(step) for step in self.previous]
        key = {"project": self.project.number, "created": self.project.created}
        return {"format": FORMAT, **key, **asdict(self.now), "previous": steps}


class Resolution(NamedTuple):
    """What a server is to serve a project with.

    Attributes:
        version: id of the version; None for the server's own weights.
        reason: why, for people.
        problem: why what is wanted can't be read now, which may pass, as the folder may be shared; ``version`` is None
            then, and no reason to drop a version that works. None if what is wanted is known.
    """

    version: str | None
    reason: str
    problem: SpicaError | None = None


def pointer_path(data_dir: Path, project: ProjectKey) -> Path:
    """The file of a project; it is replaced whole, so a change shows in its inode, time or size."""
    return data_dir / "active" / f"{project.stem}.json"


def read(data_dir: Path, project: ProjectKey) -> Pointer | None:
    """What is active in a project; None when nothing was ever activated.

    Raises:
        StorageError: the file is damaged or can't be read.
    """
    path = pointer_path(data_dir, project)
    try:
        return _parse(json.loads(read_text(path)), project)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StorageError(
            "the record of the active model version is damaged or can't be read",
            where=str(path),
            expected="the file that `spica models activate` writes",
            got=str(error) or type(error).__name__,
            hint="what answers the project goes on meanwhile; "
            f"`spica models activate VERSION --project {project}` writes it anew",
        ) from error


def pointers(data_dir: Path) -> dict[ProjectKey, Pointer]:
    """What is active, by project.

    Raises:
        StorageError: as :func:`read`, for any of them.
    """
    known = ((project, read(data_dir, project)) for project in projects(data_dir))
    return {project: pointer for project, pointer in known if pointer is not None}


def projects(data_dir: Path) -> list[ProjectKey]:
    """The projects for which something was ever activated, sorted."""
    keys = (ProjectKey.parse(path.stem) for path in (data_dir / "active").glob("*.json"))
    return sorted(key for key in keys if key is not None)


def activate(
    data_dir: Path,
    project: ProjectKey,
    version: str | None,
    *,
    base: str | None,
    why: str,
    by: str,
    expected: str | EllipsisType | None = ...,
) -> Pointer:
    """Make a version the active one of a project. Reads the version's files once, to check them.

    Activating what is active already changes nothing. ``version`` is None for the weights that the server was started
    with, ``base`` the id of the ``--weights`` that the version descends from (without the suffix of a precision; None
    to serve it whatever they are), ``expected`` what must be active still (None for nothing, ``...`` for whatever).

    Raises:
        UsageError: there is no such version.
        WeightsError: it is damaged.
        ActiveChangedError: another version than ``expected`` is active.
        StorageError: it can't be written; what was active stays active.
    """
    with writing(data_dir):
        if version is not None:
            open_version(data_dir, version)
        before = _before(data_dir, project)
        active = before.version if before is not None else None
        if not isinstance(expected, EllipsisType) and active != expected:
            raise ActiveChangedError(
                "another model version has been activated meanwhile",
                where=f"project {project}",
                expected=expected or "none",
                got=active or "none",
                hint="compare the two with `spica models diff`, and activate by hand the one that you want",
            )
        if before is not None and (before.version, before.base) == (version, base):
            return before
        last = before.now if before is not None else _beginning(base)
        history = (last, *(before.previous if before is not None else ()))
        return _write(data_dir, Pointer(project, Step(version, base, _now(), why, by), history[:HISTORY]))


def rollback(data_dir: Path, project: ProjectKey, *, by: str, why: str | None = None) -> Pointer:
    """Make active again what was active before: the last step whose version is still there and sound.

    Steps back are not recorded as steps: a second rollback goes one further back. To undo one, activate by id.

    Raises:
        UsageError: nothing was active before, or none of it is left.
        StorageError: it can't be read or written; what was active stays active.
    """
    with writing(data_dir):
        before = read(data_dir, project)
        left = before.previous if before is not None else ()
        for place, step in enumerate(left):
            if before is None or step.version == before.version or not _is_sound(data_dir, step.version):
                continue
            reason = why or f"rolled back from {before.version or 'the weights of the server'}"
            now = Step(step.version, step.base, _now(), reason, by)
            return _write(data_dir, Pointer(project, now, left[place + 1 :]))
    raise UsageError(
        "there is nothing to go back to",
        where=f"project {project}",
        expected="a version that was active before and is still stored",
        got="nothing was ever activated" if before is None else f"{len(left)} earlier steps, none of them usable",
        hint=f"`spica models list` shows what there is; `spica models activate VERSION --project {project}`",
    )


def resolve(data_dir: Path, project: ProjectKey, base_id: str) -> Resolution:
    """What a server whose ``--weights`` have this id is to serve a project with. Never fails; reads small files alone.

    Open the version with :func:`spica.models.version.open_version` next, which checks every file.
    """
    if not project.created:
        return Resolution(None, f"the requests do not tell which project {project} is meant: when it was created")
    try:
        pointer = read(data_dir, project)
    except StorageError as error:
        return Resolution(None, error.summary, error)
    if pointer is None:
        gone = _why_gone(data_dir)
        return Resolution(None, gone.summary if gone else f"no version was ever activated for project {project}", gone)
    now = pointer.now
    if now.version is None:
        return Resolution(None, f"the weights of the server, since {now.when}: {now.why}")
    if now.base is not None and base_id not in (now.base, now.version):
        return Resolution(
            None,
            f"{now.version} is active, but it was trained from {now.base}, and this server was started with {base_id}: "
            f"its own weights are served. `spica models activate {now.version} --project {project} --any-weights` "
            "serves the version nevertheless",
        )
    try:
        peek(data_dir, now.version)
    except (SpicaError, OSError) as error:
        problem = error if isinstance(error, SpicaError) else _unreadable(error, data_dir / "models" / now.version)
        return Resolution(None, f"{now.version} is active, but can't be served: {problem.summary}", problem)
    return Resolution(now.version, f"active since {now.when}, by {now.by}: {now.why}")


def _why_gone(data_dir: Path) -> StorageError | None:
    """What speaks against "nothing was ever activated": the data folder is gone, as when a shared one is away."""
    try:
        data_dir.stat()
    except OSError as error:
        return _unreadable(error, data_dir)
    return None


def _unreadable(error: OSError, path: Path) -> StorageError:
    return StorageError(
        "a part of the data folder can't be read",
        where=str(path),
        got=error.strerror or type(error).__name__,
        hint="look whether the data folder is there, and can be read",
    )


def _before(data_dir: Path, project: ProjectKey) -> Pointer | None:
    try:
        return read(data_dir, project)
    except StorageError as error:  # the new record takes its place
        logger.warning("what was active in project %s is unknown: %s", project, error.summary)
        return None


def _is_sound(data_dir: Path, version: str | None) -> bool:
    if version is None:
        return True
    try:
        open_version(data_dir, version)
    except (WeightsError, UsageError) as error:
        logger.warning("version %s can't be gone back to: %s", version, error.summary)
        return False
    return True


def _beginning(base: str | None) -> Step:
    return Step(None, base, _now(), "the weights that the server was started with", "spica")


def _write(data_dir: Path, pointer: Pointer) -> Pointer:
    text = json.dumps(pointer.as_json(), ensure_ascii=False, indent=2) + "\n"
    write_text(pointer_path(data_dir, pointer.project), text)
    return pointer


def _parse(entries: Any, project: ProjectKey) -> Pointer:
    if (entries["format"], entries["project"]) != (FORMAT, project.number):
        raise ValueError(f"format {entries['format']!r}, project {entries['project']!r}")
    previous = entries["previous"]
    if not isinstance(previous, list):
        raise TypeError("no list of earlier steps")
    return Pointer(project, _step(entries), tuple(_step(step) for step in previous[:HISTORY]))


def _step(entries: Any) -> Step:
    for name in ("version", "base"):
        if entries[name] is not None and not is_id(entries[name]):
            raise ValueError(f"{name} {entries[name]!r}")
    return Step(entries["version"], entries["base"], str(entries["when"]), str(entries["why"]), str(entries["by"]))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
