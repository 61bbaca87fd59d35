from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from spica.detectors.openvino import cached


class Runtime:
    """Writes a file into its cache folder, as OpenVINO does, and remembers whether it was there before."""

    def __init__(self, *, refuses_cache: bool = False) -> None:
        self.calls: list[str] = []
        self.refuses_cache = refuses_cache

    def __call__(self, settings: dict[str, str]) -> str:
        folder = settings.get("CACHE_DIR")
        if folder is None:
            self.calls.append("without cache")
            return "model"
        if self.refuses_cache:
            raise RuntimeError("bad blob")
        blob = Path(folder) / "1.blob"
        self.calls.append("from cache" if blob.exists() else "compiled")
        blob.write_bytes(b"compiled")
        return "model"


def test_the_second_time_comes_from_the_cache(tmp_path: Path) -> None:
    """What was compiled once is taken from the folder, and nothing else lies beside it."""
    runtime = Runtime()
    assert [cached(runtime, tmp_path / "m" / "1.0") for _ in range(2)] == ["model", "model"]
    assert runtime.calls == ["compiled", "from cache"]
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["1.0"]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": lambda folder: (folder / "1.blob").write_bytes(b"compileD"),
    "cut": lambda folder: (folder / "1.blob").write_bytes(b"comp"),
    "more": lambda folder: (folder / "2.blob").write_bytes(b"more"),
    "no digests": lambda folder: (folder / "digests.json").unlink(),
    "no JSON": lambda folder: (folder / "digests.json").write_bytes(b"\xff"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """A cache that is not what was written is never given to the runtime."""
    runtime, folder = Runtime(), tmp_path / "1.0"
    cached(runtime, folder)
    DAMAGES[damage](folder)
    with caplog.at_level(logging.WARNING):
        cached(runtime, folder)
    cached(runtime, folder)
    assert runtime.calls == ["compiled", "compiled", "from cache"]
    assert "damaged" in caplog.text


def test_a_cache_that_the_runtime_refuses_is_done_without(tmp_path: Path) -> None:
    """A runtime that fails on its cache works without it."""
    runtime = Runtime(refuses_cache=True)
    assert cached(runtime, tmp_path / "1.0") == "model"
    assert runtime.calls == ["without cache"]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    """A file where the folder should be is no failure."""
    (tmp_path / "file").write_bytes(b"")
    runtime = Runtime()
    assert cached(runtime, tmp_path / "file" / "1.0") == "model"
    assert runtime.calls == ["without cache"]


def test_other_runtimes_caches_are_removed(tmp_path: Path) -> None:
    """The cache that an earlier version of the runtime wrote does not stay."""
    for version in ("1.0", "2.0"):
        cached(Runtime(), tmp_path / version)
    assert [path.name for path in tmp_path.iterdir()] == ["2.0"]


def test_other_arithmetics_of_the_same_runtime_stay(tmp_path: Path) -> None:
    """Several forms of a model are kept at once; those of another version of the runtime all go."""
    for name in ("1.0_f32", "1.0_bf16", "2.0_f32", "2.0_int8"):
        cached(Runtime(), tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.0_f32", "2.0_int8"]
