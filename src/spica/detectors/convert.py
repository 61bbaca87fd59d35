"""The process that converts a weights file: torch to ONNX to OpenVINO IR, and compares the answers.

Started by :mod:`spica.detectors.conversion`, so that the process that serves never imports torch. It is given one line
of JSON on its standard input and puts out lines of JSON: ``{"progress": …}``, and at the end ``{"done": …}`` or
``{"error": …}``. When its input ends, its parent has gone, and it ends too.
"""

from __future__ import annotations

import errno
import io
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spica.boxes import Detections
from spica.detectors.child import answer
from spica.detectors.comparison import Comparison, compare, rendered_images
from spica.detectors.contract import RGBImage
from spica.detectors.openvino import GRAPH_FORMAT, OpenVINODetector, load_openvino, openvino_core
from spica.detectors.postprocess import postprocess
from spica.errors import WeightsError
from spica.files import sha256_file, storage_error

if TYPE_CHECKING:
    import torch

_ENOUGH_BOXES = 20
"""With fewer boxes on the test images the comparison would say little; then it is made down to a lower score."""

_LOWER = (1.0, 0.1, 0.01, 0.0)
"""Parts of the floor score that are tried: not 0 at once, where a network of many classes answers with all anchors."""

_FULL_BYTES = 16 * 2**20
"""With less space left, a failure to write is put down to that."""


def convert(request: dict[str, Any], progress: Callable[[str], None]) -> dict[str, Any]:
    """Write the graph and the weights into the request's folder, and return what the comparison measured.

    The graph is ``model.xml`` with ``model.bin``, the weights are ``model.safetensors``: the state_dict under plain
    names, with the architecture and the classes in its metadata.

    Raises:
        WeightsError: torch is missing, the weights are not usable, or the answers differ.
        StorageError: the folder can't be written.
    """
    weights, folder = Path(request["weights"]), Path(request["folder"])
    progress("loading torch")
    _require_torch()
    from spica.detectors.networks import build_from, max_aspect
    from spica.detectors.torchvision_export import export_onnx, load_state_dict

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
        input_size=request.get("input_size"),
    )
    progress("writing the network as a graph")
    told = {"classes": json.dumps(request["classes"]), "architecture": request["architecture"]}
    _save(export_onnx(model), folder, told | {"format": GRAPH_FORMAT, "max_aspect": str(max_aspect(model))})
    _keep_weights(model, folder, told, request.get("input_size"))
    progress("comparing the graph's answers with torch's")
    started = time.monotonic()
    metrics = _verify(model, folder / "model.xml", len(request["classes"]), floor=floor, limit=limit)
    return {**metrics, "seconds": round(time.monotonic() - started, 1)}


def _require_torch() -> None:
    hint = 'pip install "spica[train]"; it is needed only once for each weights file'
    try:
        import torch
        import torchvision  # noqa: F401 - both must be there
    except ModuleNotFoundError as error:
        raise WeightsError(
            "torch is needed to convert a weights file, and it is not installed", got=str(error), hint=hint
        ) from error
    except (ImportError, OSError) as error:
        raise WeightsError(
            "torch is installed, but it can't be loaded", got=str(error), hint=f"install it again: {hint}"
        ) from error
    torch.set_grad_enabled(False)


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


def _keep_weights(model: torch.nn.Module, folder: Path, told: dict[str, str], input_size: Sequence[int] | None) -> None:
    from safetensors.torch import save

    metadata = {**told, **({"input_size": json.dumps(input_size)} if input_size else {})}
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    content = save(tensors, {f"spica.{key}": value for key, value in metadata.items()})
    try:
        (folder / "model.safetensors").write_bytes(content)
    except OSError as error:
        raise storage_error(error, folder) from error


def _save(onnx: bytes, folder: Path, told: dict[str, str]) -> None:
    openvino = load_openvino()

    model = openvino_core().read_model(io.BytesIO(onnx))
    for key, value in told.items():
        model.set_rt_info(value, ["spica", key])
    try:
        # float16, the default, would move boxes
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    except OSError as error:
        raise storage_error(error, folder) from error
    except RuntimeError as error:  # what OpenVINO makes of a disk that is full, and of any other failure
        full = folder.is_dir() and shutil.disk_usage(folder).free < _FULL_BYTES
        reason = "No space left on device" if full else str(error).strip().splitlines()[-1]
        raise storage_error(OSError(errno.ENOSPC if full else 0, reason), folder) from error


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

    found = [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Greater"
        and node.input_value(1).get_node().get_type_name() == "Constant"
        and np.array_equal(node.input_value(1).get_node().data.ravel(), np.array([floor], np.float32))
    ]
    if not found:
        raise WeightsError(f"the graph compares scores with the floor {floor} at 0 places")
    for node in found:
        node.input(1).replace_source_output(opset13.constant(np.float32(new)).output(0))


if __name__ == "__main__":
    sys.exit(answer(convert))
