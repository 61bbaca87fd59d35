"""RT-DETR, D-FINE and RF-DETR, as their own exporters and Hugging Face's write them.

Told by the names of inputs and outputs. Layouts, of one picture, Q queries, C classes:

* ``deployed``: ``images`` and ``orig_target_sizes`` (width, height) to ``labels`` (Q), ``boxes`` (Q, 4) and ``scores``
  (Q); left, top, right, bottom in pixels of the photograph (lyuwenyu/RT-DETR, rtdetrv2_pytorch/tools/export_onnx.py and
  src/zoo/rtdetr/rtdetr_postprocessor.py; Peterande/D-FINE, tools/export_onnx.py).
* ``logits``: ``pixel_values`` to ``logits`` (Q, C) and ``pred_boxes`` (Q, 4); centre, width, height in shares of the
  picture (transformers, RTDetrForObjectDetection and DFineForObjectDetection).
* ``dets``: ``input`` to ``dets`` (Q, 4), as ``pred_boxes``, and ``labels`` (Q, C), logits with the background among
  them (roboflow/rf-detr, src/rfdetr/export).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from spica.boxes import Detections, Float32Array
from spica.detectors.layouts import Foreign, Layout, class_names, picture, sides, too_many_names
from spica.detectors.onnx_metadata import OnnxSummary, Port
from spica.detectors.postprocess import xyxy_from_cxcywh

DEPLOYED: Final = "RT-DETR or D-FINE"
HUGGING_FACE: Final = "RT-DETR or D-FINE (Hugging Face)"
RF_DETR: Final = "RF-DETR"

MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)
"""ImageNet's, of RGB in [0, 1], with which RF-DETR (src/rfdetr/export/_runtime/preprocess.py) and DEIMv2 around DINOv3
(Intellindust-AI-Lab/DEIMv2, configs/deimv2/deimv2_dinov3_*.yml) were trained. RT-DETR and D-FINE, and DEIMv2 around
HGNetv2, take RGB in [0, 1] as it is (transformers, RTDetrImageProcessor, ``do_normalize = False``)."""

_SCORE_HEAD = re.compile(r"(^|\.)((enc|dec)_score_head|class_embed)(\.\d+)?\.bias$")
"""Weights of which there is one a class, in RT-DETR and D-FINE."""

_HYBRID_ENCODER = "fpn_blocks"
"""A part of RT-DETR's and D-FINE's encoder, which DETR, YOLOS and others with the same outputs lack: they want other
pictures, and their scores mean something else."""

_DINOV3 = re.compile(r"(^|[./])dinov3[./]")
"""DEIMv2's backbone (engine/backbone/dinov3_adapter.py): its graphs have the inputs and outputs of D-FINE's."""

_COCO_SLOTS = 91
"""RF-DETR's weights for COCO count by COCO's ids, 1 to 90, and have no background; all others have it in the last slot
(src/rfdetr/export/_runtime/decode.py, ``background_class_id``)."""


def recognise(summary: OnnxSummary) -> Foreign | str | None:
    """The network, or why this one is not served, or None if it is none of these."""
    outputs = {port.name: port for port in summary.output_ports}
    if outputs.keys() == {"labels", "boxes", "scores"} and len(summary.input_ports) == 2:
        return _deployed(summary)
    if outputs.keys() >= {"logits", "pred_boxes"}:
        return _hugging_face(summary, outputs)
    if outputs.keys() >= {"dets", "labels"}:
        return _rf_detr(summary, outputs)
    return None


def _deployed(summary: OnnxSummary) -> Foreign | str | None:
    port = picture(summary)
    sizes = [other for other in summary.input_ports if other.dtype in ("int64", "int32") and other.shape in _SIZES]
    if port is None or len(sizes) != 1:
        return None
    found = _counted(summary, DEPLOYED, port, sizes[0].name, None)
    names = (*summary.nodes, *summary.initializers)
    if isinstance(found, Foreign) and any(_DINOV3.search(name) for name in names):
        return replace(found, imagenet=True)
    return found


_SIZES = ((1, 2), (None, 2), (None, None), (1, None))


def _hugging_face(summary: OnnxSummary, outputs: Mapping[str, Port]) -> Foreign | str | None:
    port = picture(summary)
    if "pred_masks" in outputs or "masks" in outputs:
        return "a network that outlines objects (segmentation); those that detect boxes are served"
    if port is None or len(summary.input_ports) != 1:
        return None
    if not any(_HYBRID_ENCODER in name for name in (*summary.nodes, *summary.initializers)):
        return "outputs as of DETR and many others; of them RT-DETR and D-FINE are served, and this is neither"
    return _counted(summary, HUGGING_FACE, port, None, (outputs["logits"].shape or (None,))[-1])


def _counted(summary: OnnxSummary, family: str, port: Port, sizes: str | None, outputs: int | None) -> Foreign | str:
    """The network, if the number of its classes is known and the same wherever it is told."""
    heads = [shape[0] for name, shape in summary.initializers.items() if _SCORE_HEAD.search(name) and len(shape) == 1]
    outputs = outputs or max(heads, default=None)
    names = class_names(summary.metadata)
    if names is None and outputs is None:
        return 'outputs that do not tell how many classes there are, and no "names" in its metadata'
    if names is not None and outputs is not None and len(names) != outputs:
        return too_many_names(names, outputs)
    classes = names or ("",) * (outputs or 0)
    height, width = sides(port, summary.metadata)
    layout: Layout = "logits" if sizes is None else "deployed"
    return Foreign(family, layout, port.name, height, width, sizes, classes, tuple(range(len(classes))))


def _rf_detr(summary: OnnxSummary, outputs: Mapping[str, Port]) -> Foreign | str | None:
    if outputs.keys() != {"dets", "labels"}:
        others = ", ".join(sorted(outputs.keys() - {"dets", "labels"}))
        return f"an RF-DETR that puts out {others} too; those that detect boxes alone are served"
    port, scores = picture(summary), outputs["labels"].shape
    if port is None or len(summary.input_ports) != 1 or scores is None or len(scores) != 3 or scores[2] is None:
        return None
    count = scores[2]
    named = _slot_names(summary.metadata)
    if named is None:
        slots = tuple(range(count if count == _COCO_SLOTS else count - 1))
        named = dict.fromkeys(slots, "")
        told = class_names(summary.metadata)
        if told is not None:
            if len(told) != len(slots):
                return too_many_names(told, len(slots))
            named = dict(zip(slots, told, strict=True))
    elif max(named) >= count:
        return too_many_names(tuple(named.values()), count)
    if not named:
        return "outputs for the background alone"
    height, width = sides(port, summary.metadata)
    return Foreign(RF_DETR, "dets", port.name, height, width, None, tuple(named.values()), tuple(named), imagenet=True)


def _slot_names(metadata: Mapping[str, str]) -> dict[int, str] | None:
    """Names by slot, which RF-DETR's exporter writes since 2026 (src/rfdetr/export/_runtime/metadata.py)."""
    try:
        told = json.loads(metadata.get("rfdetr_inference", "null"))
        names = {int(slot): str(name) for slot, name in told["class_id_to_name"].items()} if told else {}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return dict(sorted(names.items())) if names and min(names) >= 0 else None


