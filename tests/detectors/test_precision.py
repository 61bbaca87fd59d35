"""Which arithmetics a machine has, what of a network may be quantised, and the detector in each arithmetic."""

from __future__ import annotations

import json
import logging
import platform
import shutil
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spica.boxes import Detections
from spica.demo import model_folder
from spica.demo.field import render_field, write_images
from spica.detectors import openvino, torch_gpu
from spica.detectors.contract import Precision
from spica.detectors.openvino import (
    REST,
    Machine,
    OpenVINODetector,
    compile_graph,
    load_openvino,
    machine,
    openvino_core,
    save_graph,
)
from spica.detectors.quantise import _Photographs, faster, float_nodes, quantisable_nodes, quantise
from spica.errors import ImageError, StorageError, WeightsError
from spica.evaluation.matching import match
from spica.evaluation.truth import Truth
from spica.models.card import CARD, FileEntry, Variant, check_files, read_card, record_variant

GRAPH = model_folder() / "model.onnx"


# --- what the machine has


class Core:
    """OpenVINO's core, of a processor that offers this and computes in this by default."""

    def __init__(self, offered: list[str], default: str) -> None:
        self.offered, self.default = offered, default

    def get_property(self, device: str, name: str) -> Any:
        assert device == "CPU"
        return {"OPTIMIZATION_CAPABILITIES": self.offered, "FULL_DEVICE_NAME": "a processor "}[name]

    def compile_model(self, _model: Any, device: str, config: dict[str, str]) -> Any:
        assert (device, config) == ("CPU", {"EXECUTION_MODE_HINT": "PERFORMANCE"})
        return SimpleNamespace(get_property=lambda _: getattr(load_openvino().Type, self.default))


