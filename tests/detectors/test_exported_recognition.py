"""Which network of others a graph is, told from its inputs, outputs and metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exported_builder import helper, onnx, write_exported
from spica.detectors.exported import recognise
from spica.detectors.graph import GraphSummary, Port, class_names, literal, read_graph, sides, summarise
from spica.detectors.weights import inspect
from spica.errors import WeightsError

Dims = tuple[int | None, ...]

EIGHTY = {"names": str({number: f"c{number}" for number in range(80)})}
OF_ULTRALYTICS = {"author": "Ultralytics", "description": "Ultralytics YOLO11n model ", "task": "detect", **EIGHTY}
OF_8_4 = {**OF_ULTRALYTICS, "head": "Detect", "end2end": "False", "args": "{'nms': None, 'dynamic': False}"}
TWO = {**OF_8_4, "names": "{0: 'a', 1: 'b'}"}
ONE_OF_V5 = {"stride": "32", "names": "{0: 'wheat'}"}
RTDETR = {**OF_ULTRALYTICS, "description": "Ultralytics rtdetr-l model trained on wheat.yaml"}
PICTURE: Dims = (1, 3, 640, 640)
ANY: Dims = (None, 3, None, None)
ENCODER = frozenset({"/model/encoder/fpn_blocks.0/conv1/Conv"})


def summary(
    outputs: dict[str, Dims | None],
    metadata: dict[str, str],
    *,
    inputs: dict[str, Dims] | None = None,
    dtype: str = "f32",
    **more: Any,
) -> GraphSummary:
    given = tuple(
        Port(name, dtype if len(shape) == 4 else "i64", shape)
        for name, shape in (inputs or {"images": PICTURE}).items()
    )
    put_out = tuple(Port(name, "f32", shape) for name, shape in outputs.items())
    return GraphSummary(metadata=metadata, inputs=given, outputs=put_out, **more)


YOLO = {
    "v8 to 26": (summary({"output0": (1, 84, 8400)}, OF_8_4), "anchors", 80),
    "v8 of 2023": (summary({"output0": (1, 84, 8400)}, OF_ULTRALYTICS), "anchors", 80),
    "v8, sizes free": (summary({"output0": (None, None, None)}, OF_8_4, inputs={"images": ANY}), "anchors", 80),
    "v8, a wide input": (summary({"o": (1, 84, 3150)}, OF_8_4, inputs={"i": (1, 3, 320, 480)}), "anchors", 80),
    "v8, two classes": (summary({"output0": (1, 6, 8400)}, TWO), "anchors", 2),
    "without metadata": (summary({"output0": (1, 5, 8400)}, {}), "anchors", 1),
    "P2 without metadata": (summary({"output0": (1, 5, 34000)}, {}), "anchors", 1),
    "f16": (summary({"output0": (1, 84, 8400)}, OF_8_4, dtype="f16"), "anchors", 80),
    "v5": (summary({"output0": (1, 25200, 85)}, {"stride": "32", **EIGHTY}), "objectness", 80),
    "v5 of 2021": (summary({"output": (1, 25200, 85), "397": (1, 3, 80, 80, 85)}, {}), "objectness", 80),
    "v5, one class": (summary({"output0": (1, 25200, 6)}, ONE_OF_V5), "objectness", 1),
    "v5 P6": (summary({"o": (1, 102000, 6)}, ONE_OF_V5, inputs={"i": (1, 3, 1280, 1280)}), "objectness", 1),
    "v5, sizes free": (summary({"o": (None, None, 6)}, ONE_OF_V5, inputs={"i": ANY}), "objectness", 1),
    "v5, names as a list": (summary({"o": (1, 25200, 7)}, {"names": "['a', 'b']"}), "objectness", 2),
    "v10": (summary({"output0": (1, 300, 6)}, OF_ULTRALYTICS), "rows", 80),
    "v10, sizes free": (summary({"output0": (None, 300, None)}, OF_ULTRALYTICS, inputs={"images": ANY}), "rows", 80),
    "v10, two classes": (summary({"output0": (1, 300, 6)}, TWO), "rows", 2),
    "v26": (summary({"output0": (1, 300, 6)}, {**OF_8_4, "end2end": "True"}), "rows", 80),
    "nms=True": (summary({"output0": (1, 300, 6)}, {**OF_8_4, "args": "{'nms': True}"}), "rows", 80),
    "nms=True, sizes free": (
        summary({"o": (None, None, None)}, {**OF_8_4, "args": "{'nms': True}"}, inputs={"i": ANY}),
        "rows",
        80,
    ),
    "RT-DETR until 8.3": (summary({"output0": (1, 300, 84)}, RTDETR), "queries", 80),
    "RT-DETR until 8.3, two classes": (
        summary({"o": (1, 300, 6)}, {**RTDETR, "names": "{0: 'a', 1: 'b'}"}),
        "queries",
        2,
    ),
    "RT-DETR since 8.4": (summary({"output0": (1, 300, 6)}, {**OF_8_4, "head": "RTDETRDecoder"}), "query rows", 80),
    "a YOLO trained on rtdetr.yaml": (
        summary({"o": (1, 84, 8400)}, {**OF_8_4, "description": "Ultralytics YOLO11n model trained on rtdetr.yaml"}),
        "anchors",
        80,
    ),
}

DEPLOYED: dict[str, Dims | None] = {"labels": None, "boxes": None, "scores": None}
DEPLOYED_INPUTS: dict[str, Dims] = {"images": (None, 3, 640, 640), "orig_target_sizes": (None, 2)}
RAW: dict[str, Dims | None] = {"logits": (1, 300, 3), "pred_boxes": (1, 300, 4)}
DETS: dict[str, Dims | None] = {"dets": (1, 300, 4), "labels": (1, 300, 4)}
OF_RF_DETR = {"rfdetr_inference": json.dumps({"task": "detect", "class_id_to_name": {"3": "pear", "1": "wheat"}})}
SCORES = {"model.decoder.enc_score_head.bias": (5,), "model.decoder.dec_score_head.0.weight": (5, 256)}

DETR = {
    "RT-DETR, D-FINE": (summary(DEPLOYED, {}, inputs=DEPLOYED_INPUTS, constants=SCORES), "deployed", 5),
    "RT-DETR, names added": (summary(DEPLOYED, EIGHTY, inputs=DEPLOYED_INPUTS), "deployed", 80),
    "of Hugging Face": (summary(RAW, {}, nodes=ENCODER), "logits", 3),
    "of Hugging Face, sizes free": (
        summary(
            {"logits": (None, None, None), "pred_boxes": (None, None, 4)},
            {},
            inputs={"pixel_values": ANY},
            nodes=ENCODER,
            constants={"model.enc_score_head.bias": (3,)},
        ),
        "logits",
        3,
    ),
    "RF-DETR": (summary(DETS, {}, inputs={"input": (1, 3, 384, 384)}), "dets", 3),
    "RF-DETR of COCO": (summary({"dets": (1, 300, 4), "labels": (1, 300, 91)}, {}), "dets", 91),
    "RF-DETR of 2026": (summary(DETS, OF_RF_DETR), "dets", 2),
    "RF-DETR with odd metadata": (summary(DETS, {"rfdetr_inference": '{"class_id_to_name": 3}'}), "dets", 3),
}


@pytest.mark.parametrize(("told", "layout", "classes"), (YOLO | DETR).values(), ids=(YOLO | DETR).keys())
def test_exports_are_recognised(told: GraphSummary, layout: str, classes: int) -> None:
    """Each exporter's graphs are told, with sizes fixed and free, with the number of their classes."""
    found = recognise(told)
    assert not isinstance(found, str), found
    assert (found.layout, len(found.classes)) == (layout, classes)
    assert len(found.slots) == classes
    assert min(found.height, found.width) >= 320


