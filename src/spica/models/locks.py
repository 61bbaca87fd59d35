"""Locks that the system itself lets go when their holder ends, however that happens.

One writer at a time changes what is active or deletes versions (:func:`writing`); every server that serves a version
holds a lease on it (:func:`hold`), so that nobody deletes it under its feet. Readers take no lock.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from spica.errors import SpicaError, StorageError
from spica.files import storage_error

logger = logging.getLogger(__name__)

_PAUSE_S = 0.02
_WAIT_S = 30.0
"""A writer holds the lock for as long as it takes to check one version's digests, or to move some folders away."""


@contextlib.contextmanager
def writing(data_dir: Path, wait_s: float = _WAIT_S) -> Iterator[None]:
    """The right to change what is active and to delete versions; waits for whoever has it. Not to be nested.

    Raises:
        StorageError: somebody has it for longer than ``wait_s`` seconds, or the folder has no locks.
    """
    with alone(data_dir / "active" / "store.lock", "the store of models", wait_s=wait_s):
        yield


@contextlib.contextmanager
def alone(path: Path, what: str, *, wait_s: float) -> Iterator[None]:
    """The right to change something; waits for whoever has it. Not to be nested.

    Args:
        path: of the lock's file, which is made and left there.
        what: is changed, for the message.
        wait_s: at most so many seconds.

    Raises:
        StorageError: somebody has it for longer, or the folder has no locks.
    """
    handle = _open(path)
    try:
        until = time.monotonic() + wait_s
        while not _try_lock(handle, path):
            if time.monotonic() >= until:
                raise StorageError(
                    f"another process is changing {what}",
                    where=str(path.parent),
                    hint="try again when it has ended",
                )
            time.sleep(_PAUSE_S)
        yield
    finally:
        os.close(handle)


class Lease:
    """A version is being served: it is not deleted until :meth:`close`. From :func:`hold`."""

    def __init__(self, path: Path | None, handle: int | None) -> None:
        self._path = path
        self._handle = handle

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the version go; twice is fine."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            self._path = None


def hold(data_dir: Path, version: str) -> Lease:
    """A lease on a version. Take it first, then open the version.

    In a data folder that can't be written or locked the lease protects nothing, with a word in the log: serving goes
    on.
    """
    path = _leases(data_dir, version) / f"{os.getpid()}-{uuid.uuid4().hex}.lock"
    try:
        with writing(data_dir):  # else a lease that is made just now would look like one that was left behind
            handle = _open(path)
            _try_lock(handle, path)
    except SpicaError as error:
        logger.warning("others can't see that version %s is served here: %s", version, error.summary)
        return Lease(None, None)
    return Lease(path, handle)


def is_held(data_dir: Path, version: str) -> bool:
    """Whether a living process holds a lease on a version. Call it while :func:`writing`; removes dead leases."""
    folder = _leases(data_dir, version)
    held = False
    for path in sorted(folder.glob("*.lock")):
        handle = _open(path)
        try:
            free = _try_lock(handle, path)
        finally:
            os.close(handle)
        if free:
            with contextlib.suppress(OSError):
                path.unlink()
        held = held or not free
    if not held:
        with contextlib.suppress(OSError):
            folder.rmdir()
    return held


def _leases(data_dir: Path, version: str) -> Path:
    return data_dir / "leases" / version


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise storage_error(error, path) from error


def _try_lock(handle: int, path: Path) -> bool:
    try:
        _lock(handle)
    except (BlockingIOError, PermissionError):  # held by somebody else, in the words of POSIX and of Windows
        return False
    except OSError as error:
        raise StorageError(
            "the data folder can't be locked",
            where=str(path),
            got=error.strerror or type(error).__name__,
            hint="give a folder on a local disk with --data-dir; some network file systems have no locks",
        ) from error
    return True


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
