from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from project_keys import ONE, known
from spica.errors import SpicaError, StorageError, UsageError, WeightsError
from spica.models import active
from spica.models.active import ActiveChangedError
from spica.models.locks import writing
from tiny_versions import tiny_version

BASE = "gwhd-00000000"


def activate(data_dir: Path, version: str | None, project: int = 1, base: str | None = BASE) -> active.Pointer:
    return active.activate(data_dir, known(project), version, base=base, why="better", by="test")


def names(pointer: active.Pointer | None) -> list[str | None]:
    assert pointer is not None
    return [pointer.version, *(step.version for step in pointer.previous)]


def test_nothing_is_active_at_first(tmp_path: Path) -> None:
    """Without a file nothing is active, reading makes none, and the server's own weights are served."""
    assert active.read(tmp_path, ONE) is None
    assert active.pointers(tmp_path) == {}
    resolved = active.resolve(tmp_path, ONE, BASE)
    assert (resolved.version, resolved.problem) == (None, None)
    assert resolved.reason == "no version was ever activated for project 1"
    assert list(tmp_path.iterdir()) == []


def test_what_is_activated_is_served_with_its_reason(tmp_path: Path) -> None:
    """An activated version is read back with base, why and by, for its project alone."""
    version = tiny_version(tmp_path, "a")
    now = activate(tmp_path, version)
    assert active.read(tmp_path, ONE) == now
    assert (now.version, now.base, now.now.why, now.now.by) == (version, BASE, "better", "test")
    assert now.now.when.endswith("+00:00")
    assert active.resolve(tmp_path, ONE, BASE).version == version
    assert "better" in active.resolve(tmp_path, ONE, BASE).reason
    assert active.read(tmp_path, known(2)) is None
    assert active.pointers(tmp_path) == {ONE: now}


def test_rollbacks_go_back_step_by_step_to_the_servers_own_weights(tmp_path: Path) -> None:
    """Each rollback undoes one activation; the last gives the server's own weights back, and then there is no more."""
    first, second = tiny_version(tmp_path, "a"), tiny_version(tmp_path, "b")
    activate(tmp_path, first)
    assert names(activate(tmp_path, second)) == [second, first, None]
    assert names(active.rollback(tmp_path, ONE, by="test")) == [first, None]
    assert active.resolve(tmp_path, ONE, BASE).version == first
    assert names(active.rollback(tmp_path, ONE, by="test")) == [None]
    assert active.resolve(tmp_path, ONE, BASE).version is None
    with pytest.raises(UsageError, match="nothing to go back to"):
        active.rollback(tmp_path, ONE, by="test")
    with pytest.raises(UsageError, match="nothing to go back to"):
        active.rollback(tmp_path, known(2), by="test")


