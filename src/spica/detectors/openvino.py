"""Networks on a CPU, by OpenVINO: its one core, the precisions it has here, its cache, and the graphs Spica wrote."""

from __future__ import annotations

import errno
import functools
import json
import logging
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import numpy as np

from spica.boxes import Detections
from spica.detectors.contract import Precision, RGBImage, checked, input_size_of
from spica.detectors.postprocess import MAX_ASPECT, pad_extreme_aspect, postprocess
from spica.errors import StorageError, WeightsError
from spica.files import discard, put_in_place, remove, scratch, sha256_file, storage_error

logger = logging.getLogger(__name__)

T = TypeVar("T")

GRAPH_FORMAT: Final = "1"
"""Value of ``spica.format`` in the metadata of the graphs that are served."""

REST: Final = ("spica", "rest")
"""Where an int8 graph names the precision of what is not quantised, among its runtime information."""

_ALWAYS: Final = {"PERFORMANCE_HINT": "LATENCY", "CPU_RUNTIME_CACHE_CAPACITY": "100"}
"""One image at a time on all processors: batches and parallel streams are not faster, an image alone is slower then.

What the runtime prepares for an image's size it keeps for the next of that size: 5000 entries by default, of which each
new size makes some ten, a megabyte in all."""

_CONFIG: Final[dict[Precision, dict[str, str]]] = {
    # in float32 also where the processor could do less (bfloat16, or float16 on ARM)
    "f32": {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"},
    "bf16": {"INFERENCE_PRECISION_HINT": "bf16", "EXECUTION_MODE_HINT": "PERFORMANCE"},
    "int8": {"EXECUTION_MODE_HINT": "PERFORMANCE"},  # its rest: see hints
}

_FULL_BYTES: Final = 16 * 2**20
"""With less space left, a failure to write is put down to that."""

_DIGESTS: Final = "digests.json"
_CORE_LOCK = threading.Lock()


# --- the runtime


def load_openvino() -> Any:
    """The module ``openvino``, without the usage reports that importing it would send.

    It reports the import to its maker's web analytics, from a process that it forks off our threads: nothing should
    leave a user's machine unasked, and a fork beside threads can hang and keep us from ending. Without its reporting
    package OpenVINO uses its own stub (``openvino/tools/ovc/telemetry_utils.py``).
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None makes its import fail
    import openvino

    return openvino


def openvino_core() -> Any:
    """The process's one ``openvino.Core``, which lasts as long as the process; threads may share it.

    On Linux a core gives the thread that first uses it a stack of its own for signals, and takes it back when the core
    goes. With two cores that go in the order they came, or one that goes in another thread, the thread is left with a
    stack that is no longer there, and the next signal (Ctrl-C) is a segmentation fault: ``SigAltStackSetup`` in
    OpenVINO's ``src/plugins/intel_cpu/src/plugin.cpp``, seen with 2026.4. A core that stays has no such end.
    """
    with _CORE_LOCK:  # two threads at once must not make two
        return _core()


@functools.cache
def _core() -> Any:
    return load_openvino().Core()


@dataclass(frozen=True, slots=True)
class Machine:
    """What computes here.

    Attributes:
        processor: its name, as OpenVINO tells it.
        has: the precisions in which it is faster than in f32, and f32 itself.
        device: ``cuda`` for a GPU.
    """

    processor: str
    has: frozenset[Precision]
    device: Literal["cpu", "cuda"] = "cpu"


@functools.cache
def machine() -> Machine:
    """This machine's processor; asked once a process.

    OpenVINO offers bfloat16 on every processor with AVX-512, also where it only imitates it, with which nothing is won.
    By default it computes in it only where the processor multiplies bfloat16 itself, so the default is what counts.
    """
    from openvino import Model, opset13

    core = openvino_core()
    image = opset13.parameter([1, 1], np.float32)
    probe = core.compile_model(Model([opset13.relu(image)], [image]), "CPU", {"EXECUTION_MODE_HINT": "PERFORMANCE"})
    has: set[Precision] = {"f32"}
    if probe.get_property("INFERENCE_PRECISION_HINT") == load_openvino().Type.bf16:
        has.add("bf16")
    if "INT8" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        has.add("int8")
    return Machine(str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip(), frozenset(has))


def hints(precision: Precision, rest: Precision = "f32") -> dict[str, str]:
    """OpenVINO's settings for one image at a time in this precision.

    Args:
        precision: of the network.
        rest: of what is not quantised in an int8 graph. bf16 may cost more there, in converting, than it saves.
    """
    return _ALWAYS | _CONFIG[precision] | ({"INFERENCE_PRECISION_HINT": rest} if precision == "int8" else {})


def compile_graph(model: Any, graph: Path, *, threads: int, cache_dir: Path | None, precision: Precision) -> Any:
    """The model compiled for the CPU, from the cache if it is there.

    Args:
        model: OpenVINO's, made of ``graph`` always in the same way.
        graph: the file.
        threads: 0 lets the runtime choose.
        cache_dir: of this version of the model; None keeps nothing.
        precision: of the network.

    Raises:
        RuntimeError: OpenVINO can't run it.
    """
    rest: Precision = "bf16" if _rt_info(model, *REST) == "bf16" else "f32"
    config = hints(precision, rest) | ({"INFERENCE_NUM_THREADS": str(threads)} if threads else {})

    def compile_with(more: dict[str, str]) -> Any:
        return openvino_core().compile_model(model, "CPU", config | more)

    if cache_dir is None:
        return compile_with({})
    # a folder for each: OpenVINO would add what it compiles to another's, whose digests then were wrong
    release = load_openvino().__version__.split("-")[0]
    return cached(compile_with, cache_dir / f"{release}_{graph.stem}-{precision}-t{threads}")


def _rt_info(model: Any, *path: str) -> str | None:
    """An entry of a model's runtime information as text; None if it is not there."""
    return str(model.get_rt_info(list(path)).astype(str)) if model.has_rt_info(list(path)) else None


def last_line(error: Exception) -> str:
    """What OpenVINO's message ends with: before it are only places in its source."""
    return str(error).strip().splitlines()[-1]


def save_graph(model: Any, path: Path, info: Mapping[str, str]) -> None:
    """Write a graph as ``.xml`` and ``.bin``, with texts under ``spica`` in its runtime information.

    Raises:
        StorageError: the folder can't be written.
    """
    for key, value in info.items():
        model.set_rt_info(value, ["spica", key])
    try:
        load_openvino().save_model(model, path, compress_to_fp16=False)  # float16, the default, would move boxes
    except OSError as error:
        raise storage_error(error, path) from error
    except RuntimeError as error:  # what OpenVINO makes of a disk that is full, and of any other failure
        full = path.parent.is_dir() and shutil.disk_usage(path.parent).free < _FULL_BYTES
        reason = OSError(errno.ENOSPC, "No space left on device") if full else OSError(errno.EIO, last_line(error))
        raise storage_error(reason, path) from error


# --- the cache of compiled models


def cached(compile_with: Callable[[dict[str, str]], T], folder: Path) -> T:
    """What ``compile_with`` gives, from the cache in ``folder`` if it is sound; else compiled anew and kept there.

    OpenVINO takes a damaged file of its cache for whole, and then fails or computes nonsense: the cache is used only
    while its digests are the ones written beside it. One that can't be written is no failure.

    Args:
        compile_with: compiles, with these settings of OpenVINO's besides its own.
        folder: this cache's own, named ``<version of the runtime>_<what was compiled>``. Siblings that other versions
            of the runtime wrote are removed.
    """
    try:
        if folder.exists():
            if _sound(folder):
                return compile_with({"CACHE_DIR": str(folder)})
            logger.warning("the compiled model in %s is damaged; compiling it again", folder)
            discard(folder)
        return _fill(compile_with, folder)
    except (StorageError, OSError, RuntimeError) as error:  # OpenVINO raises RuntimeError only
        logger.warning("the cache of compiled models in %s can't be used: %s", folder, error)
        remove(folder)
        return compile_with({})


def _fill(compile_with: Callable[[dict[str, str]], T], folder: Path) -> T:
    with scratch(folder.parent) as aside:
        compiled = compile_with({"CACHE_DIR": str(aside)})
        digests = {path.name: sha256_file(path) for path in sorted(aside.iterdir()) if path.is_file()}
        (aside / _DIGESTS).write_text(json.dumps(digests), "utf-8")
        if put_in_place(aside, folder):
            runtime = folder.name.partition("_")[0]
            for other in folder.parent.iterdir():
                if other.name.partition("_")[0] != runtime and not other.name.startswith("."):
                    remove(other)
    return compiled


def _sound(folder: Path) -> bool:
    try:
        digests = json.loads((folder / _DIGESTS).read_text("utf-8"))
        actual = {path.name: sha256_file(path) for path in folder.iterdir() if path.name != _DIGESTS}
    except (OSError, ValueError):
        return False
    return bool(digests == actual)


# --- the graphs that Spica wrote


class OpenVINODetector:
    """A graph with the input ``image`` and the outputs ``boxes``, ``labels`` and ``scores``, run on the CPU.

    Args:
        graph: ``.xml`` (with its ``.bin``) or ``.onnx``.
        classes: names by class id.
        threads: of the network; 0 lets the runtime choose.
        cache_dir: where the compiled graph is kept, so that the next start is fast; None keeps nothing.
        edit: changes the graph before it is compiled.
        precision: ``int8`` wants a graph that was quantised. See :func:`machine` for what this machine has.

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
        precision: Precision = "f32",
    ) -> None:
        self.classes = classes
        self._name = f"OpenVINO, {graph.name}"
        try:
            model = openvino_core().read_model(graph)
            if edit is not None:
                edit(model)
            architecture = _rt_info(model, "spica", "architecture") or _rt_info(
                model, "framework", "spica.architecture"
            )
            self.input_size = input_size_of(architecture or "")
            self._aspect = int(_rt_info(model, "spica", "max_aspect") or MAX_ASPECT)  # of networks with small inputs
            model = _with_uint8_input(model)
            compiled = compile_graph(model, graph, threads=threads, cache_dir=cache_dir, precision=precision)
            self._request = compiled.create_infer_request()
            self.threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        except RuntimeError as error:  # the one kind that OpenVINO raises
            raise WeightsError(
                "OpenVINO can't run this graph",
                where=str(graph),
                got=last_line(error),
                hint="export it again, or give the weights file it was made from",
            ) from error

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        """One answer per image, in order. Images are computed one after the other: a batch is not faster."""
        return [self._detect_one(image) for image in images]

    def _detect_one(self, image: RGBImage) -> Detections:
        height, width = image.shape[:2]
        self._request.infer({"image": np.ascontiguousarray(pad_extreme_aspect(image, self._aspect))})
        boxes, labels, scores = (self._request.get_tensor(name).data for name in ("boxes", "labels", "scores"))
        detections = postprocess(boxes, labels, scores, width=width, height=height)
        return checked(detections, classes=len(self.classes), width=width, height=height, detector=self._name)


def _with_uint8_input(model: Any) -> Any:
    """The graph with uint8 (H, W, 3) as its input instead of float32 (3, H, W) in [0, 1]: a quarter of the bytes."""
    openvino = load_openvino()
    from openvino.preprocess import PrePostProcessor

    processor = PrePostProcessor(model)
    image = processor.input("image")
    image.tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("HWC"))
    image.preprocess().convert_element_type(openvino.Type.f32).scale(255.0)
    image.model().set_layout(openvino.Layout("CHW"))
    return processor.build()
