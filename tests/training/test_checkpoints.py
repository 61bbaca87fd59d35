import errno
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra spica[train]")

from spica.detectors.weights import inspect  # noqa: E402 - after the check for torch
from spica.errors import TrainingError  # noqa: E402
from spica.training import checkpoints  # noqa: E402
from weights_builder import tutorial_state_dict  # noqa: E402

pytestmark = pytest.mark.torch


def _save(folder: Path, number: int, *, best: str | None = None, key: str = "k") -> None:
    checkpoints.save(folder, {"network": {"w": torch.full((3,), number)}, "best": best}, key=key, best=best)


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    """What was saved last is loaded, tensors and plain values."""
    _save(tmp_path, 1)
    _save(tmp_path, 2)
    state = checkpoints.load(tmp_path, "k")
    assert state is not None
    assert state["network"]["w"].tolist() == [2, 2, 2]
    assert [path.name for path in tmp_path.iterdir()] == [checkpoints.LAST]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 nothing", None], ids=["empty", "half", "none"])
def test_a_damaged_checkpoint_is_none(tmp_path: Path, damage: bytes | None) -> None:
    """A file that can't be read counts as if it were not there."""
    _save(tmp_path, 1)
    path = tmp_path / checkpoints.LAST
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    assert checkpoints.load(tmp_path, "k") is None


def test_a_cut_checkpoint_is_none(tmp_path: Path) -> None:
    """Half of a checkpoint is none."""
    _save(tmp_path, 1)
    path = tmp_path / checkpoints.LAST
    path.write_bytes(path.read_bytes()[:-40])
    assert checkpoints.load(tmp_path, "k") is None


def test_of_another_training_is_none(tmp_path: Path) -> None:
    """A training does not go on with another one's checkpoint, nor without its best weights."""
    _save(tmp_path, 1, key="other")
    assert checkpoints.load(tmp_path, "k") is None
    _save(tmp_path, 1, best="best-00001.safetensors")
    assert checkpoints.load(tmp_path, "k") is None


def test_only_the_best_weights_stay(tmp_path: Path) -> None:
    """Weights of judgements before the best one are removed with the next checkpoint."""
    for number in (1, 2):
        name = f"best-{number:05}.safetensors"
        checkpoints.save_weights(tmp_path / name, {"w": torch.zeros(1)}, {})
        _save(tmp_path, number, best=name)
    assert {path.name for path in tmp_path.iterdir()} == {checkpoints.LAST, "best-00002.safetensors"}
    assert checkpoints.load(tmp_path, "k") is not None


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk is full, the training says so, and the checkpoint before is still there, alone."""
    _save(tmp_path, 1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match="the disk is full") as failure:
        _save(tmp_path, 2)
    assert failure.value.hint is not None
    state = checkpoints.load(tmp_path, "k")
    assert state is not None
    assert state["network"]["w"].tolist() == [1, 1, 1]
    assert len(list(tmp_path.iterdir())) == 1


def test_weights_say_what_they_are(tmp_path: Path) -> None:
    """A weights file tells architecture, classes in any language, and the input size."""
    path = tmp_path / "w.safetensors"
    metadata = checkpoints.metadata_of(
        "fasterrcnn_resnet50_fpn", ("穂", "leaf"), norm="frozen", norm_eps=0.0, sizes=(320, 640)
    )
    checkpoints.save_weights(path, tutorial_state_dict(3), metadata)
    info = inspect(path)
    assert (info.architecture, info.classes, info.norm) == ("fasterrcnn_resnet50_fpn", ("穂", "leaf"), "frozen")
    assert info.input_size == (320, 640)