def test_a_rollback_passes_over_versions_that_are_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A version deleted or damaged since is passed over, with a word in the log."""
    first, second, third = (tiny_version(tmp_path, name) for name in "abc")
    for version in (first, second, third):
        activate(tmp_path, version)
    (tmp_path / "models" / second / "model.bin").write_bytes(b"other")
    assert names(active.rollback(tmp_path, ONE, by="test")) == [first, None]
    assert second in caplog.text


def test_activating_twice_is_once(tmp_path: Path) -> None:
    """The history does not fill with the same version."""
    version = tiny_version(tmp_path, "a")
    assert activate(tmp_path, version) == activate(tmp_path, version)


def test_the_history_is_bounded(tmp_path: Path) -> None:
    """However often versions change, only the last steps are kept."""
    pair = [tiny_version(tmp_path, name) for name in "ab"]
    for number in range(active.HISTORY + 5):
        pointer = activate(tmp_path, pair[number % 2])
    assert len(pointer.previous) == active.HISTORY


@pytest.mark.parametrize(
    ("version", "error"),
    [("wheat-12345678", UsageError), ("../../etc", UsageError), ("", UsageError)],
    ids=["missing", "leads elsewhere", "empty"],
)
def test_a_version_that_is_not_there_is_refused(tmp_path: Path, version: str, error: type[Exception]) -> None:
    """What was active stays active when the new one does not exist."""
    activate(tmp_path, tiny_version(tmp_path, "a"))
    before = active.pointer_path(tmp_path, ONE).read_bytes()
    with pytest.raises(error):
        activate(tmp_path, version)
    assert active.pointer_path(tmp_path, ONE).read_bytes() == before


def test_a_damaged_version_is_refused_though_its_size_is_right(tmp_path: Path) -> None:
    """One changed byte keeps a version from being activated."""
    version = tiny_version(tmp_path, "a")
    path = tmp_path / "models" / version / "model.bin"
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    with pytest.raises(WeightsError):
        activate(tmp_path, version)
    assert active.read(tmp_path, ONE) is None


def test_somebody_elses_activation_in_between_is_noticed(tmp_path: Path) -> None:
    """With ``expected``, a pointer that has moved meanwhile is left alone."""
    first, second = tiny_version(tmp_path, "a"), tiny_version(tmp_path, "b")
    active.activate(tmp_path, ONE, first, base=BASE, why="", by="", expected=None)
    with pytest.raises(ActiveChangedError):
        active.activate(tmp_path, ONE, second, base=BASE, why="", by="", expected=None)
    assert active.activate(tmp_path, ONE, second, base=BASE, why="", by="", expected=first).version == second


def test_other_weights_make_the_pointer_not_apply(tmp_path: Path) -> None:
    """A server with other --weights serves those and says why; without a base the version is served by any."""
    version = tiny_version(tmp_path, "a")
    activate(tmp_path, version)
    served, reason, problem = active.resolve(tmp_path, ONE, "other-99999999")
    assert (served, problem) == (None, None)
    assert BASE in reason
    assert "other-99999999" in reason
    assert "--any-weights" in reason
    assert active.resolve(tmp_path, ONE, version).version == version
    activate(tmp_path, version, base=None)
    assert active.resolve(tmp_path, ONE, "other-99999999").version == version


@pytest.mark.parametrize("kind", ["missing", "half", "no card"])
def test_a_version_damaged_since_is_not_served(tmp_path: Path, kind: str) -> None:
    """A version that is no longer whole is not served, the reason says so, and that it may pass."""
    version = tiny_version(tmp_path, "a")
    activate(tmp_path, version)
    folder = tmp_path / "models" / version
    if kind == "missing":
        folder.rename(tmp_path / "elsewhere")
    elif kind == "half":
        (folder / "model.bin").write_bytes(b"half")
    else:
        (folder / "model.json").unlink()
    served, reason, problem = active.resolve(tmp_path, ONE, BASE)
    assert (served, isinstance(problem, SpicaError)) == (None, True)
    assert version in reason


def test_a_folder_that_cannot_be_read_is_a_doubt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the system refuses to say what is there, that is told, and nothing is raised."""
    version = tiny_version(tmp_path, "a")
    activate(tmp_path, version)

    def refused(*_: object) -> bool:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "is_dir", refused)
    resolved = active.resolve(tmp_path, ONE, BASE)
    assert resolved.version is None
    assert isinstance(resolved.problem, StorageError)
    assert "Input/output error" in resolved.reason


def test_a_pointer_that_is_gone_is_no_version_unless_the_data_folder_is_away(tmp_path: Path) -> None:
    """Without a record the server's weights are served; while a shared folder is away nobody knows what is wanted."""
    data_dir = tmp_path / "data"
    activate(data_dir, tiny_version(data_dir, "a"))
    active.pointer_path(data_dir, ONE).unlink()
    assert active.read(data_dir, ONE) is None
    resolved = active.resolve(data_dir, ONE, BASE)
    assert (resolved.version, resolved.problem) == (None, None)
    data_dir.rename(tmp_path / "elsewhere")
    resolved = active.resolve(data_dir, ONE, BASE)
    assert (resolved.version, isinstance(resolved.problem, StorageError)) == (None, True)


def test_the_chosen_weights_of_the_server_are_no_doubt(tmp_path: Path) -> None:
    """What a person chooses is certain, so that a server follows at once."""
    activate(tmp_path, tiny_version(tmp_path, "a"))
    activate(tmp_path, None)
    resolved = active.resolve(tmp_path, ONE, BASE)
    assert (resolved.version, resolved.problem) == (None, None)


