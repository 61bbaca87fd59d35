"""Weights of all architectures, made on the spot: untrained, but with many boxes and spread scores."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from spica.bench.photographs import spread_faster_rcnn
from spica.detectors.architecture import FASTER_RCNN, Norm
from spica.models import store
from spica.models.version import ModelVersion
from untrained import spread_state_dict

if TYPE_CHECKING:
    import torch

MAX_DETECTIONS = 1000
NORM_EPS = 0.0


@dataclass(frozen=True)
class Prepared:
    """Weights that have been converted.

    Attributes:
        weights: the ``.pth``.
        data_dir: the folder with the store.
        version: what they became.
        norm: the kind of their batch norm.
        score_floor: with which they were converted.
        progress: what the conversion told.
    """

    weights: Path
    data_dir: Path
    version: ModelVersion
    norm: Norm
    score_floor: float
    progress: tuple[str, ...]


@functools.cache
def prepared(root: Path, num_classes: int, norm: Norm, score_floor: float, architecture: str = FASTER_RCNN) -> Prepared:
    """Write and convert weights, once a run for the same arguments; the folders' names are Japanese.

    Args:
        root: an existing folder.
        num_classes: with the background.
        norm: of the weights.
        score_floor: of the converted network.
        architecture: the network.
    """
    pytest.importorskip("torch", reason="needs the extra spica[train]")
    folder = root / f"デスクトップ {num_classes} {norm}"
    folder.mkdir()
    weights = folder / "小麦 gwhd #1.pth"
    if architecture == FASTER_RCNN:
        write_tutorial_weights(weights, num_classes, norm)
    else:
        write_spread_weights(weights, architecture, num_classes, norm)
    told: list[str] = []
    version = store.prepare(
        weights,
        data_dir=folder / "データ",
        score_floor=score_floor,
        max_detections=MAX_DETECTIONS,
        norm_eps=NORM_EPS,
        progress=told.append,
    )
    return Prepared(weights, folder / "データ", version, norm, score_floor, tuple(told))


def tutorial_state_dict(num_classes: int = 2, norm: Norm = "frozen", seed: int = 0) -> dict[str, torch.Tensor]:
    """The state_dict of torchvision's ``fasterrcnn_resnet50_fpn``, as the tutorial's notebook saves it.

    A network fresh from its initialisation finds hardly a box, with hardly different scores. Here each layer keeps
    the variance of what it is given and the heads are spread out, so that a photograph gives a few hundred boxes with
    scores all over [0, 1].

    Args:
        num_classes: with the background, as torchvision counts.
        norm: ``frozen`` gives 295 keys, ``batch`` 348.
        seed: of all random numbers.
    """
    import torch
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        norm_class = FrozenBatchNorm2d if norm == "frozen" else torch.nn.BatchNorm2d
        backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=norm_class)
        state_dict: dict[str, torch.Tensor] = FasterRCNN(backbone, num_classes).state_dict()
        spread_faster_rcnn(state_dict)
    return state_dict


def write_tutorial_weights(path: Path, num_classes: int = 2, norm: Norm = "frozen", seed: int = 0) -> Path:
    """Save :func:`tutorial_state_dict` at ``path`` as the notebook does, and give the path back."""
    import torch

    torch.save(tutorial_state_dict(num_classes, norm, seed), path)
    return path


def write_spread_weights(path: Path, architecture: str, num_classes: int = 2, norm: Norm = "batch") -> Path:
    """Save :func:`spread_state_dict` at ``path`` as a training script does, and give the path back."""
    import torch

    torch.save(spread_state_dict(architecture, num_classes, norm), path)
    return path


def hollow_state_dict(
    num_classes: int = 2, norm: Norm = "frozen", architecture: str = FASTER_RCNN
) -> dict[str, torch.Tensor]:
    """All keys and shapes of a network with zeros of one byte: for what looks at shapes alone."""
    import torch

    shapes = shapes_of(architecture, num_classes, norm)
    return {key: torch.zeros(shape, dtype=torch.int8) for key, shape in shapes.items()}


@functools.cache
def shapes_of(architecture: str, num_classes: int, norm: Norm) -> dict[str, tuple[int, ...]]:
    """Shapes by key of a network's state_dict; ``num_classes`` with the background."""
    import torch

    from spica.detectors.networks import build

    with torch.device("meta"):
        state_dict = build(architecture, num_classes, norm=norm).state_dict()
    return {key: tuple(value.shape) for key, value in state_dict.items()}
