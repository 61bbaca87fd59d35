"""How fast this machine can be: its own peak in each arithmetic, and what one look of a network costs in operations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from spica.detectors.contract import Precision
from spica.detectors.networks import build_from, load_state_dict
from spica.detectors.openvino import load_openvino, machine, openvino_core
from spica.images import decode

_CHANNELS, _SIDE, _KERNEL = 256, 200, 3
"""Of the convolution: the largest of those that most of Faster R-CNN's operations are in."""

_CHAIN = 3
"""So many after each other: of one alone, converting its input and output would weigh in int8."""

_RUNS = 6


class Peaks:
    """The seconds that a chain of convolutions takes in each arithmetic of this machine, pooled over the calls."""

    def __init__(self) -> None:
        self._flop = _CHAIN * 2 * _CHANNELS * _CHANNELS * _KERNEL**2 * _SIDE**2
        self._requests = {name: _request(name) for name in ("f32", "bf16", "int8") if name in machine().has}
        self._seconds: dict[str, list[float]] = {name: [] for name in self._requests}

    def measure(self, runs: int = _RUNS) -> None:
        """Run each arithmetic so many times, in turn. Call it before and after what is compared with it."""
        values = np.random.default_rng(0).random((1, _CHANNELS, _SIDE, _SIDE), np.float32)
        for request in self._requests.values():
            request.infer([values])  # prepares
        for _ in range(runs):
            for name, request in self._requests.items():
                started = time.perf_counter()
                request.infer([values], share_inputs=True, share_outputs=True)
                self._seconds[name].append(time.perf_counter() - started)

    def gflops(self) -> dict[str, tuple[float, float]]:
        """By arithmetic, operations a second in units of 10^9: by the middle time, and by the shortest."""
        return {
            name: (self._flop / median(seconds) / 1e9, self._flop / min(seconds) / 1e9)
            for name, seconds in self._seconds.items()
        }


def gflop_per_image(weights: Path, photographs: Sequence[Path]) -> float:
    """Operations of a look, in units of 10^9, the mean over the photographs: a multiplication and an addition are two.

    Counted by torch while its network looks at each photograph: convolutions and products of matrices, whose number
    depends on the photograph's size, and a little on how many proposals it gives.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = build_from(load_state_dict(weights))
    counted = []
    for path in photographs:
        pixels = decode(path.read_bytes(), where=str(path), max_pixels=10**9).pixels
        counter = FlopCounterMode(display=False)
        with torch.inference_mode(), counter:
            model([torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32) / 255])
        counted.append(counter.get_total_flops() / 1e9)
    return float(np.mean(counted))


def _request(precision: Precision) -> Any:
    """The chain, compiled as a network is."""
    openvino = load_openvino()
    from openvino import opset13

    rng = np.random.default_rng(0)
    shape = [1, _CHANNELS, _SIDE, _SIDE]
    given = node = opset13.parameter(shape, np.float32)
    for _ in range(_CHAIN):
        kernel = rng.standard_normal((_CHANNELS, _CHANNELS, _KERNEL, _KERNEL)).astype(np.float32) / 50
        if precision == "int8":
            node = _in_256_steps(node, 0.0, 1.0)
            weights = _in_256_steps(opset13.constant(kernel), -0.08, 0.08)
        else:
            weights = opset13.constant(kernel)
        node = opset13.relu(opset13.convolution(node, weights, [1, 1], [1, 1], [1, 1], [1, 1]))
    last = opset13.reduce_max(node, opset13.constant([2, 3]), False)  # a small answer: writing it costs nothing
    hint = "bf16" if precision == "bf16" else "f32"
    config = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    made = openvino_core().compile_model(openvino.Model([last], [given]), "CPU", config)
    return made.create_infer_request()


def _in_256_steps(node: Any, low: float, high: float) -> Any:
    from openvino import opset13

    ends = [opset13.constant(np.float32(end)) for end in (low, high, low, high)]
    return opset13.fake_quantize(node, *ends, 256)
