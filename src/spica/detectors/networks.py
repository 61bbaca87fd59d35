"""The networks in torch, by name: torchvision's detectors and Spica's own, built without any download; and the files
that their weights are read from and written to.

Everything here needs the extra ``spica[train]``.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spica.detectors.architecture import FASTER_RCNN_LITE, FULL_TAIL, Norm, Recognised, eps_is_a_setting, recognise
from spica.detectors.checkpoint import ALLOWED_BESIDE_TENSORS, find_state_dict
from spica.detectors.child import require
from spica.detectors.postprocess import MAX_ASPECT
from spica.detectors.refusals import EXPECTED, SAVE_STATE_DICT
from spica.errors import WeightsError
from spica.files import replacing

if TYPE_CHECKING:
    import torch

_TORCHVISION = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "ssdlite320_mobilenet_v3_large",
    "ssd300_vgg16",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
)
"""Functions of ``torchvision.models.detection``."""

_FIXED_SIZE = ("ssd300_vgg16", "ssdlite320_mobilenet_v3_large", FULL_TAIL)

_MOST_PROPOSALS = 1000
"""torchvision's own number of proposals an image, of which each may become a box."""

_CANDIDATES_PER_BOX = 10
"""Of a one-stage network: in a dense scene several neighbouring anchors find the same object, and torchvision's 300 to
1000 candidates would end at some hundred boxes."""


def builders() -> dict[str, Callable[..., torch.nn.Module]]:
    """By name the functions that build each network: ``function(num_outputs, **options)``, in training mode."""
    from spica.detectors.efficientnet_lite import faster_rcnn_lite

    known: dict[str, Callable[..., Any]] = {name: functools.partial(_torchvision, name) for name in _TORCHVISION}
    return {**known, FULL_TAIL: _ssdlite_full_tail, FASTER_RCNN_LITE: faster_rcnn_lite}


def build(
    architecture: str,
    num_outputs: int,
    *,
    norm: Norm = "batch",
    norm_eps: float | None = None,
    score_floor: float = 0.05,
    max_detections: int = 1000,
    min_size: int | None = None,
    max_size: int | None = None,
) -> torch.nn.Module:
    """A network fresh from its initialisation, in training mode.

    Args:
        architecture: one of :func:`builders`.
        num_outputs: classes and the background, at least 2.
        norm: ``frozen`` replaces each ``BatchNorm2d`` by torchvision's ``FrozenBatchNorm2d`` of the same eps.
        norm_eps: eps of the norm where it is a setting (:func:`spica.detectors.architecture.eps_is_a_setting`); other
            networks keep their own, and None keeps it everywhere.
        score_floor: boxes with a score not above it are dropped.
        max_detections: of an image, the best ones; limits that lie before are raised (:func:`limit`).
        min_size: side in pixels to which the shorter side of images is scaled; None for the network's own.
        max_size: side in pixels that the longer side does not exceed after scaling; None for the network's own.

    Raises:
        WeightsError: no such architecture, or one whose input has a fixed size and a size is given.
    """
    known = builders()
    if architecture not in known:
        raise WeightsError(
            "there is no such architecture", expected=f"one of {', '.join(known)}", got=str(architecture)[:80]
        )
    sizes = {"min_size": min_size, "max_size": max_size}
    options = {name: size for name, size in sizes.items() if size is not None}
    if options and architecture in _FIXED_SIZE:
        raise WeightsError(
            f"images are always scaled to the same size for {architecture}", got=f"an input size of {options}"
        )
    model = known[architecture](num_outputs, **options)
    if norm == "frozen":
        _freeze_norms(model)
    if norm_eps is not None and eps_is_a_setting(architecture, norm):
        for layer in _norms(model):
            layer.eps = norm_eps
    limit(model, score_floor=score_floor, max_detections=max_detections)
    return model


def build_from(
    state_dict: Mapping[str, torch.Tensor],
    *,
    architecture: str | None = None,
    norm_eps: float | None = None,
    score_floor: float = 0.05,
    max_detections: int = 1000,
    input_size: tuple[int, int] | None = None,
) -> torch.nn.Module:
    """The network that these weights belong to, with them, in evaluation mode.

    Args:
        state_dict: tensors by key, from :func:`load_state_dict`.
        architecture: decides where the shapes fit more than one; None takes the first that they fit.
        norm_eps: as for :func:`build`, like the next two.
        score_floor: as there.
        max_detections: as there.
        input_size: ``min_size`` and ``max_size`` of :func:`build`; None for the network's own.

    Raises:
        WeightsError: the keys or shapes are no known network's, or not those of ``architecture``.
    """
    recognised = recognise({key: tuple(value.shape) for key, value in state_dict.items()}, architecture)
    if not isinstance(recognised, Recognised):
        what = "these are not the weights of a network that is known here"
        raise WeightsError(what, expected=EXPECTED, got=recognised)
    min_size, max_size = input_size or (None, None)
    model = build(
        recognised.architecture,
        recognised.num_classes + 1,
        norm=recognised.norm,
        norm_eps=norm_eps,
        score_floor=score_floor,
        max_detections=max_detections,
        min_size=min_size,
        max_size=max_size,
    )
    try:
        model.load_state_dict(dict(state_dict))
    except RuntimeError as error:
        faults = [fault.strip()[:300] for fault in str(error).split("\n")[1:4]]  # one a kind: missing keys, shapes …
        raise WeightsError(
            f"these are nearly the weights of {recognised.architecture}, but they don't fit",
            expected=f"the state_dict of {recognised.architecture}",
            got=" ".join(faults) or str(error),
            hint="a network that was changed can't be served; train one as it is",
        ) from error
    return model.eval()


