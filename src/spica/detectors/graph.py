"""What a graph file, ``.onnx`` or ``.xml``, says of itself: read by OpenVINO, confined to the file's own folder."""

from __future__ import annotations

import ast
import json
import mmap
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from spica.detectors.openvino import last_line, openvino_core
from spica.detectors.refusals import damaged, few, shown
from spica.errors import WeightsError

DEFAULT_SIDE: Final = 640
"""Of the input of a graph that takes any size and names none (ultralytics/cfg/default.yaml, ``imgsz``; RT-DETR's and
D-FINE's configs, ``eval_spatial_size``)."""

Layout = Literal["anchors", "objectness", "rows", "queries", "query rows", "deployed", "logits", "dets"]
"""How boxes lie in the outputs; :mod:`spica.detectors.yolo` and :mod:`spica.detectors.detr` describe them."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_OWN_FILES: Final = frozenset({"model.json", "model.xml", "model.onnx"})
_MAX_LITERAL_CHARS = 256 * 1024
_MAX_CLASSES = 10_000
_SIDES = range(16, 8193)


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a graph.

    Attributes:
        name: as the graph calls it.
        dtype: ``f32``, ``i64`` …, as OpenVINO calls it.
        shape: its dims, None for those that are not fixed; None if not even their number is.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        dims = "…" if self.shape is None else " x ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.name} ({f'{self.dtype} {dims}'.strip()})"


@dataclass(frozen=True, slots=True)
class GraphSummary:
    """What a graph says of itself.

    Attributes:
        metadata: texts by key: of an ONNX file as its exporter wrote them, of an IR those of ``spica``, as
            ``spica.<key>``.
        inputs: required ones, weights among them left out.
        outputs: in the graph's order.
        constants: shapes of the graph's weights by name.
        nodes: names of the graph's nodes; exporters make them of the names of the network's parts.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    constants: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    nodes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ExportedNetwork:
    """What must be known of a network that another exporter wrote, to serve it.

    Attributes:
        architecture: its family, as cards call it.
        layout: how boxes lie in its outputs.
        image: name of the input that takes the picture.
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        sizes: name of the input that takes (width, height) of the photograph, None if there is none.
        classes: names by class id; empty strings where the file carries none.
        slots: which of the scores are those of the classes, in the order of ``classes``.
        imagenet: whether it was trained on pictures of ImageNet's mean and deviation, not on RGB in [0, 1].
    """

    architecture: str
    layout: Layout
    image: str
    height: int
    width: int
    sizes: str | None
    classes: tuple[str, ...]
    slots: tuple[int, ...]
    imagenet: bool = False


def read_graph(path: Path) -> Any:
    """OpenVINO's model of a graph that nobody vouches for. Nothing in it is run.

    Raises:
        WeightsError: damaged, in parts, of operators that OpenVINO lacks, or it would read files elsewhere.
    """
    onnx = path.suffix.lower() == ".onnx"
    if onnx:
        files = (path, *data_files(path))
        if len(files) > 1 and any(file.is_symlink() for file in files):  # as downloads of Hugging Face's are kept
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                copies = [Path(shutil.copyfile(file, Path(folder, file.name))) for file in files]
                return _read(copies[0], path)
    else:
        weights = path.with_suffix(".bin")
        if not weights.is_file() or weights.stat().st_size == 0:
            raise damaged(path, f"{weights.name}, which belongs beside it, is missing or empty")
    return _read(path, path)


def _read(path: Path, where: Path) -> Any:
    openvino_core()  # loads OpenVINO as it should be loaded
    from openvino import frontend

    # the one reader that the name promises: a core would try TensorFlow's, Paddle's and others on a damaged file
    reader = frontend.FrontEndManager().load_by_framework("onnx" if path.suffix.lower() == ".onnx" else "ir")
    try:
        return reader.convert(reader.load(str(path)))
    except (RuntimeError, frontend.GeneralFailure, frontend.OpConversionFailure, frontend.OpValidationFailure) as error:
        if path.suffix.lower() != ".onnx":
            raise damaged(where, last_line(error)) from error
        raise WeightsError(
            "OpenVINO can't read this network",
            where=str(where),
            got=shown(last_line(error), chars=300),
            hint="export it again, without operators of a plug-in, or with another opset",
        ) from error


def summarise(model: Any) -> GraphSummary:
    """What OpenVINO's model says of itself."""

    def ports(nodes: Any) -> tuple[Port, ...]:
        return tuple(
            Port(min(node.names, default=""), node.element_type.get_type_name(), _dims(node.partial_shape))
            for node in nodes
        )

    metadata: dict[str, str] = {}
    for section, prefix in (("framework", ""), ("spica", "spica.")):
        if model.has_rt_info([section]):
            metadata |= {f"{prefix}{key}": str(value.astype(str)) for key, value in model.rt_info[section].items()}
    operations = model.get_ordered_ops()
    constants = {
        node.get_friendly_name(): tuple(node.shape) for node in operations if node.get_type_name() == "Constant"
    }
    nodes = frozenset(node.get_friendly_name() for node in operations)
    return GraphSummary(metadata, ports(model.inputs), ports(model.outputs), constants, nodes)


def _dims(shape: Any) -> tuple[int | None, ...] | None:
    if shape.rank.is_dynamic:
        return None
    return tuple(None if dim.is_dynamic else dim.get_length() for dim in shape)


# --- what exporters write beside a graph


