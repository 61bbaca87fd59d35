"""What must be known of a network of others to serve it, and what its file says of classes and sizes."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from spica.detectors.onnx_metadata import OnnxSummary, Port

Layout = Literal["anchors", "objectness", "rows", "queries", "query rows", "deployed", "logits", "dets"]
"""How boxes lie in the outputs; :mod:`spica.detectors.ultralytics` and :mod:`spica.detectors.detr` say it of each."""

Names = tuple[str, ...]

DEFAULT_SIDE: Final = 640
"""Of the input of a graph that takes any size and names none (ultralytics/cfg/default.yaml, ``imgsz``; RT-DETR's and
D-FINE's configs, ``eval_spatial_size``)."""

_MAX_LITERAL_CHARS = 256 * 1024
_MAX_CLASSES = 10_000
_SIDES = range(16, 8193)


@dataclass(frozen=True, slots=True)
class Foreign:
    """A network of others that can be served.

    Attributes:
        architecture: its family, for people.
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
    classes: Names
    slots: tuple[int, ...]
    imagenet: bool = False


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


def class_names(metadata: Mapping[str, str]) -> Names | None:
    """The class names under ``names``, a dict by class id or a list, as Ultralytics writes them; None without any.

    Ids may be texts, as JSON has them. A class whose id is left out has no name.
    """
    told = literal(metadata, "names")
    if isinstance(told, Mapping):
        named = {int(key): name for key, name in told.items() if str(key).isascii() and str(key).isdecimal()}
        if not named or len(named) != len(told) or max(named) >= _MAX_CLASSES:
            return None
        told = [named.get(number, "") for number in range(max(named) + 1)]
    if not isinstance(told, list | tuple) or not told:
        return None
    return tuple("" if name is None else str(name) for name in told)


def picture(summary: OnnxSummary) -> Port | None:
    """The one input that takes a picture, 1 x 3 x height x width in floating-point numbers; None without one."""
    ports = [port for port in summary.input_ports if port.shape is not None and len(port.shape) == 4]
    if len(ports) != 1 or ports[0].shape is None or ports[0].dtype not in ("float32", "float16"):
        return None
    batch, channels, _, _ = ports[0].shape
    return ports[0] if batch in (1, None) and channels in (3, None) else None


def sides(port: Port, metadata: Mapping[str, str]) -> tuple[int, int]:
    """Height and width in pixels that a picture is given to a graph with: its own, else what its exporter says.

    Args:
        port: from :func:`picture`.
        metadata: of the file; Ultralytics writes ``imgsz``, a number or (height, width).
    """
    told = literal(metadata, "imgsz")
    if isinstance(told, int):
        told = [told, told]
    if not isinstance(told, list | tuple) or len(told) != 2 or not all(side in _SIDES for side in told):
        told = [DEFAULT_SIDE, DEFAULT_SIDE]
    height, width = port.shape[2:] if port.shape is not None else (None, None)
    return height or int(told[0]), width or int(told[1])


def too_many_names(names: Names, outputs: int) -> str:
    """Why a file with other classes in its metadata than in its outputs can't be used."""
    return f"names for {len(names)} classes in its metadata, but outputs for {outputs}"