# --- from numbers to boxes


def by_logits(boxes_cxcywh: NDArray[Any], logits: NDArray[Any], slots: tuple[int, ...], *, floor: float) -> Detections:
    """``logits`` and ``dets``: every pair of a query and a class whose score is at least ``floor``.

    The scores are sigmoids, each class by itself (transformers, RTDetrImageProcessor.post_process_object_detection;
    src/rfdetr/models/postprocess.py), so a query may count twice. In shares of the picture.

    Args:
        boxes_cxcywh: float (1, Q, 4).
        logits: float (1, Q, C).
        slots: which of the C are classes.
        floor: in [0, 1].
    """
    scores = _sigmoid(logits[0][:, list(slots)])  # (Q, number of classes)
    queries, class_ids = np.nonzero(scores >= floor)
    return Detections(xyxy_from_cxcywh(boxes_cxcywh[0][queries]), scores[queries, class_ids], class_ids)


def deployed(labels: NDArray[Any], boxes: NDArray[Any], scores: NDArray[Any], *, floor: float) -> Detections:
    """``deployed``: those with a score of at least ``floor``, in pixels of the photograph."""
    likely = scores[0] >= floor
    return Detections(
        boxes[0][likely].astype(np.float32), scores[0][likely].astype(np.float32), labels[0][likely].astype(np.int64)
    )


def _sigmoid(logits: NDArray[Any]) -> Float32Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits.astype(np.float32), -80, 80))), np.float32)
