"""Which network a set of weights belongs to, told by names and shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Norm = Literal["frozen", "batch"]
Shape = tuple[int, ...]
T = TypeVar("T")

FASTER_RCNN = "fasterrcnn_resnet50_fpn"
"""torchvision's name of the one architecture whose weights are served."""

_WRAPPERS = ("model", "state_dict", "model_state_dict")
"""Under these keys training scripts keep the state_dict beside the optimizer's state."""

_PREFIXES = ("module.", "_orig_mod.", "model.")
"""Put before every key by DataParallel, torch.compile, and Lightning modules with an attribute ``model``."""

_BLOCKS = {1: 3, 2: 4, 3: 6, 4: 3}
"""Bottleneck blocks of ResNet-50's layers (He et al. 2016, table 1)."""


@dataclass(frozen=True, slots=True)
class FasterRCNN:
    """What the weights of a ``fasterrcnn_resnet50_fpn`` tell.

    Attributes:
        num_classes: without the background, at least 1.
        norm: ``batch`` if its batch norm layers count batches (``num_batches_tracked``), else ``frozen``.
    """

    num_classes: int
    norm: Norm


def find_state_dict(found: object, *, is_tensor: Callable[[object], bool]) -> dict[str, Any] | None:
    """The state_dict in what a file holds: itself, or under a training script's usual keys, without prefixes.

    Keys of torchvision before 0.13 are given their present names. None if there is no dict of tensors.
    """
    if not isinstance(found, Mapping):
        return None
    for key in _WRAPPERS:
        inner = found.get(key)
        if isinstance(inner, Mapping) and inner and all(is_tensor(value) for value in inner.values()):
            found = inner
            break
    if not found or not all(isinstance(key, str) and is_tensor(value) for key, value in found.items()):
        return None
    return {_present_name(key): value for key, value in _without_prefixes(dict(found)).items()}


def _without_prefixes(state_dict: dict[str, T]) -> dict[str, T]:
    for _ in range(3):  # Lightning around DataParallel around a compiled model
        for prefix in _PREFIXES:
            if all(key.startswith(prefix) for key in state_dict):
                state_dict = {key[len(prefix) :]: value for key, value in state_dict.items()}
    return state_dict


def _present_name(key: str) -> str:
    """The key since torchvision 0.13, which wrapped the convolutions of the FPN and of the RPN head into blocks."""
    parts = key.split(".")
    if key.startswith("backbone.fpn.") and len(parts) == 5:  # backbone.fpn.inner_blocks.0.weight
        return ".".join([*parts[:4], "0", parts[4]])
    if key.startswith("rpn.head.conv.") and len(parts) == 4:  # rpn.head.conv.weight
        return ".".join([*parts[:3], "0", "0", parts[3]])
    return key


def expected_shapes(num_outputs: int, norm: Norm) -> dict[str, Shape]:
    """Shapes by key of a ``fasterrcnn_resnet50_fpn`` with ``num_outputs`` classes, the background included."""
    shapes: dict[str, Shape] = {}

    def conv(name: str, out: int, into: int, side: int, *, bias: bool = False) -> None:
        shapes[f"{name}.weight"] = (out, into, side, side)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    def bn(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)
        if norm == "batch":
            shapes[f"{name}.num_batches_tracked"] = ()

    def linear(name: str, out: int, into: int) -> None:
        shapes[f"{name}.weight"] = (out, into)
        shapes[f"{name}.bias"] = (out,)

    conv("backbone.body.conv1", 64, 3, 7)
    bn("backbone.body.bn1", 64)
    into = 64
    for layer, blocks in _BLOCKS.items():
        width = 64 * 2 ** (layer - 1)
        for block in range(blocks):
            name = f"backbone.body.layer{layer}.{block}"
            conv(f"{name}.conv1", width, into, 1)
            bn(f"{name}.bn1", width)
            conv(f"{name}.conv2", width, width, 3)
            bn(f"{name}.bn2", width)
            conv(f"{name}.conv3", 4 * width, width, 1)
            bn(f"{name}.bn3", 4 * width)
            if block == 0:
                conv(f"{name}.downsample.0", 4 * width, into, 1)
                bn(f"{name}.downsample.1", 4 * width)
            into = 4 * width
        conv(f"backbone.fpn.inner_blocks.{layer - 1}.0", 256, into, 1, bias=True)
        conv(f"backbone.fpn.layer_blocks.{layer - 1}.0", 256, 256, 3, bias=True)
    conv("rpn.head.conv.0.0", 256, 256, 3, bias=True)
    conv("rpn.head.cls_logits", 3, 256, 1, bias=True)
    conv("rpn.head.bbox_pred", 12, 256, 1, bias=True)
    linear("roi_heads.box_head.fc6", 1024, 256 * 7 * 7)
    linear("roi_heads.box_head.fc7", 1024, 1024)
    linear("roi_heads.box_predictor.cls_score", num_outputs, 1024)
    linear("roi_heads.box_predictor.bbox_pred", 4 * num_outputs, 1024)
    return shapes


