from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from spica.detectors.openvino import Machine
from spica.models import load
from spica.models.card import Card, FileEntry, Variant
from spica.models.serving import Serving
from spica.models.version import ModelVersion

CARD = Card("gwhd-1", "gwhd", "a", ("",), {"model.xml": FileEntry("0", 1)}, 0.05, 300, norm="batch", norm_eps=1e-5)


class Recorded:
    """A detector's class that remembers how it was called."""

    def __init__(self, *arguments: object, **options: object) -> None:
        self.arguments = arguments
        self.options = options


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Recorded]]:
    from spica.detectors import torch_gpu

    made = {"cpu": type("OnCPU", (Recorded,), {}), "cuda": type("OnCUDA", (Recorded,), {})}
    monkeypatch.setattr(load, "OpenVINODetector", made["cpu"])
    monkeypatch.setattr(torch_gpu, "TorchDetector", made["cuda"])
    monkeypatch.setattr(load, "trained_size", lambda _: None)
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
    assert detector.arguments == (Path("v/model.xml") if kind == "cpu" else source, ("",))


@pytest.mark.parametrize(
    ("precision", "kind", "bf16"),
    [("f32", "cuda", False), ("bf16", "cuda", True), ("int8", "cpu", None)],
)
def test_a_gpu_computes_bf16_but_not_int8(
    precision: Any, kind: str, bf16: bool | None, kinds: dict[str, type[Recorded]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with CUDA bf16 is torch's bfloat16 there, and int8 stays the processor's."""
    monkeypatch.setattr(load, "cuda_available", lambda: True)
    form = Variant(True, graph="model-int8-1.xml", files={"model-int8-1.xml": FileEntry("0", 1)})
    card = dataclasses.replace(CARD, precisions={"int8": form})
    version = ModelVersion(Path("v"), card, Path("c"), Path("w.pth"))
    detector = load.load_detector(version, serving=Serving(precision=precision))
    assert isinstance(detector, kinds[kind])
    assert detector.options.get("bf16") == bf16


def test_a_version_without_its_weights_is_computed_by_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU counts only where torch has the weights at hand."""
    gpu = Machine("a GPU", frozenset({"f32", "bf16"}), "cuda")
    monkeypatch.setattr(load, "gpu", lambda: gpu)
    monkeypatch.setattr(load, "machine", lambda: Machine("a processor", frozenset({"f32"})))
    assert load.computed_by(ModelVersion(Path("v"), CARD, Path("c"), Path("w.pth"))) == gpu
    assert load.computed_by(ModelVersion(Path("v"), CARD, Path("c"), None)).processor == "a processor"
