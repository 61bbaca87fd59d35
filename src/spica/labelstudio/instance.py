"""Which Label Studio runs in a data folder: its state file, and the lock that keeps it the only one."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from spica.errors import LaunchError
from spica.labelstudio.credentials import write_private

STATE_NAME = "label-studio.json"
LOCK_NAME = "label-studio.lock"


@dataclass(frozen=True, slots=True)
class RunningState:
    """What the state file says about a running Label Studio. It may be stale: ask the server itself.

    Attributes:
        pid: of the server's process.
        url: where it answers.
        started: ISO 8601, UTC.
        document_root: that the addresses of local files are relative to.
        served_root: what it was given as its document root, if that is another one, with links; else "".
    """

    pid: int
    port: int
    url: str
    started: str
    document_root: str
    served_root: str = ""

    @classmethod
    def now(
        cls, *, pid: int, port: int, url: str, document_root: Path, served_root: Path | None = None
    ) -> RunningState:
        """The state of a server that is started at this moment."""
        started = datetime.now(UTC).isoformat(timespec="seconds")
        served = "" if served_root is None else str(served_root)
        return cls(pid, port, url, started, str(document_root), served)

    @classmethod
    def read(cls, data_dir: Path) -> RunningState | None:
        """From a data folder; None when there is no state file or it can't be understood."""
        try:
            body = json.loads((data_dir / STATE_NAME).read_text(encoding="utf-8"))
            return cls(
                pid=int(body["pid"]),
                port=int(body["port"]),
                url=str(body["url"]),
                started=str(body["started"]),
                document_root=str(body["document_root"]),
                served_root=str(body.get("served_root", "")),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, data_dir: Path) -> None:
        """Into a data folder, atomically."""
        write_private(data_dir / STATE_NAME, json.dumps(asdict(self), indent=2) + "\n")


class FolderLock:
    """A lock on a folder that the system itself lets go when its holder ends, however that happens."""

    def __init__(self, folder: Path, name: str = LOCK_NAME) -> None:
        self._path = folder / name
        self._handle: int | None = None

    def acquire(self) -> bool:
        """Take the lock if nobody has it; True when it is held now.

        Raises:
            LaunchError: the folder can't be written, or can't hold locks.
        """
        if self._handle is not None:
            return True
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise LaunchError(
                "the data folder can't be written",
                where=str(self._path),
                got=str(error),
                hint="free space, or give a folder of your own with --data-dir",
            ) from error
        try:
            _lock(handle)
        except (BlockingIOError, PermissionError):  # held by somebody else, in the words of POSIX and of Windows
            os.close(handle)
            return False
        except OSError as error:
            os.close(handle)
            raise LaunchError(
                "the data folder can't be locked",
                where=str(self._path),
                got=str(error),
                hint="give a folder on a local disk with --data-dir; some network file systems have no locks",
            ) from error
        self._handle = handle
        return True

    def release(self) -> None:
        """Let the lock go; without it held, nothing happens."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
