"""Trainings on disk: written whole, read back, bounded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from spica.errors import StorageError
from spica.training import runs as module
from spica.training.runs import RUN, Run, Runs


def test_written_and_read(tmp_path: Path) -> None:
    """What is written is read back, whatever it holds."""
    runs = Runs(tmp_path)
    run = runs.begin(3, title="畑 1", cause="20 new submissions", new=20, parent="base-0001")
    full = replace(
        run,
        state="refused",
        losses={"loss": 0.5},
        verdict={"accepted": False, "sentence": "worse"},
        learned={"7": "2026"},
        notes=("a", "b"),
    )
    runs.write(full)
    assert runs.of(3) == [full]
    assert (full.is_over, full.is_judged, full.why) == (True, True, "worse")
    assert Run.from_json(full.as_json()) == replace(full, learned=None)
    assert runs.projects() == [3]
    assert list(runs.unfinished()) == []


def test_unfinished(tmp_path: Path) -> None:
    """Only runs that say that they are under way are unfinished; the latest comes first."""
    runs = Runs(tmp_path)
    first = runs.begin(1, title="x", cause="", new=1, parent=None)
    second = runs.begin(1, title="x", cause="", new=1, parent=None)
    runs.write(replace(first, state="failed"))
    assert [run.id for run in runs.of(1)] == sorted([first.id, second.id], reverse=True)
    assert list(runs.unfinished()) == [second]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"id": "x"}', b"\xff", b"null"],
    ids=["empty", "cut", "a list", "fields missing", "no UTF-8", "null"],
)
def test_a_damaged_state_is_no_run(tmp_path: Path, content: bytes) -> None:
    """A damaged state file is passed over; the others are read."""
    runs = Runs(tmp_path)
    kept = runs.begin(1, title="x", cause="", new=1, parent=None)
    broken = runs.begin(1, title="x", cause="", new=1, parent=None)
    (runs.folder(broken) / RUN).write_bytes(content)
    assert runs.of(1) == [kept]


def test_tidy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of runs that are over the state alone stays, of old ones nothing; the one under way is left alone."""
    monkeypatch.setattr(module, "KEPT", 2)
    runs = Runs(tmp_path)
    for number in range(5):
        run = runs.begin(1, title=str(number), cause="", new=1, parent=None)
        (runs.folder(run) / "loop").mkdir()
        (runs.folder(run) / "loop" / "last.pt").write_bytes(b"x")
        if number != 2:
            runs.write(replace(run, state="failed"))
    runs.tidy(1)
    left = {run.title: sorted(path.name for path in runs.folder(run).iterdir()) for run in runs.of(1)}
    assert left == {"4": ["run.json"], "3": ["run.json"], "2": ["loop", "run.json"]}


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """It is an error with a hint, not a traceback."""
    (tmp_path / "training").write_text("in the way")
    with pytest.raises(StorageError):
        Runs(tmp_path).begin(1, title="x", cause="", new=1, parent=None)
