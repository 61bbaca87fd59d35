from __future__ import annotations

import json
import os
import shutil
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from spica.detectors import convert as child
from spica.detectors.architecture import Norm
from spica.detectors.convert import Request, convert
from spica.detectors.weights import inspect
from spica.errors import ModelUnavailableError, WeightsError
from spica.files import sha256_file
from untrained import spread_state_dict
from weights_builder import Prepared, hollow_state_dict, tutorial_state_dict

pytestmark = pytest.mark.torch


@pytest.fixture
def request_for(tmp_path: Path) -> Request:
    """A request for a file that is no weights file."""
    weights = tmp_path / "小麦.pth"
    weights.write_bytes(b"weights")
    folder = tmp_path / "out"
    folder.mkdir()
    digest = sha256_file(weights)
    return Request(str(weights), digest, str(folder), "fasterrcnn_resnet50_fpn", ("",), "frozen", 0.0, 0.05, 1000)


def fake_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """What the child process gets when it imports torch."""
    package = tmp_path / "fake" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(source, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(package.parent), prepend=os.pathsep)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        pytest.param(
            "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')",
            ("it is not installed", 'pip install "spica[train]"', "only once for each weights file"),
            id="torch is missing",
        ),
        pytest.param(
            "raise ImportError('libcudnn.so.9: cannot open shared object file')",
            ("it can't be loaded", "libcudnn.so.9", "install it again"),
            id="torch is broken",
        ),
        pytest.param(
            "import sys, os; sys.stderr.write('no more memory'); sys.stderr.flush(); os._exit(3)",
            ("ended without a result", "exit status 3: no more memory"),
            id="the process dies",
        ),
        pytest.param(
            "import os, signal; os.kill(os.getpid(), 9)",
            ("the system killed it, probably for want of memory", "close other programs"),
            id="the system kills it",
            marks=pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal"),
        ),
    ],
)
def test_failures_of_the_child_are_told(
    tmp_path: Path, request_for: Request, monkeypatch: pytest.MonkeyPatch, source: str, told: tuple[str, ...]
) -> None:
    """A conversion that can't be done says why and what to do."""
    fake_torch(tmp_path, monkeypatch, source)
    with pytest.raises(WeightsError) as refused:
        convert(request_for)
    assert all(part in str(refused.value) for part in told), str(refused.value)
    assert "小麦.pth" in str(refused.value)


