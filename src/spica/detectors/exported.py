"""Networks that other exporters wrote as ONNX: recognised, kept as OpenVINO IR, and run on the CPU.

The IR says how it is to be used in the words of openvino-model-api (``model_info``), so that other tools read it too,
and in ours (``spica``), from which alone it is opened again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from spica.boxes import Detections
from spica.detectors import detr, yolo
from spica.detectors.contract import Precision, RGBImage, checked
from spica.detectors.graph import ExportedNetwork, GraphSummary, Port, read_graph, summarise
from spica.detectors.openvino import GRAPH_FORMAT, compile_graph, last_line, load_openvino, save_graph
from spica.detectors.postprocess import BORDER, postprocess
from spica.detectors.refusals import damaged, shown
from spica.errors import WeightsError

ARCHITECTURES: Final = yolo.ARCHITECTURES | detr.ARCHITECTURES
"""The families that are served, as cards call them."""

SUPPORTED: Final = (
    "an ONNX export of Ultralytics YOLO v5 to 26 (output 1 x 4+classes x places, 1 x places x 5+classes, or "
    "1 x boxes x 6), RT-DETR or D-FINE (images, orig_target_sizes to labels, boxes, scores; or pixel_values to logits, "
    "pred_boxes), or RF-DETR (input to dets, labels), for one picture of three channels"
)

_SHOWN_PORTS = 6


def recognise(summary: GraphSummary) -> ExportedNetwork | str:
    """The network of a graph, or, in a few words, why it can't be served."""
    network = detr.recognise(summary) or yolo.recognise(summary)
    return network or f"inputs {_list(summary.inputs)}; outputs {_list(summary.outputs)}"


def _list(ports: Sequence[Port]) -> str:
    text = ", ".join(shown(str(port)) for port in ports[:_SHOWN_PORTS])
    return (text or "none") + (f" and {len(ports) - _SHOWN_PORTS} more" if len(ports) > _SHOWN_PORTS else "")


def open_exported(path: Path, model: Any = None) -> tuple[Any, ExportedNetwork]:
    """OpenVINO's model of an exported network, for one picture of one size, and what must be known of it.

    Args:
        path: the ``.onnx``, or the ``.xml`` that :func:`save_exported` wrote.
        model: from :func:`spica.detectors.graph.read_graph`, if it has been read already.

    Raises:
        WeightsError: damaged, not known here, or its numbers are kept where they may not be.
    """
    model = read_graph(path) if model is None else model
    summary = summarise(model)
    if path.suffix.lower() == ".xml":
        return model, _from_json(path, summary.metadata.get("spica.network", ""))
    network = _recognised(path, summary)
    if model.is_dynamic():  # of one size it is faster, and the outputs' shapes are known
        shapes = {network.image: [1, 3, network.height, network.width]}
        try:
            model.reshape(shapes | ({network.sizes: [1, 2]} if network.sizes is not None else {}))
        except RuntimeError as error:
            raise _not_run(path, error) from error
        network = _recognised(path, summarise(model))
    return model, network


def _recognised(path: Path, summary: GraphSummary) -> ExportedNetwork:
    network = recognise(summary)
    if isinstance(network, str):
        raise WeightsError(
            "this network can't be served",
            where=str(path),
            expected=SUPPORTED,
            got=network,
            hint="export it again in one of these forms, or give the weights file (.pth) of a network of torchvision's",
        )
    return network


def _from_json(path: Path, text: str) -> ExportedNetwork:
    try:
        return TypeAdapter(ExportedNetwork).validate_json(text)
    except ValidationError as error:
        raise damaged(path, "no description of the network in its rt_info") from error


def save_exported(path: Path, folder: Path) -> None:
    """Write an exported network as ``model.xml`` and ``model.bin`` into a folder.

    Raises:
        WeightsError: as :func:`open_exported`.
        StorageError: the folder can't be written.
    """
    model, network = open_exported(path)
    if model.has_rt_info(["framework"]):
        del model.rt_info["framework"]  # names that need not be XML's
    for key, value in _model_info(network).items():
        model.set_rt_info(value, ["model_info", key])
    ours = {"format": GRAPH_FORMAT, "architecture": network.architecture}
    ours |= {"classes": json.dumps(network.classes), "network": json.dumps(asdict(network))}
    save_graph(model, folder / "model.xml", ours)
    open_exported(folder / "model.xml")


