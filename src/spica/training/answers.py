"""What a network in torch answers to the images of a data set. This module needs torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from spica.boxes import Detections
from spica.detectors.postprocess import postprocess
from spica.training.dataset import DataSet
from spica.training.photographs import Photographs, for_network, whole


def answers(
    network: nn.Module,
    photographs: Photographs,
    *,
    between: Callable[[], None] | None = None,
) -> list[Detections]:
    """One answer an image, in order, in pixels of the example's own size; the network's mode is left as it was.

    Args:
        network: one of torchvision's detection family.
        photographs: to look at.
        between: called before each image; what it raises ends the work.
    """
    found = []
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    try:
        for example, image, scale in whole(photographs):
            if between is not None:
                between()
            with torch.inference_mode():
                (answer,) = network([image.to(device)])
            size = example.truth.width, example.truth.height
            boxes = answer["boxes"].cpu() / scale
            labels, scores = answer["labels"].cpu(), answer["scores"].cpu()
            found.append(postprocess(boxes.numpy(), labels.numpy(), scores.numpy(), width=size[0], height=size[1]))
    finally:
        network.train(training)
    return found


def answer_with(weights: Path, data: DataSet) -> list[Detections]:
    """What weights of :func:`spica.training.loop.train` answer to the images of a data set, one an image, in order.

    Args:
        weights: a ``.safetensors`` file with its metadata.
        data: at least one example.

    Raises:
        WeightsError: they can't be used.
    """
    from spica.detectors.networks import build_from
    from spica.detectors.torchvision_export import load_state_dict
    from spica.detectors.weights import inspect

    info = inspect(weights)
    network = build_from(load_state_dict(weights), architecture=info.architecture, input_size=info.input_size)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return answers(network.to(device), for_network(data, network))
