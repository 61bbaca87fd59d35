"""Folders that are built aside and then put in place whole, so that nobody ever reads half of one."""

from __future__ import annotations

import contextlib
import errno
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from spica.errors import StorageError

_PREFIX = ".tmp-"
_ABANDONED_S = 24 * 3600


@contextlib.contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A new folder in ``parent``, removed at the end unless it was renamed; what others abandoned is removed first.

    Raises:
        StorageError: the folder can't be made.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = parent / f"{_PREFIX}{uuid.uuid4().hex}"  # not by tempfile, whose folders nobody else may read
        folder.mkdir()
    except OSError as error:
        raise storage_error(error, parent) from error
    _sweep(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(folder: Path, target: Path) -> bool:
    """Give a scratch folder its name; False if there is one of that name already, which is left alone."""
    if target.exists():  # Windows and POSIX differ in whether renaming onto an empty folder works
        return False
    try:
        folder.rename(target)
    except OSError as error:
        if target.exists():
            return False
        raise storage_error(error, target) from error
    return True


def discard(folder: Path) -> None:
    """Remove a folder at one stroke: nobody sees it half removed.

    Raises:
        StorageError: it can't be moved away.
    """
    with scratch(folder.parent) as aside:
        try:
            folder.rename(aside / folder.name)
        except FileNotFoundError:
            return
        except OSError as error:
            raise storage_error(error, folder) from error


def storage_error(error: OSError, where: Path) -> StorageError:
    """The error of a file that could not be written, with what to do about it."""
    hints = {
        errno.ENOSPC: "free some space, or choose another folder with --data-dir",
        errno.EACCES: "let yourself write there, or choose another folder with --data-dir",
        errno.EPERM: "let yourself write there, or choose another folder with --data-dir",
        errno.EROFS: "choose a folder that can be written with --data-dir",
    }
    return StorageError(
        "a file could not be written",
        where=str(where),
        got=error.strerror or type(error).__name__,
        hint=hints.get(error.errno or 0, "choose another folder with --data-dir"),
    )


def _sweep(parent: Path) -> None:
    """Remove what a killed process left behind."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another process may be removing it
            if time.time() - folder.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(folder, ignore_errors=True)
