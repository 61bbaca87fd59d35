"""Who may change the store of models, and which versions are being served.

One writer at a time changes what is active or deletes versions (:func:`writing`); every server that serves a version
holds a lease on it (:func:`hold`), so that nobody deletes it under its feet. Readers take no lock.
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from spica.errors import SpicaError
from spica.locks import Lock, exclusive

logger = logging.getLogger(__name__)

_WAIT_S = 30.0
"""A writer holds the lock for as long as it takes to check one version's digests, or to move some folders away."""


@contextlib.contextmanager
def writing(data_dir: Path, wait_s: float = _WAIT_S) -> Iterator[None]:
    """The right to change what is active and to delete versions; waits for whoever has it. Not to be nested.

    Raises:
        StorageError: somebody has it for longer than ``wait_s`` seconds, or the folder has no locks.
    """
    with exclusive(data_dir / "active" / "store.lock", "the store of models", wait_s=wait_s):
        yield


@contextlib.contextmanager
def hold(data_dir: Path, version: str) -> Iterator[None]:
    """A lease: the version is being served, and is not deleted meanwhile. Take it first, then open the version.

    In a data folder that can't be written or locked the lease protects nothing, with a word in the log: serving goes
    on.
    """
    lease = Lock(leases_of(data_dir, version) / f"{os.getpid()}-{uuid.uuid4().hex}.lock")
    try:
        with writing(data_dir):  # else a lease that is made just now would look like one that was left behind
            lease.acquire()
    except SpicaError as error:
        logger.warning("others can't see that version %s is served here: %s", version, error.summary)
    try:
        yield
    finally:
        lease.release()
        with contextlib.suppress(OSError):
            lease.path.unlink(missing_ok=True)


def is_held(data_dir: Path, version: str) -> bool:
    """Whether a living process holds a lease on a version. Call it while :func:`writing`; removes dead leases."""
    folder = leases_of(data_dir, version)
    held = False
    for path in sorted(folder.glob("*.lock")):
        lease = Lock(path)
        if not lease.acquire():
            held = True
            continue
        lease.release()
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    if not held:
        with contextlib.suppress(OSError):
            folder.rmdir()
    return held


def leases_of(data_dir: Path, version: str) -> Path:
    """The folder of a version's leases, a file for each process that serves it."""
    return data_dir / "leases" / version
