"""What HTTP costs: ``/predict`` with one and with sixteen tasks against the bare network, in turn."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import httpx

from spica.bench import server
from spica.bench.photographs import ARCHITECTURE
from spica.images import decode
from spica.models import store
from spica.models.load import load_detector
from spica.models.optimise import optimise
from spica.models.serving import Serving
from spica.models.version import ModelVersion
from spica.settings import Settings

from .untrained import write_untrained

MANY = 16
"""Tasks in the larger request."""

ARCHITECTURES = (ARCHITECTURE, "ssdlite320_mobilenet_v3_large")
"""The heaviest, and the one at whose speed everything else weighs most."""

_ROUNDS = 5
_PATIENCE_S = 300.0


def prepared(weights: Path, settings: Settings, *, say: Callable[[str], None]) -> ModelVersion:
    """The version of weights in the settings' store."""
    return store.prepare(
        weights,
        data_dir=settings.data_dir,
        score_floor=settings.score_floor,
        max_detections=settings.max_detections,
        norm_eps=settings.norm_eps,
        progress=say,
    )


def with_int8(
    version: ModelVersion, photographs: Sequence[Path], settings: Settings, *, say: Callable[[str], None]
) -> ModelVersion:
    """The version with an int8 form, whatever the form is worth: measuring that is what a benchmark is for."""
    return optimise(version, list(photographs), settings, accept_loss=True, progress=say).version


def measure(photographs: Sequence[Path], place: Path, *, say: Callable[[str], None]) -> dict[str, object]:
    """Seconds an image over HTTP and bare, for each architecture, in f32."""
    found: dict[str, object] = {}
    for architecture in ARCHITECTURES:
        say(f"HTTP, {architecture}")
        with tempfile.TemporaryDirectory(dir=place) as name:
            found[architecture] = _measure(architecture, list(photographs), Path(name), say=say)
    return found


def _measure(
    architecture: str, photographs: list[Path], place: Path, *, say: Callable[[str], None]
) -> dict[str, object]:
    weights = write_untrained(place / "untrained.pth", architecture)
    settings = Settings(data_dir=place / "data")
    version = prepared(weights, settings, say=say)
    detector = load_detector(version, device="cpu", serving=Serving())
    many = [photographs[number % len(photographs)] for number in range(MANY)]
    options = ["--weights", str(weights), "--data-dir", str(settings.data_dir), "--precision", "f32"]
    # nothing may be remembered, or the second round would not run the network
    with server.server(photographs[0].parent, options, {"SPICA_MEMORY_BYTES": "0"}) as running:
        running.wait_healthy()
        with httpx.Client(timeout=_PATIENCE_S, trust_env=False) as client:

            def over_http(images: list[Path]) -> None:
                server.ask(client, running.url, images, photographs[0].parent, classes=len(version.classes))

            def bare(images: list[Path]) -> None:
                for image in images:
                    detector.detect([decode(image.read_bytes(), where=str(image), max_pixels=10**9).pixels])

            over_http(photographs[:1])
            bare(photographs[:1])
            one, alone, together, bare_many = [], [], [], []
            for number in range(_ROUNDS):
                say(f"round {number + 1} of {_ROUNDS}")
                for image in photographs:
                    one.append(_timed(over_http, [image]))
                    alone.append(_timed(bare, [image]))
                together.append(_timed(over_http, many) / MANY)
                bare_many.append(_timed(bare, many) / MANY)
    return {
        "one": _compared(one, alone),
        "many": _compared(together, bare_many),
        "bare_s": median(alone),
        "looks": len(one),
        "rounds": _ROUNDS,
    }


def _compared(over_http: list[float], bare: list[float]) -> dict[str, float]:
    pairs = [http / plain for http, plain in zip(over_http, bare, strict=True)]
    return {
        "median": median(pairs),
        "by_medians": median(over_http) / median(bare),
        "by_mins": min(over_http) / min(bare),
    }


def _timed(act: Callable[[list[Path]], None], images: list[Path]) -> float:
    started = time.perf_counter()
    act(images)
    return time.perf_counter() - started
