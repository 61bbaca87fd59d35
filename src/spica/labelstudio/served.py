"""The folder that Label Studio serves local files from: nothing lies in it but links to folders of photographs.

Whoever has an account may add any folder below Label Studio's document root as a local storage and read it. The folder
that tasks' addresses are relative to, the parent of the photographs, holds more: Spica's own data with the password and
the database, often a whole home. So Label Studio is given another one as its root, in which only the photographs'
folders appear, under the same relative names: the addresses stay what they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import sys
from pathlib import Path

import platformdirs

from spica.errors import StorageError
from spica.files import write_text
from spica.labelstudio.data_folder import DATABASE_NAME, LOCK_NAME, PRIVATE
from spica.locks import Lock

_NAME = "served"
_RECORD = "served.txt"
"""Where the local storages in Label Studio's database were found last, should the data folder be moved since."""


class ServedFolder:
    """The links of one data folder.

    Args:
        data_dir: of ``spica up``, absolute.
        root: the folder that the tasks' addresses are relative to, absolute.
        photographs: a folder below ``root`` that is to be served.

    Attributes:
        path: what Label Studio gets as its document root.

    Raises:
        StorageError: no link can be made, neither in the data folder nor in the user's.
    """

    def __init__(self, data_dir: Path, root: Path, photographs: Path) -> None:
        self._data_dir = data_dir
        self._root = root
        self._photographs = photographs
        key = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
        users = Path(platformdirs.user_data_dir("spica", appauthor=False)) / _NAME / key
        # A data folder on a stick that knows no links (FAT, exFAT) has them in the user's own.
        for place in (data_dir / _NAME, users):
            self.path = place
            try:
                self._link(photographs)
                return
            except OSError as error:
                got = str(error)
        raise StorageError(
            "the photographs' folder can't be linked to, so Label Studio can't serve it",
            where=str(photographs),
            expected="a folder on a disk of this machine",
            got=got,
            hint="copy the photographs to a disk of this machine, or choose another --data-dir",
        )

    def within(self, folder: Path) -> Path:
        """Where a folder below the addresses' root appears to Label Studio."""
        return self.path / folder.relative_to(self._root)

    def take_over(self, label_studio_dir: Path) -> list[str]:
        """Let the local storages that a stopped Label Studio knows lie below this folder, in one transaction.

        Without it, those of a data folder that was made before would be outside of the root, and each photograph
        would become a second task.

        Returns:
            What is served beside the photographs, and what is not any more, a line each. Nothing happens while a
            Label Studio of Spica's runs there.

        Raises:
            StorageError: the database can't be changed; it is as it was.
        """
        database, lock = label_studio_dir / DATABASE_NAME, Lock(label_studio_dir / LOCK_NAME)
        if not database.exists() or not lock.acquire():
            return []
        try:
            with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection, connection:
                notes = self._move_storages(connection)
            write_text(self._data_dir / _RECORD, str(self.path), PRIVATE)
            return notes
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):  # its first start was cut short
                return []
            raise StorageError(
                "Label Studio's database can't be changed", where=str(database), got=str(error)
            ) from None
        except sqlite3.DatabaseError:  # damaged: Label Studio itself says so, with what to do
            return []
        finally:
            lock.release()

    def _move_storages(self, connection: sqlite3.Connection) -> list[str]:
        notes = []
        record = self._data_dir / _RECORD
        before = Path(record.read_text("utf-8")) if record.exists() else self.path
        rows = connection.execute("SELECT id, path FROM io_storages_localfilesmixin WHERE path IS NOT NULL").fetchall()
        for storage, path in rows:
            # The links' folder may itself lie below the root, so it comes first.
            place = next((root for root in (self.path, before, self._root) if root in Path(path).parents), None)
            if place is None:
                continue
            relative = Path(path).relative_to(place)
            real, now = self._root / relative, self.path / relative
            if self._data_dir.is_relative_to(real) or real.is_relative_to(self._data_dir):
                notes.append(f"the local storage {path} is not served any more, for Spica's own data lies there")
                continue
            if str(now) == path:
                continue
            if place == self._root and real != self._photographs and real.is_dir():
                # Never for what is below the links already: anybody may have added a folder that only holds links.
                self._link(real)
                notes.append(f"the folder of another local storage is served as before: {real}")
            connection.execute("UPDATE io_storages_localfilesmixin SET path = ? WHERE id = ?", (str(now), storage))
            connection.execute(
                "UPDATE io_storages_localfilesimportstoragelink SET key = ? || substr(key, ?) "
                "WHERE storage_id = ? AND substr(key, 1, ?) = ?",
                (str(now), len(path) + 1, storage, len(path), path),
            )
        return notes

    def _link(self, folder: Path) -> None:
        """Let a folder appear, if it does not yet.

        Raises:
            OSError: this disk knows no links, or it can't be written.
        """
        link = self.within(folder)
        if link.resolve() == folder.resolve():  # itself, or one above it, is linked already
            return
        if os.path.lexists(link):
            _remove_links(link)
        link.parent.mkdir(parents=True, exist_ok=True)
        if sys.platform == "win32":
            import _winapi  # a junction needs no rights of an administrator's

            with contextlib.suppress(OSError):
                _winapi.CreateJunction(str(folder), str(link))
                return
        link.symlink_to(folder, target_is_directory=True)


def _remove_links(path: Path) -> None:
    """Remove a link, or a folder of links; never what they lead to, nor a file.

    Raises:
        OSError: something else is there.
    """
    try:
        path.readlink()
    except OSError:
        for inner in path.iterdir():
            _remove_links(inner)
        path.rmdir()
    else:
        path.unlink()
