"""Networks that Ultralytics' exporters wrote: YOLO from v5 to 26, and their RT-DETR.

Recognised by the outputs' shapes and by what the exporter writes into the file (ultralytics/engine/exporter.py,
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
from spica.detectors.contract import RGBImage
from spica.detectors.graph import (
    ExportedNetwork,
    GraphSummary,
    Layout,
    class_names,
    image_input,
    literal,
    named_classes,
    sides,
)
from spica.detectors.postprocess import Fit, batched_nms, letterbox, stretch, xyxy_from_cxcywh
from spica.errors import DetectorContractError

YOLO: Final = "YOLO (Ultralytics)"
YOLOV5: Final = "YOLOv5"
RTDETR: Final = "RT-DETR (Ultralytics)"

ARCHITECTURES: Final = frozenset({YOLO, YOLOV5, RTDETR})

IOU: Final = {"anchors": 0.7, "objectness": 0.45}
"""Above which overlap a box suppresses another (ultralytics/cfg/default.yaml, ``iou``; yolov5/detect.py,
``iou_thres``). The other layouts have been through it, or need none."""

_STRIDES: Final = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))
"""Of the maps that YOLO puts boxes on: the usual ones, and those of its P6, P2 and tiny variants."""

_ANCHORS = 3
"""Boxes at each place of a map, of v5 and v7."""

_BESIDE_CLASSES: Final = {"anchors": 4, "objectness": 5, "queries": 4}
"""Numbers beside the classes' scores; the other layouts have rows of six: box, score, class."""


def recognise(summary: GraphSummary) -> ExportedNetwork | str | None:
    """The network, or why this one is not served, or None if it is none of Ultralytics'."""
    meta, port = summary.metadata, image_input(summary)
    task = meta.get("task", "detect")
    if meta.get("author") == "Ultralytics" and task != "detect":
        return f"a network of Ultralytics for the task {task!r}; those that detect boxes are served"
    outputs = [output for output in summary.outputs if output.shape is None or len(output.shape) != 5]
    if port is None or len(summary.inputs) != 1 or not outputs:  # maps of rank 5 stand beside v5's boxes
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
    counted = shape[1] if layout == "anchors" else shape[2]
    count = counted - _BESIDE_CLASSES[layout] if layout in _BESIDE_CLASSES and counted is not None else None
    classes = named_classes(meta, count)
    if isinstance(classes, str):
        return classes
    family = {"objectness": YOLOV5, "queries": RTDETR, "query rows": RTDETR}.get(layout, YOLO)
    return ExportedNetwork(family, layout, port.name, height, width, None, classes, tuple(range(len(classes))))


def _layout(
    first: int | None, second: int | None, meta: Mapping[str, str], classes: int | None, height: int, width: int
) -> Layout | None:
    """The layout of an output of ``first`` x ``second`` numbers, None for those that are not fixed."""
    family = meta.get("description", "").partition(" model")[0].lower().replace("-", "")
    if meta.get("head") == "RTDETRDecoder" or "rtdetr" in family:
        return "query rows" if "head" in meta and second in (6, None) else "queries"
    if _is_version_5(first, second, meta, height, width):
        return "objectness"
    if second == 6 or (second is None and first is not None and classes is not None and first != 4 + classes):
        return "rows"
    if first is None or second is None:
        if _has_nms(meta):
            return "rows"
        return "anchors" if meta.get("author") == "Ultralytics" or second in _places(height, width) else None
    by_author = meta.get("author") == "Ultralytics" and first < second
    return "anchors" if first >= 5 and (by_author or second in _places(height, width)) else None


def _is_version_5(first: int | None, second: int | None, meta: Mapping[str, str], height: int, width: int) -> bool:
    if second is None or second < 6 or "task" in meta:  # which only the package after v5 writes
        return False
    if first is None:
        return "stride" in meta
    return first in {_ANCHORS * places for places in _places(height, width)}


def _has_nms(meta: Mapping[str, str]) -> bool:
    arguments = literal(meta, "args")
    return literal(meta, "end2end") is True or (isinstance(arguments, Mapping) and arguments.get("nms") is True)


