"""Train the tutorial's architecture on real photographs, as far as a CPU allows within the hour.

No pretrained weights: crops at the scale at which the network will see whole photographs, so that a step costs a
seventh of one on the whole. ``python -m benchmarks.train_detector --out FILE`` from the root of the repository.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from spica.images import decode
from spica.training.sources import load

CLASSES = ("RBC", "WBC", "Platelets", "pear")
"""Of both data sets together: one network for all."""

CROPS = {"bccd": 180, "pear": 240}
"""Side of a crop in pixels, by data set: torchvision shows a network the shorter side at 800 pixels, so a crop of 180
from a photograph 480 high, and one of 240 from 640, are 300 there."""

_CROP_SIDE = 300
_BATCH = 4
_PEAK = 3e-4
"""Of AdamW's learning rate, reached after a warm-up, then down along a cosine."""
_WARM_UP_STEPS = 100

_Item = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64], int]


@dataclass(frozen=True)
class Options:
    """Of :func:`train`: the folder of the data sets, the file to write, and how long."""

    data: Path
    out: Path
    epochs: int


def main() -> None:
    """Train, and keep the weights of the last epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with bccd/ and pear/, a COCO json each")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=8)
    given = parser.parse_args()
    train(Options(given.data, given.out, given.epochs))


def train(options: Options) -> None:
    """Write a state_dict of torchvision's ``fasterrcnn_resnet50_fpn`` with BatchNorm2d."""
    torch.manual_seed(0)
    rng = random.Random(0)  # noqa: S311 - reproducible, not secret
    items = [item for name, crop in CROPS.items() for item in _items(options.data / name, crop)]
    model = fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=len(CLASSES) + 1,
        trainable_backbone_layers=5,
        min_size=_CROP_SIDE,
        max_size=2 * _CROP_SIDE,
        rpn_post_nms_top_n_train=500,
        box_batch_size_per_image=256,
    ).to(memory_format=torch.channels_last)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), _PEAK, weight_decay=1e-4)
    steps, began = options.epochs * (len(items) // _BATCH), time.monotonic()
    for step, batch in enumerate(_batches(items, options.epochs, rng)):
        for group in optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01
            group["lr"] = _PEAK * min(1.0, (step + 1) / _WARM_UP_STEPS) * cosine
        images, targets = zip(*(_crop(item, rng) for item in batch), strict=True)
        with torch.autocast("cpu", torch.bfloat16):
            losses: dict[str, Any] = model(list(images), list(targets))
        loss = torch.stack([each.float() for each in losses.values()]).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        if (step + 1) % 20 == 0:
            spent = time.monotonic() - began
            print(f"step {step + 1} of {steps}, loss {loss.item():.3f}, {spent / (step + 1):.2f} s a step", flush=True)
    partial = options.out.with_name(f".{options.out.name}")
    torch.save(model.state_dict(), partial)
    partial.replace(options.out)


def _items(folder: Path, crop: int) -> list[_Item]:
    items: list[_Item] = []
    for example in load(folder / "train.json", classes=CLASSES).examples:
        image = decode(example.path.read_bytes(), where=example.name, max_pixels=10**9)
        items.append((image.pixels, example.truth.boxes_xyxy, 1 + example.truth.class_ids, crop))
    return items


def _batches(items: list[_Item], epochs: int, rng: random.Random) -> Iterator[list[_Item]]:
    for _ in range(epochs):
        order = rng.sample(items, len(items))
        for first in range(0, len(order) - _BATCH + 1, _BATCH):
            yield order[first : first + _BATCH]


def _crop(item: _Item, rng: random.Random) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A random square, mostly around an object, turned over at random."""
    pixels, boxes, labels, crop = item
    height, width = pixels.shape[:2]
    side = int(crop * rng.uniform(0.85, 1.2))
    left, top = rng.randint(0, width - side), rng.randint(0, height - side)
    if len(boxes) and rng.random() < 0.8:
        x, y = (boxes[k := rng.randrange(len(boxes)), :2] + boxes[k, 2:]) / 2
        left = int(np.clip(x - rng.uniform(0.2, 0.8) * side, 0, width - side))
        top = int(np.clip(y - rng.uniform(0.2, 0.8) * side, 0, height - side))
    image = pixels[top : top + side, left : left + side]
    moved = boxes - np.array([left, top, left, top], np.float32)
    seen = moved.clip(0, side)
    part = (seen[:, 2:] - seen[:, :2]).prod(axis=1) / np.maximum((moved[:, 2:] - moved[:, :2]).prod(axis=1), 1e-6)
    keep = (part > 0.35) & ((seen[:, 2:] - seen[:, :2]) > 2).all(axis=1)
    seen, labels = seen[keep], labels[keep]
    if rng.random() < 0.5:
        image, seen = image[:, ::-1], np.stack([side - seen[:, 2], seen[:, 1], side - seen[:, 0], seen[:, 3]], axis=1)
    if rng.random() < 0.5:
        image, seen = image[::-1], np.stack([seen[:, 0], side - seen[:, 3], seen[:, 2], side - seen[:, 1]], axis=1)
    tensor = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255 * rng.uniform(0.8, 1.2)  # (3, side, side)
    target = {"boxes": torch.from_numpy(seen.reshape(-1, 4).copy()), "labels": torch.from_numpy(labels.copy())}
    return tensor.clamp(0, 1), target


if __name__ == "__main__":
    main()
