"""Small text files that are replaced whole: a reader sees the old one or the new one, never a part."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

from spica.detectors.scratch import patiently, storage_error


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by a file with this text, which is on the disk before it gets its name.

    Readable by whoever may read the folder: several servers, maybe of several users, share it.

    Raises:
        StorageError: it can't be written; what was there before is still there.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("x", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            patiently(lambda: aside.replace(path))
        finally:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error(error, path) from error


def read_text(path: Path) -> str:
    """The text of a file that others may be replacing.

    Raises:
        OSError: it is missing or can't be read.
        UnicodeDecodeError: it is not text.
    """
    return patiently(lambda: path.read_text("utf-8"))


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
