"""Speed and accuracy on this machine: the tutorial's way against Spica's, for each architecture.

``python -m benchmarks.speed`` from the root of the repository; ``--help`` tells how to run less of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from spica.bench import machine
from spica.bench.photographs import ARCHITECTURE, choose_photographs
from spica.bench.run import run
from spica.errors import SpicaError, UsageError
from spica.models.version import ModelVersion
from spica.settings import Settings

from . import accuracy, overhead, report_speed
from .limit import Peaks, gflop_per_image
from .report_speed import Found
from .train_detector import Options, train
from .untrained import write_untrained

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"

LIGHTER = (
    "fasterrcnn_resnet50_fpn_v2",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "ssd300_vgg16",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "ssdlite320_mobilenet_v3_large",
    "fasterrcnn_efficientnet_lite0_fpn",
)
PARTS = ("tutorial", "lighter", "http", "accuracy")
_CALIBRATION = 32
"""Photographs from which the int8 form's ranges are taken, of those that the network was trained on."""


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    add = parser.add_argument
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run; all by default")
    add(
        "--architectures",
        nargs="+",
        choices=LIGHTER,
        default=list(LIGHTER),
        help="of the part `lighter`; all by default",
    )
    add(
        "--startups",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="start the server with the lighter architectures too, once an arithmetic",
    )
    add("--rounds", type=int, default=6, help="looks at each photograph, the tutorial's architecture")
    add("--lighter-rounds", type=int, default=3, help="the same for the others")
    add("--data", type=Path, default=DATA, help="folder with bccd/ and pear/, a COCO json each")
    add("--detector", type=Path, help="weights for the accuracy; trained now without them, which takes most of an hour")
    add("--epochs", type=int, default=8, help="of that training")
    add("--most", type=int, default=0, help="judge accuracy on so many photographs; 0 for all")
    add("--results", type=Path, help="write the report here; without it, on the screen")
    add("--figures", type=Path, help="keep the figures of each part here, and take parts that are not run from there")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure what the command line asks for, and write the report."""
    given = options()
    found = _kept(given.figures)
    with tempfile.TemporaryDirectory(prefix="spica-speed-") as name:
        place = Path(name)
        seen = choose_photographs(None, place / "photographs", most=4, max_pixels=10**9)
        for part in given.only:
            if part == "lighter":
                kept = found.setdefault(part, {})
                for each in given.architectures:
                    kept[each] = _measured(each, partial(_lighter, each, seen.paths, place, given))
                    _keep(found, given.figures)
                continue
            acts: dict[str, Callable[[], Any]] = {
                "tutorial": lambda: _tutorial(seen.paths, place, rounds=given.rounds),
                "http": lambda: overhead.measure(seen.paths, place, say=say),
                "accuracy": lambda: _accuracy(given, place),
            }
            found[part] = _measured(part, acts[part])
            _keep(found, given.figures)
    text = report_speed.text(found, command="python -m benchmarks.speed " + " ".join(sys.argv[1:]))
    if given.results:
        _write(given.results, text)
        say(f"written: {given.results}")
    else:
        print(text)


def _measured(name: str, act: Callable[[], Any]) -> dict[str, Any]:
    """The figures with what they depend on; a failure is kept in their place, and the run goes on."""
    say(f"== {name}")
    told = {"when": datetime.now(UTC).isoformat(timespec="minutes"), "conditions": _conditions()}
    try:
        told["figures"] = act()
    except Exception as error:  # noqa: BLE001 - an hour of other figures must not be lost
        told["failed"] = error.summary if isinstance(error, SpicaError) else f"{type(error).__name__}: {error}"
        say(f"{name} failed: {told['failed']}")
    return {**told, "load": machine.load()}


def _kept(path: Path | None) -> Found:
    """The figures of earlier runs, each with its own conditions; those of a report before that are not taken."""
    told = json.loads(path.read_text("utf-8")) if path is not None and path.is_file() else {}
    lighter = {name: each for name, each in told.get("lighter", {}).items() if name in LIGHTER}
    parts = {**told, "lighter": lighter} if lighter else {**told, "lighter": None}
    return {
        name: part
        for name, part in parts.items()
        if name in PARTS and part and (part is lighter or "conditions" in part)
    }


def _keep(found: Found, path: Path | None) -> None:
    if path is not None:
        _write(path, json.dumps(found, indent=1))


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    aside = path.with_name(f".{path.name}")
    aside.write_text(text, "utf-8")
    aside.replace(path)


def say(text: str) -> None:
    """Tell what is being done."""
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", file=sys.stderr, flush=True)


def _conditions() -> dict[str, str]:
    packages = ("torch", "torchvision", "openvino", "nncf", "pillow", "numpy", "faster-coco-eval")
    return {
        "processor": machine.processor(),
        "instruction sets": machine.instruction_sets(),
        "logical cores": str(machine.cores()),
        "memory": machine.memory(),
        "packages": machine.versions(packages),
    }


def _tutorial(photographs: list[Path], place: Path, *, rounds: int) -> dict[str, object]:
    """The tutorial's architecture, and how near it comes to what this machine can do at all."""
    peaks = Peaks()
    peaks.measure()
    with tempfile.TemporaryDirectory(dir=place) as name:
        weights = write_untrained(Path(name) / f"{ARCHITECTURE}.pth")
        found = _architecture(weights, photographs, rounds=rounds, startups=3)
        say("the machine's limit")
        peaks.measure()
        return {**found, "gflops": peaks.gflops(), "gflop_per_image": gflop_per_image(weights, photographs)}


def _lighter(architecture: str, photographs: list[Path], place: Path, given: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory(dir=place) as name:
        weights = write_untrained(Path(name) / f"{architecture}.pth", architecture)
        return _architecture(weights, photographs, rounds=given.lighter_rounds, startups=int(given.startups))


def _architecture(weights: Path, photographs: list[Path], *, rounds: int, startups: int) -> dict[str, object]:
    """Untrained weights: what they find means nothing, how fast they find it does."""
    settings = Settings(data_dir=weights.parent / "data")
    _int8(weights, photographs, settings)
    result = run(weights, photographs, settings, methods=None, rounds=rounds, startups=startups, say=say)
    return {
        "rows": [row.as_json() for row in result.rows],
        "notes": result.notes,
        "threads": dict(result.conditions)["threads"],
    }


def _int8(weights: Path, photographs: Sequence[Path], settings: Settings) -> ModelVersion:
    """The version with an int8 form, whatever the form is worth."""
    return overhead.with_int8(overhead.prepared(weights, settings, say=say), photographs, settings, say=say)


def _accuracy(given: argparse.Namespace, place: Path) -> dict[str, object]:
    if not (given.data / "bccd").is_dir():
        raise UsageError(
            "there are no photographs with boxes", where=f"--data {given.data}", expected="bccd/ and pear/"
        )
    weights = given.detector
    if weights is None:
        weights = place / "trained.pth"
        train(Options(given.data, weights, given.epochs))
    settings = Settings(data_dir=place / "accuracy")
    seen = accuracy.photographs(given.data, "train")
    version = _int8(weights, seen.paths[:: max(1, len(seen.paths) // _CALIBRATION)], settings)
    return accuracy.measure(version, accuracy.photographs(given.data, "valid"), most=given.most, say=say)


if __name__ == "__main__":
    main()
