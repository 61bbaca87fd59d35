"""One measurement, from the weights to the table: every round each method computes the same photograph once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from spica.bench import machine, server
from spica.bench.methods import TITLES, TUTORIAL_LIMIT, Method, MethodSpec
from spica.bench.server import Startup
from spica.boxes import Detections
from spica.detectors import openvino
from spica.detectors.child import Child
from spica.detectors.comparison import Agreement, agreement
from spica.errors import ModelUnavailableError, UsageError
from spica.models import store
from spica.models.checks import read
from spica.models.version import ModelVersion
from spica.settings import Settings

PACKAGES = ("torch", "torchvision", "openvino", "pillow", "numpy")

HEAD = (
    "way",
    "seconds an image, median",
    "the shortest",
    "times as fast as the tutorial (medians / shortest)",
    "times as fast as inference mode",
    "boxes shown",
    "same boxes as torch",
    "scores differ by, median",
    "memory, MiB",
    "start to healthy, s",
    "start to first boxes, s",
)

Say = Callable[[str], None]


@dataclass(slots=True)
class Measured:
    """What was measured of one method.

    Attributes:
        method: of computing.
        load_s: from the process's start until its network is ready.
        first_s: from the process's start to the boxes of the first photograph.
        seconds: of each counted photograph, from the file to its boxes, in the order of the rounds.
        answers: by photograph.
        memory_bytes: the most that the process had held after the first photograph; None where the system does not
            tell.
        threads: of the network; None where the runtime does not tell.
    """

    method: Method
    load_s: float = 0.0
    first_s: float = 0.0
    seconds: list[float] = field(default_factory=list)
    answers: dict[Path, Detections] = field(default_factory=dict)
    memory_bytes: int | None = None
    threads: int | None = None

    def ratios(self, other: Measured | None) -> tuple[float, float] | None:
        """How many times as fast as another method, by medians and by shortest times; None without it."""
        if other is None:
            return None
        return median(other.seconds) / median(self.seconds), min(other.seconds) / min(self.seconds)


@dataclass(frozen=True, slots=True)
class Row:
    """One method's figures.

    Attributes:
        measured: of the method alone.
        startup: of the real server with a warm cache; None where it was not started, and for torch's methods.
        ratios: to the tutorial's method: how many times as fast, by medians and by shortest times; None without it.
        plain_ratios: the same to inference mode.
        agreement: with torch's boxes; None without torch's methods.
    """

    measured: Measured
    startup: Startup | None
    ratios: tuple[float, float] | None
    plain_ratios: tuple[float, float] | None
    agreement: Agreement | None

    def _memory_and_start(self) -> tuple[int | None, float, float]:
        source = self.startup
        if source is not None:
            return source.memory_bytes, source.healthy_s, source.first_s
        return self.measured.memory_bytes, self.measured.load_s, self.measured.first_s

    def cells(self) -> tuple[str, ...]:
        """One text for each entry of ``HEAD``."""
        same = self.agreement
        memory, healthy, first = self._memory_and_start()
        return (
            TITLES[self.measured.method],
            f"{median(self.measured.seconds):.3f}",
            f"{min(self.measured.seconds):.3f}",
            _pair(self.ratios),
            _pair(self.plain_ratios),
            str(same.others if same is not None else sum(map(len, self.measured.answers.values()))),
            f"{100 * same.share:.1f} %" if same is not None else "–",
            f"{same.score_median:.4f}" if same is not None and same.score_median is not None else "–",
            f"{memory / 2**20:.0f}" if memory is not None else "not measured",
            f"{healthy:.2f}",
            f"{first:.2f}",
        )

    def as_json(self) -> dict[str, Any]:
        """For programs: seconds, bytes, shares."""
        measured, same = self.measured, self.agreement
        memory, _, first = self._memory_and_start()
        return {
            "way": measured.method,
            "median_s": median(measured.seconds),
            "min_s": min(measured.seconds),
            "seconds": measured.seconds,
            "times_tutorial": self.ratios,
            "times_inference_mode": self.plain_ratios,
            "boxes": same.others if same is not None else None,
            "same_boxes": same.share if same is not None else None,
            "score_difference_median": same.score_median if same is not None else None,
            "worst_side_px": same.box_px_max if same is not None else None,
            "threads": measured.threads,
            "memory_bytes": memory,
            "start_to_healthy_s": self.startup.healthy_s if self.startup is not None else None,
            "start_to_loaded_s": measured.load_s,
            "start_to_first_boxes_s": first,
        }


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured.

    Attributes:
        architecture: of the weights.
        rows: one a method.
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
    methods: Sequence[Method] | None,
    rounds: int,
    startups: int,
    say: Say,
) -> Result:
    """Measure weights on photographs.

    Args:
        weights: whatever can be served.
        images: photographs.
        settings: data folder, floor, threads and so on.
        methods: of computing; None for all that this machine and these weights have.
        rounds: how often each photograph is computed.
        startups: how often the real server is started; the one of the middle time counts. 0 for not at all.
        say: called with what is being done.

    Raises:
        WeightsError: the weights can't be used.
        UsageError: a method was asked for that can't be run.
    """
    say("Preparing the model")
    busy = machine.load()
    version = store.prepare(
        weights,
        data_dir=settings.data_dir,
        score_floor=settings.score_floor,
        max_detections=settings.max_detections,
        norm_eps=settings.norm_eps,
        architecture=settings.architecture,
        progress=say,
    )
    possible, notes = possible_methods(version)
    refused = sorted(set(methods or ()) - set(possible))
    if refused:
        raise UsageError(
            "a way that was asked for can't be run",
            where="--ways",
            got=", ".join(refused),
            hint="; ".join(notes) or None,
        )
    chosen = [method for method in possible if methods is None or method in methods]
    specs = [method_spec(method, weights, settings) for method in chosen]
    measured = measure(specs, images, rounds=rounds, say=say)
    started = {}
    for method in chosen if startups else ():
        if method not in ("tutorial", "inference_mode"):
            say(f"Starting the server: {method}")
            started[method] = _startup(method, weights, images[0], version, settings, startups, notes)
    return Result(
        version.card.architecture,
        rows(measured, started, threshold=settings.threshold),
        _conditions(images, settings, measured, busy),
        notes,
    )


def possible_methods(version: ModelVersion) -> tuple[list[Method], list[str]]:
    """The methods in which a version can be computed here, in the order of the table; and why others can't."""
    methods: list[Method] = ["tutorial", "inference_mode"] if version.source is not None else []
    notes = []
    if not methods:
        notes.append("these weights are an exported graph, which torch can't run: the tutorial's way is left out")
    methods.append("f32")
    if "bf16" in openvino.machine().has:
        methods.append("bf16")
    else:
        notes.append("this processor has no bfloat16")
    if "int8" in version.card.precisions:
        methods.append("int8")
    else:
        notes.append("there is no int8 form of these weights: make it with `spica models optimise`")
    return methods, notes