def test_names_and_slots_of_rf_detr() -> None:
    """RF-DETR's classes stand where its exporter says, or before the background, or, for COCO, everywhere."""
    named, plain, coco = (recognise(DETR[name][0]) for name in ("RF-DETR of 2026", "RF-DETR", "RF-DETR of COCO"))
    assert not isinstance(named, str)
    assert not isinstance(plain, str)
    assert not isinstance(coco, str)
    assert (named.classes, named.slots) == (("wheat", "pear"), (1, 3))
    assert (plain.classes, plain.slots) == (("", "", ""), (0, 1, 2))
    assert coco.slots == tuple(range(91))


REFUSED = {
    "another network": (summary({"probabilities": (1, 1000)}, {}), "outputs probabilities (f32 1 x 1000)"),
    "no picture": (summary({"o": (1, 84, 8400)}, {}, inputs={"tokens": (1, 512)}), "inputs tokens (i64 1 x 512)"),
    "one channel": (summary({"o": (1, 84, 8400)}, OF_8_4, inputs={"i": (1, 1, 640, 640)}), "1 x 1 x 640 x 640"),
    "four pictures at once": (summary({"o": (4, 84, 8400)}, OF_8_4, inputs={"i": (4, 3, 640, 640)}), "4 x 3 x 640"),
    "bytes": (summary({"o": (1, 84, 8400)}, OF_8_4, dtype="u8"), "u8 1 x 3 x 640 x 640"),
    "YOLOX": (summary({"output": (1, 8400, 85)}, {}), "output (f32 1 x 8400 x 85)"),
    "other places": (summary({"output": (1, 85, 9000)}, {}), "1 x 85 x 9000"),
    "no shape": (summary({"output0": None}, {}), "output0 (f32 …)"),
    "segmentation": (
        summary({"o": (1, 116, 8400), "p": (1, 32, 160, 160)}, {**OF_8_4, "task": "segment"}),
        "'segment'",
    ),
    "segmentation without metadata": (summary({"o": (1, 25200, 117), "p": (1, 32, 160, 160)}, {}), "(segmentation)"),
    "pose": (summary({"output0": (1, 56, 8400)}, {**OF_8_4, "task": "pose"}), "'pose'"),
    "obb": (summary({"output0": (1, 20, 21504)}, {**OF_8_4, "task": "obb"}), "'obb'"),
    "classify": (summary({"output0": (1, 1000)}, {**OF_8_4, "task": "classify"}), "'classify'"),
    "other names": (summary({"o": (1, 9, 8400)}, OF_8_4), "names for 80 classes in its metadata, but outputs for 5"),
    "other names, v5": (summary({"o": (1, 25200, 8)}, {"stride": "32", **EIGHTY}), "names for 80 classes"),
    "other names, RT-DETR": (summary({"o": (1, 300, 9)}, RTDETR), "but outputs for 5"),
    "rows without names": (summary({"output0": (1, 300, 6)}, {}), 'no "names" in its metadata'),
    "deployed without names": (summary(DEPLOYED, {}, inputs=DEPLOYED_INPUTS), 'no "names" in its metadata'),
    "deployed, other names": (
        summary(DEPLOYED, EIGHTY, inputs=DEPLOYED_INPUTS, constants=SCORES),
        "names for 80 classes in its metadata, but outputs for 5",
    ),
    "deployed without sizes": (summary(DEPLOYED, EIGHTY), "outputs labels (f32 …), boxes"),
    "DETR": (summary(RAW, {}), "of DETR and many others"),
    "masks beside": (summary({**RAW, "pred_masks": (1, 300, 9, 9)}, {}, nodes=ENCODER), "(segmentation)"),
    "RF-DETR with masks": (summary({**DETS, "masks": (1, 300, 78, 78)}, {}), "puts out masks too"),
    "RF-DETR, other names": (summary(DETS, EIGHTY), "names for 80 classes in its metadata, but outputs for 3"),
    "RF-DETR, a name beyond": (
        summary({"dets": (1, 300, 4), "labels": (1, 300, 2)}, OF_RF_DETR),
        "names for 2 classes in its metadata, but outputs for 2",
    ),
    "RF-DETR, background alone": (summary({"dets": (1, 300, 4), "labels": (1, 300, 1)}, {}), "background alone"),
}