def recognise(shapes: Mapping[str, Shape]) -> FasterRCNN | str:
    """The network whose shapes by key these are, or, in a few words, why they are not ``fasterrcnn_resnet50_fpn``'s."""
    scores = shapes.get("roi_heads.box_predictor.cls_score.weight")
    norm: Norm = "batch" if any(key.endswith(".num_batches_tracked") for key in shapes) else "frozen"
    outputs = scores[0] if scores else 0
    expected = expected_shapes(outputs, norm)
    missing = sorted(expected.keys() - shapes.keys())
    unknown = sorted(shapes.keys() - expected.keys())
    if missing or unknown:
        guess = _guess(shapes.keys())
        told = [f"this looks like {guess}"] if guess else []
        told += [f"keys that don't belong to it: {_few(unknown)}"] if unknown else []
        told += [f"keys that are missing: {_few(missing)}"] if missing else []
        return "; ".join(told)
    for key, shape in expected.items():
        if shapes[key] != shape:
            return f"{key} has shape {shapes[key]}, not {shape}"
    if outputs < 2:
        return f"{outputs} class with the background; at least 2 are needed"
    return FasterRCNN(num_classes=outputs - 1, norm=norm)


def _few(keys: list[str]) -> str:
    return ", ".join(key[:80] for key in keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _guess(keys: Iterable[str]) -> str | None:
    """The architecture that these keys remind of."""
    names = list(keys)
    for sign, guess in _SIGNS:
        if any(sign in name for name in names):
            return guess
    return None


_SIGNS = (
    ("roi_heads.mask_predictor.", "torchvision's maskrcnn_resnet50_fpn"),
    ("roi_heads.keypoint_predictor.", "torchvision's keypointrcnn_resnet50_fpn"),
    ("backbone.fpn.inner_blocks.0.1.", "torchvision's fasterrcnn_resnet50_fpn_v2"),
    ("backbone.body.0.0.weight", "torchvision's fasterrcnn_mobilenet_v3_large_fpn"),
    ("head.regression_head.bbox_ctrness", "torchvision's fcos_resnet50_fpn"),
    ("head.regression_head.module_list", "torchvision's ssd300_vgg16 or ssdlite320_mobilenet_v3_large"),
    ("head.classification_head.cls_logits", "torchvision's retinanet_resnet50_fpn"),
    ("backbone.body.layer3.22.", "a Faster R-CNN with ResNet-101"),
    ("roi_heads.box_predictor.", "a Faster R-CNN with another backbone"),
    ("transformer.encoder.", "DETR"),
    ("model.0.conv.", "a YOLO network"),
    ("classifier.", "an image classifier"),
    ("fc.weight", "an image classifier (ResNet)"),
)
"""Parts of keys and the architecture they tell, the most particular first."""