def method_spec(method: Method, weights: Path, settings: Settings) -> MethodSpec:
    """A method with these weights and settings."""
    return MethodSpec(
        method,
        str(weights.resolve()),
        str(settings.data_dir.resolve()),
        settings.score_floor,
        settings.max_detections,
        settings.norm_eps,
        settings.threads,
        settings.architecture,
    )


def measure(specs: Sequence[MethodSpec], images: Sequence[Path], *, rounds: int, say: Say) -> list[Measured]:
    """Measure each method, in turn.

    Each has a process of its own. All compute every photograph once before anything counts, then ``rounds`` times one
    photograph after the other, each photograph by all methods before the next.

    Raises:
        WeightsError: a method can't run these weights.
        ModelUnavailableError: a process died; with the last line that it wrote.
    """
    hint = "close other programs (it may be for want of memory), or leave this way out with --ways"
    with ExitStack() as stack:
        runs: list[tuple[Child, Measured]] = []
        for spec in specs:
            title = TITLES[spec.method]
            say(f"Loading: {title}")
            measured, began = Measured(spec.method), time.perf_counter()
            child = stack.enter_context(
                Child(
                    "-m",
                    "spica.bench.methods",
                    what="measurement",
                    where=title,
                    hint=hint,
                    failure=ModelUnavailableError,
                )
            )
            measured.threads = child.ask(asdict(spec))["threads"]
            measured.load_s = time.perf_counter() - began
            measured.memory_bytes = _compute(child, measured, images[0])["memory"]
            measured.first_s = time.perf_counter() - began
            runs.append((child, measured))
        for image in images[1:]:
            for child, measured in runs:
                _compute(child, measured, image)
        for number in range(rounds):
            say(f"Round {number + 1} of {rounds}")
            for position, image in enumerate(images):
                # whoever comes first meets a cooler processor: the order turns
                turn = (number + position) % len(runs)
                for child, measured in runs[turn:] + runs[:turn]:
                    measured.seconds.append(float(_compute(child, measured, image)["seconds"]))
    return [measured for _, measured in runs]


