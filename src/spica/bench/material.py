"""What a measurement is made on if the person gives nothing: the tutorial's architecture, and rendered photographs."""

from __future__ import annotations

from pathlib import Path

from spica.detectors.architecture import FASTER_RCNN
from spica.errors import UsageError, WeightsError
from spica.images import READABLE

ARCHITECTURE = FASTER_RCNN
"""The tutorial's."""

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_RENDERED = 4
_SIDE_PX = 1024
"""Of GWHD's photographs, with which the tutorial works."""


def photographs(folder: Path | None, scratch: Path, *, most: int) -> list[Path]:
    """At most ``most`` photographs of a folder, spread over it; rendered ones in ``scratch`` without a folder.

    Raises:
        UsageError: no such folder, or no photographs in it.
    """
    if folder is None:
        return _rendered(scratch, min(most, _RENDERED))
    if not folder.is_dir():
        raise UsageError(
            "there is no such folder", where="--images", expected="a folder of photographs", got=str(folder)
        )
    found = sorted(path.resolve() for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not found:
        raise UsageError("there are no photographs in this folder", where=str(folder), expected=f"files in {READABLE}")
    return found[:: max(1, len(found) // most)][:most]


def _rendered(folder: Path, count: int) -> list[Path]:
    from PIL import Image

    from spica.demo.field import DEMO_FIRST_SEED, render_field

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"field-{number}.jpg" for number in range(1, count + 1)]
    for number, path in enumerate(paths):
        pixels = render_field(DEMO_FIRST_SEED + number, width=_SIDE_PX, height=_SIDE_PX).pixels
        Image.fromarray(pixels).save(path, quality=90)
    return paths


def untrained_weights(path: Path, architecture: str = ARCHITECTURE) -> Path:
    """Write a state_dict, with one class, of an architecture that has learned nothing (:mod:`spica.bench.untrained`).

    Raises:
        WeightsError: torch is not installed.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise WeightsError(
            "torch is needed to measure the tutorial's way", got=str(error), hint='pip install "spica[train]"'
        ) from error
    from spica.bench.untrained import state_dict_for

    torch.save(state_dict_for(architecture), path)
    return path
