"""Pinned versions: kept whatever happens, until somebody lets them go. An empty file each: none can be half-written."""

from __future__ import annotations

from pathlib import Path

from spica.files import storage_error
from spica.models.folders import is_id, peek


def pin(data_dir: Path, version: str) -> None:
    """Keep a version; twice is once.

    Raises:
        UsageError: there is no such version.
        WeightsError: it is damaged.
        StorageError: it can't be written.
    """
    peek(data_dir, version)
    path = _folder(data_dir) / version
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
    path = _folder(data_dir) / version
    if not is_id(version) or not path.is_file():
        return False
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, path) from error
    return True


def pinned(data_dir: Path) -> frozenset[str]:
    """Ids of the pinned versions."""
    folder = _folder(data_dir)
    return frozenset(path.name for path in folder.iterdir() if is_id(path.name)) if folder.is_dir() else frozenset()


def _folder(data_dir: Path) -> Path:
    return data_dir / "pins"
