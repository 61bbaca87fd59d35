from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from project_keys import ONE, known
from spica import files
from spica.errors import SpicaError, StorageError, UsageError
from spica.models import active, space
from spica.models.listing import list_versions, pin, pinned, unpin
from spica.models.locks import hold, writing
from spica.models.version import open_version, peek
from tiny_versions import age, cache, tiny_version


@dataclass(frozen=True)
class Made:
    """A version that the property test makes: who its parent is, and what the gate said of it."""

    parent: int | None
    refused: bool
    nbytes: int
    pinned: bool


MADE = st.builds(
    Made,
    parent=st.one_of(st.none(), st.integers(0, 7)),
    refused=st.booleans(),
    nbytes=st.integers(1, 4000),
    pinned=st.booleans(),
)


def fill(data_dir: Path, made: list[Made]) -> list[str]:
    """The versions, each older than the next; a parent is one of those before it."""
    ids: list[str] = []
    for number, each in enumerate(made):
        parent = ids[each.parent % number] if each.parent is not None and number else None
        gate = {"accepted": False} if each.refused else None
        when = f"2026-01-{number + 1:02}T00:00:00+00:00"
        ids.append(tiny_version(data_dir, f"v{number}", nbytes=each.nbytes, parent=parent, gate=gate, created=when))
        cache(data_dir, ids[-1], nbytes=each.nbytes)
        if each.pinned:
            pin(data_dir, ids[-1])
    return ids


@settings(deadline=None, max_examples=20)
@given(
    made=st.lists(MADE, min_size=1, max_size=8),
    activations=st.lists(st.tuples(st.integers(1, 2), st.integers(0, 7)), max_size=4),
    limit=st.integers(0, 30_000),
)
def test_what_is_needed_is_never_deleted_and_the_rest_goes_in_order(
    made: list[Made], activations: list[tuple[int, int]], limit: int
) -> None:
    """Whatever is active, pinned, a parent, or gone back to stays; of the rest exactly as many go, in the documented
    order, as bring the store under its limit; and no cache outlives its version.
    """
    with TemporaryDirectory() as name:
        data_dir = Path(name)
        ids = fill(data_dir, made)
        for project, number in activations:
            active.activate(data_dir, known(project), ids[number % len(ids)], base=None, why="", by="")
        needed = {version for version, each in zip(ids, made, strict=True) if each.pinned}
        for pointer in active.pointers(data_dir).values():
            assert pointer.version is not None
            parent = peek(data_dir, pointer.version).parent
            needed |= {each for each in (pointer.version, parent, pointer.previous[0].version) if each is not None}
        before = {each.id: each for each in list_versions(data_dir)}
        order = sorted(set(ids) - needed, key=lambda each: (not before[each].refused, before[each].created))
        pruned = space.prune(data_dir, limit, young_s=0)
        left = {each.id for each in list_versions(data_dir)}
        assert [each.id for each in pruned.deleted] == order[: len(pruned.deleted)]
        assert left == set(ids) - {each.id for each in pruned.deleted}
        assert needed <= left
        assert pruned.left_bytes == sum(before[each].bytes for each in left)
        if pruned.deleted:
            assert pruned.left_bytes + pruned.deleted[-1].bytes > limit, "one too many"
        if pruned.left_bytes > limit:
            assert left == needed
            assert "SPICA_MODELS_BYTES" in pruned.message
        caches = {path.name.rpartition("-")[0] for path in (data_dir / "cache").iterdir()}
        assert caches == left


def test_what_was_deleted_is_told(tmp_path: Path) -> None:
    """The sentence names the versions; with room enough there is nothing to say."""
    gone = tiny_version(tmp_path, "a", gate={"accepted": False})
    assert space.prune(tmp_path, 10**9, young_s=0).message == ""
    assert gone in space.prune(tmp_path, 0, young_s=0).message


def test_a_missing_store_needs_no_space(tmp_path: Path) -> None:
    """Nothing is made where nothing is."""
    assert space.prune(tmp_path / "nowhere", 0).deleted == ()
    assert not (tmp_path / "nowhere").exists()


def test_a_rollback_finds_its_version_after_a_cleaning(tmp_path: Path) -> None:
    """The version that a rollback goes back to stays, though nothing else needs it; earlier ones go."""
    earlier, before, now = (tiny_version(tmp_path, name) for name in "abc")
    for version in (earlier, before, now):
        active.activate(tmp_path, ONE, version, base=None, why="", by="")
    assert [each.id for each in space.prune(tmp_path, 0, young_s=0).deleted] == [earlier]
    assert active.rollback(tmp_path, ONE, by="").version == before


@pytest.mark.parametrize("how", ["young", "asked", "base"])
def test_what_somebody_works_with_stays(tmp_path: Path, how: str) -> None:
    """A version made just now, one that the caller names, and the base of an active one are not deleted."""
    version = tiny_version(tmp_path, "a")
    if how == "base":
        other = tiny_version(tmp_path, "b")
        active.activate(tmp_path, ONE, other, base=version, why="", by="")
    young_s = 600.0 if how == "young" else 0.0
    keep = [version] if how == "asked" else []
    assert version not in [each.id for each in space.prune(tmp_path, 0, keep=keep, young_s=young_s).deleted]
    age(tmp_path, version)
    if how == "young":
        assert [each.id for each in space.prune(tmp_path, 0).deleted] == [version]


