"""What an ONNX file says of itself, read from its protobuf encoding without any library.

Field numbers are those of onnx.proto; https://protobuf.dev/programming-guides/encoding tells the encoding. The numbers
of the network are stepped over.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from spica.detectors.refusals import damaged

_MODEL_GRAPH, _MODEL_METADATA, _MODEL_FUNCTIONS = 7, 14, 25
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_SPARSE = 1, 5, 11, 12, 15
_NODE_NAME, _NODE_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 3, 4, 5, 7
_FUNCTION_NAME, _FUNCTION_NODE, _FUNCTION_DOMAIN = 1, 7, 10
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = (5, 10), (6, 11)
_TENSOR_DIMS, _TENSOR_NAME, _TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 1, 8, 13, 14
_VALUE_NAME, _VALUE_TYPE = 1, 2
_TYPE_TENSOR, _TENSOR_TYPE_DTYPE, _TENSOR_TYPE_SHAPE, _SHAPE_DIM, _DIM_VALUE = 1, 1, 2, 1, 1

_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}
"""TensorProto.DataType of onnx.proto, as far as pictures and boxes are made of them."""

_STANDARD_DOMAINS = {"", "ai.onnx"}
_MAX_DIM = 2**31
"""-1 is written as 2^64 - 1 and stands for a dim that is not fixed."""

_MAX_DEPTH = 16
_MAX_TEXT_BYTES = 2**20


class _BrokenError(ValueError):
    """Not protobuf."""


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a graph.

    Attributes:
        name: as the graph calls it.
        dtype: ``float32``, ``int64`` …; empty if it is no tensor, or of a type that is not known here.
        shape: its dims, None for those that are not fixed; None if not even their number is told.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        dims = "…" if self.shape is None else " x ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.name} ({f'{self.dtype} {dims}'.strip()})"


@dataclass(slots=True)
class OnnxSummary:
    """What an ONNX file says of itself.

    Attributes:
        metadata: texts by key.
        input_ports: the graph's inputs; weights that old exporters list among them are left out.
        output_ports: the graph's outputs.
        external: whether numbers are kept in other files.
        external_files: where, as the graph says it.
        custom: operators that neither ONNX nor the file itself defines, as ``domain:type``.
        initializers: shapes of the graph's weights by name.
        nodes: names of the graph's nodes; exporters make them of the names of the network's parts.
    """

    metadata: dict[str, str] = field(default_factory=dict)
    input_ports: list[Port] = field(default_factory=list)
    output_ports: list[Port] = field(default_factory=list)
    external: bool = False
    external_files: set[str] = field(default_factory=set)
    custom: set[str] = field(default_factory=set)
    initializers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    nodes: set[str] = field(default_factory=set)

    @property
    def inputs(self) -> list[str]:
        """Names of the graph's inputs."""
        return [port.name for port in self.input_ports]

    @property
    def outputs(self) -> list[str]:
        """Names of the graph's outputs."""
        return [port.name for port in self.output_ports]


def read_summary(path: Path) -> OnnxSummary:
    """What the ONNX file says of itself.

    Raises:
        WeightsError: empty, cut off, or no ONNX.
    """
    summary = OnnxSummary()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            graphs = 0
            own: set[str] = set()
            for number, begin, end in _fields(data, 0, len(data)):
                if number == _MODEL_GRAPH:
                    graphs += 1
                    _graph(data, begin, end, summary, depth=0)
                elif number == _MODEL_METADATA:
                    key, value = _entry(data, begin, end)
                    summary.metadata[key] = value
                elif number == _MODEL_FUNCTIONS:
                    own.add(_function(data, begin, end, summary))
        except (_BrokenError, IndexError, UnicodeDecodeError) as error:
            raise damaged(path, f"no whole ONNX file: {error}") from error
    if graphs != 1:
        raise damaged(path, f"{graphs} graphs in an ONNX file")
    summary.custom -= own
    summary.input_ports = [port for port in summary.input_ports if port.name not in summary.initializers]
    return summary


