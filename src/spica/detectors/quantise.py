"""The process that makes the int8 form of a graph, with NNCF and the user's own photographs.

Started by :mod:`spica.detectors.quantisation`: NNCF takes seconds to import and gigabytes to work. It is given one line
of JSON on its standard input and puts out lines of JSON: ``{"progress": …}``, and at the end ``{"done": …}`` or
``{"error": …}``. When its input ends, its parent has gone, and it ends too.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from spica.detectors.child import answer
from spica.detectors.contract import Precision
from spica.detectors.openvino import REST, hints, load_openvino, machine, openvino_core
from spica.detectors.postprocess import pad_extreme_aspect, shrink
from spica.detectors.quantisation_scope import float_nodes, quantised_consumers
from spica.errors import ImageError, WeightsError
from spica.files import storage_error
from spica.images import decode

_LOOKS: Final = 4
_LEAST_GAIN: Final = 1.1
"""A gain of a tenth is worth the bits."""


def quantise(request: dict[str, Any], progress: Callable[[str], None]) -> dict[str, Any]:
    """Write the int8 form of ``request["graph"]`` to ``request["target"]``; how many nodes were quantised.

    Raises:
        ImageError: no photograph can be read.
        WeightsError: NNCF is missing, or it can't quantise this graph.
        StorageError: the target can't be written.
    """
    progress("loading NNCF")
    nncf = _require_nncf()
    openvino = load_openvino()
    graph, target = Path(request["graph"]), Path(request["target"])
    model = openvino_core().read_model(graph)
    photographs = _Photographs(request, progress)
    try:
        quantised = nncf.quantize(
            model,
            nncf.Dataset(photographs),
            subset_size=len(request["images"]),
            target_device=nncf.TargetDevice.CPU,
            # asymmetric activations: hard-swish and SiLU, of the lighter networks, go below zero only a little
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=float_nodes(model), validate=False),
            # Of all photographs, not the mean of each: what only few of them show, a rare class, would be cut off
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX
            ),
        )
    except (RuntimeError, ValueError, nncf.InternalError, nncf.ValidationError) as error:  # NNCF's and OpenVINO's own
        raise WeightsError(
            "NNCF can't quantise this network",
            where=str(graph),
            got=f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error) else ''}",
            hint="serve it with --precision f32 or bf16",
        ) from error
    progress("measuring in which arithmetic the rest of it is faster")
    rest = _faster_rest(quantised, photographs)
    quantised.set_rt_info(rest, list(REST))
    progress("writing the int8 form")
    try:
        openvino.save_model(quantised, target, compress_to_fp16=False)
    except (OSError, RuntimeError) as error:  # the latter is what OpenVINO makes of a full disk
        raise storage_error(OSError(0, str(error).strip().splitlines()[-1]), target) from error
    left_out = sorted(photographs.left_out)
    return {
        "images": len(request["images"]) - len(left_out),
        "left_out": left_out,
        "quantised_nodes": len(quantised_consumers(quantised)),
        "rest": rest,
    }


def _faster_rest(model: Any, photographs: _Photographs) -> Precision:
    """The arithmetic for what is not quantised: bf16 where this machine has it and is clearly faster with it."""
    if "bf16" not in machine().has:
        return "f32"
    core = openvino_core()
    given = next(iter(photographs))
    rests: tuple[Precision, ...] = ("f32", "bf16")
    requests = {rest: core.compile_model(model, "CPU", hints("int8", rest)).create_infer_request() for rest in rests}
    times: dict[Precision, float] = dict.fromkeys(rests, float("inf"))
    for _ in range(_LOOKS):  # in turn, so that a busy moment slows both; the first prepares
        for rest, request in requests.items():
            started = time.perf_counter()
            request.infer(given)
            times[rest] = min(times[rest], time.perf_counter() - started)
    return faster(times)


def faster(times: Mapping[Precision, float]) -> Precision:
    """bf16 if its seconds are clearly fewer than those of f32, whose answers are nearer to the network's own."""
    return "bf16" if times["bf16"] * _LEAST_GAIN < times["f32"] else "f32"


class _Photographs:
    """What the graph is given, one after the other; NNCF goes through them several times.

    A photograph that can't be read any more is left out: somebody may tidy the folder up in the minutes that it takes.
    """

    def __init__(self, request: dict[str, Any], progress: Callable[[str], None]) -> None:
        self._paths: list[str] = request["images"]
        self._max_pixels: int = request["max_pixels"]
        self._most_px: int = request["most_px"]
        self._progress = progress
        self.left_out: set[str] = set()

    def __iter__(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        last: ImageError | None = None
        for position, path in enumerate(self._paths):
            self._progress(f"looking at photograph {position + 1} of {len(self._paths)}")
            try:
                pixels = decode(_content(Path(path)), where=path, max_pixels=self._max_pixels).pixels
            except ImageError as error:
                self.left_out.add(path)
                last = error
                continue
            yield {"image": _as_input(shrink(pixels, self._most_px))}
        if last is not None and len(self.left_out) == len(self._paths):
            raise last


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError("an image file can't be read", where=str(path), got=error.strerror) from error


def _as_input(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the graph takes: float32 (3, H, W) in [0, 1]."""
    return pad_extreme_aspect(pixels).transpose(2, 0, 1).astype(np.float32) / np.float32(255)


def _require_nncf() -> Any:
    hint = 'pip install "spica[optimise]"; it is needed only to make an int8 form, never to serve one'
    load_openvino()  # which switches usage reports off, NNCF's too
    try:
        import nncf
    except ModuleNotFoundError as error:
        raise WeightsError(
            "NNCF is needed to make an int8 form, and it is not installed", got=str(error), hint=hint
        ) from error
    except (ImportError, OSError) as error:
        raise WeightsError(
            "NNCF is installed, but it can't be loaded", got=str(error), hint=f"install it again: {hint}"
        ) from error
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf


if __name__ == "__main__":
    sys.exit(answer(quantise))
