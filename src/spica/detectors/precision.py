"""The arithmetics that a network can be computed in, and which of them this machine really has."""

from __future__ import annotations

import functools
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from spica.detectors.runtime import openvino_core

Arithmetic = Literal["f32", "bf16", "int8"]
"""``f32`` gives torch's own boxes. ``bf16`` keeps 8 of its 24 significant bits. ``int8`` computes the layers that have
weights in 8-bit integers, in a graph of its own, and the rest in f32, or in bf16 where that was clearly faster when
the graph was made; it says which, see :data:`REST`."""

REST: Final = ("spica", "rest")
"""Where an int8 graph names the arithmetic of its rest, among its runtime information."""

_BF16_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16", "avx_ne_convert"})
"""Of x86, as Linux names them: with one of them bfloat16 is multiplied by the processor and not imitated."""

_SIDE: Final = 1024
_LEAST_GAIN: Final = 1.3
"""bfloat16 in hardware is about twice as fast; imitated, it is as fast as f32 or slower."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What computes here.

    Attributes:
        processor: its name, as OpenVINO tells it.
        has: the arithmetics in which it is faster than in f32, and f32 itself.
        device: ``cuda`` for a GPU.
    """

    processor: str
    has: frozenset[Arithmetic]
    device: Literal["cpu", "cuda"] = "cpu"


@functools.cache
def machine() -> Machine:
    """This machine's processor; asked once a process, in a few tenths of a second. A GPU: :func:`load.gpu`.

    OpenVINO names bfloat16 on every processor with AVX-512, also where it only imitates it, with which nothing is won.
    So the processor is asked as well where the system tells (Linux), and elsewhere a multiplication is timed. On ARM
    (Apple's too) OpenVINO offers no bfloat16.
    """
    core = openvino_core()
    offered = set(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    has: set[Arithmetic] = {"f32"}
    if "BF16" in offered and _bf16_is_real(core):
        has.add("bf16")
    if "INT8" in offered:
        has.add("int8")
    return Machine(str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip(), frozenset(has))


def _bf16_is_real(core: Any) -> bool:
    flags = _linux_flags(Path("/proc/cpuinfo")) if sys.platform == "linux" and _is_x86() else None
    return bool(flags & _BF16_FLAGS) if flags else _bf16_is_faster(core)


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def _linux_flags(path: Path) -> frozenset[str] | None:
    """The flags of the first processor; None if they can't be read."""
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), None)


def _bf16_is_faster(core: Any) -> bool:
    """Whether a product of matrices takes clearly less time in bfloat16; some tenths of a second."""
    times = {precision: _seconds(core, precision) for precision in ("f32", "bf16")}
    return times["bf16"] * _LEAST_GAIN < times["f32"]


def _seconds(core: Any, precision: str) -> float:
    from openvino import Model, opset13

    values = np.random.default_rng(0).standard_normal((_SIDE, _SIDE)).astype(np.float32)
    given = opset13.parameter([_SIDE, _SIDE], np.float32)
    product = opset13.matmul(given, opset13.constant(values), False, False)
    hints = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(Model([product], [given]), "CPU", hints).create_infer_request()
    best = float("inf")
    for _ in range(6):  # the first prepares; the quickest of the others is the least disturbed
        started = time.perf_counter()
        request.infer([values])
        best = min(best, time.perf_counter() - started)
    return best
