"""Networks that Ultralytics' exporters wrote: YOLO from v5 to 26, and their RT-DETR.

Told by the outputs' shapes and by what the exporter writes into the file (ultralytics/engine/exporter.py,
``self.metadata``: ``task``, ``names``, ``imgsz``, ``head``, ``end2end``, ``args``; of yolov5/export.py only ``stride``
and ``names``). Layouts, of one picture, C classes, N places:

* ``anchors``, (4 + C, N): centre x, centre y, width, height in pixels of the input, a score each class; v8 to 26 and
  the v5 of later years.
* ``objectness``, (N, 5 + C): the same with the score of there being anything before the classes'
  (yolov5/models/yolo.py).
* ``rows``, (N, 6): left, top, right, bottom, score, class; v10 and v26 by themselves, others with ``nms=True``.
* ``queries``, (N, 4 + C): RT-DETR until 8.3; centre, width, height as shares of the input
  (ultralytics/nn/modules/head.py, ``RTDETRDecoder``).
* ``query rows``, (N, 6): RT-DETR since; centre, width, height as before, score, class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from spica.boxes import Detections
from spica.detectors.layouts import Foreign, Layout, Names, class_names, literal, picture, sides, too_many_names
from spica.detectors.onnx_metadata import OnnxSummary
from spica.detectors.postprocess import xyxy_from_cxcywh

YOLO: Final = "YOLO (Ultralytics)"
YOLOV5: Final = "YOLOv5"
RTDETR: Final = "RT-DETR (Ultralytics)"

IOU: Final = {"anchors": 0.7, "objectness": 0.45}
"""Above which overlap a box suppresses another (ultralytics/cfg/default.yaml, ``iou``; yolov5/detect.py,
``iou_thres``). The other layouts have been through it, or need none."""

_STRIDES: Final = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))
"""Of the maps that YOLO puts boxes on: the usual ones, and those of its P6, P2 and tiny variants."""

_ANCHORS = 3
"""Boxes at each place of a map, of v5 and v7."""


def recognise(summary: OnnxSummary) -> Foreign | str | None:
    """The network, or why this one is not served, or None if it is none of Ultralytics'."""
    meta, port = summary.metadata, picture(summary)
    task = meta.get("task", "detect")
    if meta.get("author") == "Ultralytics" and task != "detect":
        return f"a network of Ultralytics for the task {task!r}; those that detect boxes are served"
    outputs = [output for output in summary.output_ports if output.shape is None or len(output.shape) != 5]
    if port is None or len(summary.input_ports) != 1 or not outputs:  # maps of rank 5 stand beside v5's boxes
        return None
    if len(outputs) == 2 and [len(output.shape or ()) for output in outputs] == [3, 4]:
        return "a network that outlines objects (segmentation); those that detect boxes are served"
    shape = outputs[0].shape
    if len(outputs) != 1 or shape is None or len(shape) != 3 or shape[0] not in (1, None):
        return None
    height, width = sides(port, meta)
    names = class_names(meta)
    layout = _layout(shape[1], shape[2], meta, len(names) if names else None, height, width)
    if layout is None:
        return None
    counted = {"anchors": (shape[1], 4), "objectness": (shape[2], 5), "queries": (shape[2], 4)}.get(layout)
    return _network(layout, port.name, height, width, names, counted)


def _network(
    layout: Layout, image: str, height: int, width: int, names: Names | None, counted: tuple[int | None, int] | None
) -> Foreign | str:
    """The network, if the number of its classes is known and the same wherever it is told."""
    outputs = counted[0] - counted[1] if counted is not None and counted[0] is not None else None
    if names is None and outputs is None:
        return 'outputs that do not tell how many classes there are, and no "names" in its metadata'
    if names is not None and outputs is not None and len(names) != outputs:
        return too_many_names(names, outputs)
    classes = names or ("",) * (outputs or 0)
    family = {"objectness": YOLOV5, "queries": RTDETR, "query rows": RTDETR}.get(layout, YOLO)
    return Foreign(family, layout, image, height, width, None, classes, tuple(range(len(classes))))