def _graph(data: mmap.mmap, begin: int, end: int, summary: OnnxSummary, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise _BrokenError("graphs nested too deep")
    for number, first, last in _fields(data, begin, end):
        if number == _GRAPH_NODE:
            _node(data, first, last, summary, depth)
        elif number == _GRAPH_INITIALIZER:
            name, shape = _tensor(data, first, last, summary)
            if depth == 0:
                summary.initializers[name] = shape
        elif number == _GRAPH_SPARSE:
            summary.external = True  # no exporter is known to write any, and their tensors are not looked into here
        elif number in (_GRAPH_INPUT, _GRAPH_OUTPUT) and depth == 0:
            ports = summary.input_ports if number == _GRAPH_INPUT else summary.output_ports
            ports.append(_port(data, first, last))


def _function(data: mmap.mmap, begin: int, end: int, summary: OnnxSummary) -> str:
    """Look into an operator that the file defines itself; its ``domain:type``."""
    told = {_FUNCTION_NAME: "", _FUNCTION_DOMAIN: ""}
    for number, first, last in _fields(data, begin, end):
        if number == _FUNCTION_NODE:
            _node(data, first, last, summary, depth=0)
        elif number in told:
            told[number] = _text(data, first, last)
    return f"{told[_FUNCTION_DOMAIN]}:{told[_FUNCTION_NAME]}"


def _node(data: mmap.mmap, begin: int, end: int, summary: OnnxSummary, depth: int) -> None:
    told = {_NODE_NAME: "", _NODE_TYPE: "", _NODE_DOMAIN: ""}
    for number, first, last in _fields(data, begin, end):
        if number in told:
            told[number] = _text(data, first, last)
        if number != _NODE_ATTRIBUTE:
            continue
        for inner, inside, outside in _fields(data, first, last):
            if inner in _ATTRIBUTE_TENSORS:
                _tensor(data, inside, outside, summary)
            elif inner in _ATTRIBUTE_GRAPHS:
                _graph(data, inside, outside, summary, depth + 1)
    summary.nodes.add(told[_NODE_NAME])
    if told[_NODE_DOMAIN] not in _STANDARD_DOMAINS:
        summary.custom.add(f"{told[_NODE_DOMAIN]}:{told[_NODE_TYPE]}")


def _tensor(data: mmap.mmap, begin: int, end: int, summary: OnnxSummary) -> tuple[str, tuple[int, ...]]:
    """Note where a tensor's numbers are; its name and shape."""
    name, shape = "", []
    for number, first, last in _fields(data, begin, end):
        if number == _TENSOR_NAME:
            name = _text(data, first, last)
        elif number == _TENSOR_DIMS:
            shape += [first] if last < 0 else list(_packed(data, first, last))
        elif number == _TENSOR_EXTERNAL_DATA:
            summary.external = True
            key, value = _entry(data, first, last)
            if key == "location":
                summary.external_files.add(value)
        elif number == _TENSOR_DATA_LOCATION and last < 0 and first != 0:  # 0 is here, 1 is elsewhere
            summary.external = True
    return name, tuple(shape)


def _port(data: mmap.mmap, begin: int, end: int) -> Port:
    name, dtype = "", ""
    shape: tuple[int | None, ...] | None = None
    for number, first, last in _fields(data, begin, end):
        if number == _VALUE_NAME:
            name = _text(data, first, last)
        elif number == _VALUE_TYPE:
            for kind, *tensor in _fields(data, first, last):
                for inner, inside, outside in _fields(data, *tensor) if kind == _TYPE_TENSOR else ():
                    if inner == _TENSOR_TYPE_DTYPE:
                        dtype = _DTYPES.get(inside, "")
                    elif inner == _TENSOR_TYPE_SHAPE:
                        dims = _fields(data, inside, outside)
                        shape = tuple(_dim(data, *dim) for key, *dim in dims if key == _SHAPE_DIM)
    return Port(name, dtype, shape)


def _dim(data: mmap.mmap, begin: int, end: int) -> int | None:
    """A dim's size, None if it is not fixed: it has a name, or nothing at all, or no size that an array can have."""
    sizes = (first for key, first, last in _fields(data, begin, end) if key == _DIM_VALUE and last < 0)
    return next((size for size in sizes if 0 < size < _MAX_DIM), None)


def _entry(data: mmap.mmap, begin: int, end: int) -> tuple[str, str]:
    """A StringStringEntryProto."""
    told = {key: _text(data, first, last) for key, first, last in _fields(data, begin, end)}
    return told.get(_ENTRY_KEY, ""), told.get(_ENTRY_VALUE, "")


def _packed(data: mmap.mmap, begin: int, end: int) -> Iterator[int]:
    """Numbers that are written one after the other in a single field."""
    while begin < end:
        value, begin = _varint(data, begin, end)
        yield value


def _text(data: mmap.mmap, begin: int, end: int) -> str:
    if not 0 <= end - begin <= _MAX_TEXT_BYTES:
        raise _BrokenError("a text that is too long")
    return data[begin:end].decode("utf-8")


def _fields(data: mmap.mmap, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each field; for a number (wire type 0) its value and -1."""
    at = begin
    while at < end:
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at, end)
            yield number, value, -1
            continue
        if wire == 2:
            length, at = _varint(data, at, end)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise _BrokenError(f"wire type {wire}")
        if at + length > end:
            raise _BrokenError("it ends in the middle of a field")
        yield number, at, at + length
        at += length


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= end or shift > 63:
            raise _BrokenError("it ends in the middle of a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
