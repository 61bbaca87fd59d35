"""From a weights file to tensors, and from the network in torch to an ONNX graph.

Everything here needs the extra ``spica[train]``. Only the conversion's child process and the detector for CUDA come
here, never the process that serves on a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spica.detectors.architecture import find_state_dict
from spica.detectors.scaled_size import ScaledSize
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
            with torch.serialization.safe_globals(_beside_tensors()):
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


def _beside_tensors() -> list[Any]:
    """What :data:`spica.detectors.tensors.ALLOWED_BESIDE_TENSORS` names, as torch's loader wants to be told."""
    import numpy as np

    from spica.detectors.tensors import ALLOWED_BESIDE_TENSORS

    multiarray = importlib.import_module("numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray")
    homes = {"argparse": argparse, "numpy": np}
    found = [
        (getattr(homes.get(path.rpartition(".")[0], multiarray), path.rpartition(".")[2]), path)
        for path in ALLOWED_BESIDE_TENSORS
    ]
    return [*found, *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"}]


@contextlib.contextmanager
def _exact_resize(model: torch.nn.Module) -> Iterator[None]:
    """Within it the network scales images to the size that it has untraced, and in a way that can be traced."""
    import torch

    transform: Any = model.transform
    if transform.fixed_size is not None:
        yield
        return
    scaled = ScaledSize(int(transform.min_size[-1]), int(transform.max_size))

    def resize(image: torch.Tensor, target: object = None) -> tuple[torch.Tensor, object]:
        height, width = scaled(torch._shape_as_tensor(image)[1:])  # of the result, int64 each
        resized = torch.nn.functional.interpolate(
            image[None],
            size=(height, width),  # numbers of the graph
            mode="bilinear",
            align_corners=False,
        )
        return resized[0], target

    transform.resize = resize
    try:
        yield
    finally:
        del transform.resize


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
    with warnings.catch_warnings(), torch.inference_mode(), _exact_resize(model):
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