def literal(metadata: Mapping[str, str], key: str) -> object:
    """A value that an exporter wrote as Python would print it, or as JSON; None if it is missing or neither.

    Only literals are read; nothing is run.
    """
    text = metadata.get(key, "")
    if not text or len(text) > _MAX_LITERAL_CHARS:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes in somebody else's file
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that its documentation names
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def class_names(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    """The class names under ``names``, a dict by class id or a list, as Ultralytics writes them; None without any.

    Ids may be texts, as JSON has them. A class whose id is left out has no name.
    """
    names = literal(metadata, "names")
    if isinstance(names, Mapping):
        by_id = {int(key): name for key, name in names.items() if str(key).isascii() and str(key).isdecimal()}
        if not by_id or len(by_id) != len(names) or max(by_id) >= _MAX_CLASSES:
            return None
        names = [by_id.get(number, "") for number in range(max(by_id) + 1)]
    if not isinstance(names, list | tuple) or not names:
        return None
    return tuple("" if name is None else str(name) for name in names)


def named_classes(metadata: Mapping[str, str], outputs: int | None) -> tuple[str, ...] | str:
    """The class names, or, in a few words, why a graph with that many classes in its outputs can't be used.

    Args:
        metadata: of the file.
        outputs: the number of classes by the outputs' shapes; None where they don't say it.
    """
    names = class_names(metadata)
    if names is None and outputs is None:
        return 'outputs that do not tell how many classes there are, and no "names" in its metadata'
    if names is not None and outputs is not None and len(names) != outputs:
        return f"names for {len(names)} classes in its metadata, but outputs for {outputs}"
    return names or ("",) * (outputs or 0)


def image_input(summary: GraphSummary) -> Port | None:
    """The one input that takes a picture, 1 x 3 x height x width in floating-point numbers; None without one."""
    ports = [port for port in summary.inputs if port.shape is not None and len(port.shape) == 4]
    if len(ports) != 1 or ports[0].shape is None or ports[0].dtype not in ("f32", "f16"):
        return None
    batch, channels, _, _ = ports[0].shape
    return ports[0] if batch in (1, None) and channels in (3, None) else None


def sides(port: Port, metadata: Mapping[str, str]) -> tuple[int, int]:
    """Height and width in pixels of the picture that a graph takes: its own, else what its exporter says.

    Args:
        port: from :func:`image_input`.
        metadata: of the file; Ultralytics writes ``imgsz``, a number or (height, width).
    """
    said = literal(metadata, "imgsz")
    if isinstance(said, int):
        said = [said, said]
    if not isinstance(said, list | tuple) or len(said) != 2 or not all(side in _SIDES for side in said):
        said = [DEFAULT_SIDE, DEFAULT_SIDE]
    height, width = port.shape[2:] if port.shape is not None else (None, None)
    return height or int(said[0]), width or int(said[1])


# --- the files beside an ONNX file

_MESSAGES: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
"""Where onnx.proto may refer to external data: messages, and of their fields those with such messages in them."""

_MAX_DEPTH = 64


def data_files(path: Path) -> tuple[Path, ...]:
    """The files beside an ONNX file in which its numbers are kept, by name; empty if it keeps them itself.

    Older OpenVINO follows such a reference out of the folder, so the references are read here, from the protobuf
    encoding (https://protobuf.dev/programming-guides/encoding); everything else is stepped over.

    Raises:
        WeightsError: no whole ONNX file, or a reference is missing, or lies outside of the file's own folder.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            graphs = sum(number == 7 for number, _, _ in _fields(data, 0, len(data)))
            names = sorted(set(_locations(data, 0, len(data), "model", 0)))
        except (ValueError, IndexError) as error:
            raise damaged(path, f"no whole ONNX file: {error}") from error
    if graphs != 1:
        raise damaged(path, f"{graphs} graphs in an ONNX file")
    outside = [name for name in names if not _PLAIN_NAME.fullmatch(name) or name.lower() in _OWN_FILES]
    files = tuple(path.parent / name for name in names if name not in outside)
    if outside:
        raise WeightsError(
            "the numbers of this network are to be read from a place that is not allowed",
            where=str(path),
            expected="one file, or data files in its own folder, named in letters, digits and ._- alone",
            got=few(outside) or "no name",
            hint="save it as one file: onnx.save(onnx.load(path), new_path)",
        )
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise WeightsError(
            "a part of this network is missing",
            where=str(path),
            expected=f"{few(missing)} in the same folder",
            hint="copy that file too: the numbers are in it",
        )
    return files


def _locations(data: mmap.mmap, begin: int, end: int, message: str, depth: int) -> Iterator[str]:
    """Values of all entries ``location`` of external data."""
    if depth > _MAX_DEPTH:
        raise ValueError("graphs nested too deep")
    entry: dict[int, bytes] = {}
    for number, first, last in _fields(data, begin, end):
        if message == "entry":
            entry[number] = data[first:last]
        elif number in _MESSAGES[message]:
            yield from _locations(data, first, last, _MESSAGES[message][number], depth + 1)
    if entry.get(1) == b"location":
        yield entry.get(2, b"").decode("utf-8")


def _fields(data: mmap.mmap, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each field with bytes in it."""
    at = begin
    while at < end:
        tag, at = _varint(data, at, end)
        kind = tag & 7
        if kind not in (0, 1, 2, 5):
            raise ValueError(f"wire type {kind}")
        length = 8 if kind == 1 else 4
        if kind in (0, 2):
            length, at = _varint(data, at, end)
        if kind == 0:
            continue
        if at + length > end:
            raise ValueError("it ends in the middle of a field")
        if kind == 2:
            yield tag >> 3, at, at + length
        at += length


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= end or shift > 63:
            raise ValueError("it ends in the middle of a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
