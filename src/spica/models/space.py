"""Disk space of the store: what must be kept and why, and what goes when there is too much.

Never deleted by itself: an active version, its parent, the version that a rollback goes back to, the weights that an
active version descends from, a pinned one, one that a server serves, and one that is younger than ten minutes (it may
be on its way to be judged). Of the others, candidates that the gate refused go first, the oldest before; then the
oldest. While it can't be read what is active, nothing is deleted.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from spica.errors import SpicaError, UsageError
from spica.files import discard, remove
from spica.models import active
from spica.models.card import is_id
from spica.models.listing import Listed, caches_of, list_versions, pinned
from spica.models.locks import is_held, writing
from spica.models.version import find_version, folder_of, peek

logger = logging.getLogger(__name__)

YOUNG_S = 600.0
"""Between being made and being judged and activated, a version has this many seconds in which nothing is deleted."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a version is not deleted, and how it could be; "" where it does not stand in a person's way."""

    why: str
    how: str = ""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was deleted for want of space.

    Attributes:
        deleted: the versions, in the order in which they went.
        left_bytes: what the versions that are left take, caches included.
        limit: what they may take.
        problems: what could not be deleted, a sentence each.
    """

    deleted: tuple[Listed, ...]
    left_bytes: int
    limit: int
    problems: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """One sentence for the log and for people; "" when there was nothing to do."""
        sentences = []
        if self.deleted:
            names = ", ".join(version.id for version in self.deleted)
            freed = sum(version.bytes for version in self.deleted) / 2**20
            sentences.append(f"deleted {len(self.deleted)} model versions ({freed:.0f} MB) for want of space: {names}")
        if self.left_bytes > self.limit:
            sentences.append(
                f"the model versions that must be kept take {self.left_bytes / 2**20:.0f} MB, more than the "
                f"{self.limit / 2**20:.0f} MB of SPICA_MODELS_BYTES: raise it, unpin some, or move some away with "
                "`spica models export` and `spica models delete`"
            )
        return "; ".join([*sentences, *self.problems])


def prune(data_dir: Path, limit: int, *, keep: Collection[str] = (), young_s: float = YOUNG_S) -> Pruned:
    """Delete versions, with their caches, until the rest takes at most ``limit`` bytes or must be kept.

    ``keep`` are ids of versions that the caller is working with; versions younger than ``young_s`` seconds stay too.

    Raises:
        StorageError: it can't be read what is active, or the folder can't be locked; nothing was deleted.
    """
    if not (data_dir / "models").is_dir():
        return Pruned((), 0, limit)
    with writing(data_dir):
        versions = list_versions(data_dir)
        left = sum(version.bytes for version in versions)
        if left <= limit:
            return Pruned((), left, limit)
        kept = {*holds(data_dir, young_s=young_s), *keep}
        deleted: list[Listed] = []
        problems: list[str] = []
        for version in sorted(versions, key=lambda row: (not row.refused, row.created, row.id)):
            if left > limit and version.id not in kept:
                try:
                    _remove(data_dir, version.id)
                except SpicaError as error:
                    problems.append(error.summary)
                    continue
                deleted.append(version)
                left -= version.bytes
    pruned = Pruned(tuple(deleted), left, limit, tuple(problems))
    logger.log(logging.WARNING if left > limit else logging.INFO, "%s", pruned.message)
    return pruned


def delete(data_dir: Path, version: str, *, dry_run: bool = False) -> Listed:
    """Delete one version, with its caches, because a person wants it; or see, with ``dry_run``, whether that may be.

    Returns:
        What it was.

    Raises:
        UsageError: there is no such version, or it is active, a parent of an active one, pinned, or being served.
        StorageError: it can't be deleted, or it can't be read what is active.
    """
    with writing(data_dir):
        find_version(data_dir, version)
        kept = [hold for hold in holds(data_dir).get(version, ()) if hold.how]
        if kept:
            raise UsageError(
                "this model version is needed, so it was not deleted",
                where=str(folder_of(data_dir, version)),
                got="; ".join(hold.why for hold in kept),
                hint="; then ".join(hold.how for hold in kept),
            )
        listed = next(row for row in list_versions(data_dir) if row.id == version)
        if not dry_run:
            _remove(data_dir, version)
    return listed


def holds(data_dir: Path, *, young_s: float = YOUNG_S) -> dict[str, list[Hold]]:
    """Why versions must be kept, by id; versions that nothing holds are not in it. Call it while writing is locked.

    Raises:
        StorageError: it can't be read what is active.
    """
    kept: dict[str, list[Hold]] = {}

    def hold(version: str | None, why: str, how: str = "") -> None:
        if version is not None:
            kept.setdefault(version, []).append(Hold(why, how))

    for project, pointer in active.pointers(data_dir).items():
        path = active.pointer_path(data_dir, project)
        other = f"`spica models rollback --project {project}`, or activate another version"
        other += f"; if that project is gone, delete {path}"
        parent = _parent(data_dir, pointer.version)
        hold(pointer.version, f"it is active in project {project}", other)
        hold(parent, f"it is the parent of {pointer.version}, which is active in project {project}", other)
        hold(pointer.base, f"what is active in project {project} descends from it")
        hold(pointer.previous[0].version if pointer.previous else None, f"project {project} can roll back to it")
    for version in pinned(data_dir):
        hold(version, "it is pinned", f"`spica models unpin {version}`")
    now = time.time()
    for row in list_versions(data_dir):
        if is_held(data_dir, row.id):
            hold(row.id, "a server has it loaded", "stop the server, or have it serve another version")
        with contextlib.suppress(OSError):
            if now - folder_of(data_dir, row.id).stat().st_mtime < young_s:
                hold(row.id, "it was made just now")
    return kept


def _parent(data_dir: Path, version: str | None) -> str | None:
    if version is None:
        return None
    try:
        parent = peek(data_dir, version).parent
    except SpicaError:  # missing or damaged: it can't name its parent any more
        return None
    return parent if is_id(parent) else None


def _remove(data_dir: Path, version: str) -> None:
    """The caches first: a kill between the two leaves a version without caches, never caches without a version."""
    for cache in caches_of(data_dir, version):
        remove(cache)
    discard(folder_of(data_dir, version))
