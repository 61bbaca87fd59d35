"""File locks that the system itself lets go when their holder ends, however that happens."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from spica.errors import StorageError
from spica.files import storage_error

_PAUSE_S = 0.02
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class Lock:
    """A lock on a file, which is made and left there; one holder at a time, among threads and processes alike."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # without flock the library would take a marker for the lock, which outlives whoever is killed
        self._lock = FileLock(path, thread_local=False, fallback_to_soft=False, poll_interval=_PAUSE_S)

    def acquire(self, wait_s: float = 0.0) -> bool:
        """Take the lock, waiting at most ``wait_s`` seconds for whoever has it; True when it is held now.

        Raises:
            StorageError: the folder can't be written, or can't hold locks.
        """
        if self._lock.is_locked:
            return True
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=wait_s)
        except Timeout:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise storage_error(error, self.path) from error
            raise StorageError(
                "the data folder can't be locked",
                where=str(self.path),
                got=error.strerror or type(error).__name__,
                hint="give a folder on a local disk with --data-dir; some network file systems have no locks",
            ) from error
        return True

    def release(self) -> None:
        """Let the lock go; without it held, nothing happens."""
        self._lock.release()


@contextlib.contextmanager
def exclusive(path: Path, what: str, *, wait_s: float) -> Iterator[None]:
    """The right to change something; waits for whoever has it. Not to be nested.

    Args:
        path: of the lock's file.
        what: is changed, for the message.
        wait_s: at most so many seconds.

    Raises:
        StorageError: somebody has it for longer, or the folder has no locks.
    """
    lock = Lock(path)
    if not lock.acquire(wait_s):
        raise StorageError(
            f"another process is changing {what}", where=str(path.parent), hint="try again when it has ended"
        )
    try:
        yield
    finally:
        lock.release()
