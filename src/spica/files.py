"""Files and folders that appear whole: written aside, flushed to the disk, then renamed into place."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from spica.errors import StorageError

_PREFIX = ".tmp-"
_ABANDONED_S = 24 * 3600
_PATIENCE_S = 3.0
_PAUSE_S = 0.02

_T = TypeVar("_T")


@contextlib.contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """A path beside ``path`` to write the new content to; on leaving it takes the name, flushed to the disk.

    If the block raises, ``path`` stays as it was.

    Args:
        path: the file; its folder is made.
        mode: permissions of a new file, less the umask; 0o600 for secrets.

    Raises:
        StorageError: the disk does not take it; what was there before is still there.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        try:
            yield aside
            with aside.open("r+b") as file:  # Windows flushes only what may be written
                os.fsync(file.fileno())
            patiently(lambda: aside.replace(path))
        finally:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error(error, path) from error


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Replace a file by one with this text, as UTF-8 with Unix line ends.

    Raises:
        StorageError: the disk does not take it; what was there before is still there.
    """
    with replacing(path, mode) as aside:
        aside.write_text(text, "utf-8", newline="\n")


def read_text(path: Path) -> str:
    """The text of a file that others may be replacing.

    Raises:
        OSError: it is missing or can't be read.
        UnicodeDecodeError: it is not text.
    """
    return patiently(lambda: path.read_text("utf-8"))


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        remove(folder)


def put_in_place(folder: Path, target: Path) -> bool:
    """Give a scratch folder its name; False if there is one of that name already, which is left alone."""
    if target.exists():  # Windows and POSIX differ in whether renaming onto an empty folder works
        return False
    try:
        patiently(lambda: folder.rename(target))
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
            patiently(lambda: folder.rename(aside / folder.name))
        except FileNotFoundError:
            return
        except OSError as error:
            raise storage_error(error, folder) from error


def remove(folder: Path) -> None:
    """Remove a folder with all that is in it, as far as that is possible.

    Read-only files too, as OpenVINO's compiled models are: Windows removes none, POSIX none in a read-only folder.
    """
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(OSError):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | stat.S_IRWXU)
    try:
        patiently(lambda: shutil.rmtree(folder))
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)


def sync(folder: Path) -> None:
    """Have the files of a folder on the disk, before the folder is given a name by which they are found.

    Raises:
        StorageError: the disk does not take them.
    """
    try:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                with path.open("r+b") as file:  # Windows syncs only what may be written
                    os.fsync(file.fileno())
    except OSError as error:
        raise storage_error(error, folder) from error
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Have the new name on the disk too; Windows has no such thing, and does it on its own."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def patiently(act: Callable[[], _T]) -> _T:
    """What ``act`` gives. Windows refuses to replace, rename or open what somebody else has open at that moment."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return act()
        except PermissionError:
            if os.name != "nt" or time.monotonic() >= until:
                raise
        time.sleep(_PAUSE_S)


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
                remove(folder)