def _places(height: int, width: int) -> set[int]:
    """Sizes of all maps together, by the strides they may have."""
    return {sum((height // stride) * (width // stride) for stride in strides) for strides in _STRIDES}


# --- the family's arithmetic


def preprocess(image: RGBImage, network: ExportedNetwork) -> tuple[RGBImage, Fit]:
    """The picture, uint8 (height, width, 3), and where the photograph lies in it."""
    if network.architecture == RTDETR:  # ultralytics/models/rtdetr/predict.py, scale_fill
        return stretch(image, height=network.height, width=network.width, antialias=False)
    return letterbox(image, height=network.height, width=network.width)


def decode(
    outputs: Mapping[str, NDArray[Any]],
    network: ExportedNetwork,
    fit: Fit,
    *,
    width: int,
    height: int,
    floor: float,
    limit: int | None,
) -> Detections:
    """Boxes in pixels of a photograph of ``width`` x ``height``, in no order, of at least the score ``floor``.

    Args:
        outputs: by name, of one picture.
        network: that put them out.
        fit: of the photograph in the picture.
        width: of the photograph in pixels.
        height: of the photograph in pixels.
        floor: in [0, 1].
        limit: the best so many are enough; None for all.

    Raises:
        DetectorContractError: outputs of another shape than the file says; it may be known only now.
    """
    output = next(array for array in outputs.values() if array.ndim == 3)
    columns = output.shape[1 if network.layout == "anchors" else 2]
    beside = _BESIDE_CLASSES.get(network.layout)
    if columns != (len(network.classes) + beside if beside is not None else 6):
        raise DetectorContractError(
            "a network puts out other numbers than its file says",
            where=network.architecture,
            expected=f"{network.layout} for {len(network.classes)} classes",
            got=str(output.shape),
        )
    candidates = _DECODERS[network.layout](output[0], floor)
    finite = np.isfinite(candidates.boxes_xyxy).all(axis=1) & np.isfinite(candidates.scores)
    candidates = candidates.where(finite)
    if network.layout in IOU:
        most = limit if limit is not None else len(candidates)
        candidates = batched_nms(candidates, iou=IOU[network.layout], limit=most)
    if network.architecture == RTDETR:
        boxes = candidates.boxes_xyxy * np.array([width, height, width, height], np.float32)
    else:
        boxes = fit.undo(candidates.boxes_xyxy)
    return Detections(boxes, candidates.scores, candidates.class_ids)


def _anchors(output: NDArray[Any], floor: float) -> Detections:
    """The best class of each place of (4 + C, N), in pixels of the input."""
    scores = output[4:]  # (C, N)
    best = scores.max(axis=0)  # (N,)
    likely = np.flatnonzero(best >= floor)
    return Detections(
        xyxy_from_cxcywh(output[:4, likely].T), best[likely].astype(np.float32), scores[:, likely].argmax(axis=0)
    )


def _objectness(output: NDArray[Any], floor: float) -> Detections:
    """As :func:`_anchors` of (N, 5 + C), the scores being products (yolov5/utils/general.py, the suppression)."""
    likely = output[output[:, 4] >= floor].astype(np.float32)  # (M, 5 + C); no product is larger
    scores = likely[:, 5:] * likely[:, 4:5]  # (M, C)
    candidates = Detections(xyxy_from_cxcywh(likely[:, :4]), scores.max(axis=1), scores.argmax(axis=1))
    return candidates.where(candidates.scores >= floor)


def _rows(output: NDArray[Any], floor: float) -> Detections:
    """Rows (N, 6) with a score of at least ``floor``; those of score 0 are padding. In pixels of the input."""
    rows = output[output[:, 4] >= max(floor, np.finfo(np.float32).tiny)].astype(np.float32)  # (M, 6)
    return Detections(rows[:, :4], rows[:, 4], np.rint(rows[:, 5]).astype(np.int64))


def _queries(output: NDArray[Any], floor: float) -> Detections:
    """The best class of each query of (N, 4 + C), in shares of the photograph."""
    best = output[:, 4:].max(axis=1)  # (N,)
    likely = output[best >= floor]  # (M, 4 + C)
    return Detections(
        xyxy_from_cxcywh(likely[:, :4]), best[best >= floor].astype(np.float32), likely[:, 4:].argmax(axis=1)
    )


def _query_rows(output: NDArray[Any], floor: float) -> Detections:
    """Rows (N, 6) in shares of the photograph."""
    rows = _rows(output, floor)
    return Detections(xyxy_from_cxcywh(rows.boxes_xyxy), rows.scores, rows.class_ids)


_DECODERS: Final = {
    "anchors": _anchors,
    "objectness": _objectness,
    "rows": _rows,
    "queries": _queries,
    "query rows": _query_rows,
}
