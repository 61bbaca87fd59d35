"""The int8 variant of a graph, made by NNCF with the user's own photographs: of its layers, never of its boxes.

:func:`quantise` has it done in a child, for NNCF takes seconds to import and gigabytes to work; the rest of this module
is the child.

What may be computed in int8 is what turns features into features: backbone, necks, RPN heads, box heads and the towers
of one-stage heads lie between two layers with weights; the preparation of the image lies before the first, and
decoding, sorting and suppressing lie behind the last. A Faster R-CNN whose box arithmetic is quantised as well loses a
quarter of its AP. This is read from the graph and not from names, so that it holds for every architecture.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from spica.detectors.child import answer, require, run
from spica.detectors.contract import USUAL_INPUT_SIZE, Precision
from spica.detectors.openvino import REST, hints, load_openvino, machine, openvino_core, save_graph
from spica.detectors.postprocess import pad_extreme_aspect, shrink
from spica.errors import ImageError, WeightsError
from spica.images import decode

MAX_CALIBRATION_IMAGES: Final = 16
"""More tell NNCF hardly anything new about the range of a layer's values, and each costs seconds with a large
network."""

_INSTALL: Final = 'pip install "spica[optimise]"; it is needed only to make an int8 variant, never to serve one'

_ROUNDS: Final = 4
_LEAST_GAIN: Final = 1.1
"""A gain of a tenth is worth the bits."""

_LAYERS: Final = frozenset({"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"})

_SELECTING: Final = frozenset(
    {"TopK", "NonMaxSuppression", "MulticlassNms", "MatrixNms", "NonZero", "Unique", "If", "Loop", "DetectionOutput"}
)
"""What chooses among boxes or queries; what follows is arithmetic on those that were chosen."""

_GATHERING: Final = frozenset({"Gather", "GatherElements", "GatherND"})

_FIRST_INPUT_IS_DATA: Final = _GATHERING | {
    *("Reshape", "Transpose", "Slice", "StridedSlice", "Interpolate", "Unsqueeze", "Squeeze", "Broadcast", "Pad"),
    *("Split", "VariadicSplit", "Tile", "ROIAlign", "ROIPooling", "GridSample", "TopK", "Range", "ReduceMean"),
    *("ReduceSum", "ReduceMax", "MVN", "NormalizeL2", "CumSum", "OneHot"),
}
"""Their other inputs say where or how much, and carry no features."""

_DATA_INPUTS: Final[dict[str, tuple[int, ...]]] = {
    "ScatterElementsUpdate": (0, 2),
    "ScatterNDUpdate": (0, 2),
    "ScatterUpdate": (0, 2),
    "Select": (1, 2),
    "ShapeOf": (),
    **dict.fromkeys(_FIRST_INPUT_IS_DATA, (0,)),
}

_POOLING_OF_REGIONS: Final = frozenset({"ROIAlign", "ROIPooling"})
"""Here features begin again, whatever chose the regions."""

_NORMALISING: Final = frozenset({"MVN", "NormalizeL2", "ReduceL2", "Divide", "Power", "Sqrt", "Softmax"})
"""Between layers as well, but with sums over many values, or quotients, which 8 bits don't hold."""

Edges = dict[str, list[str]]

_NEVER_NAMED: Final = frozenset({"Constant", "Parameter", "Result"})


