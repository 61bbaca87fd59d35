"""RT-DETR and D-FINE as Hugging Face's transformers build them, against its own post-processing.

Random weights: what is compared is the reading of inputs and outputs, which the graphs of ``exported_builder`` only
repeat as we understood it.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from spica.boxes import clip_xyxy
from spica.demo.field import render_field
from spica.detectors import detr
from spica.detectors.exported import ExportedModel
from spica.detectors.weights import inspect

torch = pytest.importorskip("torch", reason="needs the extra spica[train]")
pytest.importorskip("onnx", reason="needs the extra spica[train]")
transformers = pytest.importorskip("transformers", reason="needs `pip install transformers`, which nothing else uses")

pytestmark = [pytest.mark.torch, pytest.mark.exhaustive]

SIDE = 64
QUERIES = 8**2 + 4**2 + 2**2
"""Every place of the maps: of fewer, rounding would decide which ones a network that has learned nothing takes."""

HIDDEN = [16, 32, 64, 128]
TINY: dict[str, Any] = {
    "d_model": 32,
    "encoder_hidden_dim": 32,
    "encoder_in_channels": HIDDEN[1:],
    "encoder_ffn_dim": 32,
    "encoder_attention_heads": 4,
    "decoder_in_channels": [32, 32, 32],
    "decoder_ffn_dim": 32,
    "decoder_attention_heads": 4,
    "decoder_layers": 2,
    "num_queries": QUERIES,
    "num_denoising": 0,
    "num_labels": 3,
}


def rt_detr() -> Any:
    """A tiny RT-DETR."""
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=16,
        hidden_sizes=HIDDEN,
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    return transformers.RTDetrForObjectDetection(transformers.RTDetrConfig(backbone_config=backbone, **TINY))


def d_fine() -> Any:
    """A tiny D-FINE."""
    backbone = transformers.HGNetV2Config(
        embedding_size=16,
        hidden_sizes=HIDDEN,
        depths=[1, 1, 1, 1],
        stem_channels=[3, 16, 16],
        stage_in_channels=[16, 16, 32, 64],
        stage_mid_channels=[16, 16, 32, 64],
        stage_out_channels=HIDDEN,
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )
    return transformers.DFineForObjectDetection(transformers.DFineConfig(backbone_config=backbone, **TINY))


class Raw(torch.nn.Module):  # type: ignore[name-defined, misc] # torch comes by importorskip
    """The two outputs of an export."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Any) -> Any:
        """Logits (1, Q, C), boxes (1, Q, 4)."""
        answer = self.model(pixel_values=pixel_values)
        return answer.logits, answer.pred_boxes


def export(model: Any, path: Path) -> Path:
    """As `optimum-cli export onnx` does: the same names of input and outputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Raw(model).eval(),  # else the exporter leaves it in training mode
            (torch.zeros(1, 3, SIDE, SIDE),),
            str(path),
            input_names=["pixel_values"],
            output_names=["logits", "pred_boxes"],
            opset_version=17,
            dynamo=False,
        )
    return path


@pytest.mark.parametrize("build", [rt_detr, d_fine])
def test_boxes_are_those_of_its_own_post_processing(build: Any, tmp_path: Path) -> None:
    """An exported network gives the boxes, classes and scores that transformers' image processor gives."""
    torch.manual_seed(0)
    model = build().eval()
    for name, parameter in model.named_parameters():
        if "class_embed" in name or "score_head" in name:
            torch.nn.init.normal_(parameter, std=0.5)  # scores that are spread
    image = render_field(900, width=400, height=300).pixels
    path = export(model, tmp_path / "model.onnx")
    info = inspect(path)
    assert (info.architecture, info.classes) == (detr.HUGGING_FACE, ("", "", ""))

    processor = transformers.RTDetrImageProcessor(size={"height": SIDE, "width": SIDE})
    with torch.inference_mode():
        outputs = model(**processor(images=image, return_tensors="pt"))
    ranked = np.sort(outputs.logits.sigmoid().numpy().ravel())[::-1]
    rank = 30 + int(np.argmax(ranked[30:60] - ranked[31:61]))
    floor = float(ranked[rank] + ranked[rank + 1]) / 2  # in a gap, so that rounding lets nobody in
    (ours,) = ExportedModel(path, info.classes, score_floor=floor, max_detections=QUERIES).detect([image])
    (theirs,) = processor.post_process_object_detection(outputs, threshold=floor, target_sizes=[image.shape[:2]])
    boxes = clip_xyxy(theirs["boxes"].numpy(), image.shape[1], image.shape[0])
    real = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    boxes, labels, scores = boxes[real], theirs["labels"].numpy()[real], theirs["scores"].numpy()[real]
    assert len(boxes) >= 10
    assert len(ours) == len(boxes)
    sides = np.abs(ours.boxes_xyxy[:, None] - boxes).max(axis=2)  # (N, N), in pixels
    differences = np.abs(ours.scores[:, None] - scores) + (ours.class_ids[:, None] != labels)
    rows, columns = linear_sum_assignment(sides + 100 * differences)
    assert sides[rows, columns].max() < 1
    assert differences[rows, columns].max() < 0.01
