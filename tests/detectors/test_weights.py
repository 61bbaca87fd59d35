from __future__ import annotations

import io
import json
import logging
import os
import pickle
import re
import struct
import subprocess
import sys
import types
import zipfile
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spica.detectors import checkpoint
from spica.detectors.architecture import names
from spica.detectors.weights import inspect, trained_size
from spica.errors import WeightsError
from weights_builder import hollow_state_dict

torch = pytest.importorskip("torch", reason="needs the extra spica[train]")
torchvision = pytest.importorskip("torchvision", reason="needs the extra spica[train]")
pytestmark = pytest.mark.torch
MOBILE = "fasterrcnn_mobilenet_v3_large_fpn"
MOBILE_320 = "fasterrcnn_mobilenet_v3_large_320_fpn"


class _Runs:
    """Its unpickling makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def hollow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound file of the right keys and shapes, all zeros."""
    path = tmp_path_factory.mktemp("hollow") / "gwhd.pth"
    torch.save(hollow_state_dict(), path)
    return path


def saved(value: object, **options: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def of_foreign_class(module: str, name: str) -> bytes:
    """A checkpoint that holds an object of a class that is not installed here."""
    home = types.ModuleType(module)
    kind = type(name, (), {"__module__": module})
    setattr(home, name, kind)
    parts = module.split(".")
    added = {".".join(parts[:end]): types.ModuleType(".".join(parts[:end])) for end in range(1, len(parts))}
    with pytest.MonkeyPatch.context() as patch:
        for key, value in (added | {module: home}).items():
            patch.setitem(sys.modules, key, value)
        return saved({"model": kind(), "epoch": 3})


def safetensors(header: Any, numbers: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + numbers


def overlapping() -> bytes:
    """Two entries of the directory that share the same bytes."""
    whole = zipped({"a/data.pkl": b"N." * 50_000, "b": b"N." * 50_000})
    start = whole.index(b"PK\x01\x02", whole.index(b"PK\x01\x02") + 4)
    return whole[: whole.index(b"PK\x03\x04", 4)] + whole[whole.index(b"PK\x01\x02") : start - 0] + _rest(whole, start)


def _rest(whole: bytes, start: int) -> bytes:
    entry = bytearray(whole[start : whole.index(b"PK\x05\x06")])
    entry[42:46] = struct.pack("<L", 0)  # the second begins where the first does
    end = bytearray(whole[whole.index(b"PK\x05\x06") :])
    end[16:20] = struct.pack("<L", whole.index(b"PK\x03\x04", 4))
    return bytes(entry + end)


BAD: dict[str, tuple[str, Callable[[], bytes], tuple[str, ...]]] = {
    "empty": ("gwhd.pth", lambda: b"", ("empty", "0 bytes")),
    "text": ("gwhd.pth", lambda: b"hello", ("no weights file", "b'hello'")),
    "a web page": ("gwhd.pth", lambda: b"<!DOCTYPE html><html>", ("web page",)),
    "a Git LFS pointer": ("gwhd.pth", lambda: b"version https://git-lfs.github.com/spec/v1\n", ("git lfs pull",)),
    "a photograph": ("gwhd.pth", lambda: b"\xff\xd8\xff\xe0" + bytes(100), ("JPEG",)),
    "gzip": ("gwhd.pth.gz", lambda: b"\x1f\x8b\x08" + bytes(100), ("gzip",)),
    "a zip of something else": ("gwhd.pth", lambda: zipped({"a.txt": b"a"}), ("torch.save", "a.txt")),
    "a torch file cut off": ("gwhd.pth", lambda: saved({"a": torch.zeros(1000)})[:-900], ("damaged or cut off",)),
    "its first bytes": ("gwhd.pth", lambda: saved({"a": torch.zeros(1000)})[:10], ("damaged or cut off",)),
    "numbers missing": (
        "gwhd.pth",
        lambda: zipped({"a/data.pkl": _pickle_of(saved({"w": torch.zeros(3)}))}),
        ("a/data/0 has 0 bytes, not 12",),
    ),
    "an old torch file cut off": (
        "gwhd.pth",
        lambda: saved({"a": torch.zeros(1000)}, _use_new_zipfile_serialization=False)[:-100],
        ("damaged or cut off",),
    ),
    "a plain pickle": ("gwhd.pkl", lambda: pickle.dumps({"a": [1.0]}), ("not one that torch.save writes",)),
    "no state_dict": ("gwhd.pth", lambda: saved({"epoch": 3, "loss": [0.1]}), ("no state_dict", "epoch, loss")),
    "a tensor": ("gwhd.pth", lambda: saved(torch.zeros(3)), ("no state_dict", "a single tensor")),
    "a whole model": (
        "gwhd.pth",
        lambda: saved(torch.nn.Sequential(torch.nn.Linear(2, 2))),
        ("whole pickled model", "torch.nn.modules", "weights_only=False).state_dict(), 'gwhd-weights.pth')"),
    ),
    "an Ultralytics model": (
        "yolo11n.pt",
        lambda: of_foreign_class("ultralytics.nn.tasks", "DetectionModel"),
        (
            "Ultralytics",
            "yolo export model=yolo11n.pt format=onnx",
            "give that",
            "ultralytics.nn.tasks.DetectionModel",
        ),
    ),
    "an older YOLO": (
        "yolov5s.pt",
        lambda: of_foreign_class("models.yolo", "Model"),
        ("Ultralytics", "yolo export model=yolov5s.pt format=onnx"),
    ),
    "a class of somebody's": (
        "gwhd.pth",
        lambda: of_foreign_class("my_training", "Config"),
        ("asks for more than tensors", "my_training.Config", "weights_only=False)['model'].state_dict(), 'gwhd-"),
    ),
    "TorchScript": (
        "gwhd.pt",
        lambda: zipped({"a/data.pkl": b"N.", "a/constants.pkl": b"N.", "a/code/x.py": b""}),
        ("TorchScript",),
    ),
    "another architecture": (
        "resnet.pth",
        lambda: saved(
            {"conv1.weight": torch.zeros(2), "layer1.0.conv1.weight": torch.zeros(2), "fc.weight": torch.zeros(2)}
        ),
        ("not the weights of a network that is served", "image classifier", "layer1.0.conv1.weight"),
    ),
    "a zip bomb": (
        "gwhd.pth",
        lambda: zipped({"a/data.pkl": b"N.", "a/data/0": bytes(20_000_000)}, zipfile.ZIP_DEFLATED),
        ("could fill the memory", "a/data/0", "bytes that become 20000000"),
    ),
    "a zip that claims terabytes": ("gwhd.pth", lambda: _claiming(2**32 - 2), ("could fill the memory", "4294967294")),
    "a zip of very many files": (
        "gwhd.pth",
        lambda: zipped({f"a/data/{number}": b"" for number in range(checkpoint.MAX_MEMBERS + 1)}),
        ("could fill the memory", "files in the archive"),
    ),
    "a zip whose files overlap": ("gwhd.pth", overlapping, ("could fill the memory", "overlap")),
    "a zip with a huge directory": (
        "gwhd.pth",
        lambda: _with_directory_of(2**31),
        ("could fill the memory", "directory"),
    ),
    "a huge pickle": (
        "gwhd.pth",
        lambda: zipped({"a/data.pkl": bytes(checkpoint.MAX_PICKLE_BYTES + 1)}),
        ("could fill the memory", "a pickle of"),
    ),
    "safetensors: a header beyond the end": (
        "gwhd.safetensors",
        lambda: safetensors({}, length=2**62),
        ("damaged",),
    ),
    "safetensors: three bytes": ("gwhd.safetensors", lambda: b"abc", ("damaged",)),
    "safetensors: no JSON": ("gwhd.safetensors", lambda: safetensors(b"{nonsense"), ("damaged",)),
    "safetensors: nested JSON": ("gwhd.safetensors", lambda: safetensors(b"[" * 100_000), ("damaged",)),
    "safetensors: a list": ("gwhd.safetensors", lambda: safetensors([1]), ("damaged",)),
    "safetensors: beyond the end": (
        "gwhd.safetensors",
        lambda: safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(7)),
        ("damaged",),
    ),
    "safetensors: another size": (
        "gwhd.safetensors",
        lambda: safetensors({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(8)),
        ("damaged",),
    ),
    "safetensors: a negative side": (
        "gwhd.safetensors",
        lambda: safetensors({"a": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}, bytes(8)),
        ("damaged",),
    ),
    "safetensors: another architecture": (
        "gwhd.safetensors",
        lambda: safetensors({"fc.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        ("not the weights of", "fc.weight"),
    ),
    "XML, but no IR": ("model.xml", lambda: b"<View/>", ("not written by Spica",)),
    "no XML": ("model.xml", lambda: b"<net>", ("damaged", "tags mismatch")),
    "an entity bomb": (
        "model.xml",
        lambda: b'<!DOCTYPE net [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><net>&b;</net>',
        ("not written by Spica",),
    ),
    "an IR without its numbers": ("model.xml", lambda: b"<net/>", ("model.bin", "missing")),
    "ONNX cut off": ("model.onnx", lambda: b"\x08\x08\x3a\xff\x01ab", ("no whole ONNX",)),
    "no ONNX": ("model.onnx", lambda: b"hello", ("damaged",)),
}


def _pickle_of(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read("archive/data.pkl")


def _claiming(size: int) -> bytes:
    whole = bytearray(zipped({"a/data.pkl": b"N.", "a/data/0": b"", "a/data/1": b""}))
    for at in range(len(whole) - 4):
        if whole[at : at + 4] == b"PK\x01\x02" and b"data/" in whole[at + 46 : at + 54]:
            whole[at + 24 : at + 28] = struct.pack("<L", size)
    return bytes(whole)


def _with_directory_of(size: int) -> bytes:
    whole = bytearray(zipped({"a/data.pkl": b"N."}))
    end = whole.index(b"PK\x05\x06")
    whole[end + 12 : end + 16] = struct.pack("<L", size)
    return bytes(whole)


@pytest.mark.parametrize(("name", "content", "told"), BAD.values(), ids=BAD.keys())
def test_bad_files_are_refused_with_a_reason(
    tmp_path: Path, name: str, content: Callable[[], bytes], told: tuple[str, ...]
) -> None:
    """Each bad file has its own message, which names the file and says what it is."""
    path = tmp_path / name
    path.write_bytes(content())
    if "missing" not in told:
        path.with_suffix(".bin").write_bytes(b"the numbers of an IR")
    with pytest.raises(WeightsError) as refused:
        inspect(path)
    text = str(refused.value)
    assert all(part in text for part in told), text
    assert name in text


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A path without a file says so."""
    with pytest.raises(WeightsError, match="no such weights file"):
        inspect(tmp_path / "gwhd.pth")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    """A folder that is no model version says what was expected."""
    with pytest.raises(WeightsError, match="this is a folder") as refused:
        inspect(tmp_path)
    assert "model.json" in str(refused.value)


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain", "in a state_dict"])
def test_a_hostile_pickle_is_named_and_not_run(tmp_path: Path, kind: str) -> None:
    """A pickle that would make a folder makes none, and the call is named; loaded carelessly it does make it."""
    target, path = tmp_path / "made", tmp_path / "gwhd.pth"
    content = {
        "zip": lambda: saved(_Runs(target)),
        "legacy": lambda: saved(_Runs(target), _use_new_zipfile_serialization=False),
        "plain": lambda: pickle.dumps(_Runs(target)),
        "in a state_dict": lambda: saved(hollow_state_dict() | {"extra": _Runs(target)}),
    }[kind]()
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"would run code when loaded; nothing of it was run") as refused:
        inspect(path)
    assert f"{os.name}.mkdir" in (refused.value.got or "")
    assert not target.exists()
    if kind == "plain":
        pickle.loads(content)  # noqa: S301 - it is our own
    else:
        torch.load(io.BytesIO(content), weights_only=False)
    assert target.exists()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda: saved(hollow_state_dict(3, "frozen")), id="frozen"),
        pytest.param(lambda: saved(hollow_state_dict(3, "batch")), id="batch"),
        pytest.param(lambda: saved(hollow_state_dict(3), _use_new_zipfile_serialization=False), id="before torch 1.6"),
        pytest.param(lambda: saved({"model": hollow_state_dict(3), "epoch": 3, "lr": 0.1}), id="a checkpoint"),
        pytest.param(
            lambda: saved({"state_dict": {f"module.{k}": v for k, v in hollow_state_dict(3).items()}}),
            id="a checkpoint of DataParallel",
        ),
        pytest.param(
            lambda: saved({k: torch.nn.Parameter(v.half()) for k, v in hollow_state_dict(3).items()}), id="parameters"
        ),
        pytest.param(lambda: saved(hollow_state_dict(3), pickle_protocol=4), id="protocol 4"),
    ],
)
def test_weights_are_recognised(tmp_path: Path, content: Callable[[], bytes], request: pytest.FixtureRequest) -> None:
    """All forms in which torch saves the tutorial's weights are told apart and read."""
    path = tmp_path / "小麦.pth"
    path.write_bytes(content())
    info = inspect(path)
    assert (info.format, info.architecture, info.num_classes) == ("state_dict", "fasterrcnn_resnet50_fpn", 2)
    assert info.classes == ("", "")
    assert info.norm == ("batch" if request.node.callspec.id == "batch" else "frozen")
    assert info.nbytes == path.stat().st_size
    assert info.needs_conversion


CHECKPOINTS: dict[str, Callable[[], dict[str, Any]]] = {
    "torchvision's own script": lambda: {
        "model": hollow_state_dict(3),
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
        "lr_scheduler": {"milestones": Counter({16: 1, 22: 1}), "gamma": 0.1},
        "args": Namespace(data_path="/data/coco", lr_steps=[16, 22], device="cuda", opt=None),
        "epoch": 25,
    },
    "a device": lambda: {"model": hollow_state_dict(3), "device": torch.device("cpu"), "dtype": torch.float16},
    "NumPy's numbers": lambda: {
        "model": hollow_state_dict(3),
        "best": np.float64(0.87),
        "epoch": np.int64(3),
        "losses": np.array([0.5, 0.25], np.float32),
    },
    "a set and bytes": lambda: {
        "model": hollow_state_dict(3),
        "seen": {"a", "b"},
        "tag": b"x",
        "more": bytearray(b"y"),
    },
    "net": lambda: {"net": hollow_state_dict(3), "acc": 0.9},
    "weights": lambda: {"weights": hollow_state_dict(3)},
    "model_ema": lambda: {"model_ema": {f"module.{k}": v for k, v in hollow_state_dict(3).items()}, "epoch": 1},
}
"""What training scripts save, none of which can run anything."""


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_checkpoints_of_training_scripts_are_read(tmp_path: Path, checkpoint: str) -> None:
    """A checkpoint with what scripts keep beside the weights is recognised, and torch gives the same tensors for it."""
    from spica.detectors.networks import load_state_dict

    path = tmp_path / "checkpoint.pth"
    path.write_bytes(saved(CHECKPOINTS[checkpoint]()))
    info = inspect(path)
    assert (info.format, info.architecture, info.num_classes) == ("state_dict", "fasterrcnn_resnet50_fpn", 2)
    assert load_state_dict(path).keys() == hollow_state_dict(3).keys()


@pytest.mark.parametrize("kind", ["a whole model", "a model in a checkpoint", "a path beside the weights"])
def test_the_line_in_a_refusal_mends_the_file(tmp_path: Path, kind: str) -> None:
    """What a refusal says to run makes a file that is read, of the same numbers."""
    network = torchvision.models.get_model(MOBILE, weights=None, weights_backbone=None, num_classes=3)
    content = {
        "a whole model": network,
        "a model in a checkpoint": {"model": network, "epoch": 3},
        "a path beside the weights": {"state_dict": network.state_dict(), "file": Path("/data")},
    }[kind]
    torch.save(content, tmp_path / "小麦 1.pth")
    with pytest.raises(WeightsError, match="nothing of it was run") as refused:
        inspect(tmp_path / "小麦 1.pth")
    line = re.search(r'python -c "(.+?)"; then give', refused.value.hint or "")
    assert line is not None
    subprocess.run([sys.executable, "-c", line[1]], cwd=tmp_path, check=True)
    assert inspect(tmp_path / "小麦 1-weights.pth").architecture == MOBILE


@pytest.mark.parametrize("given", [".", "yolo11n.xml"])
def test_an_openvino_export_says_what_to_give_instead(tmp_path: Path, given: str) -> None:
    """The folder that `yolo export format=openvino` writes, or its graph, is refused with the line that helps."""
    folder = tmp_path / "yolo11n_openvino_model"
    folder.mkdir()
    graph = '<net name="Model0" version="11"><layers/><edges/><rt_info><model_info/></rt_info></net>'
    folder.joinpath("yolo11n.xml").write_text(graph, "utf-8")
    folder.joinpath("yolo11n.bin").write_bytes(b"1")
    folder.joinpath("metadata.yaml").write_text("task: detect\n", "utf-8")
    with pytest.raises(WeightsError) as refused:
        inspect(folder / given)
    assert "yolo export model=yolo11n.pt format=onnx" in (refused.value.hint or "")


def test_safetensors_are_recognised(tmp_path: Path) -> None:
    """A .safetensors file is read, with the class names in its metadata."""
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(hollow_state_dict(3), tmp_path / "a.safetensors", {"spica.classes": '["spike", "葉"]'})
    info = inspect(tmp_path / "a.safetensors")
    assert (info.format, info.classes, info.norm) == ("safetensors", ("spike", "葉"), "frozen")
    save_file(hollow_state_dict(3), tmp_path / "b.safetensors", {"spica.classes": '["spike"]'})
    with pytest.raises(WeightsError, match="damaged") as refused:
        inspect(tmp_path / "b.safetensors")
    assert "1 names for 2 classes" in str(refused.value)


@pytest.mark.parametrize("architecture", names())
def test_every_network_is_recognised(tmp_path: Path, architecture: str) -> None:
    """The weights of each network are told from its file, with the number of classes without the background."""
    path = tmp_path / f"{architecture}-907ea3f9.pth"
    path.write_bytes(saved(hollow_state_dict(4, "batch", architecture)))
    info = inspect(path)
    assert (info.architecture, info.num_classes, info.norm) == (architecture, 3, "batch")
    assert info.input_size is None


@pytest.mark.parametrize(
    ("name", "metadata", "wanted", "taken"),
    [
        pytest.param("gwhd.safetensors", None, None, MOBILE, id="nothing says which"),
        pytest.param("best-320.safetensors", None, None, MOBILE, id="a number in the name"),
        pytest.param("Fasterrcnn-mobilenet-v3-large-320-fpn (1).safetensors", None, None, MOBILE_320, id="the name"),
        pytest.param("gwhd.safetensors", None, MOBILE_320, MOBILE_320, id="the setting"),
        pytest.param(f"{MOBILE_320}.safetensors", None, MOBILE, MOBILE, id="the setting before the name"),
        pytest.param("gwhd.safetensors", MOBILE_320, MOBILE, MOBILE_320, id="the file before the setting"),
    ],
)
def test_networks_with_the_same_tensors(
    tmp_path: Path, name: str, metadata: str | None, wanted: str | None, taken: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The file says which of two networks it is, else the setting, else its name, else it is the larger; as logged."""
    save_file = pytest.importorskip("safetensors.torch").save_file
    told = {"spica.architecture": metadata} if metadata else {}
    save_file(hollow_state_dict(2, "frozen", MOBILE), tmp_path / name, told)
    with caplog.at_level(logging.INFO):
        assert inspect(tmp_path / name, wanted).architecture == taken
    decided = metadata is not None or wanted is not None
    assert ("SPICA_ARCHITECTURE" in caplog.text) is not decided


@pytest.mark.parametrize(
    ("metadata", "wanted", "told"),
    [
        pytest.param({}, "ssd300_vgg16", "not of ssd300_vgg16", id="the setting names another network"),
        pytest.param({"spica.architecture": "later"}, None, "'later' is no architecture", id="a later network"),
        pytest.param({"spica.input_size": "[800"}, None, "no JSON", id="half an input size"),
        pytest.param({"spica.input_size": "[800]"}, None, "not two numbers", id="one number"),
        pytest.param({"spica.input_size": "[true, 800]"}, None, "not two numbers", id="no number"),
        pytest.param({"spica.input_size": "[1333, 800]"}, None, "1333 to 800 pixels", id="the wrong way round"),
    ],
)
def test_wrong_metadata_of_safetensors(tmp_path: Path, metadata: dict[str, str], wanted: str | None, told: str) -> None:
    """Metadata that contradicts the tensors, or is none, is refused."""
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(hollow_state_dict(2, "frozen", MOBILE), tmp_path / "a.safetensors", metadata)
    with pytest.raises(WeightsError) as refused:
        inspect(tmp_path / "a.safetensors", wanted)
    assert told in str(refused.value)


def test_the_input_size_is_read(tmp_path: Path) -> None:
    """A file that says the size of its images is taken at its word."""
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(hollow_state_dict(2), tmp_path / "a.safetensors", {"spica.input_size": "[640, 1024]"})
    info = inspect(tmp_path / "a.safetensors")
    assert info.input_size == trained_size(info.source) == (640, 1024)
    assert trained_size(tmp_path / "gwhd.pth") is trained_size(None) is None


@given(noise=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6))
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_noise_in_a_file_raises_nothing_but_weights_errors(tmp_path: Path, noise: list[tuple[float, int]]) -> None:
    """Whatever the bytes are, the file is refused as weights are refused."""
    for legacy in (False, True):
        content = bytearray(saved({"a": torch.zeros(2)}, _use_new_zipfile_serialization=not legacy))
        for place, byte in noise:
            content[int(place * len(content))] = byte
        path = tmp_path / "gwhd.pth"
        path.write_bytes(content)
        with pytest.raises(WeightsError):
            inspect(path)


def test_torch_is_not_imported(hollow: Path) -> None:
    """Inspecting a weights file imports neither torch nor a runtime."""
    script = (
        "import sys; from pathlib import Path; from spica.detectors.weights import inspect, trained_size;"
        "print(inspect(Path(sys.argv[1])).num_classes);"
        "print([name for name in ('torch', 'torchvision', 'openvino', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, str(hollow)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["1", "[]"]


def test_a_file_that_may_not_be_read(hollow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal of the system's is told as one."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(WeightsError, match="can't be read") as refused:
        inspect(hollow)
    assert "Permission denied" in str(refused.value)


def onnx_file(metadata: dict[str, str] | None = None, *, external: str | None = None, output: str = "scores") -> bytes:
    """An ONNX file that computes hardly anything; ``external`` names a file for the numbers of an inner graph."""
    onnx = pytest.importorskip("onnx", reason="needs the extra spica[train]")
    info = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in ("image", "boxes", "labels", output)]
    numbers = onnx.helper.make_tensor("w", 1, [1], bytes(4), raw=True)
    if external is not None:
        onnx.external_data_helper.set_external_data(numbers, external)
    constant = onnx.helper.make_node("Constant", [], ["c"], value=numbers)
    inner = onnx.helper.make_graph([constant], "inner", [], [onnx.helper.make_tensor_value_info("c", 1, [1])])
    nodes = [
        onnx.helper.make_node("Constant", [], ["yes"], value=onnx.helper.make_tensor("yes", 9, [], [True])),
        onnx.helper.make_node("If", ["yes"], ["boxes"], then_branch=inner, else_branch=inner),
        onnx.helper.make_node("Relu", ["image"], ["labels"]),
        onnx.helper.make_node("Abs", ["image"], [output]),
    ]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", info[:1], info[1:]))
    told = {"spica.format": "1", "spica.classes": '["spike"]', "spica.architecture": "demo"}
    onnx.helper.set_model_props(model, told if metadata is None else metadata)
    content: bytes = model.SerializeToString()
    return content


def test_our_onnx_is_recognised(tmp_path: Path) -> None:
    """A graph with our metadata tells its classes and architecture."""
    (tmp_path / "model.onnx").write_bytes(onnx_file())
    info = inspect(tmp_path / "model.onnx")
    assert (info.format, info.classes, info.architecture, info.norm) == ("onnx", ("spike",), "demo", None)
    assert not info.needs_conversion


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(lambda: onnx_file({}), "inputs image", id="foreign"),
        pytest.param(lambda: onnx_file({"spica.format": "2"}), "spica.format 2", id="a later format"),
        pytest.param(lambda: onnx_file({"spica.format": "1"}), "no class names", id="no names"),
        pytest.param(lambda: onnx_file({"spica.format": "1", "spica.classes": "{"}), "no JSON", id="no JSON"),
        pytest.param(
            lambda: onnx_file({"spica.format": "1", "spica.classes": "[1]"}), "no list of texts", id="numbers"
        ),
        pytest.param(lambda: onnx_file(external="numbers.bin"), "other files", id="numbers in another file"),
        pytest.param(lambda: onnx_file(external="../../secret.bin"), "not allowed", id="numbers elsewhere"),
        pytest.param(lambda: onnx_file(output="masks"), "outputs boxes, labels, masks", id="other outputs"),
    ],
)
def test_other_onnx_is_refused(tmp_path: Path, content: Callable[[], bytes], told: str) -> None:
    """A graph of another origin is refused with what tells it."""
    (tmp_path / "model.onnx").write_bytes(content())
    (tmp_path / "numbers.bin").write_bytes(bytes(4))
    with pytest.raises(WeightsError) as refused:
        inspect(tmp_path / "model.onnx")
    assert told in str(refused.value)
