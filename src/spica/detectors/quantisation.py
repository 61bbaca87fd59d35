"""The int8 form of a graph, made in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spica.detectors.child import run
from spica.detectors.contract import USUAL_INPUT_SIZE

MAX_CALIBRATION_IMAGES = 16
"""More tell NNCF hardly anything new about the range of a layer's values, and each costs seconds with a large
network."""


def quantise(
    graph: Path,
    target: Path,
    images: Sequence[Path],
    *,
    max_pixels: int,
    sees: int = USUAL_INPUT_SIZE,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write the int8 form of a graph, calibrated with these photographs; what NNCF did, for the card.

    Takes a minute with a Faster R-CNN, and up to four gigabytes.

    Args:
        graph: ``.xml`` or ``.onnx``, with the input ``image``, float32 (3, H, W) in [0, 1].
        target: the ``.xml`` to write, with its ``.bin`` beside it.
        images: files, at least one that can be read. Others are left out: ``left_out`` of the answer names them.
        max_pixels: larger images are left out.
        sees: longer side in pixels to which the network shrinks an image; it is given none larger than twice that.
        progress: told what is being done, in a few words.

    Raises:
        WeightsError: NNCF is missing, or it can't quantise this network.
        ImageError: no photograph can be read.
        StorageError: the target can't be written.
    """
    request = {
        "graph": str(graph.resolve()),
        "target": str(target.resolve()),
        "images": [str(path.resolve()) for path in images],
        "max_pixels": max_pixels,
        "most_px": 2 * sees,
    }
    return run(
        "spica.detectors.quantise", request, what="quantisation", where=str(graph), needs="4 GB", progress=progress
    )
