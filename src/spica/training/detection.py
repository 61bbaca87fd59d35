"""What a network in torch detects on the images of a data set. This module needs torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from spica.boxes import Detections
from spica.detectors.postprocess import postprocess
from spica.training.dataset import DataSet
from spica.training.samples import TrainingImages, for_network, whole


def detect(
    network: nn.Module, images: TrainingImages, *, between: Callable[[], None] = lambda: None
) -> list[Detections]:
    """Detections of each image, in order, in pixels of the example's own size; the network's mode is left as it was.

    Args:
        network: one of torchvision's detection family.
        images: to detect in.
        between: called before each image; what it raises ends the work.
    """
    detections = []
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    try:
        for example, image, scale in whole(images):
            between()
            with torch.inference_mode():
                (output,) = network([image.to(device)])
            boxes, labels, scores = (output[name].cpu() for name in ("boxes", "labels", "scores"))
            width, height = example.truth.width, example.truth.height
            boxes = boxes / scale
            detections.append(postprocess(boxes.numpy(), labels.numpy(), scores.numpy(), width=width, height=height))
    finally:
        network.train(training)
    return detections


def detect_with(weights: Path, data: DataSet) -> list[Detections]:
    """The same by weights of :func:`spica.training.loop.train`, a ``.safetensors`` file with its metadata.

    Raises:
        WeightsError: they can't be used.
    """
    from spica.detectors.networks import build_from, load_state_dict
    from spica.detectors.weights import inspect

    info = inspect(weights)
    network = build_from(load_state_dict(weights), architecture=info.architecture, input_size=info.input_size)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return detect(network.to(device), for_network(data, network))