def quantise(
    graph: Path,
    target: Path,
    images: Sequence[Path],
    *,
    max_pixels: int,
    input_size: int = USUAL_INPUT_SIZE,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write the int8 variant of a graph, calibrated with these photographs; what NNCF did, for the card.

    Takes a minute with a Faster R-CNN, and up to four gigabytes.

    Args:
        graph: ``.xml`` or ``.onnx``, with the input ``image``, float32 (3, H, W) in [0, 1].
        target: the ``.xml`` to write, with its ``.bin`` beside it.
        images: files, at least one that can be read. Others are left out: ``left_out`` of the answer names them.
        max_pixels: larger images are left out.
        input_size: longer side in pixels to which the network shrinks an image; it gets none larger than twice that.
        progress: called with what is being done, in a few words.

    Raises:
        WeightsError: NNCF is missing, or it can't quantise this network.
        ImageError: no photograph can be read.
        StorageError: the target can't be written.
    """
    request = {
        "graph": str(graph.resolve()),
        "target": str(target.resolve()),
        "images": [str(path.resolve()) for path in images],
        "max_pixels": max_pixels,
        "most_px": 2 * input_size,
    }
    return run(__name__, request, what="quantisation", where=str(graph), needs="4 GB", progress=progress)


def quantise_here(request: dict[str, Any], progress: Callable[[str], None]) -> dict[str, Any]:
    """The child's work: write the variant; what was done."""
    progress("loading NNCF")
    load_openvino()  # which switches usage reports off, NNCF's too
    nncf = require("nncf", "to make an int8 variant", _INSTALL)
    logging.getLogger("nncf").setLevel(logging.ERROR)
    graph, target = Path(request["graph"]), Path(request["target"])
    model = openvino_core().read_model(graph)
    photographs = _Photographs(request, progress)
    try:
        quantised = nncf.quantize(
            model,
            nncf.Dataset(photographs),
            subset_size=len(request["images"]),
            target_device=nncf.TargetDevice.CPU,
            # asymmetric activations: hard-swish and SiLU, of the lighter networks, go below zero only a little
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=float_nodes(model), validate=False),
            # Of all photographs, not the mean of each: what only few of them show, a rare class, would be cut off
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX
            ),
        )
    except (RuntimeError, ValueError, nncf.InternalError, nncf.ValidationError) as error:  # NNCF's and OpenVINO's own
        raise WeightsError(
            "NNCF can't quantise this network",
            where=str(graph),
            got=f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error) else ''}",
            hint="serve it with --precision f32 or bf16",
        ) from error
    progress("measuring in which arithmetic the rest of it is faster")
    rest = _faster_rest(quantised, photographs)
    progress("writing the int8 variant")
    save_graph(quantised, target, {REST[1]: rest})
    left_out = sorted(photographs.left_out)
    return {
        "images": len(request["images"]) - len(left_out),
        "left_out": left_out,
        "rest": rest,
    }


def _faster_rest(model: Any, photographs: _Photographs) -> Precision:
    """The precision of what is not quantised: bf16 where this machine has it and is clearly faster with it."""
    if "bf16" not in machine().has:
        return "f32"
    core, image = openvino_core(), next(iter(photographs))
    rests: tuple[Precision, ...] = ("f32", "bf16")
    requests = {rest: core.compile_model(model, "CPU", hints("int8", rest)).create_infer_request() for rest in rests}
    times: dict[Precision, float] = dict.fromkeys(rests, float("inf"))
    for _ in range(_ROUNDS):  # in turn, so that a busy moment slows both; the first prepares
        for rest, request in requests.items():
            started = time.perf_counter()
            request.infer(image)
            times[rest] = min(times[rest], time.perf_counter() - started)
    return faster(times)


def faster(times: Mapping[Precision, float]) -> Precision:
    """bf16 if its seconds are clearly fewer than those of f32, whose answers are nearer to the network's own."""
    return "bf16" if times["bf16"] * _LEAST_GAIN < times["f32"] else "f32"