def test_a_version_that_a_server_has_loaded_stays_until_the_server_ends(tmp_path: Path) -> None:
    """A lease keeps a version, also against a person, and ends with its holder's life."""
    version = tiny_version(tmp_path, "a")
    code = (
        "import sys; from pathlib import Path; from spica.models.locks import hold\n"
        "with hold(Path(sys.argv[1]), sys.argv[2]): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), version], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline().strip() == b"held"
        assert space.prune(tmp_path, 0, young_s=0).deleted == ()
        with pytest.raises(UsageError, match="needed") as refused:
            space.delete(tmp_path, version)
        assert "stop the server" in str(refused.value)
        server.kill()
        server.wait()
    with hold(tmp_path, version):
        assert space.prune(tmp_path, 0, young_s=0).deleted == ()
    assert [each.id for each in space.prune(tmp_path, 0, young_s=0).deleted] == [version]
    assert list((tmp_path / "leases").iterdir()) == []


def test_nothing_is_deleted_while_it_is_unknown_what_is_active(tmp_path: Path) -> None:
    """A damaged pointer stops the cleaning, with a sentence."""
    version, other = tiny_version(tmp_path, "a"), tiny_version(tmp_path, "b")
    active.activate(tmp_path, ONE, version, base=None, why="", by="")
    for path in (tmp_path / "active").glob("1.*.json*"):
        path.write_bytes(b"{")
    for act in (lambda: space.prune(tmp_path, 0, young_s=0), lambda: space.delete(tmp_path, other)):
        with pytest.raises(StorageError, match="damaged"):
            act()
    assert {each.id for each in list_versions(tmp_path)} == {version, other}


def needs_active(data_dir: Path, version: str) -> None:
    active.activate(data_dir, known(3), version, base=None, why="", by="")


def needs_child(data_dir: Path, version: str) -> None:
    active.activate(data_dir, known(3), tiny_version(data_dir, "child", parent=version), base=None, why="", by="")


@pytest.mark.parametrize(
    ("need", "why", "how"),
    [
        (needs_active, "active in project 3", "spica models rollback --project 3"),
        (needs_child, "the parent of child-", "spica models rollback --project 3"),
        (pin, "pinned", "spica models unpin a-"),
    ],
    ids=["active", "parent", "pinned"],
)
def test_deleting_by_hand_what_is_needed_says_why_and_how(
    tmp_path: Path, need: Callable[[Path, str], None], why: str, how: str
) -> None:
    """Each reason is in the message, and what to do about it; the version stays."""
    version = tiny_version(tmp_path, "a")
    need(tmp_path, version)
    with pytest.raises(UsageError, match="needed") as refused:
        space.delete(tmp_path, version)
    assert why in str(refused.value)
    assert how in str(refused.value)
    assert open_version(tmp_path, version).id == version


def test_deleting_by_hand_takes_the_caches_too(tmp_path: Path) -> None:
    """A version made just now may be deleted by hand; a second time there is none."""
    version = tiny_version(tmp_path, "a")
    cache(tmp_path, version)
    assert space.delete(tmp_path, version).id == version
    assert list_versions(tmp_path) == []
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(UsageError, match="no such"):
        space.delete(tmp_path, version)


def test_a_damaged_version_can_be_deleted(tmp_path: Path) -> None:
    """What can't be read can still be thrown away."""
    version = tiny_version(tmp_path, "a")
    (tmp_path / "models" / version / "model.json").write_bytes(b"{")
    assert space.delete(tmp_path, version).damaged is not None
    assert list_versions(tmp_path) == []


def test_what_can_not_be_deleted_is_told_and_the_next_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that the system does not let go is a sentence, and not the end of the cleaning."""
    first = tiny_version(tmp_path, "a", created="2026-01-01T00:00:00+00:00")
    second = tiny_version(tmp_path, "b", created="2026-01-02T00:00:00+00:00")
    real = files.discard

    def stuck(folder: Path) -> None:
        if folder.name == first:
            raise StorageError("stuck", where=str(folder))
        real(folder)

    monkeypatch.setattr(space, "discard", stuck)
    pruned = space.prune(tmp_path, 0, young_s=0)
    assert [each.id for each in pruned.deleted] == [second]
    assert "stuck" in pruned.message


def test_pins_come_and_go(tmp_path: Path) -> None:
    """Pinning twice is once, unpinning tells whether it was, and what is not there can't be pinned."""
    version = tiny_version(tmp_path, "a")
    pin(tmp_path, version)
    pin(tmp_path, version)
    assert pinned(tmp_path) == {version}
    assert unpin(tmp_path, version)
    assert not unpin(tmp_path, version)
    assert not unpin(tmp_path, "../models")
    with pytest.raises(SpicaError):
        pin(tmp_path, "wheat-00000000")


def test_a_lease_in_a_folder_that_can_not_be_written_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server on a read-only store serves, with a word in the log."""
    (tmp_path / "active").write_bytes(b"a file where the locks belong")
    with hold(tmp_path, "wheat-00000000"):
        pass
    assert "can't see" in caplog.text
    with pytest.raises(StorageError), writing(tmp_path):
        pass