@pytest.mark.parametrize(
    ("offered", "default", "expected"),
    [
        pytest.param(["FP32"], "f32", {"f32"}, id="nothing but floats"),
        pytest.param(["FP32", "FP16", "INT8"], "f16", {"f32", "int8"}, id="ARM: float16 is none of ours"),
        pytest.param(["FP32", "BF16", "INT8"], "bf16", {"f32", "bf16", "int8"}, id="bfloat16 in hardware"),
        pytest.param(["FP32", "BF16", "INT8"], "f32", {"f32", "int8"}, id="bfloat16 only imitated"),
    ],
)
def test_what_a_machine_has(
    offered: list[str], default: str, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 counts only where OpenVINO computes in it by default, not where it merely offers it."""
    monkeypatch.setattr(openvino, "openvino_core", lambda: Core(offered, default))
    here = machine.__wrapped__()
    assert set(here.has) == expected
    assert here.processor == "a processor"


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the processor's flags are Linux' on x86"
)
def test_openvinos_default_is_what_the_processor_has() -> None:
    """Where Linux lists no instructions for bfloat16, it is not among the precisions; where it does, it is."""
    flags = set(Path("/proc/cpuinfo").read_text("utf-8").partition("flags")[2].partition("\n")[0].split())
    assert ("bf16" in machine().has) == bool(flags & {"avx512_bf16", "amx_bf16"})


@pytest.mark.parametrize("real", [True, False], ids=["bfloat16 in hardware", "an older GPU"])
def test_a_gpu_is_asked_for_its_name_and_its_bfloat16(real: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that only imitates bfloat16 has f32 alone."""
    torch = pytest.importorskip("torch", reason="needs the extra spica[train]")
    monkeypatch.setattr(torch_gpu, "cuda_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: real)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert torch_gpu.gpu() == Machine("a GPU", frozenset({"f32", "bf16"} if real else {"f32"}), "cuda")


def test_a_gpu_that_cannot_compute_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A GPU that torch finds but that fails with the first operation leaves the work to the processor, with a word."""
    torch = pytest.importorskip("torch", reason="needs the extra spica[train]")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", fail)
    assert torch_gpu._gpu_computes.__wrapped__() is False
    assert "no kernel image" in caplog.text


def test_torch_is_not_looked_for_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where NVIDIA's driver is missing, there is no CUDA, and nobody asks torch."""
    monkeypatch.setattr(torch_gpu, "_nvidia_driver", lambda: False)
    monkeypatch.setitem(__import__("sys").modules, "torch", None)  # importing it would fail
    assert torch_gpu.cuda_available() is False


# --- what may be quantised


def test_of_the_demos_network_only_layers_and_what_lies_between_are_quantised() -> None:
    """All 17 convolutions are in the scope; scores, boxes and their suppression are not."""
    model = openvino_core().read_model(GRAPH)
    kinds = {node.get_friendly_name(): node.get_type_name() for node in model.get_ordered_ops()}
    kept = quantisable_nodes(model)
    assert sum(kinds[name] == "Convolution" for name in kept) == 17
    assert {kinds[name] for name in kept} == {"Convolution", "Add", "Relu", "Interpolate"}
    left = set(float_nodes(model))
    assert not kept & left
    assert {"/Sigmoid", "/network/Softplus", "/network/Add_3", "/NonMaxSuppression"} <= left


def network(build: Callable[[Any, Any, Callable[..., Any]], Any]) -> Any:
    """A graph of a few nodes: ``build`` is given the operations, the image and a maker of layers."""
    openvino = load_openvino()
    from openvino import opset13

    image = opset13.parameter([1, 4, 8, 8], np.float32, name="image")
    layers = iter(range(100))

    def layer(given: Any, weights: Any = None) -> Any:
        values = np.random.default_rng(next(layers)).normal(size=(4, 4, 1, 1)).astype(np.float32)
        kernel = opset13.constant(values if weights is None else weights)
        return opset13.convolution(given, kernel, [1, 1], [0, 0], [0, 0], [1, 1])

    return openvino.Model([build(opset13, image, layer)], [image])


def names(model: Any, kind: str) -> set[str]:
    return {node.get_friendly_name() for node in model.get_ordered_ops() if node.get_type_name() == kind}


def test_features_begin_again_behind_the_pooling_of_regions() -> None:
    """Boxes that are sorted out of features stay float; what is pooled with them, and its layer, does not."""

    def build(ops: Any, image: Any, layer: Callable[..., Any]) -> Any:
        features = ops.relu(layer(ops.exp(image)))
        scores = ops.reshape(layer(features), [-1], False)
        best = ops.topk(scores, np.int64(5), 0, "max", "value")
        # boxes out of the best scores: arithmetic, though a layer comes behind
        boxes = ops.reshape(ops.tile(ops.sin(best.output(0)), [4]), [5, 4], False)
        pooled = ops.roi_align(features, boxes, np.zeros(5, np.int32), 2, 2, 2, 1.0, "avg", "asymmetric")
        return layer(ops.hswish(pooled))

    model = network(build)
    kept = quantisable_nodes(model)
    assert names(model, "Convolution") | names(model, "HSwish") | names(model, "ROIAlign") <= kept
    assert names(model, "Relu") <= kept
    for kind in ("Exp", "TopK", "Sin", "Tile"):
        assert not names(model, kind) & kept, kind


def test_a_mean_of_distances_is_no_layer() -> None:
    """A convolution with 0, 1, 2, 3 turns a distribution of distances into their mean, which int8 would round."""

    def build(ops: Any, image: Any, layer: Callable[..., Any]) -> Any:
        spread = ops.softmax(layer(layer(image)), 1)
        return ops.add(layer(spread, np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1)), np.float32(1))

    model = network(build)
    kept = quantisable_nodes(model)
    assert len(names(model, "Convolution") & kept) == 2
    assert not (names(model, "Softmax") | names(model, "Add")) & kept


def test_what_is_gathered_by_rank_stays_float() -> None:
    """Queries that were chosen by their scores, as in detection transformers, and the layers that refine them."""

    def build(ops: Any, image: Any, layer: Callable[..., Any]) -> Any:
        features = ops.reshape(layer(image), [64, 4], False)
        chosen = ops.topk(ops.reduce_max(features, 1), np.int64(9), 0, "max", "value").output(1)
        queries = ops.gather(features, chosen, 0)
        weights = np.random.default_rng(9).normal(size=(4, 4)).astype(np.float32)
        return ops.matmul(queries, ops.constant(weights), False, False)

    model = network(build)
    kept = quantisable_nodes(model)
    assert names(model, "Convolution") <= kept
    assert not (names(model, "MatMul") | names(model, "Gather")) & kept


# --- the child process


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's network in int8."""
    pytest.importorskip("nncf", reason="needs the extra spica[optimise]")
    folder = tmp_path_factory.mktemp("量子化 #1")
    told: list[str] = []
    images = write_images(folder / "写真", 4, first_seed=420_000)
    images.insert(1, folder / "gone.png")
    done = quantise(GRAPH, folder / "model-int8.xml", images, max_pixels=10**6, progress=told.append)
    assert done["images"] == 4
    assert done["left_out"] == [str(folder / "gone.png")]  # what vanishes meanwhile ends nothing
    assert "looking at photograph 5 of 5" in told
    return folder / "model-int8.xml"


def quantised_consumers(model: Any) -> set[str]:
    """Names of the nodes that take quantised values in a graph that has been through NNCF."""
    consumers: set[str] = set()
    waiting = deque(node for node in model.get_ordered_ops() if node.get_type_name() == "FakeQuantize")
    while waiting:
        outputs = waiting.popleft().outputs()
        for follower in (target.get_node() for output in outputs for target in output.get_target_inputs()):
            if follower.get_type_name() in ("FakeQuantize", "Reshape", "Transpose", "Convert"):
                waiting.append(follower)
            elif follower.get_type_name() != "ShapeOf":
                consumers.add(follower.get_friendly_name())
    return consumers


def test_only_what_is_in_the_scope_was_quantised(int8: Path) -> None:
    """NNCF put its quantisers before the nodes it was allowed, and before every convolution."""
    core = openvino_core()
    allowed = quantisable_nodes(core.read_model(GRAPH))
    done = core.read_model(int8)
    assert quantised_consumers(done) <= allowed
    assert names(done, "Convolution") <= quantised_consumers(done)


def widest(graph: Path) -> float:
    """Upper end of the widest range of numbers that the graph keeps in 8 bits right after its input."""
    model = openvino_core().read_model(graph)
    first = next(node for node in model.get_ordered_ops() if node.get_type_name() == "FakeQuantize" and is_moving(node))
    return float(np.max(first.input_value(2).get_node().data))


def is_moving(node: Any) -> bool:
    """Whether it quantises what is computed, and not weights."""
    return bool(node.input_value(0).get_node().get_type_name() != "Constant")


def test_what_few_photographs_show_is_not_cut_off(tmp_path: Path) -> None:
    """A rare class may light up what no other does; ranges that are averaged over photographs would lose it."""
    dark = [tmp_path / f"dark-{number}.png" for number in range(5)]
    bright = tmp_path / "bright.png"
    for path, level in [*((path, 3) for path in dark), (bright, 255)]:
        Image.fromarray(np.full((64, 64, 3), level, np.uint8)).save(path)
    quantise(GRAPH, tmp_path / "alone.xml", [bright], max_pixels=10**6)
    quantise(GRAPH, tmp_path / "among.xml", [*dark, bright], max_pixels=10**6)
    assert widest(tmp_path / "among.xml") == pytest.approx(widest(tmp_path / "alone.xml"), rel=0.05)


@pytest.mark.parametrize(
    ("size", "given"),
    [
        pytest.param((100, 60), (100, 60), id="small"),
        pytest.param((128, 128), (128, 128), id="at the limit"),
        pytest.param((1280, 640), (128, 64), id="large"),
        pytest.param((1280, 1), (128, 1), id="a line"),
    ],
)
def test_photographs_are_given_no_larger_than_twice_what_the_network_sees(
    tmp_path: Path, size: tuple[int, int], given: tuple[int, int]
) -> None:
    """A photograph of a drone takes no more memory than the network's own view of it, doubled."""
    Image.new("RGB", size).save(tmp_path / "a.png")
    request = {"images": [str(tmp_path / "a.png")], "max_pixels": 10**7, "most_px": 128}
    (shown,) = _Photographs(request, lambda _: None)
    width, height = given
    assert shown["image"].dtype == np.float32
    assert shown["image"].shape == (3, height, width)


def test_an_unreadable_photograph_is_named(tmp_path: Path) -> None:
    """The child's error comes back as what it was."""
    pytest.importorskip("nncf", reason="needs the extra spica[optimise]")
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"a\.jpg") as refused:
        quantise(GRAPH, tmp_path / "x.xml", [tmp_path / "a.jpg"], max_pixels=10**6)
    assert "not an image" in refused.value.what


