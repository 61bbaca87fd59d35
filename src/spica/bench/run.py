"""One measurement, from the weights to the table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spica.bench import machine, startup
from spica.bench.contestants import Start, Way
from spica.bench.race import Measured, race
from spica.bench.startup import Startup
from spica.bench.table import Row, rows
from spica.errors import UsageError
from spica.models import store
from spica.models.checks import read
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
    startups: int,
    say: Callable[[str], None],
) -> Result:
    """Measure weights on photographs.

    Args:
        weights: whatever can be served.
        images: photographs.
        settings: data folder, floor, threads and so on.
        ways: of computing; None for all that this machine and these weights have.
        rounds: how often each photograph is looked at.
        startups: how often the real server is started; what took the middle time is told. 0 for not at all.
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
        architecture=settings.architecture,
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
    for start in starts if startups else ():
        if start.way not in ("tutorial", "inference_mode"):
            say(f"Starting the server: {start.way}")
            served[start.way] = _startup(start.way, weights, images[0], version, settings, startups, notes)
    return Result(
        version.card.architecture,
        rows(found, served, threshold=settings.threshold),
        _conditions(images, settings, found, before),
        notes,
    )


def possible_ways(version: ModelVersion) -> tuple[list[Way], list[str]]:
    """The ways in which a version can be computed here, in the order of the table; and why others can't."""
    from spica.detectors.openvino import machine as arithmetics

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
        settings.architecture,
    )


def _startup(
    way: Way, weights: Path, image: Path, version: ModelVersion, settings: Settings, times: int, notes: list[str]
) -> Startup:
    """The start with the middle time to the first boxes, of ``times`` starts that compiled nothing.

    The race has compiled what the server will look for. A start that compiles nevertheless does not count.
    """
    options = ["--weights", str(weights), "--data-dir", str(settings.data_dir), "--precision", way]
    options += ["--norm-eps", str(settings.norm_eps), "--max-detections", str(settings.max_detections)]
    # as in the race: on the processor, whole photographs, and everything else that decides what is compiled
    environment = {
        "CUDA_VISIBLE_DEVICES": "",
        "SPICA_TILE": "off",
        "SPICA_SCORE_FLOOR": str(settings.score_floor),
        "SPICA_THREADS": str(settings.threads),
        **({"SPICA_ARCHITECTURE": settings.architecture} if settings.architecture else {}),
    }
    warm: list[Startup] = []
    cold: list[Startup] = []
    while len(warm) < times and len(cold) < 2:
        before = _compiled(version.cache_dir)
        found = startup.measure(
            image, options, classes=len(version.classes), names=version.classes, environment=environment
        )
        (warm if before and _compiled(version.cache_dir) == before else cold).append(found)
    if not warm:
        notes.append(
            f"the server found no compiled network in {version.cache_dir}: its start in {way} is a first start"
        )
    ordered = sorted(warm or cold, key=lambda each: each.first_s)
    return ordered[(len(ordered) - 1) // 2]


def _compiled(cache: Path) -> set[tuple[str, int]]:
    """What lies in a cache, with the times of writing in nanoseconds."""
    return {(str(path), path.stat().st_mtime_ns) for path in cache.rglob("*") if path.is_file()}


def _conditions(
    images: Sequence[Path], settings: Settings, found: Sequence[Measured], load_before: str
) -> list[tuple[str, str]]:
    seen = [read(image, max_pixels=settings.max_pixels) for image in images]
    sizes = {f"{image.width} x {image.height}" for image in seen}
    threads = {each.threads for each in found}
    told = [f"{each.threads or 'unknown'} in {each.title}" for each in found]
    return [
        ("processor", machine.processor()),
        ("instruction sets", machine.instruction_sets()),
        ("logical cores", str(machine.cores())),
        ("threads", str(found[0].threads or "unknown") if len(threads) == 1 else ", ".join(told)),
        ("memory", machine.memory()),
        ("packages", machine.versions(PACKAGES)),
        ("photographs", f"{len(images)}, {', '.join(sorted(sizes))} pixels"),
        ("busy processes before", load_before),
    ]
