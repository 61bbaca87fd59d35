"""ONNX files as exporters of others write them, with a network that sees red, green and blue rectangles.

On each of its three channels it finds the smallest box around the pixels in which that colour stands out, and scores it
by how bright they are. Grey, such as a border, is nothing to it. So each answer depends on the colours' order, on their
scale, and on where the picture lies in the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the extra spica[train]")
helper, TensorProto = onnx.helper, onnx.TensorProto

COLOURS = ("red", "green", "blue")
NAMES = {"names": "{0: 'red', 1: 'green', 2: 'blue'}"}
ULTRALYTICS = {"author": "Ultralytics", "description": "Ultralytics YOLO11n model ", "task": "detect", **NAMES}
STRIDES = (8, 16, 32)
ROWS = 300
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

METADATA: dict[str, dict[str, str]] = {
    "anchors": ULTRALYTICS,
    "objectness": {"stride": "32", **NAMES},
    "rows": {**ULTRALYTICS, "end2end": "True"},
    "queries": {**ULTRALYTICS, "description": "Ultralytics rtdetr-l model "},
    "query rows": {**ULTRALYTICS, "head": "RTDETRDecoder"},
    "deployed": NAMES,
    "logits": {},
    "dets": {},
}
"""What the exporters write beside each layout."""


def places(height: int, width: int) -> int:
    """How many boxes a YOLO without anchors puts out."""
    return sum((height // stride) * (width // stride) for stride in STRIDES)


def write_exported(
    path: Path,
    layout: str,
    *,
    height: int = 64,
    width: int = 64,
    metadata: Mapping[str, str] | None = None,
    free: bool = False,
    half: bool = False,
    class_offset: int = 0,
    dinov3: bool = False,
) -> Path:
    """Write the network in a layout, and give the path back.

    Args:
        path: of the file.
        layout: a key of ``METADATA``.
        height: of the input.
        width: of the input.
        metadata: instead of that layout's own.
        free: batch, height and width are not fixed.
        half: the network computes in float16.
        class_offset: added to the classes in rows.
        dinov3: around DINOv3, as DEIMv2 is, which takes pictures of ImageNet's mean and deviation.
    """
    builder = _Builder(height, width, half, "backbone/dinov3" if dinov3 else "encoder/fpn_blocks.0")
    picture = "pixel_values" if layout == "logits" else "input" if layout == "dets" else "images"
    builder.see(picture, layout == "dets" or dinov3)
    outputs = getattr(builder, "put_" + layout.replace(" ", "_"))(class_offset)
    sides: list[Any] = ["batch", 3, "height", "width"] if free else [1, 3, height, width]
    inputs = [helper.make_tensor_value_info(builder.picture, builder.dtype, sides)]
    if layout == "deployed":
        batch = "N" if free else 1
        inputs.append(helper.make_tensor_value_info("orig_target_sizes", TensorProto.INT64, [batch, 2]))
    graph = helper.make_graph(builder.nodes, "seer", inputs, outputs, builder.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, dict(METADATA[layout] if metadata is None else metadata))
    onnx.save(model, path)
    return path


class _Builder:
    def __init__(self, height: int, width: int, half: bool, part: str) -> None:
        self.height, self.width = height, width
        self.part = part
        self.dtype = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        self.numpy = np.float16 if half else np.float32
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.picture = ""

    def constant(self, values: Any, dtype: Any = None) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.array(values, dtype or self.numpy), name))
        return name

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        output = name or f"t{len(self.nodes)}"
        # by RT-DETR's encoder it is told from DETR, by its backbone DEIMv2 from D-FINE
        label = f"/model/{self.part}/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=label, **attributes))
        return output

    def see(self, picture: str, normalised: bool) -> None:
        """Boxes (1, 3, 4) as left, top, right, bottom in pixels of the input, and scores (1, 3, 1)."""
        self.picture = picture
        seen = picture
        if normalised:
            std = self.constant(np.reshape(STD, (1, 3, 1, 1)))
            seen = self.op("Add", self.op("Mul", seen, std), self.constant(np.reshape(MEAN, (1, 3, 1, 1))))
        grey = self.op("ReduceMean", seen, axes=[1], keepdims=1)
        stands_out = self.op("Greater", self.op("Sub", seen, grey), self.constant(0.15))
        mask = self.op("Cast", stands_out, to=self.dtype)  # (1, 3, H, W)
        columns = self.op("ReduceMax", mask, axes=[2], keepdims=0)  # (1, 3, W)
        rows = self.op("ReduceMax", mask, axes=[3], keepdims=0)  # (1, 3, H)
        (left, right), (top, bottom) = self._ends(columns, self.width), self._ends(rows, self.height)
        self.boxes = self.op("Concat", left, top, right, bottom, axis=2)
        bright = self.op("ReduceMax", self.op("Mul", mask, seen), axes=[2, 3], keepdims=0)  # (1, 3)
        self.scores = self.op("Unsqueeze", bright, self.constant([2], np.int64))

    def _ends(self, line: str, length: int) -> tuple[str, str]:
        counted = np.arange(length)
        last = self.op("ReduceMax", self.op("Mul", line, self.constant(counted + 1)), axes=[2], keepdims=1)
        first = self.op("ReduceMax", self.op("Mul", line, self.constant(length - counted)), axes=[2], keepdims=1)
        return self.op("Sub", self.constant(length), first), last

    def centred(self, *, shares: bool = False) -> str:
        """The boxes as centre x, centre y, width, height; in shares of the input if asked."""
        halves = [[0.5, 0, -1, 0], [0, 0.5, 0, -1], [0.5, 0, 1, 0], [0, 0.5, 0, 1]]
        boxes = self.op("MatMul", self.boxes, self.constant(halves))
        size = [self.width, self.height] * 2
        return self.op("Div", boxes, self.constant(size)) if shares else boxes

    def by_class(self, filling: float = 0) -> str:
        """Scores (1, 3, 3): each box's own class has its score, the others nothing."""
        scores = self.op("Mul", self.scores, self.constant(np.eye(3)[None]))
        return self.op("Add", scores, self.constant(filling * (1 - np.eye(3))[None])) if filling else scores

    def padded(self, rows: str, count: int) -> str:
        """(1, 3, K) with rows of zeros up to ``count``."""
        lacking = self.constant([0, 0, 0, 0, count - 3, 0], np.int64)
        return self.op("Pad", rows, lacking)

    def output(self, tensor: str, name: str, *shape: Any, dtype: Any = None) -> Any:
        self.op("Identity", tensor, name=name)
        return helper.make_tensor_value_info(name, dtype or self.dtype, [1, *shape])

    # --- one method a layout

    def put_anchors(self, _: int) -> list[Any]:
        """Every box twice, the second a pixel beside the first and a little less sure."""
        count = places(self.height, self.width)
        first = self.op("Concat", self.centred(), self.by_class(), axis=2)
        moved = self.op("Add", self.centred(), self.constant([1, 0, 0, 0]))
        second = self.op("Concat", moved, self.op("Mul", self.by_class(), self.constant(0.9)), axis=2)
        lacking = self.constant([0, 0, 0, 0, count - 6, 0], np.int64)
        rows = self.op("Pad", self.op("Concat", second, first, axis=1), lacking)
        return [self.output(self.op("Transpose", rows, perm=[0, 2, 1]), "output0", 7, count)]

    def put_objectness(self, _: int) -> list[Any]:
        """There is something with its score, and it is of its class with the certainty 0.9."""
        certain = self.constant(0.9 * np.eye(3)[None])
        rows = self.op("Concat", self.centred(), self.scores, certain, axis=2)
        count = 3 * places(self.height, self.width)
        return [self.output(self.padded(rows, count), "output", count, 8)]

    def put_rows(self, class_offset: int) -> list[Any]:
        classes = self.constant(np.reshape(np.arange(3) + class_offset, (1, 3, 1)))
        rows = self.op("Concat", self.boxes, self.scores, classes, axis=2)
        return [self.output(self.padded(rows, ROWS), "output0", ROWS, 6)]

    def put_queries(self, _: int) -> list[Any]:
        rows = self.op("Concat", self.centred(shares=True), self.by_class(), axis=2)
        return [self.output(self.padded(rows, ROWS), "output0", ROWS, 7)]

    def put_query_rows(self, class_offset: int) -> list[Any]:
        classes = self.constant(np.reshape(np.arange(3) + class_offset, (1, 3, 1)))
        rows = self.op("Concat", self.centred(shares=True), self.scores, classes, axis=2)
        return [self.output(self.padded(rows, ROWS), "output0", ROWS, 6)]

    def put_deployed(self, class_offset: int) -> list[Any]:
        sizes = self.op("Cast", "orig_target_sizes", to=self.dtype)  # (1, 2)
        scale = self.op("Div", self.op("Concat", sizes, sizes, axis=1), self.constant([self.width, self.height] * 2))
        boxes = self.op("Mul", self.boxes, self.op("Unsqueeze", scale, self.constant([1], np.int64)))
        scores = self.op("Squeeze", self.padded(self.scores, ROWS), self.constant([2], np.int64))
        labels = self.constant([[*(np.arange(3) + class_offset), *([0] * (ROWS - 3))]], np.int64)
        return [
            self.output(labels, "labels", ROWS, dtype=TensorProto.INT64),
            self.output(self.padded(boxes, ROWS), "boxes", ROWS, 4),
            self.output(scores, "scores", ROWS),
        ]

    def _logits(self) -> str:
        """(1, 3, 3), the opposite of a sigmoid."""
        low, high = self.constant(0.001), self.constant(0.999)
        shares = self.op("Clip", self.by_class(), low, high)
        return self.op("Log", self.op("Div", shares, self.op("Sub", self.constant(1), shares)))

    def put_logits(self, _: int) -> list[Any]:
        return [
            self.output(self._logits(), "logits", 3, 3),
            self.output(self.centred(shares=True), "pred_boxes", 3, 4),
        ]

    def put_dets(self, _: int) -> list[Any]:
        """With a background that is sure of itself."""
        background = self.constant(np.full((1, 3, 1), 9.0))
        return [
            self.output(self.centred(shares=True), "dets", 3, 4),
            self.output(self.op("Concat", self._logits(), background, axis=2), "labels", 3, 4),
        ]