@pytest.mark.parametrize(("told", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_other_graphs_are_refused(told: GraphSummary, words: str) -> None:
    """What can't be served is refused with what tells it from what can."""
    found = recognise(told)
    assert isinstance(found, str), found
    assert words in found


def test_a_refusal_lists_what_is_served(tmp_path: Path) -> None:
    """An unknown layout is printed, with the layouts that are known."""
    path = write_exported(tmp_path / "model.onnx", "rows", metadata={})
    with pytest.raises(WeightsError) as refused:
        inspect(path)
    for words in ("model.onnx", "YOLO v5 to 26", "RT-DETR", "D-FINE", "RF-DETR", "export it again"):
        assert words in str(refused.value)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        pytest.param("", None, id="nothing"),
        pytest.param("{0: 'a', 1: 'b'}", ("a", "b"), id="a dict"),
        pytest.param("{1: 'b', 0: 'a'}", ("a", "b"), id="in another order"),
        pytest.param("['a', '小麦']", ("a", "小麦"), id="a list"),
        pytest.param("{0: 'a', 2: 'b'}", ("a", "", "b"), id="a gap"),
        pytest.param('{"0": "a", "1": "小麦"}', ("a", "小麦"), id="JSON"),
        pytest.param('["a", null]', ("a", ""), id="JSON that is no Python"),
        pytest.param("{0: 'a', 4000000000: 'b'}", None, id="a gap without end"),
        pytest.param("{-1: 'a'}", None, id="below zero"),
        pytest.param("{True: 'a'}", None, id="no number"),
        pytest.param("{'a': 0}", None, id="the other way round"),
        pytest.param("{0: 7}", ("7",), id="a number for a name"),
        pytest.param("{}", None, id="an empty dict"),
        pytest.param("'a'", None, id="a text"),
        pytest.param("__import__('os').getcwd()", None, id="a call"),
        pytest.param("{0: 'a'", None, id="cut off"),
        pytest.param("[" * 5000, None, id="deep"),
        pytest.param("'\\d'", None, id="an odd escape"),
        pytest.param("1" + " " * 300_000, None, id="long"),
        pytest.param("{[]: 1}", None, id="a key that is none"),
    ],
)
def test_names_are_read_without_running_anything(text: str, names: tuple[str, ...] | None) -> None:
    """Names are literals; anything else is no names, and no error."""
    assert class_names({"names": text}) == names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("[320, 480]", (320, 480), id="two"),
        pytest.param("512", (512, 512), id="one"),
        pytest.param("", (640, 640), id="nothing"),
        pytest.param("[0, 0]", (640, 640), id="nothing at all"),
        pytest.param("[1e9, 1e9]", (640, 640), id="too large"),
        pytest.param("['a', 'b']", (640, 640), id="texts"),
    ],
)
def test_the_size_of_free_inputs(text: str, expected: tuple[int, int]) -> None:
    """A graph that takes any size is given the one that its exporter names, or the usual one."""
    assert sides(Port("images", "f32", ANY), {"imgsz": text}) == expected
    assert sides(Port("images", "f32", PICTURE), {"imgsz": text}) == (640, 640)


