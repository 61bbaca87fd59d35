"""From a weights file to the graph that is served: torch to ONNX to OpenVINO, and a comparison of the answers.

:func:`convert` has it done in a child, so that the process that serves never imports torch; the rest of this module is
the child.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spica.boxes import Detections
from spica.detectors.architecture import Norm
from spica.detectors.child import answer, require, run
from spica.detectors.comparison import Comparison, compare, rendered_images
from spica.detectors.contract import RGBImage
from spica.detectors.openvino import GRAPH_FORMAT, OpenVINODetector, openvino_core, save_graph
from spica.detectors.postprocess import postprocess
from spica.errors import WeightsError
from spica.files import sha256_file, storage_error

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]

_INSTALL = 'pip install "spica[train]"; it is needed only once for each weights file'

OPSET = 17
"""The newest opset of torch's tracing exporter with which the whole network came out right (the other exporter can't
trace torchvision's batched NMS)."""

_TRACE_SIDE_PX = 320
"""Side of the image with which the graph is traced; height and width stay free in the graph."""

_ENOUGH_BOXES = 20
"""With fewer boxes on the test images the comparison would say little; then it is made down to a lower score."""

_LOWER = (1.0, 0.1, 0.01, 0.0)
"""Parts of the floor score that are tried: not 0 at once, where a network of many classes answers with all anchors."""

_TABLE_SIDES = 2**14
"""Sides for which rounding is followed (:class:`ScaledSize`)."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be converted.

    Attributes:
        weights: the file, a state_dict.
        sha256: of its bytes, in hex; another file is refused.
        folder: an existing folder, where ``model.xml``, ``model.bin`` and ``model.safetensors`` are written.
        architecture: torchvision's name, or Spica's own.
        classes: names by class id.
        norm: the kind of batch norm the weights were trained with.
        norm_eps: eps of the batch norm where it is a setting; it changes nothing elsewhere.
        score_floor: boxes with a score not above it are dropped by the graph.
        max_detections: of an image, the best ones.
        input_size: in pixels the sides to which the shorter side is scaled, and which the longer one does not exceed;
            None for the network's own.
    """

    weights: str
    sha256: str
    folder: str
    architecture: str
    classes: tuple[str, ...]
    norm: Norm
    norm_eps: float | None
    score_floor: float
    max_detections: int
    input_size: tuple[int, int] | None = None


def convert(
    request: Request, *, progress: Progress | None = None, stop: threading.Event | None = None
) -> dict[str, Any]:
    """Convert in a child, and return what its comparison with torch measured.

    Takes five to thirty seconds and up to three gigabytes, by the network.

    Args:
        request: what is to be converted.
        progress: called with what is being done, in a few words.
        stop: when set, the child is ended.

    Raises:
        WeightsError: torch is missing, the weights are not usable, or the converted network answers differently.
        StorageError: the folder can't be written.
        ModelUnavailableError: ``stop`` was set.
    """

    def say(text: str) -> None:
        logger.info("converting %s: %s", request.weights, text)
        if progress is not None:
            progress(text)

    where, needs = request.weights, "3 GB"
    return run(__name__, asdict(request), what="conversion", where=where, needs=needs, progress=say, stop=stop)