class _Photographs:
    """The graph's inputs, one after the other; NNCF goes through them several times.

    A photograph that can't be read any more is left out: somebody may tidy the folder up in the minutes that it takes.
    """

    def __init__(self, request: dict[str, Any], progress: Callable[[str], None]) -> None:
        self._paths: list[str] = request["images"]
        self._request = request
        self._progress = progress
        self.left_out: set[str] = set()

    def __iter__(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        for position, path in enumerate(self._paths):
            self._progress(f"looking at photograph {position + 1} of {len(self._paths)}")
            try:
                pixels = decode(Path(path).read_bytes(), where=path, max_pixels=self._request["max_pixels"]).pixels
            except (OSError, ImageError) as error:
                self.left_out.add(path)
                if len(self.left_out) < len(self._paths):
                    continue
                if isinstance(error, ImageError):
                    raise
                raise ImageError("an image file can't be read", where=path, got=error.strerror) from error
            image = pad_extreme_aspect(shrink(pixels, self._request["most_px"])).transpose(2, 0, 1)  # (3, H, W)
            yield {"image": image.astype(np.float32) / np.float32(255)}


def float_nodes(model: Any) -> list[str]:
    """Names of all nodes of an ``openvino.Model`` that must stay float, in the graph's order."""
    kept = quantisable_nodes(model)
    return [
        node.get_friendly_name()
        for node in model.get_ordered_ops()
        if node.get_type_name() not in _NEVER_NAMED and node.get_friendly_name() not in kept
    ]


def quantisable_nodes(model: Any) -> set[str]:
    """Names of the layers with weights on features, and of all between two of them."""
    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    kinds = {name: node.get_type_name() for name, node in nodes.items()}
    after: Edges = {name: [] for name in nodes}
    after_data: Edges = {name: [] for name in nodes}
    before_data: Edges = {name: [] for name in nodes}
    for name, node in nodes.items():
        for target in (target for output in node.outputs() for target in output.get_target_inputs()):
            follower = target.get_node().get_friendly_name()
            if follower not in nodes:  # it leads nowhere, and the graph does not list it
                continue
            after[name].append(follower)
            if target.get_index() in _DATA_INPUTS.get(kinds[follower], range(nodes[follower].get_input_size())):
                after_data[name].append(follower)
                before_data[follower].append(name)
    selecting = {name for name, kind in kinds.items() if kind in _SELECTING}
    chosen = _reach(selecting, after, set())
    gathering = {
        name
        for name, kind in kinds.items()
        if kind in _GATHERING and nodes[name].input_value(1).get_node().get_friendly_name() in chosen
    }
    pooling = {name for name, kind in kinds.items() if kind in _POOLING_OF_REGIONS}
    boxes = _reach(selecting | gathering, after_data, pooling)
    layers = {name for name, node in nodes.items() if _is_layer(node)} - boxes
    between = _reach(layers, after_data, boxes) & _reach(layers, before_data, boxes)
    between -= {name for name in between if kinds[name] in _NORMALISING}
    biases = {follower for name in layers for follower in after[name] if _adds_constant(nodes[follower])}
    return layers | between | biases


def _reach(starts: Iterable[str], edges: Edges, barred: set[str]) -> set[str]:
    """The starts, and all that can be reached from them without entering what is barred."""
    reached = set(starts)
    waiting = deque(reached)
    while waiting:
        for name in edges[waiting.popleft()]:
            if name not in reached and name not in barred:
                reached.add(name)
                waiting.append(name)
    return reached


def _is_layer(node: Any) -> bool:
    """Whether a node has weights of its own; a convolution with 0, 1, 2, … takes a mean, of distances (YOLO's DFL)."""
    if node.get_type_name() not in _LAYERS:
        return False
    weights = _behind(node.input_value(1).get_node())
    if weights.get_type_name() != "Constant":
        return False
    count = int(np.prod(list(weights.get_output_shape(0))))
    return count > 256 or not np.array_equal(np.asarray(weights.data).ravel(), np.arange(count))


def _adds_constant(node: Any) -> bool:
    sources = [_behind(source.get_node()) for source in node.input_values()] if node.get_type_name() == "Add" else []
    return any(source.get_type_name() == "Constant" for source in sources)


def _behind(node: Any) -> Any:
    """What a node is that is only written in another shape or type."""
    while node.get_type_name() in ("Convert", "Reshape", "Transpose"):
        node = node.input_value(0).get_node()
    return node


if __name__ == "__main__":
    sys.exit(answer(quantise_here))
