"""The versions of a store, a line each, damaged ones included; and which of them are pinned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spica.errors import SpicaError, StorageError
from spica.files import storage_error
from spica.models import active
from spica.models.card import Card, is_id
from spica.models.version import folder_of, ids, peek
from spica.project import ProjectKey


@dataclass(frozen=True, slots=True)
class Use:
    """A project that a version is active for, since when, and why."""

    project: ProjectKey
    when: str
    why: str
    by: str


@dataclass(frozen=True, slots=True)
class Listed:
    """A version, as far as its card and the store say without reading all of its bytes.

    Attributes:
        id: its name in the store.
        created: ISO 8601, UTC; the folder's own time where the card is damaged or says nothing.
        parent: id of the version it was trained from, None for weights that came from elsewhere.
        base: id of the weights that its line began with.
        architecture: torchvision's name, or Spica's own; "" where the card is damaged.
        classes: names by class id.
        images: how many images it learned from, None if unknown.
        boxes: how many boxes it learned from, None if unknown.
        metrics: measured on the hold-out, by name; empty if it was never measured.
        verdict: of the gate, ``passed`` or ``refused``; None before it was judged, and for weights from elsewhere.
        active: the projects that it is active for, and why.
        pinned: whether it is kept until somebody lets it go.
        bytes: on the disk, its caches included.
        damaged: why it can't be used, None for a sound one.
    """

    id: str
    created: str
    parent: str | None = None
    base: str | None = None
    architecture: str = ""
    classes: tuple[str, ...] = ()
    images: int | None = None
    boxes: int | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    verdict: str | None = None
    active: tuple[Use, ...] = ()
    pinned: bool = False
    bytes: int = 0
    damaged: str | None = None

    @property
    def refused(self) -> bool:
        """Whether the gate has refused it."""
        return self.verdict == "refused"

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        uses = [{**asdict(use), "project": use.project.number, "created": use.project.created} for use in self.active]
        return {**asdict(self), "active": uses}


def list_versions(data_dir: Path) -> list[Listed]:
    """All versions in the store, the newest first; none of their bytes but the cards are read."""
    uses, kept = _uses(data_dir), pinned(data_dir)
    rows = [_listed(data_dir, name, tuple(uses.get(name, ())), is_pinned=name in kept) for name in ids(data_dir)]
    return sorted(rows, key=lambda row: (row.created, row.id), reverse=True)


def holdout_of(card: Card) -> dict[str, Any]:
    """What was measured on the hold-out: ``metrics.holdout`` if there is such an entry, else the numbers themselves."""
    holdout = card.metrics.get("holdout")
    if isinstance(holdout, Mapping):
        return dict(holdout)
    return {name: value for name, value in card.metrics.items() if isinstance(value, int | float)}


def verdict_of(card: Card) -> str | None:
    """``passed`` or ``refused``, as ``accepted`` in the gate's record says; None before it was judged."""
    gate = card.gate or {}
    accepted = gate.get("accepted", gate.get("passed"))
    if not isinstance(accepted, bool):
        return None
    return "passed" if accepted else "refused"


def caches_of(data_dir: Path, version: str) -> list[Path]:
    """Folders of compiled graphs of a version, and of no other whose id only begins like it."""
    longer = [f"{name}-" for name in ids(data_dir) if name.startswith(f"{version}-")]
    folders = [path for path in (data_dir / "cache").glob(f"{version}-*") if path.is_dir()]
    return [path for path in folders if not any(f"{path.name}-".startswith(other) for other in longer)]


def pin(data_dir: Path, version: str) -> None:
    """Keep a version until somebody lets it go; an empty file each, so that none can be half-written.

    Raises:
        UsageError: there is no such version.
        WeightsError: it is damaged.
        StorageError: it can't be written.
    """
    peek(data_dir, version)
    path = data_dir / "pins" / version
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise storage_error(error, path) from error


def unpin(data_dir: Path, version: str) -> bool:
    """Let a version go; False if it was not pinned.

    Raises:
        StorageError: it can't be written.
    """
    path = data_dir / "pins" / version
    if not is_id(version) or not path.is_file():
        return False
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, path) from error
    return True


def pinned(data_dir: Path) -> frozenset[str]:
    """Ids of the pinned versions."""
    folder = data_dir / "pins"
    return frozenset(path.name for path in folder.iterdir() if is_id(path.name)) if folder.is_dir() else frozenset()


def _uses(data_dir: Path) -> dict[str, list[Use]]:
    uses: dict[str, list[Use]] = {}
    for project in active.projects(data_dir):
        try:
            pointer = active.read(data_dir, project)
        except StorageError:  # said by whoever reads the pointer itself
            continue
        if pointer is not None and pointer.version is not None:
            now = pointer.now
            uses.setdefault(pointer.version, []).append(Use(project, now.when, now.why, now.by))
    return uses


def _listed(data_dir: Path, version: str, uses: tuple[Use, ...], *, is_pinned: bool) -> Listed:
    folder = folder_of(data_dir, version)
    used = sum(_size(path) for path in (folder, *caches_of(data_dir, version)))
    try:
        card = peek(data_dir, version)
    except SpicaError as error:  # damaged, or deleted this moment
        return Listed(version, _time(folder), active=uses, pinned=is_pinned, bytes=used, damaged=error.summary)
    training = card.training if isinstance(card.training, Mapping) else {}
    return Listed(
        id=version,
        created=card.created if isinstance(card.created, str) else _time(folder),
        parent=card.parent if isinstance(card.parent, str) else None,
        base=card.base if isinstance(card.base, str) else None,
        architecture=card.architecture,
        classes=card.classes,
        images=_count(training.get("images")),
        boxes=_count(training.get("boxes")),
        metrics=holdout_of(card),
        verdict=verdict_of(card),
        active=uses,
        pinned=is_pinned,
        bytes=used,
    )


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if not path.is_dir() else 0
        except OSError:  # a cache that changes meanwhile
            continue
    return total


def _time(folder: Path) -> str:
    try:
        when = folder.stat().st_mtime
    except OSError:
        return ""
    return datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds")


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
