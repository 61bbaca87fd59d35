"""One job a project at a time, and what others know of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from spica.prelabel.claim import Claim, JobRunningError, State, claim_folder, is_claimed
from spica.prelabel.progress import Progress

URL = "http://127.0.0.1:8080"


def take(base: Path, *, url: str = URL, project: int = 1, version: str = "v") -> Claim:
    """Claim a project."""
    return Claim.take(base, url, project, by="a test", version=version)


@pytest.mark.parametrize(
    "url", [URL, "http://localhost:8080/", "http://LOCALHOST:8080"], ids=["same", "name", "capitals"]
)
def test_a_second_claim_is_refused_and_says_who_has_it(tmp_path: Path, url: str) -> None:
    """However Label Studio's address is written, a project has one job; the second learns whose it is."""
    with take(tmp_path) as claim:
        claim.show(Progress(total=5, stored=2))
        with pytest.raises(JobRunningError) as caught:
            take(tmp_path, url=url)
        assert "a test" in str(caught.value)
        assert caught.value.folder == claim.folder
        assert is_claimed(claim.folder)
        state = State.read(claim.folder)
        assert state is not None
        progress = Progress.from_json(state.progress)
        assert (state.state, progress.total, progress.stored) == ("running", 5, 2)
    assert not is_claimed(claim.folder)
    take(tmp_path).release()


@pytest.mark.parametrize(
    ("url", "project"),
    [(URL, 2), ("http://127.0.0.1:8081", 1), ("http://127.0.0.1:8080/studio", 1), ("https://127.0.0.1:8080", 1)],
    ids=["project", "port", "path", "scheme"],
)
def test_other_projects_are_free(tmp_path: Path, url: str, project: int) -> None:
    """Another project, or another Label Studio, is claimed independently."""
    with take(tmp_path), take(tmp_path, url=url, project=project):
        assert claim_folder(tmp_path, URL, 1) != claim_folder(tmp_path, url, project)


def test_what_was_being_sent_outlives_its_holder(tmp_path: Path) -> None:
    """What a holder that vanished was sending is known to the next one, until that has cleared up."""
    first = take(tmp_path)
    first.sending([3, 4], 5.0)
    first.release()
    second = take(tmp_path)
    assert second.pending == {3, 4}
    second.sending([5], 5.0)
    second.release()
    third = take(tmp_path)
    assert third.pending == {3, 4, 5}
    third.settled([3, 4, 5])
    third.end("done", None, Progress(total=3))
    third.release()
    assert take(tmp_path).pending == set()


def test_what_is_not_carried_out_in_time_never_is(tmp_path: Path) -> None:
    """After its time a request is waited for no longer, nor a minute after its holder vanished."""
    first = take(tmp_path)
    first.sending([3], 0.0)
    assert first.pending == set()
    first.sending([4], 1e6)
    first.release()
    state = State.read(first.folder)
    assert state is not None
    second = take(tmp_path)
    assert second.pending == {4}
    assert max(second._open.values()) < time.time() + 61


def test_another_version_s_request_is_no_concern(tmp_path: Path) -> None:
    """What was being sent under another version can't double this one's."""
    first = take(tmp_path)
    first.sending([3], 5.0)
    first.release()
    with take(tmp_path, version="w") as claim:
        assert claim.pending == set()


def test_a_damaged_state_file_is_nothing(tmp_path: Path) -> None:
    """A half-written or foreign state file keeps nobody from working."""
    with take(tmp_path) as claim:
        claim.settled([1])
    (claim.folder / "job.json").write_text('{"pid": 1', "utf-8")
    assert State.read(claim.folder) is None
    with take(tmp_path) as again:
        assert again.pending == set()
