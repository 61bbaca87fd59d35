"""What refusals of weights files have in common."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from spica.detectors.architecture import FASTER_RCNN
from spica.errors import WeightsError

EXPECTED = (
    f"the state_dict of a detector of torchvision's ({FASTER_RCNN} …), an ONNX export of YOLO, RT-DETR, D-FINE or "
    "RF-DETR, or a model that Spica exported"
)
"""What every refusal says was expected."""

FIRST_CHOICES = f"torchvision's {FASTER_RCNN} or fasterrcnn_mobilenet_v3_large_fpn"
"""Networks to begin with: the tutorial's, and one that is several times faster."""

SAVE_STATE_DICT = "save the numbers alone: torch.save(model.state_dict(), path)"
"""What to do about a file that holds more than numbers."""

_SHOWN_CHARS = 100


def shown(text: str, *, chars: int = _SHOWN_CHARS) -> str:
    """Text out of a file that nobody vouches for, short and printable."""
    printable = "".join(char if char.isprintable() else "?" for char in text[:chars])
    return printable + ("…" if len(text) > chars else "")


def few(texts: Collection[str]) -> str:
    """The first three of the texts, and how many more there are."""
    first = ", ".join(shown(text) for text in list(texts)[:3])
    return first + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")


def damaged(path: Path, got: str) -> WeightsError:
    """A file that is not whole."""
    return WeightsError(
        "this weights file is damaged or cut off",
        where=str(path),
        expected=EXPECTED,
        got=shown(got),
        hint="copy or download it again and compare its size with the original's",
    )


def bomb(path: Path, got: str) -> WeightsError:
    """A file that is small but asks for much memory."""
    return WeightsError(
        "this file could fill the memory when unpacked; it was not unpacked",
        where=str(path),
        expected="files that are stored as they are, as torch.save does",
        got=shown(got),
        hint="get the weights from a source you trust, or save them again with torch.save(model.state_dict(), path)",
    )


def yolo_export(path: Path) -> str:
    """What to do about a model of Ultralytics' in another form than ONNX."""
    name = f"{shown(path.stem.removesuffix('_openvino_model'))}.pt"
    return f"`yolo export model={name} format=onnx` (pip install ultralytics) writes an .onnx file: give that"


def other_graph(path: Path, got: str) -> WeightsError:
    """A graph that is not served: an OpenVINO graph that Spica did not write, or an ONNX file of Spica's, altered."""
    openvino = path.suffix.lower() == ".xml"
    return WeightsError(
        "this OpenVINO graph was not written by Spica" if openvino else "this graph is not as Spica writes it",
        where=str(path),
        expected=EXPECTED,
        got=shown(got),
        hint=f"export it as ONNX instead; for YOLO: {yolo_export(path)}"
        if openvino
        else "give the weights file (.pth) or the ONNX export that it was made from",
    )
