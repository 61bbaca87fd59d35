"""Trainings on disk: written whole, read back, bounded."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from datetime import UTC, datetime, tzinfo
from pathlib import Path

import pytest

from project_keys import ONE, known
from spica.errors import StorageError
from spica.training import runs as module
from spica.training.runs import RUN, Run, Runs


def test_written_and_read(tmp_path: Path) -> None:
    """What is written is read back, whatever it holds."""
    runs = Runs(tmp_path)
    run = runs.begin(known(3), title="畑 1", cause="20 new submissions", new=20, parent="base-0001")
    full = replace(
        run,
        state="refused",
        losses={"loss": 0.5},
        verdict={"accepted": False, "sentence": "worse"},
        learned={"7": "2026"},
        notes=("a", "b"),
    )
    runs.write(full)
    assert runs.of(known(3)) == [full]
    assert (full.is_over, full.is_judged, full.why) == (True, True, "worse")
    assert Run.from_json(full.as_json()) == replace(full, learned=None)
    assert runs.projects() == [known(3)]
    assert list(runs.unfinished()) == []


def test_unfinished(tmp_path: Path) -> None:
    """Only runs that say that they are under way are unfinished; the latest comes first."""
    runs = Runs(tmp_path)
    first = runs.begin(ONE, title="x", cause="", new=1, parent=None)
    second = runs.begin(ONE, title="x", cause="", new=1, parent=None)
    runs.write(replace(first, state="failed"))
    assert [run.id for run in runs.of(ONE)] == sorted([first.id, second.id], reverse=True)
    assert list(runs.unfinished()) == [second]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"id": "x"}', b"\xff", b"null"],
    ids=["empty", "cut", "a list", "fields missing", "no UTF-8", "null"],
)
def test_a_damaged_state_is_no_run(tmp_path: Path, content: bytes) -> None:
    """A damaged state file is passed over; the others are read."""
    runs = Runs(tmp_path)
    kept = runs.begin(ONE, title="x", cause="", new=1, parent=None)
    broken = runs.begin(ONE, title="x", cause="", new=1, parent=None)
    (runs.folder(broken) / RUN).write_bytes(content)
    assert runs.of(ONE) == [kept]


def test_tidy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of runs that are over the state alone stays, of old ones nothing; the one under way is left alone."""
    monkeypatch.setattr(module, "KEPT", 2)
    runs = Runs(tmp_path)
    for number in range(5):
        run = runs.begin(ONE, title=str(number), cause="", new=1, parent=None)
        (runs.folder(run) / "loop").mkdir()
        (runs.folder(run) / "loop" / "last.pt").write_bytes(b"x")
        if number != 2:
            runs.write(replace(run, state="failed"))
    runs.tidy(ONE)
    left = {run.title: sorted(path.name for path in runs.folder(run).iterdir()) for run in runs.of(ONE)}
    assert left == {"4": ["run.json"], "3": ["run.json"], "2": ["loop", "run.json"]}


class StoppedClock(datetime):
    """One that stands still, or was set back."""

    stands = datetime(2026, 11, 23, 10, 0, 0, 999_500, tzinfo=UTC)

    @classmethod
    def now(cls, _zone: tzinfo | None = None) -> StoppedClock:
        """The same each time."""
        return cls.fromtimestamp(cls.stands.timestamp(), UTC)


@pytest.mark.parametrize("stopped", [False, True], ids=["this machine's clock", "a clock that stands"])
def test_ids_are_in_order_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool) -> None:
    """However quickly runs follow one another, each comes after all before it, whatever else lies there."""
    if stopped:
        monkeypatch.setattr(module, "datetime", StoppedClock)
    runs = Runs(tmp_path)
    (runs.project_folder(ONE) / "notes-2026").mkdir(parents=True)
    begun = [runs.begin(ONE, title=str(number), cause="", new=1, parent=None) for number in range(30)]
    assert [run.title for run in runs.of(ONE)] == [run.title for run in reversed(begun)]
    assert len({run.id.partition("-")[0] for run in begun}) == 30


def test_a_clock_that_was_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run comes after the latest all the same, its date is the clock's, and other projects are not touched."""
    runs = Runs(tmp_path)
    first = runs.begin(ONE, title="x", cause="", new=1, parent=None)
    monkeypatch.setattr(module, "datetime", StoppedClock)
    monkeypatch.setattr(StoppedClock, "stands", datetime(2020, 1, 1, tzinfo=UTC))
    second = runs.begin(ONE, title="x", cause="", new=1, parent=None)
    assert second.id > first.id
    assert second.started == "2020-01-01T00:00:00+00:00"
    assert runs.begin(known(2), title="x", cause="", new=1, parent=None).id.startswith("20200101T000000.000Z")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """The state file stays as it was, nothing lies beside it, and of a run that could not begin nothing is left."""
    runs = Runs(tmp_path)
    run = runs.begin(ONE, title="x", cause="", new=1, parent=None)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr({"fsync": os, "replace": Path}[step], step, full)
    with pytest.raises(StorageError, match="could not be written"):
        runs.write(replace(run, state="failed"))
    with pytest.raises(StorageError):
        runs.begin(ONE, title="y", cause="", new=1, parent=None)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [RUN]
    assert [path.name for path in runs.project_folder(ONE).iterdir()] == [run.id]
    assert runs.of(ONE) == [run]


def test_removed(tmp_path: Path) -> None:
    """Nothing is left of a run that was taken back; twice is once."""
    runs = Runs(tmp_path)
    run = runs.begin(ONE, title="x", cause="", new=1, parent=None)
    (runs.folder(run) / "loop").mkdir()
    runs.remove(run)
    runs.remove(run)
    assert list(runs.project_folder(ONE).iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """It is an error with a hint, not a traceback."""
    (tmp_path / "training").write_text("in the way")
    with pytest.raises(StorageError):
        Runs(tmp_path).begin(ONE, title="x", cause="", new=1, parent=None)