def _layout(
    first: int | None, second: int | None, meta: Mapping[str, str], classes: int | None, height: int, width: int
) -> Layout | None:
    """The layout of an output of ``first`` x ``second`` numbers, None for those that are not fixed."""
    family = meta.get("description", "").partition(" model")[0].lower().replace("-", "")
    if meta.get("head") == "RTDETRDecoder" or "rtdetr" in family:
        return "query rows" if "head" in meta and second in (6, None) else "queries"
    if _of_version_5(first, second, meta, height, width):
        return "objectness"
    if second == 6 or (second is None and first is not None and classes is not None and first != 4 + classes):
        return "rows"
    if first is None or second is None:
        if _has_nms(meta):
            return "rows"
        return "anchors" if meta.get("author") == "Ultralytics" or second in _places(height, width) else None
    told = meta.get("author") == "Ultralytics" and first < second
    return "anchors" if first >= 5 and (told or second in _places(height, width)) else None


def _of_version_5(first: int | None, second: int | None, meta: Mapping[str, str], height: int, width: int) -> bool:
    if second is None or second < 6 or "task" in meta:  # which only the package after v5 writes
        return False
    if first is None:
        return "stride" in meta
    return first in {_ANCHORS * places for places in _places(height, width)}


def _has_nms(meta: Mapping[str, str]) -> bool:
    told = literal(meta, "args")
    return literal(meta, "end2end") is True or (isinstance(told, Mapping) and told.get("nms") is True)


def _places(height: int, width: int) -> set[int]:
    """Sizes of all maps together, by the strides they may have."""
    return {sum((height // stride) * (width // stride) for stride in strides) for strides in _STRIDES}


# --- from numbers to boxes; each output is float (1, …)


def by_anchor(output: NDArray[Any], *, floor: float) -> Detections:
    """``anchors``: the best class of each place whose score is at least ``floor``, in pixels of the input."""
    scores = output[0, 4:]  # (C, N)
    best = scores.max(axis=0)  # (N,)
    likely = np.flatnonzero(best >= floor)
    return Detections(
        xyxy_from_cxcywh(output[0, :4, likely]),  # (M, 4): the picked axis comes first
        best[likely].astype(np.float32),
        scores[:, likely].argmax(axis=0),
    )


def by_objectness(output: NDArray[Any], *, floor: float) -> Detections:
    """``objectness``: as :func:`by_anchor`, the scores being products (yolov5/utils/general.py, the suppression)."""
    likely = output[0][output[0, :, 4] >= floor].astype(np.float32)  # (M, 5 + C); no product is larger
    scores = likely[:, 5:] * likely[:, 4:5]  # (M, C)
    found = Detections(xyxy_from_cxcywh(likely[:, :4]), scores.max(axis=1), scores.argmax(axis=1))
    return found.where(found.scores >= floor)


def by_row(output: NDArray[Any], *, floor: float) -> Detections:
    """``rows``: those with a score of at least ``floor``; the others are padding too. In pixels of the input."""
    rows = output[0][output[0, :, 4] >= max(floor, np.finfo(np.float32).tiny)].astype(np.float32)  # (M, 6)
    return Detections(rows[:, :4], rows[:, 4], np.rint(rows[:, 5]).astype(np.int64))


def by_query(output: NDArray[Any], *, floor: float) -> Detections:
    """``queries``: the best class of each query whose score is at least ``floor``, in shares of the photograph."""
    best = output[0, :, 4:].max(axis=1)  # (N,)
    likely = output[0][best >= floor]  # (M, 4 + C)
    return Detections(
        xyxy_from_cxcywh(likely[:, :4]), best[best >= floor].astype(np.float32), likely[:, 4:].argmax(axis=1)
    )


def by_query_row(output: NDArray[Any], *, floor: float) -> Detections:
    """``query rows``: those with a score of at least ``floor``, in shares of the photograph."""
    rows = by_row(output, floor=floor)
    return Detections(xyxy_from_cxcywh(rows.boxes_xyxy), rows.scores, rows.class_ids)
