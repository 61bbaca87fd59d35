"""The network in torch: built from a state_dict, and written as an ONNX graph.

Everything here needs the extra ``spica[train]``. Only the conversion's child process and the detector for CUDA come
here, never the process that serves on a CPU.
"""

from __future__ import annotations

import io
import logging
import pickle
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spica.detectors.architecture import FASTER_RCNN, Norm, find_state_dict
from spica.errors import WeightsError

if TYPE_CHECKING:
    import torch

OPSET = 17
"""The newest opset of torch's tracing exporter with which the whole network came out right (the other exporter can't
trace torchvision's batched NMS)."""

_TRACE_SIDE_PX = 320
"""Side of the image with which the graph is traced; height and width stay free in the graph."""


def load_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file by key, on the CPU; nothing in the file is run.

    Raises:
        WeightsError: torch refuses the file.
    """
    import torch

    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise WeightsError(
            "torch can't read this weights file",
            where=str(path),
            expected="the state_dict of a torchvision detector",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            hint="save it again with torch.save(model.state_dict(), path)",
        ) from error
    state_dict = find_state_dict(found, is_tensor=lambda value: isinstance(value, torch.Tensor))
    if state_dict is None:
        raise WeightsError("no state_dict in this weights file", where=str(path))
    return state_dict


def build(
    state_dict: dict[str, torch.Tensor], *, norm: Norm, norm_eps: float, score_floor: float, max_detections: int
) -> torch.nn.Module:
    """The ``fasterrcnn_resnet50_fpn`` of torchvision with these weights, in evaluation mode, without any download.

    Args:
        state_dict: tensors by key; the number of classes is read from it.
        norm: the kind of batch norm the weights were trained with.
        norm_eps: eps of the batch norm.
        score_floor: boxes with a score not above it are dropped.
        max_detections: at most so many boxes an image.

    Raises:
        WeightsError: the keys or shapes are not this network's.
    """
    import torch
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d

    norm_class = FrozenBatchNorm2d if norm == "frozen" else torch.nn.BatchNorm2d
    num_classes = int(state_dict["roi_heads.box_predictor.cls_score.weight"].shape[0])
    # what fasterrcnn_resnet50_fpn() builds; called by its parts because it doesn't let the norm layer be chosen
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=norm_class, trainable_layers=5)
    model = FasterRCNN(backbone, num_classes, box_score_thresh=score_floor, box_detections_per_img=max_detections)
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:
        raise WeightsError(
            f"the weights don't fit {FASTER_RCNN}", got="; ".join(str(error).split("\n\t")[1:4]) or str(error)
        ) from error
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d | torch.nn.BatchNorm2d):
            module.eps = norm_eps
    model.eval()
    return model  # type: ignore[no-any-return]  # torchvision ships no types


def export_onnx(model: torch.nn.Module) -> bytes:
    """The network as an ONNX graph for one image of any size.

    Its input is ``image`` float32 (3, H, W), RGB in [0, 1]; its outputs are ``boxes`` float32 (N, 4) xyxy in pixels of
    that image, ``labels`` int64 (N,) counted from 1, and ``scores`` float32 (N,), descending.
    """
    import torch

    class OneImage(torch.nn.Module):
        """torchvision's detectors take lists of images and give lists of dicts; a graph has tensors."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            (answer,) = self.model([image])
            return answer["boxes"], answer["labels"], answer["scores"]

    graph = io.BytesIO()
    image = torch.rand(3, _TRACE_SIDE_PX, _TRACE_SIDE_PX, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the tracer warns of every Python branch; the result is verified instead
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            OneImage().eval(),
            (image,),
            graph,  # type: ignore[arg-type]  # the tracing exporter takes file objects too
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["boxes", "labels", "scores"],
            dynamic_axes={
                "image": {1: "height", 2: "width"},
                "boxes": {0: "count"},
                "labels": {0: "count"},
                "scores": {0: "count"},
            },
        )
    return graph.getvalue()
