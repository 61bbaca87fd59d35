"""bfloat16 in the layers, float32 in the boxes: each family of networks on images with large coordinates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spica.detectors.comparison import rendered_images
from spica.detectors.torch_gpu import TorchDetector
from untrained import spread_state_dict

torch = pytest.importorskip("torch", reason="needs the extra spica[train]")
torchvision = pytest.importorskip("torchvision", reason="needs the extra spica[train]")
pytestmark = pytest.mark.torch

from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator  # noqa: E402 - only where it is installed
from torchvision.models.detection.ssd import SSD  # noqa: E402

from spica.detectors.torch_gpu import compute_in_bf16  # noqa: E402

SIDES = np.array([3203, 2401])


def photograph() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """So large that most boxes lie beyond 1024 pixels."""
    with Image.fromarray(next(rendered_images())[:240, :320]) as small:
        return np.array(small.resize((3203, 2401), Image.Resampling.BICUBIC))


def beyond_1024(boxes_xyxy: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Coordinates above 1024 that are not those of the image's edge."""
    return boxes_xyxy[(boxes_xyxy > 1024) & (boxes_xyxy < np.tile(SIDES, 2))]


def network_of(family: str) -> Any:
    """A network of torchvision's around a backbone of one layer: its own would take minutes where bf16 is imitated."""
    torch.manual_seed(0)
    backbone: Any = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 16, stride=16))
    backbone.out_channels = [32] if family == "SSD" else 32
    anchors = AnchorGenerator(sizes=((48,),), aspect_ratios=((1.0,),))
    options: dict[str, Any] = {
        "FasterRCNN": {"num_classes": 3, "rpn_anchor_generator": anchors, "box_score_thresh": 0.0},
        "RetinaNet": {"num_classes": 2, "anchor_generator": anchors, "score_thresh": 0.0},
        "FCOS": {"num_classes": 2, "anchor_generator": anchors, "score_thresh": 0.0},
        "SSD": {"num_classes": 3, "anchor_generator": DefaultBoxGenerator([[2]]), "score_thresh": 0.0},
    }[family]
    if family == "SSD":
        return SSD(backbone, size=(160, 160), **options).eval()
    return getattr(torchvision.models.detection, family)(backbone, min_size=96, max_size=160, **options).eval()


@pytest.mark.parametrize("family", ["FasterRCNN", "RetinaNet", "FCOS", "SSD"])
def test_boxes_of_16_bits_lie_between_its_numbers(family: str) -> None:
    """In bfloat16 all numbers above 1024 are multiples of 8: those of the boxes are not, though the scores differ."""
    network = network_of(family)
    for name, parameter in network.named_parameters():
        if "bbox_pred.weight" in name or "bbox_reg.weight" in name or "regression_head.module_list" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    pixels = torch.from_numpy(photograph()).permute(2, 0, 1).to(torch.float32) / 255
    with torch.inference_mode():
        (exact,) = network([pixels])
        compute_in_bf16(network)
        (answer,) = network([pixels])
    far = beyond_1024(answer["boxes"].numpy())
    assert len(far) > 20
    assert (far % 8 == 0).mean() < 0.05
    assert not torch.equal(exact["scores"], answer["scores"])


def test_the_detector_computes_no_boxes_in_16_bits(tmp_path: Path) -> None:
    """The same through what the server asks, told to compute in 16 bits."""
    torch.save(spread_state_dict("ssdlite320_mobilenet_v3_large"), tmp_path / "w.pth")
    detector = TorchDetector(
        tmp_path / "w.pth", ("a",), norm_eps=None, score_floor=0.05, max_detections=100, device="cpu", bf16=True
    )
    far = beyond_1024(detector.detect([photograph()])[0].boxes_xyxy)
    assert len(far) > 20
    assert (far % 8 == 0).mean() < 0.05
