"""Speed and accuracy on this machine: the tutorial's way against Spica's, for each architecture.

``python -m benchmarks.speed`` from the root of the repository; ``--help`` tells how to run less of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from spica.bench import machine, material
from spica.bench.run import run
from spica.models.version import ModelVersion
from spica.settings import Settings

from . import accuracy, overhead, report_speed
from .report_speed import Found
from .train_detector import Options, train

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
    kept = json.loads(given.figures.read_text("utf-8")) if given.figures and given.figures.is_file() else {}
    found: Found = {"conditions": _conditions(), **kept}
    with tempfile.TemporaryDirectory(prefix="spica-speed-") as name:
        place = Path(name)
        photographs = material.photographs(None, place / "photographs", most=4)
        for part in given.only:
            say(f"== {part}")
            began = datetime.now(UTC)
            if part == "tutorial":
                figures = _architecture(material.ARCHITECTURE, photographs, place, rounds=given.rounds)
            elif part == "lighter":
                figures = {
                    name: _architecture(name, photographs, place, rounds=given.lighter_rounds) for name in LIGHTER
                }
            elif part == "http":
                figures = overhead.measure(photographs, place, say=say)
            else:
                figures = _accuracy(given, place)
            found[part] = {"figures": figures, "when": began.isoformat(timespec="minutes"), "load": machine.load()}
            if given.figures:
                given.figures.write_text(json.dumps(found, indent=1), "utf-8")
    text = report_speed.text(found, command="python -m benchmarks.speed " + " ".join(sys.argv[1:]))
    if given.results:
        given.results.write_text(text, "utf-8")
        say(f"written: {given.results}")
    else:
        print(text)


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


def _architecture(architecture: str, photographs: list[Path], place: Path, *, rounds: int) -> dict[str, object]:
    """Untrained weights: what they find means nothing, how fast they find it does."""
    say(architecture)
    folder = place / architecture
    folder.mkdir()
    weights = material.untrained_weights(folder / f"{architecture}.pth", architecture)
    settings = Settings(data_dir=folder / "data")
    _int8(weights, photographs, settings)
    result = run(weights, photographs, settings, ways=None, rounds=rounds, startups=True, say=say)
    return {"rows": [row.as_json() for row in result.rows], "notes": result.notes}


def _int8(weights: Path, photographs: Sequence[Path], settings: Settings) -> ModelVersion:
    """The version with an int8 form, whatever the form is worth."""
    return overhead.with_int8(overhead.prepared(weights, settings, say=say), photographs, settings, say=say)


def _accuracy(given: argparse.Namespace, place: Path) -> dict[str, object]:
    if not (given.data / "bccd").is_dir():
        say(f"no photographs with boxes in {given.data}: left out")
        return {}
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
