from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from spica.errors import StorageError
from spica.locks import Lock, exclusive

HOLDER = """
import sys, time
from pathlib import Path
from spica.locks import Lock
lock = Lock(Path(sys.argv[1])); lock.acquire()
print("held", flush=True); time.sleep(600)
"""


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    """Only one holds a lock; letting go, twice too, frees it."""
    first, second = Lock(tmp_path / "a" / "x.lock"), Lock(tmp_path / "a" / "x.lock")
    assert first.acquire()
    assert first.acquire()
    assert not second.acquire()
    first.release()
    first.release()
    assert second.acquire()
    second.release()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    """Whoever is killed holds nothing."""
    lock = Lock(tmp_path / "x.lock")
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(lock.path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == b"held"
        assert not lock.acquire()
        with pytest.raises(StorageError, match="another process is changing it"), exclusive(lock.path, "it", wait_s=0):
            pass
        holder.kill()
    assert lock.acquire(wait_s=5)
    lock.release()


def test_a_folder_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without locks nothing else is taken for one, and the message says what to do."""
    fcntl = pytest.importorskip("fcntl", reason="POSIX's locks")

    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StorageError, match="can't be locked") as refused:
        Lock(tmp_path / "x.lock").acquire()
    assert "--data-dir" in (refused.value.hint or "")
