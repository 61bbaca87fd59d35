"""Networks that have learned nothing, but answer with as many boxes as trained ones: enough to measure their speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spica.bench.photographs import ARCHITECTURE, untrained_weights
from spica.detectors.architecture import Norm
from spica.detectors.comparison import rendered_images

if TYPE_CHECKING:
    import torch


def write_untrained(path: Path, architecture: str = ARCHITECTURE, *, seed: int = 0) -> Path:
    """Write a state_dict of an architecture, with one class, that has learned nothing; with spread scores."""
    if architecture == ARCHITECTURE:
        return untrained_weights(path)
    import torch

    state_dict = spread_state_dict(architecture, 2, seed=seed)
    _propose_as_trained(state_dict)
    torch.save(state_dict, path)
    return path


def _propose_as_trained(state_dict: dict[str, torch.Tensor]) -> None:
    """Have as few anchors propose an object as in a trained network, for each proposal takes its time.

    Seen in a ``fasterrcnn_resnet50_fpn`` trained on blood cells and pears, on ten photographs: logits of mean -8.5 and
    standard deviation 3.4, 4 % of them above a score of 0.05, below which torchvision's networks of MobileNet don't
    look at a proposal.
    """
    for key, value in state_dict.items():
        if key.startswith("rpn.head.cls_logits."):
            value.mul_(3.4 / 2)  # they are spread by 2 around 0 so far
            if key.endswith("bias"):
                value.sub_(8.5)


def spread_state_dict(
    architecture: str,
    num_classes: int = 2,
    norm: Norm = "batch",
    seed: int = 0,
    input_size: tuple[int, int] | None = None,
) -> dict[str, torch.Tensor]:
    """The state_dict of any network, with scores that are spread.

    The batch norm takes its statistics from rendered images, and each of the last layers is scaled while the network
    runs on them for the first time.

    Args:
        architecture: one of :func:`spica.detectors.networks.builders`.
        num_classes: with the background, as torchvision counts.
        norm: ``frozen`` leaves the counters of batches out.
        seed: of all random numbers.
        input_size: of the network; small ones save time.
    """
    import torch

    from spica.detectors.networks import build

    min_size, max_size = input_size or (None, None)
    height, width = _SEEN_PX
    image = np.ascontiguousarray(next(rendered_images())[:height, :width])
    pixels = torch.from_numpy(image).permute(2, 0, 1).to(torch.float32) / 255  # (3, H, W)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = build(architecture, num_classes, min_size=min_size, max_size=max_size)
        model.eval()
        few_proposals(model)
        _damp_blocks(model)
        images = [pixels, 1 - pixels.flip(2)]  # two: the smallest maps have one pixel an image
        _settle_norms(model, images)
        hooks = list(_spread_when_run(model, num_classes))
        model(images)
        for hook in hooks:
            hook.remove()
    state_dict: dict[str, torch.Tensor] = model.state_dict()
    return {key: value for key, value in state_dict.items() if norm == "batch" or "num_batches_tracked" not in key}


def few_proposals(model: torch.nn.Module) -> None:
    """Have a Faster R-CNN look at 200 proposals an image instead of 1000, to save time."""
    detector: Any = model
    if hasattr(detector, "rpn"):
        detector.rpn._post_nms_top_n["testing"] = 200


_SEEN_PX = (240, 320)

_BLOCK_GAIN = 0.3
"""Of a residual block's last norm. With 1, as it is at first, ``fasterrcnn_resnet50_fpn_v2`` in float32 and in float64
differ in torch itself by 82 of 275 boxes."""

_LAST_LAYERS = (
    ("rpn.head.cls_logits", 0.0, 2.0, 0.0),
    ("box_predictor.cls_score", 0.0, 2.0, 3.0),
    ("classification_head.module_list", 0.0, 2.0, 5.0),  # SSD's, several; the very last of each part has a bias
    ("classification_head.cls_logits", -6.0, 2.5, -20.0),  # these networks have no background, and never say it
    ("bbox_ctrness", 0.0, 1.0, 0.0),
    ("bbox_", 0.0, 0.5, 0.0),
    ("regression_head.module_list", 0.0, 1.0, 0.0),
)
"""Parts of the last layers' names, mean and standard deviation that they are given, and what the background is lifted
by, where there is one among the outputs."""


def _damp_blocks(model: torch.nn.Module) -> None:
    """Have each residual block add less than it was given, so that a deep network does not blow rounding up."""
    for name, parameter in model.named_parameters():
        if ".bn3.weight" in name:
            parameter.fill_(_BLOCK_GAIN)


def _settle_norms(model: torch.nn.Module, images: list[torch.Tensor]) -> None:
    """Have the batch norm take its statistics from the images; channels that hardly vary are not blown up."""
    import torch

    norms = [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for layer in norms:
        layer.momentum = 1.0
        layer.train()
    if norms:
        model(images)
    for layer in norms:
        variance: Any = layer.running_var
        variance.clamp_(min=0.3 * float(variance.mean()))
        layer.eval()


def _spread_when_run(model: torch.nn.Module, num_classes: int) -> Iterator[Any]:
    """Have each of the last layers scale itself when it is run for the first time."""
    import torch

    def scaling(mean: float, deviation: float, lift: float) -> Callable[[Any, Any, torch.Tensor], torch.Tensor]:
        seen: list[Any] = []

        def scale(layer: Any, _: Any, answer: torch.Tensor) -> torch.Tensor:
            if seen:  # on the next level, the same layer
                return answer
            seen.append(layer)
            told = answer
            if lift < 0:  # what is never said does not count
                told = answer[:, [channel for channel in range(answer.shape[1]) if channel % num_classes]]
            factor = deviation / told.std()
            layer.bias.sub_(told.mean()).mul_(factor).add_(mean)
            layer.weight.mul_(factor)
            layer.bias[::num_classes] += lift
            rerun: torch.Tensor = torch.nn.Module.__call__(layer, _[0])
            return rerun

        return scale

    for name, layer in model.named_modules():
        found = next((numbers for part, *numbers in _LAST_LAYERS if part in name), None)
        if found is not None and isinstance(layer, torch.nn.Conv2d | torch.nn.Linear) and layer.bias is not None:
            yield layer.register_forward_hook(scaling(*found))
