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
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_SPARSE = 1, 5, 11, 12, 15
_NODE_ATTRIBUTE = 5
_FUNCTION_NODE = 7
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = (5, 10), (6, 11)
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
_VALUE_NAME = 1

_MAX_DEPTH = 16
_MAX_TEXT_BYTES = 2**20


class _BrokenError(ValueError):
    """Not protobuf."""


@dataclass(slots=True)
class OnnxSummary:
    """What an ONNX file says of itself.

    Attributes:
        metadata: texts by key.
        inputs: names of the graph's inputs.
        outputs: names of the graph's outputs.
        external: whether numbers are kept in other files.
    """

    metadata: dict[str, str] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    external: bool = False


def read_summary(path: Path) -> OnnxSummary:
    """What the ONNX file says of itself.

    Raises:
        WeightsError: empty, cut off, or no ONNX.
    """
    summary = OnnxSummary()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            graphs = 0
            for number, begin, end in _fields(data, 0, len(data)):
                if number == _MODEL_GRAPH:
                    graphs += 1
                    _graph(data, begin, end, summary, depth=0)
                elif number == _MODEL_METADATA:
                    entry = {key: _text(data, first, last) for key, first, last in _fields(data, begin, end)}
                    summary.metadata[entry.get(1, "")] = entry.get(2, "")
                elif number == _MODEL_FUNCTIONS:
                    for inner, first, last in _fields(data, begin, end):
                        if inner == _FUNCTION_NODE:
                            _node(data, first, last, summary, depth=0)
        except (_BrokenError, IndexError, UnicodeDecodeError) as error:
            raise damaged(path, f"no whole ONNX file: {error}") from error
    if graphs != 1:
        raise damaged(path, f"{graphs} graphs in an ONNX file")
    return summary


def _graph(data: mmap.mmap, begin: int, end: int, summary: OnnxSummary, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise _BrokenError("graphs nested too deep")
    for number, first, last in _fields(data, begin, end):
        if number == _GRAPH_NODE:
            _node(data, first, last, summary, depth)
        elif number == _GRAPH_INITIALIZER:
            _tensor(data, first, last, summary)
        elif number == _GRAPH_SPARSE:
            summary.external = True  # Spica writes none, and their tensors are not looked into here
        elif number in (_GRAPH_INPUT, _GRAPH_OUTPUT) and depth == 0:
            names = [_text(data, *where) for key, *where in _fields(data, first, last) if key == _VALUE_NAME]
            (summary.inputs if number == _GRAPH_INPUT else summary.outputs).extend(names)


def _node(data: mmap.mmap, begin: int, end: int, summary: OnnxSummary, depth: int) -> None:
    for number, first, last in _fields(data, begin, end):
        if number != _NODE_ATTRIBUTE:
            continue
        for inner, inside, outside in _fields(data, first, last):
            if inner in _ATTRIBUTE_TENSORS:
                _tensor(data, inside, outside, summary)
            elif inner in _ATTRIBUTE_GRAPHS:
                _graph(data, inside, outside, summary, depth + 1)


def _tensor(data: mmap.mmap, begin: int, end: int, summary: OnnxSummary) -> None:
    for number, first, last in _fields(data, begin, end):
        # data_location is 0 (here) or 1 (elsewhere); its value stands in `first`
        if number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and last < 0 and first != 0):
            summary.external = True


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
