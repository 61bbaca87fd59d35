"""Which parts of a network may be computed in int8: what turns features into features, never the arithmetic of boxes.

Told from the graph and not from names, so that it holds for every architecture: backbone, necks, RPN heads, box heads
and the towers of one-stage heads lie between two layers with weights; the preparation of the image lies before the
first, and decoding, sorting and suppressing lie behind the last. A Faster R-CNN whose box arithmetic is quantised as
well loses a quarter of its AP.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

_LAYERS = frozenset({"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"})

_SELECTING = frozenset(
    {"TopK", "NonMaxSuppression", "MulticlassNms", "MatrixNms", "NonZero", "Unique", "If", "Loop", "DetectionOutput"}
)
"""What chooses among boxes or queries; what follows is arithmetic on those that were chosen."""

_GATHERING = frozenset({"Gather", "GatherElements", "GatherND"})

_FIRST_INPUT_IS_DATA = _GATHERING | {
    *("Reshape", "Transpose", "Slice", "StridedSlice", "Interpolate", "Unsqueeze", "Squeeze", "Broadcast", "Pad"),
    *("Split", "VariadicSplit", "Tile", "ROIAlign", "ROIPooling", "GridSample", "TopK", "Range", "ReduceMean"),
    *("ReduceSum", "ReduceMax", "MVN", "NormalizeL2", "CumSum", "OneHot"),
}
"""Their other inputs say where or how much, and carry no features."""

_DATA_INPUTS = {"ScatterElementsUpdate": (0, 2), "ScatterNDUpdate": (0, 2), "ScatterUpdate": (0, 2), "Select": (1, 2)}

_POOLING_OF_REGIONS = frozenset({"ROIAlign", "ROIPooling"})
"""Here features begin again, whatever chose the regions."""

_NORMALISING = frozenset({"MVN", "NormalizeL2", "ReduceL2", "Divide", "Power", "Sqrt", "Softmax"})
"""Between layers as well, but with sums over many values, or quotients, which 8 bits don't hold."""

_NEVER_NAMED = frozenset({"Constant", "Parameter", "Result"})


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
    edges = {  # without those to nodes that lead nowhere, which the graph does not list
        name: [(to, port) for to, port in _edges(node) if to in nodes] for name, node in nodes.items()
    }
    after = {name: [to for to, _ in found] for name, found in edges.items()}
    chosen = _reach((name for name, node in nodes.items() if node.get_type_name() in _SELECTING), after, lambda _: True)

    def gathers_chosen(node: Any) -> bool:
        return node.get_type_name() in _GATHERING and _source(node, 1) in chosen

    after_data = {name: [to for to, port in found if port in _data_ports(nodes[to])] for name, found in edges.items()}
    before_data: dict[str, list[str]] = {name: [] for name in nodes}
    for name, followers in after_data.items():
        for follower in followers:
            before_data[follower].append(name)

    no_pooling = lambda name: nodes[name].get_type_name() not in _POOLING_OF_REGIONS  # noqa: E731
    choosing = [name for name, node in nodes.items() if node.get_type_name() in _SELECTING or gathers_chosen(node)]
    arithmetic = _reach(choosing, after_data, no_pooling)
    layers = {name for name, node in nodes.items() if _is_layer(node) and name not in arithmetic}
    features = lambda name: name not in arithmetic  # noqa: E731
    between = _reach(layers, after_data, features) & _reach(layers, before_data, features)
    between -= {name for name in between if nodes[name].get_type_name() in _NORMALISING}
    biases = {to for name in layers for to in after[name] if _adds_constant(nodes[to])}
    return layers | between | biases


def quantised_consumers(model: Any) -> set[str]:
    """Names of the nodes that are given quantised values in a graph that has been through NNCF."""
    found: set[str] = set()
    waiting = deque(node for node in model.get_ordered_ops() if node.get_type_name() == "FakeQuantize")
    while waiting:
        for follower in (
            target.get_node() for output in waiting.popleft().outputs() for target in output.get_target_inputs()
        ):
            if follower.get_type_name() in ("FakeQuantize", "Reshape", "Transpose", "Convert"):
                waiting.append(follower)
            elif follower.get_type_name() != "ShapeOf":
                found.add(follower.get_friendly_name())
    return found


def _is_layer(node: Any) -> bool:
    """Whether a node has weights of its own; a convolution with 0, 1, 2, … takes a mean, of distances (YOLO's DFL)."""
    if node.get_type_name() not in _LAYERS:
        return False
    weights = node.input_value(1).get_node()
    while weights.get_type_name() in ("Convert", "Reshape", "Transpose"):
        weights = weights.input_value(0).get_node()
    if weights.get_type_name() != "Constant":
        return False
    values = np.asarray(weights.data).ravel() if weights.get_output_size() and _small(weights) else None
    return values is None or not np.array_equal(values, np.arange(len(values)))


def _small(constant: Any) -> bool:
    return int(np.prod(list(constant.get_output_shape(0)))) <= 256


def _adds_constant(node: Any) -> bool:
    return node.get_type_name() == "Add" and any(_constant_behind(source.get_node()) for source in node.input_values())


def _constant_behind(node: Any) -> bool:
    while node.get_type_name() in ("Convert", "Reshape"):
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def _data_ports(node: Any) -> Iterable[int]:
    kind = node.get_type_name()
    if kind == "ShapeOf":
        return ()
    if kind in _FIRST_INPUT_IS_DATA:
        return (0,)
    return _DATA_INPUTS.get(kind, range(node.get_input_size()))


def _edges(node: Any) -> Iterator[tuple[str, int]]:
    for output in node.outputs():
        for target in output.get_target_inputs():
            yield target.get_node().get_friendly_name(), target.get_index()


def _source(node: Any, port: int) -> str:
    return str(node.input_value(port).get_node().get_friendly_name())


def _reach(starts: Iterable[str], edges: dict[str, list[str]], may_enter: Callable[[str], bool]) -> set[str]:
    """The starts, and all that can be reached from them through nodes that may be entered."""
    reached = set(starts)
    waiting = deque(reached)
    while waiting:
        for name in edges[waiting.popleft()]:
            if name not in reached and may_enter(name):
                reached.add(name)
                waiting.append(name)
    return reached