@pytest.mark.parametrize(
    ("source", "told"),
    [
        pytest.param(
            "raise ModuleNotFoundError(\"No module named 'nncf'\", name='nncf')",
            ("it is not installed", 'pip install "spica[optimise]"'),
            id="missing",
        ),
        pytest.param("raise ImportError('no libfoo')", ("it can't be loaded", "no libfoo"), id="broken"),
        pytest.param("import os; os._exit(3)", ("ended without a result", "exit status 3"), id="the process dies"),
    ],
)
def test_failures_of_the_child_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, told: tuple[str, ...]
) -> None:
    """Without NNCF, or when it dies, a sentence says so."""
    package = tmp_path / "fake" / "nncf"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(source, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    with pytest.raises(WeightsError) as refused:
        quantise(GRAPH, tmp_path / "x.xml", [], max_pixels=1)
    assert all(part in str(refused.value) for part in told), str(refused.value)


# --- the detector


def share(a: Detections, b: Detections) -> float:
    """Of the boxes above 0.5 that have a partner."""
    a, b = a.where(a.scores > 0.5), b.where(b.scores > 0.5)
    hits = (match(b, Truth(a.boxes_xyxy, a.class_ids, 640, 480)) >= 0).sum()
    return float(2 * hits / (len(a) + len(b)))


def graph_of(arithmetic: Precision, int8: Path) -> Path:
    return int8 if arithmetic == "int8" else GRAPH


@pytest.mark.parametrize("arithmetic", ["bf16", "int8"])
def test_other_arithmetics_find_nearly_the_same(arithmetic: Precision, int8: Path) -> None:
    """bf16 and int8 show the boxes of f32, and yet not the very same numbers: they are really used."""
    if arithmetic not in machine().has:
        pytest.skip(f"this processor has no {arithmetic}")
    image = render_field(420_100).pixels
    (exact,) = OpenVINODetector(GRAPH, ("spike",)).detect([image])
    (other,) = OpenVINODetector(graph_of(arithmetic, int8), ("spike",), precision=arithmetic).detect([image])
    assert len(exact) > 10
    assert share(exact, other) > 0.95
    assert not np.array_equal(exact.scores, other.scores)


def test_every_arithmetic_has_a_compiled_model_of_its_own(
    int8: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Several are kept at once; each damaged one is noticed and made again, and the answers stay the same."""
    image = render_field(420_101).pixels

    def answer(arithmetic: Precision) -> Detections:
        graph = graph_of(arithmetic, int8)
        return OpenVINODetector(graph, ("spike",), cache_dir=tmp_path, precision=arithmetic).detect([image])[0]

    arithmetics: tuple[Precision, ...] = ("f32", "bf16", "int8")
    first = {arithmetic: answer(arithmetic) for arithmetic in arithmetics}
    assert len(list(tmp_path.iterdir())) == 3
    with caplog.at_level(logging.WARNING):
        again = {arithmetic: answer(arithmetic) for arithmetic in arithmetics}
    assert "damaged" not in caplog.text
    for blob in tmp_path.rglob("*.blob"):
        blob.chmod(0o600)
        content = bytearray(blob.read_bytes())
        content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
        blob.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        mended = {arithmetic: answer(arithmetic) for arithmetic in arithmetics}
    assert caplog.text.count("damaged") == 3
    for arithmetic in arithmetics:
        for later in (again[arithmetic], mended[arithmetic]):
            assert share(first[arithmetic], later) == 1
            np.testing.assert_allclose(later.scores, first[arithmetic].scores, atol=1e-4)


def test_another_number_of_threads_does_not_spoil_the_compiled_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """OpenVINO keeps a model for each number of threads; the digests of one are not those of another."""
    with caplog.at_level(logging.WARNING):
        for threads in (1, 2, 1, 2):
            OpenVINODetector(GRAPH, ("spike",), cache_dir=tmp_path, threads=threads)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("free", "expected"),
    [pytest.param(2**40, "create directory", id="no folder"), pytest.param(5, "No space left", id="a full disk")],
)
def test_a_graph_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, expected: str
) -> None:
    """A graph that OpenVINO can't save is a storage error with the reason."""
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(Path, "is_dir", lambda _: True)
    (tmp_path / "file").write_bytes(b"")
    graph = openvino_core().read_model(GRAPH)
    with pytest.raises(StorageError, match="could not be written") as refused:
        save_graph(graph, tmp_path / "file" / "folder" / "model.xml", {"architecture": "a"})
    assert expected in str(refused.value)


# --- the card


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A copy of the demo's model version."""
    return Path(shutil.copytree(model_folder(), tmp_path / "版 1"))


def int8_form(folder: Path, content: bytes = b"x") -> Variant:
    """An int8 form whose files are no graph."""
    from spica.models.card import describe_files

    names = ("model-int8-0000.xml", "model-int8-0000.bin")
    for name in names:
        (folder / name).write_bytes(content)
    return Variant(True, {"result": "よい"}, graph=names[0], files=describe_files(folder, names))


def test_forms_survive_in_the_card_and_nothing_else_changes(version: Path) -> None:
    """What was recorded is read back, and every other entry, known or not, is as before; the id too."""
    before, card_before = json.loads((version / CARD).read_text("utf-8")), read_card(version)
    assert card_before.precisions == {}
    bf16, int8 = Variant(False, {"result": "bad"}, accepted_loss=True), int8_form(version)
    record_variant(version, "bf16", bf16)
    card = record_variant(version, "int8", int8)
    assert card == read_card(version)
    assert dict(card.precisions) == {"bf16": bf16, "int8": int8}
    assert card.id == card_before.id
    after = json.loads((version / CARD).read_text("utf-8"))
    assert after.pop("precisions").keys() == {"bf16", "int8"}
    assert after == before
    assert sorted(path.name for path in version.iterdir()) == sorted(
        [CARD, "model.onnx", "model-int8-0000.bin", "model-int8-0000.xml"]
    )


def test_a_card_written_anew_keeps_its_forms(version: Path) -> None:
    """The text that a card makes of itself is read back as the same card."""
    card = record_variant(version, "int8", int8_form(version))
    (version / CARD).write_text(card.as_json(), "utf-8")
    assert read_card(version) == card


def test_the_files_of_a_form_are_checked(version: Path) -> None:
    """A flipped byte in the int8 graph is noticed like one in the network itself."""
    card = record_variant(version, "int8", int8_form(version))
    check_files(version, card)
    (version / "model-int8-0000.bin").write_bytes(b"y")
    with pytest.raises(WeightsError, match=r"model-int8-0000\.bin"):
        check_files(version, card)


def test_other_contents_have_other_digits(version: Path) -> None:
    """The digits in the served id follow the graph's content, and a form without a graph has none."""
    first, second = int8_form(version, b"x"), int8_form(version, b"y")
    assert first.digits != second.digits
    assert len(first.digits) == 4
    assert first.digits == int8_form(version, b"x").digits
    assert Variant(True).digits == ""


@pytest.mark.parametrize(
    "told",
    [
        {"passed": True, "graph": "model-int8.xml", "files": {}},
        {"passed": True, "files": {"a.xml": {"sha256": "0", "bytes": 1}}},
        {"passed": True, "graph": "../a.xml", "files": {"../a.xml": {"sha256": "0", "bytes": 1}}},
        {"graph": None},
        [],
        "int8",
    ],
    ids=["a graph that is no file", "files without a graph", "another folder", "no verdict", "a list", "a text"],
)
def test_a_wrong_form_is_refused(version: Path, told: object) -> None:
    """A card whose forms make no sense is a damaged card, not a crash."""
    card = json.loads((version / CARD).read_text("utf-8"))
    (version / CARD).write_text(json.dumps({**card, "precisions": {"int8": told}}), "utf-8")
    with pytest.raises(WeightsError, match="card"):
        read_card(version)


def test_a_card_that_cannot_be_replaced_stays(version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that refuses the new card is a storage error; the old card is there, and nothing beside it."""
    before = (version / CARD).read_bytes()

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(StorageError, match="Permission denied"):
        record_variant(version, "bf16", Variant(True))
    assert (version / CARD).read_bytes() == before
    assert sorted(path.name for path in version.iterdir()) == [CARD, "model.onnx"]
    assert read_card(version).files["model.onnx"] == FileEntry(
        "130a2b3bba23b6acaa2c59cd5fe6a2da2f59ec7e348a8bd5330a3ddc25ebfacc", 3696830
    )


# --- what is not quantised


@pytest.mark.parametrize(
    ("f32", "bf16", "expected"),
    [(1.0, 0.5, "bf16"), (1.0, 0.9, "bf16"), (1.0, 0.92, "f32"), (1.0, 2.0, "f32")],
    ids=["twice as fast", "just enough", "not enough", "slower"],
)
def test_the_rest_is_computed_in_bf16_only_where_that_is_clearly_faster(f32: float, bf16: float, expected: str) -> None:
    """What would not be noticed is not worth bits."""
    assert faster({"f32": f32, "bf16": bf16}) == expected


@pytest.mark.parametrize(
    ("told", "arithmetic", "expected"),
    [
        (None, "int8", "f32"),
        ("f32", "int8", "f32"),
        ("bf16", "int8", "bf16"),
        ("nonsense", "int8", "f32"),
        ("bf16", "f32", "f32"),
    ],
)
def test_the_graph_says_in_which_arithmetic_its_rest_is_computed(
    told: str | None, arithmetic: Precision, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is computed as it was checked, and f32 stays f32 whatever a graph says."""
    model = openvino_core().read_model(GRAPH)
    if told is not None:
        model.set_rt_info(told, list(REST))
    asked: list[dict[str, str]] = []

    class Compiler:
        """Remembers what it was asked."""

        def compile_model(self, _model: Any, _device: str, config: dict[str, str]) -> None:
            asked.append(config)

    monkeypatch.setattr(openvino, "openvino_core", Compiler)
    compile_graph(model, GRAPH, threads=0, cache_dir=None, precision=arithmetic)
    assert [config["INFERENCE_PRECISION_HINT"] for config in asked] == [expected]
