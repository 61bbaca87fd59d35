"""Which network a set of weights belongs to, told by names and shapes alone.

The names and shapes stand in ``architectures.json``, which ``scripts/write_architectures.py`` writes from the networks
themselves, so that nothing here needs torch.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, TypeVar

Norm = Literal["frozen", "batch"]
Shape = tuple[int, ...]
T = TypeVar("T")

FASTER_RCNN = "fasterrcnn_resnet50_fpn"
"""torchvision's name of the tutorial's network."""

FULL_TAIL = "ssdlite320_mobilenet_v3_large_full_tail"
"""torchvision's ``ssdlite320_mobilenet_v3_large`` around a backbone trained on ImageNet, which has wider last layers
than the one with COCO weights."""

_EPS_SETTABLE = (FASTER_RCNN, "retinanet_resnet50_fpn")
"""torchvision gives these two eps 0 with its COCO weights and 1e-5 else (``overwrite_eps`` in faster_rcnn.py and
retinanet.py of torchvision/models/detection), and a file can't tell which one it was trained with."""

_WRAPPERS = ("model", "state_dict", "model_state_dict", "net", "weights", "model_ema")
"""Under these keys training scripts keep the state_dict beside the optimizer's state; the first of them counts."""

_MOST_PREFIXES = 4
"""Lightning around an average of the weights around DataParallel around a compiled model."""

_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True, slots=True)
class Recognised:
    """What the weights of a network tell.

    Attributes:
        architecture: torchvision's name, or Spica's own.
        num_classes: without the background, at least 1.
        norm: ``batch`` if its batch norm layers count batches, or if it has none; else ``frozen``.
        others: architectures that have the same keys and shapes and would answer differently.
    """

    architecture: str
    num_classes: int
    norm: Norm
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Network:
    """An entry of the table; a side of a shape is a number, or ``(a, b)`` for a times the number of outputs plus b."""

    tensors: Mapping[str, tuple[int | tuple[int, int], ...]]
    norms: Mapping[str, int]
    eps: float | None

    def shapes(self, num_outputs: int, norm: Norm) -> dict[str, Shape]:
        found = {
            key: tuple(side if isinstance(side, int) else side[0] * num_outputs + side[1] for side in shape)
            for key, shape in self.tensors.items()
        }
        for name, channels in self.norms.items():
            found |= {f"{name}.{part}": (channels,) for part in _NORM_PARTS}
            if norm == "batch":
                found[f"{name}.{_COUNTER}"] = ()
        return found

    def num_outputs(self, shapes: Mapping[str, Shape]) -> int:
        """How many outputs these shapes have; 0 if that can't be told."""
        for key, expected in self.tensors.items():
            for place, side in enumerate(expected):
                if not isinstance(side, int):
                    got = shapes.get(key, ())
                    return (got[place] - side[1]) // side[0] if place < len(got) else 0
        return 0


@functools.cache
def _table() -> dict[str, _Network]:
    text = (resources.files("spica.detectors") / "architectures.json").read_text("utf-8")
    return {
        name: _Network(
            {
                key: tuple(side if isinstance(side, int) else (side[0], side[1]) for side in shape)
                for key, shape in entry["tensors"].items()
            },
            entry["norms"],
            entry["eps"],
        )
        for name, entry in json.loads(text).items()
    }


def names() -> tuple[str, ...]:
    """All architectures that are recognised."""
    return tuple(_table())


def own_eps(architecture: str) -> float | None:
    """Eps of the batch norm that the architecture is trained with; None if it has none, or several."""
    return _table()[architecture].eps


def eps_is_a_setting(architecture: str, norm: Norm) -> bool:
    """Whether eps of the batch norm depends on how the weights were trained, which the file does not tell."""
    return norm == "frozen" and architecture in _EPS_SETTABLE


def expected_shapes(architecture: str, num_outputs: int, norm: Norm) -> dict[str, Shape]:
    """Shapes by key of a network with ``num_outputs`` classes, the background included."""
    return _table()[architecture].shapes(num_outputs, norm)


