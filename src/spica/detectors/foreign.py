"""Networks of others: ONNX files that another exporter wrote, recognised by what they say of themselves, and served.

Nothing but the graph is needed: what decoding must know is told from it again whenever it is opened.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from spica.detectors import detr, ultralytics
from spica.detectors.layouts import Foreign
from spica.detectors.onnx_metadata import OnnxSummary, Port, read_summary
from spica.detectors.refusals import few, shown
from spica.errors import WeightsError

ARCHITECTURES: Final = frozenset(
    {ultralytics.YOLO, ultralytics.YOLOV5, ultralytics.RTDETR, detr.DEPLOYED, detr.HUGGING_FACE, detr.RF_DETR}
)
"""The families that are served, as cards call them."""

SUPPORTED: Final = (
    "an ONNX export of Ultralytics YOLO v5 to 26 (output 1 x 4+classes x places, 1 x places x 5+classes, or "
    "1 x boxes x 6), RT-DETR or D-FINE (images, orig_target_sizes to labels, boxes, scores; or pixel_values to logits, "
    "pred_boxes), or RF-DETR (input to dets, labels), for one picture of three channels"
)

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_SHOWN_PORTS = 6
_RESERVED = ("model.json", "model.xml", "model.onnx")
"""Names that mean something in the folder of a model version."""


def recognise(summary: OnnxSummary) -> Foreign | str:
    """The network of a file, or, in a few words, why it can't be served."""
    if summary.custom:
        return f"operators that only a plug-in knows: {few(sorted(summary.custom))}"
    found = detr.recognise(summary) or ultralytics.recognise(summary)
    return found if found is not None else f"inputs {_told(summary.input_ports)}; outputs {_told(summary.output_ports)}"


def recognised(path: Path, summary: OnnxSummary | None = None) -> Foreign:
    """The network in the ONNX file at ``path``.

    Args:
        path: of the file.
        summary: what it says of itself, if it has been read already.

    Raises:
        WeightsError: damaged, not known here, or its numbers are kept where they may not be.
    """
    summary = read_summary(path) if summary is None else summary
    found = recognise(summary)
    if isinstance(found, str):
        raise WeightsError(
            "this network can't be served",
            where=str(path),
            expected=SUPPORTED,
            got=found,
            hint="export it again in one of these forms, or give the weights file (.pth) of a network of torchvision's",
        )
    data_files(path, summary)
    return found


def data_files(path: Path, summary: OnnxSummary | None = None) -> tuple[Path, ...]:
    """The files beside an ONNX file in which its numbers are kept, by name; empty if it keeps them itself.

    Raises:
        WeightsError: one is missing, or lies outside of the file's own folder.
    """
    summary = read_summary(path) if summary is None else summary
    files = tuple(path.parent / location for location in sorted(summary.external_files))
    names = sorted(summary.external_files)
    outside = [name for name in names if not _PLAIN_NAME.fullmatch(name) or name.lower() in _RESERVED]
    if outside or (summary.external and not files):
        raise WeightsError(
            "the numbers of this network are to be read from a place that is not allowed",
            where=str(path),
            expected="one file, or data files in its own folder, named in letters, digits and ._- alone",
            got=few(outside) or "data of an unknown kind",
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


def _told(ports: list[Port]) -> str:
    text = ", ".join(shown(str(port)) for port in ports[:_SHOWN_PORTS])
    return (text or "none") + (f" and {len(ports) - _SHOWN_PORTS} more" if len(ports) > _SHOWN_PORTS else "")
