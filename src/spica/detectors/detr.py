"""RT-DETR, D-FINE and RF-DETR, as their own exporters and Hugging Face's write them.

Recognised by the names of inputs and outputs. Layouts, of one picture, Q queries, C classes:

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
from spica.detectors.contract import RGBImage
from spica.detectors.graph import ExportedNetwork, GraphSummary, Layout, Port, image_input, named_classes, sides
from spica.detectors.postprocess import Fit, stretch, xyxy_from_cxcywh

DEPLOYED: Final = "RT-DETR or D-FINE"
HUGGING_FACE: Final = "RT-DETR or D-FINE (Hugging Face)"
RF_DETR: Final = "RF-DETR"

ARCHITECTURES: Final = frozenset({DEPLOYED, HUGGING_FACE, RF_DETR})

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

_SIZES = ((1, 2), (None, 2), (None, None), (1, None))


def recognise(summary: GraphSummary) -> ExportedNetwork | str | None:
    """The network, or why this one is not served, or None if it is none of these."""
    outputs = {port.name: port for port in summary.outputs}
    if outputs.keys() == {"labels", "boxes", "scores"} and len(summary.inputs) == 2:
        return _deployed(summary)
    if outputs.keys() >= {"logits", "pred_boxes"}:
        return _hugging_face(summary, outputs)
    if outputs.keys() >= {"dets", "labels"}:
        return _rf_detr(summary, outputs)
    return None


def _deployed(summary: GraphSummary) -> ExportedNetwork | str | None:
    port = image_input(summary)
    sizes = [other for other in summary.inputs if other.dtype in ("i64", "i32") and other.shape in _SIZES]
    if port is None or len(sizes) != 1:
        return None
    network = _rt_detr(summary, DEPLOYED, port, sizes[0].name, None)
    if isinstance(network, ExportedNetwork) and any(_DINOV3.search(name) for name in _part_names(summary)):
        return replace(network, imagenet=True)
    return network


def _hugging_face(summary: GraphSummary, outputs: Mapping[str, Port]) -> ExportedNetwork | str | None:
    port = image_input(summary)
    if "pred_masks" in outputs or "masks" in outputs:
        return "a network that outlines objects (segmentation); those that detect boxes are served"
    if port is None or len(summary.inputs) != 1:
        return None
    if not any(_HYBRID_ENCODER in name for name in _part_names(summary)):
        return "outputs as of DETR and many others; of them RT-DETR and D-FINE are served, and this is neither"
    return _rt_detr(summary, HUGGING_FACE, port, None, (outputs["logits"].shape or (None,))[-1])


def _rt_detr(
    summary: GraphSummary, family: str, port: Port, sizes: str | None, count: int | None
) -> ExportedNetwork | str:
    heads = [shape[0] for name, shape in summary.constants.items() if _SCORE_HEAD.search(name) and len(shape) == 1]
    classes = named_classes(summary.metadata, count or max(heads, default=None))
    if isinstance(classes, str):
        return classes
    height, width = sides(port, summary.metadata)
    layout: Layout = "logits" if sizes is None else "deployed"
    return ExportedNetwork(family, layout, port.name, height, width, sizes, classes, tuple(range(len(classes))))


def _part_names(summary: GraphSummary) -> tuple[str, ...]:
    return (*summary.nodes, *summary.constants)


def _rf_detr(summary: GraphSummary, outputs: Mapping[str, Port]) -> ExportedNetwork | str | None:
    if outputs.keys() != {"dets", "labels"}:
        others = ", ".join(sorted(outputs.keys() - {"dets", "labels"}))
        return f"an RF-DETR that puts out {others} too; those that detect boxes alone are served"
    port, scores = image_input(summary), outputs["labels"].shape
    if port is None or len(summary.inputs) != 1 or scores is None or len(scores) != 3 or scores[2] is None:
        return None
    count = scores[2]
    by_slot = _slot_names(summary.metadata)
    if by_slot is None:
        slots = tuple(range(count if count == _COCO_SLOTS else count - 1))
        names = named_classes(summary.metadata, len(slots))
        if isinstance(names, str):
            return names
        by_slot = dict(zip(slots, names, strict=True))
    elif max(by_slot) >= count:
        return f"names for {len(by_slot)} classes in its metadata, but outputs for {count}"
    if not by_slot:
        return "outputs for the background alone"
    height, width = sides(port, summary.metadata)
    classes, slots = tuple(by_slot.values()), tuple(by_slot)
    return ExportedNetwork(RF_DETR, "dets", port.name, height, width, None, classes, slots, imagenet=True)


def _slot_names(metadata: Mapping[str, str]) -> dict[int, str] | None:
    """Names by slot, which RF-DETR's exporter writes since 2026 (src/rfdetr/export/_runtime/metadata.py)."""
    try:
        settings = json.loads(metadata.get("rfdetr_inference", "null"))
        names = {int(slot): str(name) for slot, name in settings["class_id_to_name"].items()} if settings else {}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return dict(sorted(names.items())) if names and min(names) >= 0 else None


# --- the family's arithmetic


def preprocess(image: RGBImage, network: ExportedNetwork) -> tuple[RGBImage, Fit]:
    """The picture, uint8 (height, width, 3), and where the photograph lies in it: everywhere.

    RT-DETR and D-FINE shrink as Pillow does (configs/rtdetr/include/dataloader.yml; transformers, RTDetrImageProcessor,
    ``PILImageResampling.BILINEAR``), RF-DETR does not (src/rfdetr/export/_runtime/preprocess.py, ``antialias=False``).
    """
    return stretch(image, height=network.height, width=network.width, antialias=network.layout != "dets")


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

    Of logits every pair of a query and a class counts whose sigmoid is high enough, each class by itself (transformers,
    RTDetrImageProcessor.post_process_object_detection; src/rfdetr/models/postprocess.py), so a query may count twice.
    """
    del fit, limit  # the boxes are in shares of the photograph, or in its pixels already; all of them are returned
    if network.layout == "deployed":
        likely = outputs["scores"][0] >= floor
        return Detections(
            outputs["boxes"][0][likely].astype(np.float32),
            outputs["scores"][0][likely].astype(np.float32),
            outputs["labels"][0][likely].astype(np.int64),
        )
    boxes, logits = ("pred_boxes", "logits") if network.layout == "logits" else ("dets", "labels")
    scores = _sigmoid(outputs[logits][0][:, list(network.slots)])  # (Q, number of classes)
    queries, class_ids = np.nonzero(scores >= floor)
    shares = xyxy_from_cxcywh(outputs[boxes][0][queries])  # (N, 4)
    return Detections(
        shares * np.array([width, height, width, height], np.float32), scores[queries, class_ids], class_ids
    )


def _sigmoid(logits: NDArray[Any]) -> Float32Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits.astype(np.float32), -80, 80))), np.float32)
