"""The folder that Label Studio serves from, and the storages of a database from before there was one."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

import pytest

from spica.errors import StorageError
from spica.labelstudio.data_folder import DATABASE_NAME, LOCK_NAME
from spica.labelstudio.served import ServedFolder
from spica.locks import Lock


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder with photographs beside other things, and Spica's data."""
    home = tmp_path / "ホーム"
    for name in ("photos/圃場 A", "field/photos", "field/notes", "spica-data/label-studio", ".ssh"):
        (home / name).mkdir(parents=True)
    (home / "photos" / "圃場 A" / "a.jpg").write_bytes(b"photograph")
    return home


def database(home: Path, *paths: Path) -> Path:
    """Label Studio's tables about local storages: one with a photograph for each path."""
    path = home / "spica-data" / "label-studio" / DATABASE_NAME
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE io_storages_localfilesmixin (id integer PRIMARY KEY, path text NULL)")
        connection.execute("CREATE TABLE io_storages_localfilesimportstoragelink (key text, storage_id integer)")
        for number, folder in enumerate(paths, 1):
            connection.execute("INSERT INTO io_storages_localfilesmixin VALUES (?, ?)", (number, str(folder)))
            key = str(folder / "圃場 A" / "a.jpg")
            connection.execute("INSERT INTO io_storages_localfilesimportstoragelink VALUES (?, ?)", (key, number))
        connection.execute("INSERT INTO io_storages_localfilesmixin VALUES (99, NULL)")
    connection.close()
    return path


def stored(path: Path) -> list[tuple[str, str]]:
    """Each storage's path, and its photograph's."""
    connection = sqlite3.connect(path)
    query = (
        "SELECT path, key FROM io_storages_localfilesmixin JOIN io_storages_localfilesimportstoragelink "
        "ON id = storage_id ORDER BY id"
    )
    rows = connection.execute(query).fetchall()
    connection.close()
    return rows


def served(home: Path, photographs: str = "photos", data_dir: str = "spica-data") -> ServedFolder:
    return ServedFolder(home / data_dir, home, home / photographs)


def test_nothing_but_the_photographs_is_there(home: Path) -> None:
    """They appear under the name that their tasks' addresses have; nothing else of the home does."""
    folder = served(home)
    assert [each.name for each in folder.path.iterdir()] == ["photos"]
    assert (folder.within(home / "photos") / "圃場 A" / "a.jpg").read_bytes() == b"photograph"
    served(home)  # twice is fine
    assert [each.name for each in folder.path.iterdir()] == ["photos"]


def test_a_folder_above_one_that_is_served_takes_its_place(home: Path) -> None:
    """Its link replaces that of the sub-folder; what they lead to stays."""
    served(home, "field/photos")
    folder = served(home, "field")
    assert folder.within(home / "field").resolve() == (home / "field").resolve()
    served(home, "field/photos")
    assert sorted(each.name for each in (home / "field").iterdir()) == ["notes", "photos"]


def test_a_file_in_the_way_is_never_removed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own folder serves instead, as where the disk knows no links."""
    monkeypatch.setattr("platformdirs.user_data_dir", lambda *_, **__: str(home / "user"))
    (home / "spica-data" / "served").mkdir()
    (home / "spica-data" / "served" / "photos").write_text("mine")
    folder = served(home)
    assert folder.path.is_relative_to(home / "user")
    assert (folder.within(home / "photos") / "圃場 A" / "a.jpg").exists()
    assert (home / "spica-data" / "served" / "photos").read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="takes a junction")
def test_where_no_link_can_be_made_it_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do about it."""

    def refused(*_: object, **__: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refused)
    monkeypatch.setattr("platformdirs.user_data_dir", lambda *_, **__: str(home / "user"))
    with pytest.raises(StorageError, match="not permitted"):
        served(home)


def test_storages_from_before_are_taken_over(home: Path) -> None:
    """Storages and photographs lie below the new root, other projects' folders are served too, and twice is once."""
    elsewhere = home.parent / "elsewhere"
    path = database(home, home / "photos", home / "field" / "photos", elsewhere, home / "gone")
    folder = served(home)
    for known in ([home / "field" / "photos"], []):
        told = folder.take_over(path.parent)
        assert len(told) == len(known)
        assert all(str(each) in line for each, line in zip(known, told, strict=True))
        new = [folder.path / "photos", folder.path / "field" / "photos", elsewhere, folder.path / "gone"]
        assert stored(path) == [(str(each), str(each / "圃場 A" / "a.jpg")) for each in new]
    assert (folder.path / "field" / "photos").resolve() == (home / "field" / "photos").resolve()
    assert not (folder.path / "field" / "notes").exists()
    assert not (folder.path / "gone").exists()


def test_a_storage_with_spicas_own_data_is_not_served_again(home: Path) -> None:
    """Neither that of a folder above the data, nor one of the data itself; it is said."""
    secret = home / "spica-data" / "label-studio"
    path = database(home, home / "photos", home / "spica-data", secret)
    folder = served(home)
    notes = folder.take_over(path.parent)
    assert len(notes) == 2
    assert str(secret) in notes[1]
    assert [each.name for each in folder.path.iterdir()] == ["photos"]


def test_a_storage_of_a_folder_that_only_holds_links_opens_nothing(home: Path) -> None:
    """Anybody with an account may add it, since it is there; what lies beside the photographs stays closed."""
    folder = served(home, "field/photos")
    path = database(home, folder.path / "field")
    assert served(home, "field/photos").take_over(path.parent) == []
    assert [each.name for each in (folder.path / "field").iterdir()] == ["photos"]


def test_a_data_folder_that_was_moved_keeps_its_storages(home: Path) -> None:
    """Its photographs do not become tasks a second time."""
    path = database(home, home / "photos")
    served(home).take_over(path.parent)
    (home / "spica-data").rename(home / "moved")
    folder = served(home, data_dir="moved")
    folder.take_over(home / "moved" / "label-studio")
    assert stored(home / "moved" / "label-studio" / DATABASE_NAME)[0][0] == str(folder.path / "photos")


def test_the_database_of_a_running_label_studio_is_left_alone(home: Path) -> None:
    """Whoever holds the folder's lock goes on with what it knows."""
    path = database(home, home / "photos")
    lock = Lock(path.parent / LOCK_NAME)
    assert lock.acquire()
    before = stored(path)
    assert served(home).take_over(path.parent) == []
    lock.release()
    assert stored(path) == before


@pytest.mark.parametrize("content", [None, b"", b"no database at all" * 100], ids=["none", "empty", "damaged"])
def test_a_database_that_tells_nothing_is_left_to_label_studio(home: Path, content: bytes | None) -> None:
    """A first start that was cut short goes on; a damaged one is Label Studio's to name."""
    folder = home / "spica-data" / "label-studio"
    if content is not None:
        (folder / DATABASE_NAME).write_bytes(content)
    assert served(home).take_over(folder) == []
    assert not (folder / DATABASE_NAME).exists() or (folder / DATABASE_NAME).read_bytes() == content
