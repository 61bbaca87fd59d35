"""The file of failed tasks: there at once, and no danger to the job when the disk is full."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spica.errors import ImageError, UsageError
from spica.prelabel.progress import FailureFile

ERROR = ImageError("the image is damaged", where="写真/7.jpg", hint="copy it again")


def test_a_line_is_on_disk_before_the_next_task(tmp_path: Path) -> None:
    """Each failed task is a line of JSON with number, code and reason, readable while the job runs."""
    file = FailureFile(tmp_path / "failed.jsonl")
    file.write(7, ERROR)
    (line,) = (tmp_path / "failed.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line) == {"task": 7, "code": "image", "reason": ERROR.summary}
    assert "写真" in line
    assert file.lines == 1


def test_a_place_that_can_t_be_written_is_told_before_the_job(tmp_path: Path) -> None:
    """A missing folder is a usage error."""
    with pytest.raises(UsageError, match="report"):
        FailureFile(tmp_path / "nowhere" / "failed.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_is_told_and_raises_nothing() -> None:
    """Writing to a full disk says so once, by ``trouble``."""
    file = FailureFile(Path("/dev/full"))
    file.write(7, ERROR)
    assert file.trouble is not None
    assert "not complete" in file.trouble
    file.write(8, ERROR)
    assert file.lines == 0