def _model_info(network: ExportedNetwork) -> dict[str, str]:
    """For other tools: openvino-model-api's words, with the values that Ultralytics' exporter writes for its own."""
    mean, std = (detr.MEAN, detr.STD) if network.imagenet else ((0.0,) * 3, (1.0,) * 3)
    letterboxed = network.architecture in (yolo.YOLO, yolo.YOLOV5)
    labels = ("".join(c if c.isprintable() and c != " " else "_" for c in name) for name in network.classes)
    info = {
        "model_type": {yolo.YOLO: "YOLO", yolo.YOLOV5: "YOLOv5"}.get(network.architecture, network.architecture),
        "labels": " ".join(name or f"class_{number}" for number, name in enumerate(labels)),
        "resize_type": "fit_to_window_letterbox" if letterboxed else "standard",
        "reverse_input_channels": "True",  # the network takes RGB, where a tool reads BGR
        "mean_values": " ".join(f"{255 * value:g}" for value in mean),
        "scale_values": " ".join(f"{255 * value:g}" for value in std),
    }
    if letterboxed:
        info["pad_value"] = str(BORDER)
    if network.layout in yolo.IOU:
        info["iou_threshold"] = str(yolo.IOU[network.layout])
    return info


class ExportedModel:
    """A network of another exporter, run on the CPU by OpenVINO.

    Args:
        graph: ``.xml`` from :func:`save_exported`, or the ``.onnx`` itself.
        classes: names by class id.
        score_floor: boxes with a lower score are not answered.
        max_detections: the best so many boxes are answered; None for all that the graph gives.
        threads: of the network; 0 lets the runtime choose.
        cache_dir: where the compiled graph is kept; None keeps nothing.
        precision: ``f32`` or ``bf16``.

    Raises:
        WeightsError: not known here, OpenVINO can't run it, or another number of classes.
    """

    def __init__(
        self,
        graph: Path,
        classes: tuple[str, ...],
        *,
        score_floor: float = 0.05,
        max_detections: int | None = None,
        threads: int = 0,
        cache_dir: Path | None = None,
        precision: Precision = "f32",
    ) -> None:
        self.classes = classes
        self._floor, self._limit = score_floor, max_detections
        model, network = open_exported(graph)
        if len(network.classes) != len(classes):
            raise WeightsError(
                "this network has another number of classes than its card says",
                where=str(graph),
                expected=f"{len(classes)}",
                got=f"{len(network.classes)}",
                hint="give the file that the exporter wrote, without a card beside it",
            )
        try:
            model = _with_uint8_input(model, network)
            compiled = compile_graph(model, graph, threads=threads, cache_dir=cache_dir, precision=precision)
            self._request = compiled.create_infer_request()
            self.threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        except RuntimeError as error:  # the one kind that OpenVINO raises
            raise _not_run(graph, error) from error
        self._network = network
        self._family: ModuleType = yolo if network.architecture in yolo.ARCHITECTURES else detr
        self._name = f"{network.architecture}, {graph.name}"
        self.input_size = max(network.height, network.width)

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        """One answer per image, in order. Images are computed one after the other."""
        return [self._detect_one(image) for image in images]

    def _detect_one(self, image: RGBImage) -> Detections:
        height, width = image.shape[:2]
        network = self._network
        pixels, fit = self._family.preprocess(image, network)
        feed: dict[str, NDArray[Any]] = {network.image: pixels[None]}  # (1, height, width, 3)
        if network.sizes is not None:
            feed[network.sizes] = np.array([[width, height]], np.int64)
        self._request.infer(feed)
        ports = self._request.model_outputs
        outputs = {name: np.asarray(self._request.get_tensor(port).data) for port in ports for name in port.names}
        candidates: Detections = self._family.decode(
            outputs, network, fit, width=width, height=height, floor=self._floor, limit=self._limit
        )
        finite = np.isfinite(candidates.boxes_xyxy).all(axis=1) & np.isfinite(candidates.scores)
        best = candidates.where(finite).best(self._limit if self._limit is not None else len(candidates))
        detections = postprocess(best.boxes_xyxy, best.class_ids + 1, best.scores, width=width, height=height)
        return checked(detections, classes=len(self.classes), width=width, height=height, detector=self._name)


def _not_run(graph: Path, error: RuntimeError) -> WeightsError:
    return WeightsError(
        "OpenVINO can't run this network",
        where=str(graph),
        got=shown(last_line(error)),
        hint="export it again, with another opset or without fixed sizes",
    )


def _with_uint8_input(model: Any, network: ExportedNetwork) -> Any:
    """The graph with uint8 (1, H, W, 3) as its picture, and float32 as its outputs."""
    openvino = load_openvino()
    from openvino.preprocess import PrePostProcessor

    processor = PrePostProcessor(model)
    image = processor.input(network.image)
    image.tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    steps = image.preprocess().convert_element_type(openvino.Type.f32)
    if network.imagenet:
        steps.mean([255 * mean for mean in detr.MEAN]).scale([255 * std for std in detr.STD])
    else:
        steps.scale(255.0)
    image.model().set_layout(openvino.Layout("NCHW"))
    if network.sizes is not None:
        processor.input(network.sizes).tensor().set_element_type(openvino.Type.i64)
    for position, port in enumerate(model.outputs):
        if port.element_type == openvino.Type.f16:
            processor.output(position).tensor().set_element_type(openvino.Type.f32)
    return processor.build()
