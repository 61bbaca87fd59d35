"""bfloat16 in the layers, float32 in the boxes: each family of networks on images with large coordinates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spica.bench.untrained import few_proposals, spread_state_dict
from spica.detectors.torchvision import TorchvisionDetector
from spica.detectors.verification import rendered_images

torch = pytest.importorskip("torch", reason="needs the extra spica[train]")
pytestmark = pytest.mark.torch

FASTER_RCNN = "fasterrcnn_mobilenet_v3_large_320_fpn"
SIDES = np.array([3203, 2401])


def photograph() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """So large that most boxes lie beyond 1024 pixels."""
    with Image.fromarray(next(rendered_images())[:240, :320]) as small:
        return np.array(small.resize((3203, 2401), Image.Resampling.BICUBIC))


def answers(architecture: str, folder: Path) -> tuple[Any, Any]:
    """What a network answers in 32 bits and in 16, on the CPU."""
    size = None if "320" in architecture else (96, 160)
    weights = folder / "w.pth"
    torch.save(spread_state_dict(architecture, input_size=size), weights)
    found = []
    for half in (False, True):
        detector = TorchvisionDetector(
            weights, ("a",), norm_eps=None, score_floor=0.05, max_detections=100, device="cpu", half=half
        )
        if size is not None:  # their own would take minutes where bfloat16 is imitated
            transform: Any = detector._model.transform
            transform.min_size, transform.max_size = size[:1], size[1]
        few_proposals(detector._model)
        found.append(detector.detect([photograph()])[0])
    return found[0], found[1]


@pytest.mark.parametrize(
    "architecture",
    [
        FASTER_RCNN,
        "ssdlite320_mobilenet_v3_large",
        pytest.param("retinanet_resnet50_fpn", marks=pytest.mark.slow),
        pytest.param("fcos_resnet50_fpn", marks=pytest.mark.slow),
    ],
)
def test_boxes_of_16_bits_lie_between_its_numbers(architecture: str, tmp_path: Path) -> None:
    """In bfloat16 all numbers above 1024 are multiples of 8: those of the boxes are not, though the scores differ."""
    exact, half = answers(architecture, tmp_path)
    far = half.boxes_xyxy[(half.boxes_xyxy > 1024) & (half.boxes_xyxy < np.tile(SIDES, 2))]
    assert len(far) > 20
    assert (far % 8 == 0).mean() < 0.05
    assert not np.array_equal(exact.scores, half.scores)
