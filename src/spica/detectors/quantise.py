"""The process that makes the int8 form of a graph, with NNCF and the user's own photographs.

Started by :mod:`spica.detectors.quantisation`: NNCF takes seconds to import and gigabytes to work. It is given one line
of JSON on its standard input and puts out lines of JSON: ``{"progress": …}``, and at the end ``{"done": …}`` or
``{"error": …}``. When its input ends, its parent has gone, and it ends too.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spica.detectors.child import answer
from spica.detectors.cleaning import widened
from spica.detectors.quantisation_scope import float_nodes, quantised_consumers
from spica.detectors.runtime import load_openvino
from spica.detectors.scratch import storage_error
from spica.errors import WeightsError
from spica.images import decode


def quantise(request: dict[str, Any], progress: Callable[[str], None]) -> dict[str, Any]:
    """Write the int8 form of ``request["graph"]`` to ``request["target"]``; how many nodes were quantised.

    Raises:
        WeightsError: NNCF is missing, or it can't quantise this graph.
        StorageError: the target can't be written.
    """
    progress("loading NNCF")
    nncf = _require_nncf()
    openvino = load_openvino()
    graph, target = Path(request["graph"]), Path(request["target"])
    model = openvino.Core().read_model(graph)
    images: list[str] = request["images"]
    count = len(images)

    def prepared(position: int) -> dict[str, NDArray[np.float32]]:
        progress(f"looking at photograph {position + 1} of {count}")
        path = Path(images[position])
        pixels = decode(path.read_bytes(), where=str(path), max_pixels=request["max_pixels"]).pixels
        return {"image": widened(pixels).transpose(2, 0, 1).astype(np.float32) / np.float32(255)}  # (3, H, W)

    try:
        quantised = nncf.quantize(
            model,
            nncf.Dataset(range(count), prepared),
            subset_size=count,
            target_device=nncf.TargetDevice.CPU,
            # asymmetric activations: hard-swish and SiLU, of the lighter networks, go below zero only a little
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=float_nodes(model), validate=False),
        )
    except (RuntimeError, ValueError, nncf.InternalError, nncf.ValidationError) as error:  # NNCF's and OpenVINO's own
        raise WeightsError(
            "NNCF can't quantise this network",
            where=str(graph),
            got=f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error) else ''}",
            hint="serve it with --precision f32 or bf16",
        ) from error
    progress("writing the int8 form")
    try:
        openvino.save_model(quantised, target, compress_to_fp16=False)
    except (OSError, RuntimeError) as error:  # the latter is what OpenVINO makes of a full disk
        raise storage_error(OSError(0, str(error).strip().splitlines()[-1]), target) from error
    return {"images": count, "quantised_nodes": len(quantised_consumers(quantised))}


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
