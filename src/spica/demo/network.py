"""The demo's detector: a small fully convolutional network, its loss, and the graph that is shipped.

One stride, one class, no anchors: each cell of 8 x 8 pixels says how good the box is that it proposes, and how far the
box's sides are (FCOS, https://arxiv.org/abs/1904.01355; the score learns the box's IoU as in Generalized Focal Loss,
https://arxiv.org/abs/2006.04388). This module needs torch and torchvision; nothing that serves imports it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss, nms

ARCHITECTURE = "spica-ears-s8"
STRIDE_PX = 8
SCORE_FLOOR = 0.05
MAX_DETECTIONS = 1000
NMS_IOU = 0.6
NORM_EPS = 1e-5
CENTRE_RADIUS_PX = 1.5 * STRIDE_PX
"""Cells nearer than this to a box's centre, and inside it, are asked to propose it (FCOS's centre sampling)."""

_DISTANCE_UNIT_PX = 16.0
_PRIOR = 0.02
"""Share of cells that hold an ear, roughly: the first scores, so that the first steps are calm (as in RetinaNet)."""
_MEAN, _STD = 0.42, 0.22
"""Of rendered fields, over all channels."""


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs, eps=NORM_EPS),
        nn.ReLU(inplace=True),
    )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels, eps=NORM_EPS)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


class EarNetwork(nn.Module):
    """Images to one proposal per cell.

    Args:
        channels: at stride 8; twice as many at stride 16.
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.fine = nn.Sequential(
            _conv(3, channels // 4, 2),
            _conv(channels // 4, channels // 2, 2),
            _conv(channels // 2, channels, 2),
            _Residual(channels),
            _Residual(channels),
        )
        self.coarse = nn.Sequential(
            _conv(channels, 2 * channels, 2),
            _Residual(2 * channels),
            _Residual(2 * channels),
            nn.Conv2d(2 * channels, channels, 1),
        )
        self.tower = nn.Sequential(_conv(channels, channels), _conv(channels, channels))
        self.quality = nn.Conv2d(channels, 1, 1)
        self.distances = nn.Conv2d(channels, 4, 1)
        nn.init.constant_(self.quality.bias, torch.logit(torch.tensor(_PRIOR)).item())  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, h * w) and boxes xyxy (B, h * w, 4) in pixels, not cut to the image.

        Args:
            images: float32 (B, 3, H, W), RGB in [0, 1], any size; h and w are H / 8 and W / 8, rounded up.
        """
        fine = self.fine((images - _MEAN) / _STD)  # (B, C, h, w)
        coarse = F.interpolate(self.coarse(fine), size=fine.shape[-2:], mode="nearest")  # (B, C, h, w)
        features = self.tower(fine + coarse)  # (B, C, h, w)
        logits = self.quality(features).flatten(1)  # (B, h * w)
        distances = F.softplus(self.distances(features)).flatten(2).transpose(1, 2) * _DISTANCE_UNIT_PX  # (B, h * w, 4)
        centres = cell_centres(fine)  # (h * w, 2)
        return logits, torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], dim=-1)


def cell_centres(features: Tensor) -> Tensor:
    """Centres x, y of all cells of ``features`` (B, C, h, w), in pixels of the image: (h * w, 2), row by row."""
    height, width = features.shape[-2:]
    x = (torch.arange(width, device=features.device, dtype=features.dtype) + 0.5) * STRIDE_PX  # (w,)
    y = (torch.arange(height, device=features.device, dtype=features.dtype) + 0.5) * STRIDE_PX  # (h,)
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([grid_x.flatten(), grid_y.flatten()], dim=1)


class DemoDetector(nn.Module):
    """The graph that is shipped: one image in, finished detections out.

    Args:
        network: trained.
        slope: of the calibration, score = sigmoid(slope * logit + intercept).
        intercept: of the calibration.
        floor: detections must score more than this.
    """

    def __init__(self, network: EarNetwork, *, slope: float = 1.0, intercept: float = 0.0, floor: float = SCORE_FLOOR):
        super().__init__()
        self.network = network
        self.slope, self.intercept, self.floor = slope, intercept, floor

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes float32 (N, 4) xyxy in pixels, labels int64 (N,), all 1, scores float32 (N,) descending.

        Args:
            image: float32 (3, H, W), RGB in [0, 1].
        """
        logits, boxes = self.network(image[None])
        scores = torch.sigmoid(logits[0] * self.slope + self.intercept)  # (h * w,)
        limits = torch._shape_as_tensor(image)[[2, 1, 2, 1]].to(boxes.dtype)  # stays dynamic when traced
        boxes = torch.minimum(boxes[0].clamp(min=0), limits)  # (h * w, 4)
        sides = boxes[:, 2:] - boxes[:, :2]
        likely = torch.nonzero((scores > self.floor) & (sides >= 1.0).all(dim=1)).squeeze(1)
        boxes, scores = boxes[likely], scores[likely]
        kept = nms(boxes, scores, NMS_IOU)[:MAX_DETECTIONS]
        return boxes[kept], torch.ones_like(kept), scores[kept]


def assign(centres: Tensor, truth_xyxy: Tensor) -> Tensor:
    """Which true box each cell should propose: int64 (h * w,), -1 for none; of several, the smallest.

    Args:
        centres: (h * w, 2).
        truth_xyxy: (N, 4), pixels.
    """
    if len(truth_xyxy) == 0:
        return torch.full((len(centres),), -1, dtype=torch.int64)
    middles = (truth_xyxy[:, :2] + truth_xyxy[:, 2:]) / 2
    near = (centres[:, None] - middles).abs().amax(dim=2) < CENTRE_RADIUS_PX  # (h * w, N)
    inside = ((centres[:, None] > truth_xyxy[:, :2]) & (centres[:, None] < truth_xyxy[:, 2:])).all(dim=2)
    areas = (truth_xyxy[:, 2:] - truth_xyxy[:, :2]).prod(dim=1)  # (N,)
    cost, best = torch.where(near & inside, areas, torch.inf).min(dim=1)
    return torch.where(cost.isinf(), -1, best)


def loss(logits: Tensor, boxes: Tensor, truths_xyxy: Sequence[Tensor], centres: Tensor) -> Tensor:
    """Quality focal loss of all cells plus twice the GIoU loss of those that hold an ear, per such cell.

    Args:
        logits: (B, h * w).
        boxes: (B, h * w, 4).
        truths_xyxy: per image (N, 4), pixels.
        centres: (h * w, 2).
    """
    wanted = torch.stack([assign(centres, truth) for truth in truths_xyxy])  # (B, h * w)
    positive = wanted >= 0
    targets = torch.cat([truth[row[row >= 0]] for truth, row in zip(truths_xyxy, wanted, strict=True)])  # (P, 4)
    proposed = boxes[positive]  # (P, 4), in the same order
    quality = torch.zeros_like(logits)
    quality[positive] = _iou_of_pairs(proposed.detach(), targets)
    error = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    focal = (quality - logits.sigmoid()).abs().square() * error
    count = max(1, int(positive.sum()))
    sides = generalized_box_iou_loss(proposed, targets, reduction="sum")
    total: Tensor = (focal.sum() + 2.0 * sides) / count
    return total


def _iou_of_pairs(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """IoU row by row, (P,), for boxes (P, 4) with some area."""
    shared = (torch.minimum(a_xyxy[:, 2:], b_xyxy[:, 2:]) - torch.maximum(a_xyxy[:, :2], b_xyxy[:, :2])).clamp(min=0)
    intersection = shared.prod(dim=1)
    areas = [(box[:, 2:] - box[:, :2]).prod(dim=1) for box in (a_xyxy, b_xyxy)]
    iou: Tensor = intersection / (areas[0] + areas[1] - intersection).clamp(min=1e-6)
    return iou
