"""A network of others, run: from a photograph to its input, and from its outputs to boxes in the photograph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from spica.boxes import Detections
from spica.detectors import detr, ultralytics
from spica.detectors.contract import Precision, RGBImage, checked
from spica.detectors.foreign import recognised
from spica.detectors.layouts import Foreign, Layout
from spica.detectors.onnx_metadata import Port, read_summary
from spica.detectors.openvino import compile_graph, load_openvino, openvino_core
from spica.detectors.postprocess import Fit, batched_nms, letterbox, postprocess, stretch
from spica.detectors.refusals import shown
from spica.errors import DetectorContractError, WeightsError


class ForeignDetector:
    """A network of others, run on the CPU by OpenVINO.

    Args:
        graph: the ``.onnx``.
        classes: names by class id.
        score_floor: boxes with a lower score are not answered.
        max_detections: the best so many boxes are answered; None for all that the graph gives.
        threads: of the network; 0 lets the runtime choose.
        cache_dir: where the compiled graph is kept; None keeps nothing.
        precision: the arithmetic.

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
        self._classes = classes
        self._floor, self._limit = score_floor, max_detections
        summary = read_summary(graph)
        network = recognised(graph, summary)
        core = openvino_core()
        try:
            model = _of_one_size(core.read_model(graph), network)
            network = recognised(graph, replace(summary, output_ports=_ports(model)))  # whose sizes are known now
            model = _with_photo_input(model, network)
            made = compile_graph(model, graph, threads=threads, cache_dir=cache_dir, precision=precision)
            self._request = made.create_infer_request()
            self._threads = int(made.get_property("INFERENCE_NUM_THREADS"))
        except RuntimeError as error:  # the one kind that OpenVINO raises
            raise WeightsError(
                "OpenVINO can't run this network",
                where=str(graph),
                got=shown(str(error).strip().splitlines()[-1]),
                hint="export it again, with another opset or without fixed sizes",
            ) from error
        if len(network.classes) != len(classes):
            raise WeightsError(
                "this network has another number of classes than its card says",
                where=str(graph),
                expected=f"{len(classes)}",
                got=f"{len(network.classes)}",
                hint="give the file that the exporter wrote, without a card beside it",
            )
        self._network = network
        self._name = f"{network.architecture}, {graph.name}"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by class id; empty strings where the file carries no names."""
        return self._classes

    @property
    def threads(self) -> int:
        """That the network is computed with."""
        return self._threads

    @property
    def input_size(self) -> int:
        """Longer side in pixels to which a photograph is shrunk."""
        return max(self._network.height, self._network.width)

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        """One answer per image, in order. Images are computed one after the other."""
        return [self._one(image) for image in images]

    def _one(self, image: RGBImage) -> Detections:
        height, width = image.shape[:2]
        network = self._network
        pixels, fit = _FITS[network.layout](image, network.height, network.width)
        feed: dict[str, NDArray[Any]] = {network.image: pixels[None]}  # (1, height, width, 3)
        if network.sizes is not None:
            feed[network.sizes] = np.array([[width, height]], np.int64)
        self._request.infer(feed)
        found = self._found(fit, width, height)
        answer = postprocess(found.boxes_xyxy, found.class_ids + 1, found.scores, width=width, height=height)
        return checked(answer, classes=len(self._classes), width=width, height=height, detector=self._name)

    def _found(self, fit: Fit, width: int, height: int) -> Detections:
        """Boxes in pixels of the photograph, the best ones."""
        layout, floor = self._network.layout, self._floor
        if layout == "deployed":
            labels, boxes, scores = (self._output(name) for name in ("labels", "boxes", "scores"))
            found = detr.deployed(labels, boxes, scores, floor=floor)
        elif layout in _NAMED:
            boxes, scores = (self._output(name) for name in _NAMED[layout])
            found = detr.by_logits(boxes, scores, self._network.slots, floor=floor)
        else:
            found = _DECODERS[layout](self._boxes(), floor=floor)
        limit = self._limit if self._limit is not None else len(found.scores)
        found = found.where(np.isfinite(found.boxes_xyxy).all(axis=1) & np.isfinite(found.scores))
        iou = ultralytics.IOU.get(layout)
        found = batched_nms(found, iou=iou, limit=limit) if iou is not None else found.best(limit)
        return replace(found, boxes_xyxy=_in_photograph(found, layout, fit, width, height))

    def _output(self, which: Any) -> NDArray[Any]:
        """By name or port."""
        return np.asarray(self._request.get_tensor(which).data)

    def _boxes(self) -> NDArray[Any]:
        """The one output of a YOLO; checked, for its shape may be known only now."""
        ports = self._request.model_outputs
        output = next(self._output(port) for port in ports if len(port.partial_shape) == 3)
        expected = len(self._classes) + _EXTRA.get(self._network.layout, 0)
        got = output.shape[1 if self._network.layout == "anchors" else 2]
        if got != (expected if self._network.layout in _EXTRA else _ROW):
            raise DetectorContractError(
                "a network puts out other numbers than its file says",
                where=self._name,
                expected=f"{self._network.layout} for {len(self._classes)} classes",
                got=str(output.shape),
            )
        return output


Decoder = Callable[..., Detections]

_DECODERS: Final[dict[Layout, Decoder]] = {
    "anchors": ultralytics.by_anchor,
    "objectness": ultralytics.by_objectness,
    "rows": ultralytics.by_row,
    "queries": ultralytics.by_query,
    "query rows": ultralytics.by_query_row,
}
_EXTRA: Final[dict[Layout, int]] = {"anchors": 4, "objectness": 5, "queries": 4}
"""Numbers beside the classes' scores."""
_ROW = 6
"""Numbers in a row: four of the box, score, class."""
_NAMED: Final[dict[Layout, tuple[str, str]]] = {"logits": ("pred_boxes", "logits"), "dets": ("dets", "labels")}
"""Outputs with boxes and logits."""
_SHARES: Final = frozenset[Layout]({"queries", "query rows", "logits", "dets"})
"""Layouts whose boxes are in shares of the picture."""


