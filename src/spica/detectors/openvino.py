"""Detectors on a CPU, by OpenVINO: the graphs that Spica wrote, with the answers that torch would give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from spica.boxes import Detections
from spica.detectors.cleaning import MAX_ASPECT, cleaned, widened
from spica.detectors.compile_cache import compiled
from spica.detectors.contract import RGBImage, checked
from spica.detectors.precision import REST, Arithmetic
from spica.detectors.runtime import load_openvino, openvino_core
from spica.errors import WeightsError

_ALWAYS: Final = {"PERFORMANCE_HINT": "LATENCY", "CPU_RUNTIME_CACHE_CAPACITY": "100"}
"""One image at a time on all processors: batches and parallel streams are not faster, an image alone is slower then.

What the runtime prepares for an image's size it keeps for the next of that size: 5000 entries if not told otherwise, of
which each new size makes some ten, a megabyte in all."""

_CONFIG: Final[dict[Arithmetic, dict[str, str]]] = {
    # in float32 also where the processor could do less (bfloat16, or float16 on ARM)
    "f32": {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"},
    "bf16": {"INFERENCE_PRECISION_HINT": "bf16", "EXECUTION_MODE_HINT": "PERFORMANCE"},
    # what is not quantised: see hints
    "int8": {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "PERFORMANCE"},
}


def hints(precision: Arithmetic, rest: Arithmetic = "f32") -> dict[str, str]:
    """What OpenVINO is told: one image at a time, in this arithmetic.

    Args:
        precision: of the network.
        rest: of what is not quantised in an int8 graph. bf16 may cost more there, in converting, than it saves.
    """
    return _ALWAYS | _CONFIG[precision] | ({"INFERENCE_PRECISION_HINT": rest} if precision == "int8" else {})


class OpenVINODetector:
    """A graph with the input ``image`` and the outputs ``boxes``, ``labels`` and ``scores``, run on the CPU.

    Args:
        graph: ``.xml`` (with its ``.bin``) or ``.onnx``.
        classes: names by class id.
        threads: of the network; 0 lets the runtime choose.
        cache_dir: where the compiled graph is kept, so that the next start is fast; None keeps nothing.
        edit: changes the graph before it is compiled.
        precision: the arithmetic; ``int8`` wants a graph that was quantised. See :mod:`spica.detectors.precision` for
            what this machine has.

    Raises:
        WeightsError: OpenVINO can't run the graph.
    """

    def __init__(
        self,
        graph: Path,
        classes: tuple[str, ...],
        *,
        threads: int = 0,
        cache_dir: Path | None = None,
        edit: Callable[[Any], None] | None = None,
        precision: Arithmetic = "f32",
    ) -> None:
        self._classes = classes
        self._name = f"OpenVINO, {graph.name}"
        core = openvino_core()
        try:
            model = core.read_model(graph)
            if edit is not None:
                edit(model)
            self._aspect = _aspect(model)
            model = _with_photo_input(model)
            made = runnable(core, model, graph, threads=threads, cache_dir=cache_dir, precision=precision)
            self._request = made.create_infer_request()
            self._threads = int(made.get_property("INFERENCE_NUM_THREADS"))
        except RuntimeError as error:  # the one kind that OpenVINO raises
            raise WeightsError(
                "OpenVINO can't run this graph",
                where=str(graph),
                got=str(error).strip().splitlines()[-1],
                hint="export it again, or give the weights file it was made from",
            ) from error

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by class id; empty strings where the weights carry no names."""
        return self._classes

    @property
    def threads(self) -> int:
        """That the network is computed with."""
        return self._threads

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        """One answer per image, in order. Images are computed one after the other: a batch is not faster."""
        return [self._one(image) for image in images]

    def _one(self, image: RGBImage) -> Detections:
        height, width = image.shape[:2]
        self._request.infer({"image": np.ascontiguousarray(widened(image, self._aspect))})
        boxes, labels, scores = (self._request.get_tensor(name).data for name in ("boxes", "labels", "scores"))
        answer = cleaned(boxes, labels, scores, width=width, height=height)
        return checked(answer, classes=len(self._classes), width=width, height=height, detector=self._name)


def runnable(core: Any, model: Any, graph: Path, *, threads: int, cache_dir: Path | None, precision: Arithmetic) -> Any:
    """The model compiled for the CPU, from the cache if it is there.

    Args:
        core: OpenVINO's.
        model: made of ``graph``, always in the same way.
        graph: the file.
        threads: 0 lets the runtime choose.
        cache_dir: of this version of the model; None keeps nothing.
        precision: the arithmetic.

    Raises:
        RuntimeError: OpenVINO can't run it.
    """
    told = model.get_rt_info(list(REST)).astype(str) if model.has_rt_info(list(REST)) else "f32"
    rest: Arithmetic = "bf16" if told == "bf16" else "f32"
    config = hints(precision, rest) | ({"INFERENCE_NUM_THREADS": str(threads)} if threads else {})

    def compile_with(more: dict[str, str]) -> Any:
        return core.compile_model(model, "CPU", config | more)

    if cache_dir is None:
        return compile_with({})
    # a folder for each: OpenVINO would add what it compiles to another's, whose digests then were wrong
    release = load_openvino().__version__.split("-")[0]
    return compiled(compile_with, cache_dir / f"{release}_{graph.stem}-{precision}-t{threads}")


def _aspect(model: Any) -> int:
    """How many times as long as wide an image may be; graphs say it whose images are made smaller than most."""
    told = ["spica", "max_aspect"]
    return int(model.get_rt_info(told).astype(str)) if model.has_rt_info(told) else MAX_ASPECT


def _with_photo_input(model: Any) -> Any:
    """The graph with uint8 (H, W, 3) as its input instead of float32 (3, H, W) in [0, 1]: a quarter of the bytes."""
    openvino = load_openvino()
    from openvino.preprocess import PrePostProcessor

    processor = PrePostProcessor(model)
    image = processor.input("image")
    image.tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("HWC"))
    image.preprocess().convert_element_type(openvino.Type.f32).scale(255.0)
    image.model().set_layout(openvino.Layout("CHW"))
    return processor.build()
