"""What is measured on: photographs that all methods read alike, rendered ones without any; and untrained weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spica.detectors.architecture import FASTER_RCNN
from spica.errors import ImageError, UsageError, WeightsError
from spica.images import READABLE
from spica.models.checks import read, spread

ARCHITECTURE = FASTER_RCNN
"""The tutorial's."""

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_RENDERED = 4
_SIDE_PX = 1024
"""Of GWHD's photographs, with which the tutorial works."""


@dataclass(frozen=True, slots=True)
class Photographs:
    """What is looked at.

    Attributes:
        paths: files that every way reads the same pixels from.
        notes: what was left out or replaced, a sentence each.
    """

    paths: list[Path]
    notes: list[str]


def choose_photographs(folder: Path | None, scratch: Path, *, most: int, max_pixels: int) -> Photographs:
    """At most ``most`` photographs of a folder, spread over it; rendered ones in ``scratch`` without a folder.

    What can't be read is left out, and another taken in its place. Where Pillow alone gives other pixels than
    :mod:`spica.images` (of a photograph that only its EXIF block turns upright, say), the tutorial's way would look at
    another picture, and its boxes could not be compared: a copy in ``scratch`` is looked at instead.

    Args:
        folder: of the person's own; None for none.
        scratch: for what is written.
        most: photographs.
        max_pixels: larger ones are left out.

    Raises:
        UsageError: no such folder, or no photographs in it that can be read.
    """
    if folder is None:
        return Photographs(_rendered(scratch, min(most, _RENDERED)), [])
    if not folder.is_dir():
        raise UsageError(
            "there is no such folder", where="--images", expected="a folder of photographs", got=str(folder)
        )
    files = sorted(path.resolve() for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not files:
        raise UsageError("there are no photographs in this folder", where=str(folder), expected=f"files in {READABLE}")
    paths: list[Path] = []
    unread: list[ImageError] = []
    copied: list[Path] = []
    for path in _spread_first(files, most):
        if len(paths) == most:
            break
        try:
            pixels = read(path, max_pixels=max_pixels).pixels
        except ImageError as error:
            unread.append(error)
            continue
        if not _read_alike(path, pixels):
            copied.append(path)
            path = _copy(pixels, scratch / f"{len(paths)}-{path.stem}.png")
        paths.append(path)
    if not paths:
        raise UsageError(
            "none of the photographs in this folder can be read",
            where=str(folder),
            expected=f"files in {READABLE}",
            got=f"{len(unread)} that can't be read, the first: {unread[0].summary}",
        )
    notes = []
    if unread:
        notes.append(f"{len(unread)} photographs were left out, the first: {unread[0].summary}")
    if copied:
        names = ", ".join(path.name for path in copied)
        notes.append(f"looked at as upright copies, which the tutorial's way does not make itself: {names}")
    return Photographs(paths, notes)


def _spread_first(paths: Sequence[Path], count: int) -> Iterator[Path]:
    """``count`` of the paths, evenly spread; then the others."""
    chosen = spread(paths, count)
    yield from chosen
    yield from (path for path in paths if path not in set(chosen))


def _read_alike(path: Path, pixels: NDArray[np.uint8]) -> bool:
    """Whether the tutorial's way, Pillow by itself, reads the same pixels, uint8 (H, W, 3)."""
    import warnings

    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as opened:  # of large photographs, odd EXIF
            return np.array_equal(np.asarray(opened.convert("RGB")), pixels)
    except Exception:  # noqa: BLE001 - Pillow's readers raise nearly anything
        return False


def _copy(pixels: NDArray[np.uint8], path: Path) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)  # decoding it must not cost more than a photograph
    return path


def _rendered(folder: Path, count: int) -> list[Path]:
    from PIL import Image

    from spica.demo.field import DEMO_FIRST_SEED, render_field

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"field-{number}.jpg" for number in range(1, count + 1)]
    for number, path in enumerate(paths):
        pixels = render_field(DEMO_FIRST_SEED + number, width=_SIDE_PX, height=_SIDE_PX).pixels
        Image.fromarray(pixels).save(path, quality=90)
    return paths


def untrained_weights(path: Path) -> Path:
    """Write a state_dict of the tutorial's network, with one class, that has learned nothing.

    Raises:
        WeightsError: torch is not installed.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise WeightsError(
            "torch is needed to measure the tutorial's way", got=str(error), hint='pip install "spica[train]"'
        ) from error
    from spica.detectors.networks import build

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state_dict = build(ARCHITECTURE, 2).state_dict()
        spread_faster_rcnn(state_dict)
    torch.save(state_dict, path)
    return path


def spread_faster_rcnn(state_dict: dict[str, Any]) -> None:
    """Change fresh weights of ``fasterrcnn_resnet50_fpn`` so that a photograph gives a few hundred boxes.

    ResNet-50 is too deep to be settled by one image: rounding would decide its answers. These constants, found by
    trial, keep each layer's variance.
    """
    for key, value in state_dict.items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif key.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif ".bn3." in key and key.endswith("weight"):
            value.fill_(0.3)  # else each block doubles the variance
    state_dict["rpn.head.conv.0.0.weight"].mul_(4)
    state_dict["rpn.head.cls_logits.weight"].mul_(8)
    state_dict["rpn.head.bbox_pred.weight"].mul_(3)
    scores = state_dict["roi_heads.box_predictor.cls_score.weight"]
    scores.sub_(scores.mean(dim=1, keepdim=True)).mul_(40)
    state_dict["roi_heads.box_predictor.cls_score.bias"][0] = 2.5  # the background wins here and there
    state_dict["roi_heads.box_predictor.bbox_pred.weight"].mul_(4)