def find_state_dict(found: object, *, is_tensor: Callable[[object], bool]) -> dict[str, Any] | None:
    """The state_dict in what a file holds: itself, or under a training script's usual keys, without prefixes.

    Keys of torchvision before 0.13 are given their present names. None if there is no dict of tensors.
    """
    if not isinstance(found, Mapping):
        return None
    key = wrapper_of(found, is_inner=lambda inner: _is_state_dict(inner, is_tensor))
    found = found if key is None else found[key]
    if not found or not all(isinstance(key, str) and is_tensor(value) for key, value in found.items()):
        return None
    plain = _without_prefixes(dict(found))
    fcos = any("bbox_ctrness" in key for key in plain)
    return {_present_name(key, fcos=fcos): value for key, value in plain.items()}


def wrapper_of(found: Mapping[Any, Any], *, is_inner: Callable[[object], bool]) -> str | None:
    """The key under which a training script keeps what is looked for; None if it is under none of the usual ones."""
    return next((key for key in _WRAPPERS if is_inner(found.get(key))), None)


def _is_state_dict(inner: object, is_tensor: Callable[[object], bool]) -> bool:
    return isinstance(inner, Mapping) and bool(inner) and all(is_tensor(value) for value in inner.values())


def _without_prefixes(state_dict: dict[str, T]) -> dict[str, T]:
    """Keys without the parts that all of them begin with.

    A detector's own keys begin with at least two different parts (``backbone`` and ``head``); what is common was put
    before them by DataParallel, ``torch.compile``, ``AveragedModel`` or a Lightning module's attribute.
    """
    for _ in range(_MOST_PREFIXES):
        inner = {key: value for key, value in state_dict.items() if key != "n_averaged"}  # AveragedModel's counter
        firsts = {key.partition(".")[0] for key in inner}
        if len(firsts) != 1 or any(key.count(".") < 2 for key in inner):  # fc.weight has no prefix
            break
        start = len(firsts.pop()) + 1
        state_dict = {key[start:]: value for key, value in inner.items()}
    return state_dict