def test_a_torch_in_the_working_folder_is_not_taken(
    tmp_path: Path, request_for: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file named torch.py where Spica is started is not run."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('taken')", "utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="torch can't read this weights file"):
        convert(request_for)


def test_a_file_that_has_changed_is_refused(request_for: Request) -> None:
    """The child converts the file that was looked at, or none."""
    with pytest.raises(WeightsError, match="has changed meanwhile"):
        convert(replace(request_for, sha256="0" * 64))


def test_a_conversion_can_be_stopped(tmp_path: Path, request_for: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting the event ends the child, however long it would have run."""
    fake_torch(tmp_path, monkeypatch, "import threading; threading.Event().wait()")
    stop, told = threading.Event(), []

    def progress(text: str) -> None:
        told.append(text)
        stop.set()

    with pytest.raises(ModelUnavailableError, match="stopped"):
        convert(request_for, progress=progress, stop=stop)
    assert told == ["loading torch"]


def test_the_child_ends_with_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When its input ends, the child ends too, in the middle of its work."""
    import subprocess
    import sys

    fake_torch(tmp_path, monkeypatch, "import threading; threading.Event().wait()")
    with subprocess.Popen(
        [sys.executable, "-m", "spica.detectors.convert"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b'{"weights": "a", "folder": "b"}\n')
        child.stdin.flush()
        assert b"loading torch" in child.stdout.readline()
        child.stdin.close()
        assert child.wait(timeout=60) == 1


def test_weights_with_nan_are_refused(request_for: Request) -> None:
    """Weights of a training that diverged are refused, with a key that shows it."""
    torch = pytest.importorskip("torch", reason="needs the extra spica[train]")
    state_dict = tutorial_state_dict()
    state_dict["roi_heads.box_head.fc7.bias"][3] = float("nan")
    torch.save(state_dict, request_for.weights)
    with pytest.raises(WeightsError, match="NaN or infinity") as refused:
        convert(replace(request_for, sha256=sha256_file(Path(request_for.weights))))
    assert "roi_heads.box_head.fc7.bias" in str(refused.value)


@pytest.mark.slow
def test_the_comparison_is_kept(tutorial: Prepared) -> None:
    """A converted network's card tells on how many boxes it agreed with torch, and how closely."""
    told = tutorial.version.card.metrics["verification"]
    assert told["boxes"] > 100
    assert told["unmatched"] == 0
    assert told["score_floor"] == 0.05
    assert told["max_box_px"] < 0.1
    assert told["max_score"] < 0.001
    assert any("comparing" in text for text in tutorial.progress)


@pytest.mark.slow
def test_weights_that_find_little_are_compared_lower(reluctant: Prepared) -> None:
    """Where hardly a box is above the floor, the comparison is made on what is below it."""
    card = reluctant.version.card
    told = card.metrics["verification"]
    assert 0 < told["score_floor"] < 0.5
    assert told["boxes"] > 100
    assert told["unmatched"] <= 0.02 * told["boxes"]
    assert (card.architecture, card.norm, card.norm_eps) == ("fasterrcnn_mobilenet_v3_large_fpn", "batch", 1e-5)
    assert len(card.classes) == 3


@pytest.mark.slow
def test_the_weights_are_kept_beside_the_graph(reluctant: Prepared) -> None:
    """The version's folder has the weights under plain names, with which they are recognised without their origin."""
    torch = pytest.importorskip("torch", reason="needs the extra spica[train]")
    from spica.detectors.networks import load_state_dict

    version = reluctant.version
    assert version.source == version.folder / "model.safetensors"
    assert "model.safetensors" in version.card.files
    info = inspect(version.source)
    assert (info.architecture, info.num_classes, info.norm) == ("fasterrcnn_mobilenet_v3_large_fpn", 3, "batch")
    kept, given = load_state_dict(version.source), load_state_dict(reluctant.weights)
    assert kept.keys() == given.keys()
    assert all(torch.equal(kept[key], given[key]) for key in given)


@pytest.mark.slow
def test_a_version_of_the_first_spica_stays_valid(reluctant: Prepared, tmp_path: Path) -> None:
    """A folder without the weights is a version as before; torch can't load it."""
    from spica.models import store

    folder = tmp_path / "old"
    shutil.copytree(reluctant.version.folder, folder)
    (folder / "model.safetensors").unlink()
    card = json.loads((folder / "model.json").read_text("utf-8"))
    del card["files"]["model.safetensors"]
    (folder / "model.json").write_text(json.dumps(card), "utf-8")
    version = store.prepare(folder, data_dir=tmp_path, score_floor=0.05, max_detections=1000, norm_eps=0.0)
    assert (version.id, version.source) == (card["id"], None)


@pytest.mark.slow
def test_the_input_size_of_the_file_reaches_the_graph(tmp_path: Path) -> None:
    """Weights that say the size of their images are converted with it, and the kept weights say it too."""
    save_file = pytest.importorskip("safetensors.torch", reason="needs the extra spica[train]").save_file
    architecture = "fasterrcnn_mobilenet_v3_large_320_fpn"
    told = {"spica.architecture": architecture, "spica.input_size": "[160, 256]", "spica.classes": '["ear"]'}
    weights = tmp_path / "w.safetensors"
    save_file(spread_state_dict(architecture, 2, "frozen", input_size=(160, 256)), weights, told)
    info = inspect(weights)
    out = tmp_path / "out"
    out.mkdir()
    request = Request(
        str(weights), info.sha256, str(out), architecture, info.classes, "frozen", None, 0.05, 1000, info.input_size
    )
    progress: list[str] = []
    assert child.convert_here(asdict(request), progress.append)["boxes"] > 20
    assert len(progress) == 4
    kept = inspect(out / "model.safetensors")
    assert (kept.architecture, kept.input_size, kept.classes) == (architecture, (160, 256), ("ear",))
    assert 'max_aspect value="192"' in (out / "model.xml").read_text("utf-8")


@pytest.mark.parametrize(("norm", "eps"), [("frozen", 0.25), ("batch", 1e-5)])
def test_the_settings_reach_the_network(norm: Norm, eps: float) -> None:
    """Eps goes into every frozen norm layer and no other, and floor and limit go into the head."""
    torch = pytest.importorskip("torch", reason="needs the extra spica[train]")
    from torchvision.ops import FrozenBatchNorm2d

    from spica.detectors.networks import build_from

    state_dict = {key: value.float() for key, value in hollow_state_dict(3, norm).items()}
    model = build_from(state_dict, norm_eps=0.25, score_floor=0.125, max_detections=7)
    kind = FrozenBatchNorm2d if norm == "frozen" else torch.nn.BatchNorm2d
    layers = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d | torch.nn.BatchNorm2d)]
    assert len(layers) == 53
    assert all(type(layer) is kind and layer.eps == eps for layer in layers)
    heads: Any = model.roi_heads
    assert (heads.score_thresh, heads.detections_per_img) == (0.125, 7)
    assert not model.training
