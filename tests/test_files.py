"""Folders that are built aside, put in place and removed, read-only files in them or not."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from spica.files import remove

NOBODY = 65534

AS_ANYBODY = """
import os, stat, sys
from pathlib import Path
from spica import files
from spica.detectors import openvino
from spica.models import space
if hasattr(os, "geteuid") and os.geteuid() == 0:  # nothing is read-only to root
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
parent = Path(sys.argv[1])

def read_only(folder):
    (folder / "deep").mkdir(parents=True)
    for name in ("1.blob", "deep/2.blob"):
        (folder / name).write_bytes(b"compiled")
        (folder / name).chmod(stat.S_IREAD)
    (folder / "deep").chmod(stat.S_IREAD | stat.S_IEXEC)
    folder.chmod(stat.S_IREAD | stat.S_IWRITE | stat.S_IEXEC)
    return folder

def compile_with(settings):
    if "CACHE_DIR" not in settings:
        return "model"
    read_only(Path(settings["CACHE_DIR"]) / "more")
    raise RuntimeError("bad blob")

files.remove(read_only(parent / "removed"))
files.discard(read_only(parent / "discarded"))
with files.scratch(parent) as aside:
    read_only(aside / "left")
assert openvino.cached(compile_with, parent / "1.0") == "model"
version = parent / "data" / "models" / "a-1"
version.mkdir(parents=True)
read_only(parent / "data" / "cache" / "a-1-00000000")
space._remove(parent / "data", "a-1")
left = sorted(str(path.relative_to(parent)) for path in parent.rglob("*"))
assert left == ["data", os.path.join("data", "cache"), os.path.join("data", "models")], left
"""


def test_read_only_files_are_removed_with_their_folder() -> None:
    """Compiled models, which OpenVINO writes read-only, leave nothing behind, whoever removes them."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is root's alone
        if os.name == "posix" and os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        made = subprocess.run(
            [sys.executable, "-c", AS_ANYBODY, folder, str(NOBODY)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        for path in Path(folder).rglob("*"):  # so that a failure leaves nothing behind either
            path.chmod(stat.S_IRWXU)
    assert made.returncode == 0, made.stderr


@pytest.mark.skipif(os.name == "nt", reason="making links needs a right that few have on Windows")
def test_what_a_link_leads_to_is_left_alone(tmp_path: Path) -> None:
    """A link in a removed folder goes; the file that it leads to stays, and stays read-only."""
    target = tmp_path / "kept.txt"
    target.write_text("kept", "utf-8")
    target.chmod(stat.S_IREAD)
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "link").symlink_to(target)
    remove(tmp_path / "gone")
    assert not (tmp_path / "gone").exists()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IREAD


def test_what_is_not_there_is_removed_already(tmp_path: Path) -> None:
    """Removing a folder that another process has removed is no failure."""
    remove(tmp_path / "gone")