def _present_name(key: str, *, fcos: bool) -> str:
    """The key since torchvision 0.13, which wrapped convolutions of the FPN and of the heads into blocks."""
    parts = key.split(".")
    if parts[:2] == ["backbone", "fpn"] and parts[2] in ("inner_blocks", "layer_blocks") and len(parts) == 5:
        return ".".join([*parts[:4], "0", parts[4]])
    if key.startswith("rpn.head.conv.") and len(parts) == 4:  # rpn.head.conv.weight
        return ".".join([*parts[:3], "0", "0", parts[3]])
    if len(parts) == 5 and parts[0] == "head" and parts[2] == "conv" and parts[3].isdigit() and not fcos:
        # RetinaNet's head.….conv.2.weight: every other layer was a ReLU. FCOS has such keys to this day
        return ".".join([*parts[:3], str(int(parts[3]) // 2), "0", parts[4]])
    return key


def recognise(shapes: Mapping[str, Shape], wanted: str | None = None) -> Recognised | str:
    """The network whose shapes by key these are, or, in a few words, why they are none's.

    Args:
        shapes: of a state_dict, as :func:`find_state_dict` gives it.
        wanted: the architecture to take where several have these shapes; None takes the first of them. One that does
            not have these shapes is refused.
    """
    norm: Norm = "batch" if any(key.endswith(f".{_COUNTER}") for key in shapes) else "frozen"
    found: list[tuple[str, int]] = []
    for name, network in _table().items():
        outputs = network.num_outputs(shapes)
        kept = norm if network.norms else "batch"
        if network.shapes(outputs, kept) == shapes:
            found.append((name, outputs))
    if wanted is not None and wanted not in names():
        return f"{wanted!r} is no architecture that is known here; known are {', '.join(names())}"
    if not found:
        return _why(shapes, norm)
    fitting = [name for name, _ in found]
    if wanted is not None and wanted not in fitting:
        return f"they are those of {' or '.join(fitting)}, not of {wanted}"
    name, outputs = next(each for each in found if wanted in (None, each[0]))
    if outputs < 2:
        return f"{name} with {outputs} class, the background included; at least 2 are needed"
    others = tuple(other for other in fitting if other != name)
    return Recognised(name, outputs - 1, norm if _table()[name].norms else "batch", others)


def _why(shapes: Mapping[str, Shape], norm: Norm) -> str:
    """What does not fit, seen from the network with the most keys in common."""

    def strange(name: str) -> int:
        network = _table()[name]
        expected = network.shapes(network.num_outputs(shapes), norm)
        wrong = sum(1 for key in expected.keys() & shapes.keys() if expected[key] != shapes[key])
        return len(expected.keys() ^ shapes.keys()) + wrong

    closest = min(names(), key=strange)
    expected = expected_shapes(closest, _table()[closest].num_outputs(shapes), norm)
    missing = sorted(expected.keys() - shapes.keys())
    unknown = sorted(shapes.keys() - expected.keys())
    if len(missing) + len(unknown) > len(expected) // 2:
        guess = _guess(shapes.keys())
        looks = f"this looks like {guess}" if guess else "no network that is known here"
        return f"{looks}; its keys are {_few(sorted(shapes))}"
    told = [f"nearly a {closest}"]
    told += [f"keys that don't belong to it: {_few(unknown)}"] if unknown else []
    told += [f"keys that are missing: {_few(missing)}"] if missing else []
    wrong = [key for key in expected if key in shapes and shapes[key] != expected[key]]
    told += [f"{key} has shape {shapes[key]}, not {expected[key]}" for key in wrong[:2]]
    guess = _guess(shapes.keys())
    return "; ".join([*told, f"this looks like {guess}"] if guess else told)


def _few(keys: list[str]) -> str:
    return ", ".join(key[:80] for key in keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _guess(keys: Iterable[str]) -> str | None:
    """The architecture outside the table that these keys remind of."""
    every = list(keys)
    for sign, guess in _SIGNS:
        if any(f".{key}".find(sign) >= 0 for key in every):
            return guess
    return None


_SIGNS = (
    (".roi_heads.mask_predictor.", "torchvision's maskrcnn_resnet50_fpn"),
    (".roi_heads.keypoint_predictor.", "torchvision's keypointrcnn_resnet50_fpn"),
    (".backbone.body.layer3.22.", "a network with ResNet-101"),
    (".roi_heads.box_predictor.", "a Faster R-CNN with another backbone"),
    (".head.regression_head.bbox_ctrness", "an FCOS with another backbone"),
    (".head.classification_head.module_list", "an SSD with another backbone"),
    (".head.classification_head.cls_logits", "a RetinaNet with another backbone"),
    (".decoder.dec_bbox_head.", "RT-DETR or D-FINE"),
    (".dec_bbox_head.", "RT-DETR or D-FINE"),
    (".model.decoder.bbox_embed.", "RT-DETR or D-FINE of the library transformers"),
    (".bbox_predictor.layers.", "DETR of the library transformers"),
    (".class_labels_classifier.", "DETR of the library transformers"),
    (".refpoint_embed.", "RF-DETR"),
    (".transformer.encoder.", "DETR"),
    (".transformer.decoder.", "DETR"),
    (".bbox_head.", "a detector of the library mmdetection"),
    (".proposal_generator.", "a detector of the library detectron2"),
    (".bifpn.", "EfficientDet"),
    (".0.conv.weight", "a YOLO network"),
    (".backbone.backbone.stem.", "YOLOX"),
    (".heads.head.weight", "an image classifier (a vision transformer)"),
    (".classifier.", "an image classifier"),
    (".fc.weight", "an image classifier (ResNet)"),
    (".head.weight", "an image classifier"),
)
"""Parts of keys, each after a dot, and the architecture they tell, the most particular first."""
