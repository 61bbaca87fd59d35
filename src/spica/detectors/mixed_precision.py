"""bfloat16 for the layers of torchvision's detectors, float32 for their boxes. This module needs torch.

torch's autocast around a whole detector would make anchors, proposals, decoded boxes and training targets bfloat16 as
well: above 256 it has steps of 2 pixels, above 1024 of 8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

_LAYERS: Final = ("backbone", "head", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor")
"""Parts of torchvision's detectors that have layers with weights; a detector has two or four of them. What is between
them is arithmetic on boxes."""


def compute_in_bf16(network: nn.Module) -> None:
    """Have the layers of a detector compute in bfloat16, as far as torch's autocast deems it safe; for good.

    Weights, what the parts hand on, boxes, and losses stay float32.
    """
    parts = dict(network.named_modules())
    for name in _LAYERS:
        if name in parts:
            parts[name].forward = _in_bf16(parts[name].forward, next(parts[name].parameters()))


def _in_bf16(forward: Callable[..., Any], weight: nn.Parameter) -> Callable[..., Any]:
    def computed(*given: Any) -> Any:
        with torch.autocast(weight.device.type, torch.bfloat16):
            return _float32(forward(*given))

    return computed


def _float32(value: Any) -> Any:
    """Tensors, or lists, tuples and dicts of them, as float32."""
    if isinstance(value, Tensor):
        return value.float()
    if isinstance(value, dict):
        return {key: _float32(each) for key, each in value.items()}
    return type(value)(map(_float32, value))