def _letterbox(image: RGBImage, height: int, width: int) -> tuple[RGBImage, Fit]:
    return letterbox(image, height=height, width=width)


def _stretch(image: RGBImage, height: int, width: int) -> tuple[RGBImage, Fit]:
    return stretch(image, height=height, width=width, antialias=False)


def _shrink(image: RGBImage, height: int, width: int) -> tuple[RGBImage, Fit]:
    return stretch(image, height=height, width=width, antialias=True)


_FITS: Final[dict[Layout, Callable[[RGBImage, int, int], tuple[RGBImage, Fit]]]] = {
    "anchors": _letterbox,
    "objectness": _letterbox,
    "rows": _letterbox,
    "queries": _stretch,  # ultralytics/models/rtdetr/predict.py, scale_fill
    "query rows": _stretch,
    "deployed": _shrink,  # torchvision's Resize on Pillow images (configs/rtdetr/include/dataloader.yml)
    "logits": _shrink,  # transformers, RTDetrImageProcessor, PILImageResampling.BILINEAR
    "dets": _stretch,  # src/rfdetr/export/_runtime/preprocess.py, antialias=False
}


def _in_photograph(found: Detections, layout: Layout, fit: Fit, width: int, height: int) -> NDArray[np.float32]:
    if layout == "deployed":
        return found.boxes_xyxy
    if layout in _SHARES:
        return found.boxes_xyxy * np.array([width, height, width, height], np.float32)
    return fit.undo(found.boxes_xyxy)


def _of_one_size(model: Any, network: Foreign) -> Any:
    """The graph for one picture of one size, where it would take any: that is faster, and shapes are known."""
    if model.is_dynamic():
        shapes = {network.image: [1, 3, network.height, network.width]}
        model.reshape(shapes | ({network.sizes: [1, 2]} if network.sizes is not None else {}))
    return model


def _ports(model: Any) -> list[Port]:
    """The graph's outputs as OpenVINO knows them."""
    names = {"f32": "float32", "f16": "float16", "i64": "int64", "i32": "int32"}

    def dims(shape: Any) -> tuple[int | None, ...]:
        return tuple(None if dim.is_dynamic else dim.get_length() for dim in shape)

    return [
        Port(min(port.names), names.get(port.element_type.get_type_name(), ""), dims(port.partial_shape))
        for port in model.outputs
    ]


def _with_photo_input(model: Any, network: Foreign) -> Any:
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
