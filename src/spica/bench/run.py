"""One measurement, from the weights to the table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spica.bench import machine, startup
from spica.bench.contestants import Start, Way
from spica.bench.race import race
from spica.bench.startup import Startup
from spica.bench.table import Row, rows
from spica.errors import UsageError
from spica.models import store
from spica.models.version import ModelVersion
from spica.settings import Settings

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "torchvision", "openvino", "pillow", "numpy")


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured.

    Attributes:
        architecture: of the weights.
        rows: one a way.
        conditions: name and value of what the figures depend on.
        notes: what was left out, and why.
    """

    architecture: str
    rows: list[Row]
    conditions: list[tuple[str, str]]
    notes: list[str]


def run(
    weights: Path,
    images: Sequence[Path],
    settings: Settings,
    *,
    ways: Sequence[Way] | None,
    rounds: int,
    startups: bool,
    say: Callable[[str], None],
) -> Result:
    """Measure weights on photographs.

    Args:
        weights: whatever can be served.
        images: photographs.
        settings: data folder, floor, threads and so on.
        ways: of computing; None for all that this machine and these weights have.
        rounds: how often each photograph is looked at.
        startups: whether the real server is started too.
        say: told what is being done.

    Raises:
        WeightsError: the weights can't be used.
        UsageError: a way was asked for that can't be run.
    """
    say("Preparing the model")
    before = machine.load()
    version = store.prepare(
        weights,
        data_dir=settings.data_dir,
        score_floor=settings.score_floor,
        max_detections=settings.max_detections,
        norm_eps=settings.norm_eps,
        progress=say,
    )
    possible, notes = possible_ways(version)
    refused = sorted(set(ways or ()) - set(possible))
    if refused:
        raise UsageError(
            "a way that was asked for can't be run",
            where="--ways",
            got=", ".join(refused),
            hint="; ".join(notes) or None,
        )
    starts = [_start(way, weights, settings) for way in possible if ways is None or way in ways]
    found = race(starts, images, rounds=rounds, say=say)
    served = {}
    if startups:
        for start in starts:
            if start.way not in ("tutorial", "inference_mode"):
                say(f"Starting the server: {start.way}")
                served[start.way] = _startup(start.way, weights, images[0], version, settings)
    return Result(
        version.card.architecture, rows(found, served, threshold=settings.threshold), _conditions(images, before), notes
    )


def possible_ways(version: ModelVersion) -> tuple[list[Way], list[str]]:
    """The ways in which a version can be computed here, in the order of the table; and why others can't."""
    from spica.detectors.precision import machine as arithmetics

    ways: list[Way] = []
    notes = []
    if version.source is not None:
        ways += ["tutorial", "inference_mode"]
    else:
        notes.append("these weights are an exported graph, which torch can't run: the tutorial's way is left out")
    ways.append("f32")
    if "bf16" in arithmetics().has:
        ways.append("bf16")
    else:
        notes.append("this processor has no bfloat16")
    if "int8" in version.card.precisions:
        ways.append("int8")
    else:
        notes.append("there is no int8 form of these weights: make it with `spica models optimise`")
    return ways, notes


def _start(way: Way, weights: Path, settings: Settings) -> Start:
    return Start(
        way,
        str(weights.resolve()),
        str(settings.data_dir.resolve()),
        settings.score_floor,
        settings.max_detections,
        settings.norm_eps,
        settings.threads,
    )


def _startup(way: Way, weights: Path, image: Path, version: ModelVersion, settings: Settings) -> Startup:
    options = ["--weights", str(weights), "--data-dir", str(settings.data_dir), "--precision", way]
    options += ["--norm-eps", str(settings.norm_eps), "--max-detections", str(settings.max_detections)]
    return startup.measure(image, options, classes=len(version.classes))


def _conditions(images: Sequence[Path], load_before: str) -> list[tuple[str, str]]:
    from PIL import Image

    sizes = set()
    for image in images:
        with Image.open(image) as opened:
            sizes.add("{} x {}".format(*opened.size))
    return [
        ("processor", machine.processor()),
        ("instruction sets", machine.instruction_sets()),
        ("logical cores", str(machine.cores())),
        ("memory", machine.memory()),
        ("packages", machine.versions(PACKAGES)),
        ("photographs", f"{len(images)}, {', '.join(sorted(sizes))} pixels"),
        ("busy processes before", load_before),
    ]
