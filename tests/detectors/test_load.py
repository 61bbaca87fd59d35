from __future__ import annotations

from pathlib import Path

import pytest

from spica.detectors import load
from spica.detectors.card import Card, FileEntry
from spica.models.version import ModelVersion

CARD = Card("gwhd-1", "gwhd", "a", ("",), {"model.xml": FileEntry("0", 1)}, 0.05, 300, norm="batch", norm_eps=1e-5)


class Recorded:
    """A detector's class that remembers how it was called."""

    def __init__(self, *arguments: object, **options: object) -> None:
        self.arguments = arguments
        self.options = options


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Recorded]]:
    from spica.detectors import torchvision

    made = {"cpu": type("OnCPU", (Recorded,), {}), "cuda": type("OnCUDA", (Recorded,), {})}
    monkeypatch.setattr(load, "OpenVINODetector", made["cpu"])
    monkeypatch.setattr(torchvision, "TorchvisionDetector", made["cuda"])
    return made


@pytest.mark.parametrize(
    ("cuda", "device", "source", "kind"),
    [
        pytest.param(False, "auto", Path("w.pth"), "cpu", id="no CUDA"),
        pytest.param(True, "auto", Path("w.pth"), "cuda", id="CUDA"),
        pytest.param(True, "auto", None, "cpu", id="CUDA, but no weights file"),
        pytest.param(True, "cpu", Path("w.pth"), "cpu", id="CUDA, but not wanted"),
    ],
)
def test_torch_serves_where_cuda_is(
    cuda: bool,
    device: load.Device,
    source: Path | None,
    kind: str,
    kinds: dict[str, type[Recorded]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch serves where there is CUDA and the weights file is at hand; OpenVINO everywhere else."""
    monkeypatch.setattr(load, "cuda_available", lambda: cuda)
    version = ModelVersion(Path("v"), CARD, Path("c"), source)
    detector = load.load_detector(version, threads=3, device=device)
    assert isinstance(detector, kinds[kind])
    if kind == "cpu":
        assert detector.arguments == (Path("v/model.xml"), ("",))
        assert detector.options == {"threads": 3, "cache_dir": Path("c"), "precision": "f32"}
    else:
        assert detector.arguments == (source, ("",))
        assert detector.options == {"architecture": "a", "norm_eps": 1e-5, "score_floor": 0.05, "max_detections": 300}


def test_torch_is_not_looked_for_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where NVIDIA's driver is missing, there is no CUDA, and nobody asks torch."""
    monkeypatch.setattr(load, "_nvidia_driver", lambda: False)
    monkeypatch.setitem(__import__("sys").modules, "torch", None)  # importing it would fail
    assert load.cuda_available() is False