def _compute(child: Child, measured: Measured, image: Path) -> Mapping[str, Any]:
    reply = child.ask({"path": str(image)})
    measured.answers[image] = Detections(
        boxes_xyxy=np.array(reply["boxes"], np.float32).reshape(-1, 4),
        scores=np.array(reply["scores"], np.float32),
        class_ids=np.array(reply["classes"], np.int64),
    )
    return reply


def _startup(
    method: Method, weights: Path, image: Path, version: ModelVersion, settings: Settings, times: int, notes: list[str]
) -> Startup:
    """The start with the middle time to the first boxes, of ``times`` starts that compiled nothing.

    The measurement has compiled what the server will look for. A start that compiles nevertheless does not count.
    """
    options = ["--weights", str(weights), "--data-dir", str(settings.data_dir), "--precision", method]
    options += ["--norm-eps", str(settings.norm_eps), "--max-detections", str(settings.max_detections)]
    # as in the measurement: on the processor, whole photographs, and all else that decides what is compiled
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
        startup = server.measure_startup(
            image, options, classes=len(version.classes), names=version.classes, environment=environment
        )
        (warm if before and _compiled(version.cache_dir) == before else cold).append(startup)
    if not warm:
        notes.append(
            f"the server found no compiled network in {version.cache_dir}: its start in {method} is a first start"
        )
    ordered = sorted(warm or cold, key=lambda startup: startup.first_s)
    return ordered[(len(ordered) - 1) // 2]


def _compiled(cache: Path) -> set[tuple[str, int]]:
    """What lies in a cache, with the times of writing in nanoseconds."""
    return {(str(path), path.stat().st_mtime_ns) for path in cache.rglob("*") if path.is_file()}


def rows(measured: Sequence[Measured], startups: Mapping[Method, Startup], *, threshold: float) -> list[Row]:
    """The rows of a table, each method against torch's."""
    by_method = {method.method: method for method in measured}
    torch = by_method.get("inference_mode") or by_method.get("tutorial")
    return [
        Row(
            method,
            startups.get(method.method),
            method.ratios(by_method.get("tutorial")),
            method.ratios(by_method.get("inference_mode")),
            _agreement(torch, method, threshold) if torch is not None else None,
        )
        for method in measured
    ]


def _agreement(torch: Measured, other: Measured, threshold: float) -> Agreement:
    pairs = [(answer, other.answers[path]) for path, answer in torch.answers.items()]
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    return agreement(first, second, threshold=threshold, limit=TUTORIAL_LIMIT)


def _pair(ratios: tuple[float, float] | None) -> str:
    return f"{ratios[0]:.2f} / {ratios[1]:.2f}" if ratios is not None else "–"


def _conditions(
    images: Sequence[Path], settings: Settings, measured: Sequence[Measured], busy: str
) -> list[tuple[str, str]]:
    sizes = {f"{image.width} x {image.height}" for image in (read(p, max_pixels=settings.max_pixels) for p in images)}
    threads = [f"{method.threads or 'unknown'} in {TITLES[method.method]}" for method in measured]
    if len({method.threads for method in measured}) == 1:
        threads = [str(measured[0].threads or "unknown")]
    return [
        *machine.conditions(PACKAGES, threads=", ".join(threads)),
        ("photographs", f"{len(images)}, {', '.join(sorted(sizes))} pixels"),
        ("busy processes before", busy),
    ]