DAMAGE = {
    "empty": b"",
    "half": b'{"format": 1, "proj',
    "another format": b'{"format": 2}',
    "no object": b"[]",
    "bytes": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "a path for a version": json.dumps(
        {
            "format": 1,
            "project": 1,
            "version": "../x",
            "base": None,
            "when": "",
            "why": "",
            "by": "",
            "previous": [],
        }
    ).encode(),
    "another project's": json.dumps(
        {"format": 1, "project": 2, "version": None, "base": None, "when": "", "why": "", "by": "", "previous": []}
    ).encode(),
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_pointer_is_an_error_until_somebody_activates(tmp_path: Path, content: bytes) -> None:
    """Nothing of a damaged record is believed, the message says what to do, and activating writes it anew."""
    version = tiny_version(tmp_path, "a")
    activate(tmp_path, version)
    active.pointer_path(tmp_path, ONE).write_bytes(content)
    with pytest.raises(StorageError, match="damaged"):
        active.read(tmp_path, ONE)
    served, reason, problem = active.resolve(tmp_path, ONE, BASE)
    assert (served, isinstance(problem, StorageError)) == (None, True)
    assert "spica models activate" in reason
    assert activate(tmp_path, version).version == version
    assert active.resolve(tmp_path, ONE, BASE).version == version


def test_a_copy_beside_the_record_is_no_matter(tmp_path: Path) -> None:
    """The copies that earlier versions wrote beside the record change nothing."""
    version = tiny_version(tmp_path, "a")
    activate(tmp_path, version)
    path = active.pointer_path(tmp_path, ONE)
    path.with_name(path.name + ".bak").write_bytes(b"{")
    assert active.projects(tmp_path) == [ONE]
    assert active.resolve(tmp_path, ONE, BASE).version == version


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_pointer_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """When the disk is full, activating and rolling back say so, and what was active is active still."""
    first, second = tiny_version(tmp_path, "a"), tiny_version(tmp_path, "b")
    whole = activate(tmp_path, first)
    listed = sorted(path.name for path in (tmp_path / "active").iterdir())

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr({"fsync": os, "replace": Path}[step], step, full)
        with pytest.raises(StorageError, match="could not be written") as refused:
            activate(tmp_path, second)
        assert "free some space" in str(refused.value)
        with pytest.raises(StorageError):
            active.rollback(tmp_path, ONE, by="test")
    assert active.read(tmp_path, ONE) == whole
    assert sorted(path.name for path in (tmp_path / "active").iterdir()) == listed


def test_writers_take_turns(tmp_path: Path) -> None:
    """While one process writes, another waits, and gives up with a word when it takes too long."""
    with writing(tmp_path), pytest.raises(StorageError, match="another process"), writing(tmp_path, wait_s=0.05):
        pass
    with writing(tmp_path, wait_s=0):
        pass


def test_two_writers_and_a_reader_at_once(tmp_path: Path) -> None:
    """Whoever reads while two write meets a whole pointer each time, and every activation is in the history."""
    pair = [tiny_version(tmp_path, name) for name in "ab"]
    activate(tmp_path, pair[0])
    done, seen, failures = threading.Event(), set(), []

    def read() -> None:
        while not done.is_set():
            try:
                seen.add(active.resolve(tmp_path, ONE, BASE).version)
            except Exception as error:  # noqa: BLE001 - whatever it is, the test must hear of it
                failures.append(error)

    def write(version: str) -> None:
        for number in range(15):
            active.activate(tmp_path, ONE, version, base=f"base-{number:08}", why=version, by="test")

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(version,)) for version in pair]
    reader.start()
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert failures == []
    assert seen <= {*pair, None}
    pointer = active.read(tmp_path, ONE)
    assert pointer is not None
    by_hand = [step.version for step in (pointer.now, *pointer.previous) if step.base != BASE]
    assert sorted(filter(None, by_hand)) == sorted(15 * pair)