def test_a_literal_that_is_missing() -> None:
    """A key that is not there is None."""
    assert literal({}, "end2end") is None


def test_what_a_graph_says(tmp_path: Path) -> None:
    """Names, types, sizes, metadata and parts are read, old exporters' weights among the inputs left out."""
    weight = helper.make_tensor("model.w", 1, [2, 3], [0.0] * 6)
    inputs = [
        helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT16, ["batch", 3, 640, -1]),
        helper.make_tensor_value_info("model.w", 1, [2, 3]),
        helper.make_tensor_value_info("count", onnx.TensorProto.INT64, []),
    ]
    outputs = [helper.make_tensor_value_info("o", 1, None), helper.make_tensor_value_info("p", 7, None)]
    nodes = [
        helper.make_node("Relu", ["images"], ["r"], name="/model/part/Relu"),
        helper.make_node("Abs", ["r"], ["o"]),
        helper.make_node("Cast", ["model.w"], ["wide"], to=11),
        helper.make_node("ReduceSum", ["wide"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["whole"], to=7),
        helper.make_node("Add", ["count", "whole"], ["p"]),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, [weight]))
    helper.set_model_props(model, {"names": "['小麦']"})
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    summary = summarise(read_graph(tmp_path / "model.onnx"))
    assert [str(port) for port in summary.inputs] == ["images (f16 ? x 3 x 640 x ?)", "count (i64)"]
    assert [str(port) for port in summary.outputs] == ["o (f16 ? x 3 x 640 x ?)", "p (i64)"]
    assert summary.metadata == {"names": "['小麦']"}
    assert summary.constants["model.w"] == (2, 3)
    assert "/model/part/Relu" in summary.nodes


def test_a_file_with_an_operator_of_a_plug_in_is_refused(tmp_path: Path) -> None:
    """A network of a known layout whose boxes a custom operator chooses is a sentence that names the operator."""
    path = tmp_path / "網 #1.onnx"
    given = helper.make_tensor_value_info("images", 1, list(PICTURE))
    put_out = helper.make_tensor_value_info("output0", 1, [1, 84, 8400])
    node = helper.make_node("EfficientNMS_TRT", ["images"], ["output0"], domain="TRT")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("TRT", 1)]
    model = helper.make_model(helper.make_graph([node], "g", [given], [put_out]), opset_imports=opsets)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(WeightsError, match=r"TRT\.EfficientNMS_TRT") as refused:
        inspect(path)
    assert str(path) in str(refused.value)
