"""Which Label Studio runs in a data folder: its state file; the lock beside it keeps it the only one."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

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