def class_keys(architecture: str, norm: Norm) -> set[str]:
    """Keys of a state_dict whose shapes depend on the number of classes."""
    import torch

    with torch.device("meta"):
        few, more = (build(architecture, outputs, norm=norm).state_dict() for outputs in (2, 3))
    return {key for key, value in few.items() if more[key].shape != value.shape}


def load_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file by key, on the CPU; nothing in the file is run.

    Raises:
        WeightsError: torch refuses the file.
    """
    import torch

    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(_beside_tensors()):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise WeightsError(
            "torch can't read this weights file",
            where=str(path),
            expected=EXPECTED,
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            hint=SAVE_STATE_DICT,
        ) from error
    state_dict = find_state_dict(content, is_tensor=lambda value: isinstance(value, torch.Tensor))
    if state_dict is None:
        raise WeightsError("no state_dict in this weights file", where=str(path), hint=SAVE_STATE_DICT)
    return state_dict


def write_state_dict(source: Path, target: Path) -> None:
    """Write weights as ``torch.save(model.state_dict(), target)`` would; whole, or not at all.

    Args:
        source: a ``.safetensors`` or ``.pth`` file of Spica's store.
        target: the file to write; one that is there is replaced.

    Raises:
        WeightsError: torch is missing, or can't read ``source``.
        StorageError: ``target`` can't be written.
    """
    hint = 'pip install "spica[train]", or export as .safetensors, which needs nothing'
    torch = require("torch", "to write a .pth file", hint)
    state_dict = load_state_dict(source)
    with replacing(target) as aside, aside.open("wb") as file:  # by name, torch makes a full disk a RuntimeError
        torch.save(state_dict, file)


def _beside_tensors() -> list[Any]:
    """``ALLOWED_BESIDE_TENSORS`` as torch's loader takes them."""
    import numpy as np

    multiarray = importlib.import_module("numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray")
    homes = {"argparse": argparse, "numpy": np}
    named = [
        (getattr(homes.get(path.rpartition(".")[0], multiarray), path.rpartition(".")[2]), path)
        for path in ALLOWED_BESIDE_TENSORS
    ]
    return [*named, *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"}]


def limit(model: torch.nn.Module, *, score_floor: float, max_detections: int) -> None:
    """Set what is answered: boxes with a score above the floor, ``max_detections`` of an image at most.

    Limits that lie before are raised where they would cut a dense scene. Boxes that torchvision's own limits let
    through stay the same: further candidates have lower scores, and a box never suppresses one with a higher score.
    """
    detector: Any = model
    if hasattr(detector, "roi_heads"):
        detector.roi_heads.score_thresh = score_floor
        detector.roi_heads.detections_per_img = max_detections
        proposals = min(max_detections, _MOST_PROPOSALS)
        for numbers in (detector.rpn._pre_nms_top_n, detector.rpn._post_nms_top_n):
            numbers["testing"] = max(numbers["testing"], proposals)
        return
    detector.score_thresh = score_floor
    detector.detections_per_img = max_detections
    detector.topk_candidates = max(detector.topk_candidates, _CANDIDATES_PER_BOX * max_detections)


def set_floor(model: torch.nn.Module, score_floor: float) -> None:
    """Change the score above which boxes are answered."""
    part: Any = getattr(model, "roi_heads", model)
    part.score_thresh = score_floor


def max_aspect(model: torch.nn.Module) -> int:
    """How many times as long as wide an image may be before the network shrinks its shorter side to nothing."""
    transform: Any = model.transform
    if transform.fixed_size is not None:
        return MAX_ASPECT
    return min(MAX_ASPECT, int(transform.max_size) - int(transform.max_size) // 4)


def _torchvision(name: str, num_outputs: int, **options: Any) -> torch.nn.Module:
    from torchvision.models import detection

    function = getattr(detection, name)
    built: torch.nn.Module = function(weights=None, weights_backbone=None, num_classes=num_outputs, **options)
    return built


def _ssdlite_full_tail(num_outputs: int) -> torch.nn.Module:
    """SSDlite around a backbone trained on ImageNet, whose last layers are twice as wide.

    See ``reduced_tail`` in torchvision/models/detection/ssdlite.py; by its parts, for the function would download.
    """
    import torch
    from torchvision.models import mobilenet_v3_large
    from torchvision.models.detection import _utils, ssdlite
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD

    norm_layer = functools.partial(torch.nn.BatchNorm2d, eps=0.001, momentum=0.03)
    layers = mobilenet_v3_large(weights=None, norm_layer=norm_layer, reduced_tail=False).features
    last_stage = max(index for index, layer in enumerate(layers) if getattr(layer, "_is_cn", False))
    backbone = ssdlite.SSDLiteFeatureExtractorMobileNet(layers, last_stage, norm_layer)
    anchors = DefaultBoxGenerator([[2, 3] for _ in range(6)], min_ratio=0.2, max_ratio=0.95)
    channels = _utils.retrieve_out_channels(backbone, (320, 320))
    head = ssdlite.SSDLiteHead(channels, anchors.num_anchors_per_location(), num_outputs, norm_layer)
    model: torch.nn.Module = SSD(
        backbone,
        anchors,
        (320, 320),
        num_outputs,
        head=head,
        nms_thresh=0.55,
        topk_candidates=300,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return model


def _norms(model: torch.nn.Module) -> list[Any]:
    import torch
    from torchvision.ops import FrozenBatchNorm2d

    return [layer for layer in model.modules() if isinstance(layer, FrozenBatchNorm2d | torch.nn.BatchNorm2d)]


def _freeze_norms(module: torch.nn.Module) -> None:
    import torch
    from torchvision.ops import FrozenBatchNorm2d

    for name, child in module.named_children():
        if isinstance(child, torch.nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, eps=child.eps))
        else:
            _freeze_norms(child)