def convert_here(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """The child's work: write graph and weights into the request's folder; what the comparison measured.

    The weights are the state_dict under plain names, with the architecture and the classes in its metadata.
    """
    weights, folder = Path(request["weights"]), Path(request["folder"])
    progress("loading torch")
    for package in ("torch", "torchvision"):
        require(package, "to convert a weights file", _INSTALL)
    import torch

    from spica.detectors.networks import build_from, load_state_dict, max_aspect

    torch.set_grad_enabled(False)
    progress("reading the weights")
    if sha256_file(weights) != request["sha256"]:
        raise WeightsError("the weights file has changed meanwhile", where=str(weights), hint="start again")
    state_dict = load_state_dict(weights)
    _refuse_nan(state_dict, weights)
    floor, limit = float(request["score_floor"]), int(request["max_detections"])
    model = build_from(
        state_dict,
        architecture=request["architecture"],
        norm_eps=request["norm_eps"],
        score_floor=floor,
        max_detections=limit,
        input_size=request["input_size"],
    )
    progress("writing the network as a graph")
    metadata = {"classes": json.dumps(request["classes"]), "architecture": request["architecture"]}
    graph = openvino_core().read_model(io.BytesIO(export_onnx(model)))
    info = {**metadata, "format": GRAPH_FORMAT, "max_aspect": str(max_aspect(model))}
    save_graph(graph, folder / "model.xml", info)
    _keep_weights(model, folder, metadata, request["input_size"])
    progress("comparing the graph's answers with torch's")
    started = time.monotonic()
    metrics = _verify(model, folder / "model.xml", len(request["classes"]), floor=floor, limit=limit)
    return {**metrics, "seconds": round(time.monotonic() - started, 1)}


def _refuse_nan(state_dict: dict[str, torch.Tensor], weights: Path) -> None:
    import torch

    broken = [key for key, tensor in state_dict.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise WeightsError(
            "these weights hold NaN or infinity, so the network can't answer",
            where=str(weights),
            expected="finite numbers",
            got=f"{len(broken)} tensors that are not, the first {broken[0]}",
            hint="the training diverged: take an earlier checkpoint",
        )


def _keep_weights(
    model: torch.nn.Module, folder: Path, metadata: dict[str, str], input_size: Sequence[int] | None
) -> None:
    from safetensors.torch import save

    if input_size:
        metadata = {**metadata, "input_size": json.dumps(input_size)}
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    content = save(tensors, {f"spica.{key}": value for key, value in metadata.items()})
    try:
        (folder / "model.safetensors").write_bytes(content)
    except OSError as error:
        raise storage_error(error, folder) from error


def export_onnx(model: torch.nn.Module) -> bytes:
    """The network as an ONNX graph for one image of any size.

    Its input is ``image`` float32 (3, H, W), RGB in [0, 1]; its outputs are ``boxes`` float32 (N, 4) xyxy in pixels of
    that image, ``labels`` int64 (N,) counted from 1, and ``scores`` float32 (N,), descending.
    """
    import torch

    class OneImage(torch.nn.Module):
        """torchvision's detectors take lists of images and give lists of dicts; a graph has tensors."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            (answer,) = self.model([image])
            return answer["boxes"], answer["labels"], answer["scores"]

    graph = io.BytesIO()
    image = torch.rand(3, _TRACE_SIDE_PX, _TRACE_SIDE_PX, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(), torch.inference_mode(), _exact_resize(model):
        warnings.simplefilter("ignore")  # the tracer warns of every Python branch; the result is verified instead
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            OneImage().eval(),
            (image,),
            graph,  # type: ignore[arg-type]  # the tracing exporter takes file objects too
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["boxes", "labels", "scores"],
            dynamic_axes={
                "image": {1: "height", 2: "width"},
                "boxes": {0: "count"},
                "labels": {0: "count"},
                "scores": {0: "count"},
            },
        )
    return graph.getvalue()


@contextlib.contextmanager
def _exact_resize(model: torch.nn.Module) -> Iterator[None]:
    """Within it the network scales images to the size that it has untraced, and in a way that can be traced."""
    import torch

    transform: Any = model.transform
    if transform.fixed_size is not None:
        yield
        return
    scaled = ScaledSize(int(transform.min_size[-1]), int(transform.max_size))

    def resize(image: torch.Tensor, target: object = None) -> tuple[torch.Tensor, object]:
        height, width = scaled(torch._shape_as_tensor(image)[1:])  # of the result, int64 each
        resized = torch.nn.functional.interpolate(
            image[None],
            size=(height, width),  # numbers of the graph
            mode="bilinear",
            align_corners=False,
        )
        return resized[0], target

    transform.resize = resize
    try:
        yield
    finally:
        del transform.resize


class ScaledSize:
    """The size to which torchvision scales an image, computed in the graph to the pixel, while a network is traced.

    torchvision takes ``floor(side * (target / decides))`` in 64-bit floats, where ``decides`` is the shorter side, or
    the longer one if ``max_size`` binds (``_resize_image_and_masks`` in torchvision/models/detection/transform.py).
    OpenVINO has no more than 32 bits, with which one image in six, 4000 x 3000 among them, is a pixel smaller, and all
    boxes move a little. In whole numbers it is ``side * target // decides``, but one less where the product is a whole
    number E and the quotient ``(target / decides)(1 + d)`` was rounded down so far that ``-d E`` is more than half the
    distance from E to the next float below. ``d`` is kept for each side in a table.

    Args:
        min_size: pixels to which the shorter side is scaled,
        max_size: unless the longer side would get more than these.
    """

    def __init__(self, min_size: int, max_size: int) -> None:
        import torch

        self._targets = (min_size, max_size)
        self._tables = [torch.from_numpy(_rounded_down(target)) for target in self._targets]
        # half the distance to the next float below E, in units of 2^-53
        below = [0.0, 0.5, *(2.0 ** ((E - 1).bit_length() - 1) for E in range(2, max(self._targets) + 1))]
        self._half = torch.tensor(below, dtype=torch.float32)

    def __call__(self, sides: torch.Tensor) -> torch.Tensor:
        """The size for an image, int64 (2,), from its height and width, int64 (2,)."""
        import torch

        shorter, longer = sides.min(), sides.max()
        min_size, max_size = self._targets
        by_shorter = min_size * longer <= max_size * shorter
        target = torch.where(by_shorter, min_size, max_size)
        decides = torch.where(by_shorter, shorter, longer)
        place = decides.clamp(max=_TABLE_SIDES - 1)
        rounded = torch.where(by_shorter, self._tables[0][place], self._tables[1][place])
        rounded = rounded * (decides < _TABLE_SIDES)
        product = sides * target
        scaled = torch.div(product, decides, rounding_mode="floor")
        exact = scaled * decides == product
        half = self._half[scaled.clamp(max=len(self._half) - 1)]
        return scaled - (exact & (scaled * rounded > half)).to(scaled.dtype)


def _rounded_down(target: int) -> NDArray[np.float32]:
    """``-d`` by side in units of 2^-53, float32 (16384,): how far ``target / side`` is rounded down."""
    table = np.zeros(_TABLE_SIDES, np.float32)
    for side in range(1, _TABLE_SIDES):
        exact = Fraction(target, side)
        table[side] = float((exact - Fraction(target / side)) / exact * 2**53)
    return table


def _verify(model: torch.nn.Module, graph: Path, classes: int, *, floor: float, limit: int) -> dict[str, Any]:
    """Compare at the floor score; where that gives few boxes, lower, on a graph whose floor is changed."""
    from spica.detectors.networks import set_floor

    images = list(rendered_images())
    expected: list[Detections] = []
    down_to = floor
    for down_to in dict.fromkeys(floor * part for part in _LOWER):
        set_floor(model, down_to)
        expected = [_torch_answer(model, image) for image in images]
        if sum(map(len, expected)) >= _ENOUGH_BOXES:
            break
    if not any(map(len, expected)):
        raise WeightsError(
            "with these weights the network finds nothing at all, not even at the score 0",
            hint="the file may be damaged, or the training may have failed: take another checkpoint",
        )
    lower = (lambda opened: _set_floor(opened, floor, down_to)) if down_to != floor else None
    detector = OpenVINODetector(graph, ("",) * classes, edit=lower)
    comparisons = _same(expected, detector.detect(images), floor=down_to, limit=limit, graph=graph)
    return {
        "images": len(images),
        "score_floor": down_to,
        "boxes": sum(comparison.expected for comparison in comparisons),
        "unmatched": sum(comparison.unmatched for comparison in comparisons),
        "max_box_px": round(max(comparison.box_px for comparison in comparisons), 6),
        "max_score": round(max(comparison.score for comparison in comparisons), 8),
    }


def _torch_answer(model: torch.nn.Module, image: RGBImage) -> Detections:
    import torch

    pixels = torch.from_numpy(image).permute(2, 0, 1).to(torch.float32) / 255  # (3, H, W)
    with torch.inference_mode():
        (answer,) = model([pixels])
    boxes, labels, scores = (answer[name].numpy() for name in ("boxes", "labels", "scores"))
    return postprocess(boxes, labels, scores, width=image.shape[1], height=image.shape[0])


def _same(
    expected: list[Detections], served: list[Detections], *, floor: float, limit: int, graph: Path
) -> list[Comparison]:
    comparisons = [compare(a, b, floor=floor, limit=limit) for a, b in zip(expected, served, strict=True)]
    wrong = next((comparison for comparison in comparisons if not comparison.same), None)
    if wrong is not None:
        raise WeightsError(
            "the converted network does not give torch's answers, so it is not used",
            where=str(graph),
            expected=f"the {wrong.expected} boxes of torch on a test image",
            got=f"{wrong.got} boxes, {wrong.unmatched} without a partner",
            hint="please report this with the versions of torch, torchvision and openvino",
        )
    return comparisons


def _set_floor(model: Any, floor: float, new: float) -> None:
    """Replace the numbers in the graph that scores are compared with.

    A Faster R-CNN compares once, networks with anchors on several levels once a level, SSD once a class.
    """
    from openvino import opset13

    comparing = [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Greater"
        and node.input_value(1).get_node().get_type_name() == "Constant"
        and np.array_equal(node.input_value(1).get_node().data.ravel(), np.array([floor], np.float32))
    ]
    if not comparing:
        raise WeightsError(f"the graph compares scores with the floor {floor} at 0 places")
    for node in comparing:
        node.input(1).replace_source_output(opset13.constant(np.float32(new)).output(0))


if __name__ == "__main__":
    sys.exit(answer(convert_here))
