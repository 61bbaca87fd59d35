"""The figures of :mod:`benchmarks.speed` as a report."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from spica.bench.methods import TITLES
from spica.bench.photographs import ARCHITECTURE

from .markdown import table

Found = dict[str, Any]
"""By part what was measured, when, and under which conditions; of the part ``lighter`` by architecture."""

_GOALS = {"f32": 2.3, "bf16": 4.5, "int8": 7.5}
"""Times as fast as the tutorial's way."""

_MAX_LOSS = 0.005
_LIMIT_GOAL = 1.2
_HTTP_GOAL = 1.05
_HEALTHY_GOAL_S = 1.0
_FIRST_GOAL_S = 3.0
_MEMORY_GOAL = 0.25
_SAME_PX = 0.5
"""Boxes whose sides differ by less are the same to a person."""

_HEAD = (
    "way",
    "s/image, median",
    "min",
    "× tutorial (median / min)",
    "× inference mode (median / min)",
    "boxes",
    "same boxes",
    "score differs by, median",
    "largest side difference, px",
    "memory, MiB",
    "start to healthy, s",
    "start to first boxes, s",
)


def text(found: Found, *, command: str) -> str:
    """The whole report, in Markdown."""
    conditions: dict[str, str] = next((part["conditions"] for part in _measured(found)), {})
    parts = [
        "# Speed, measured",
        f"Written by `{command.strip()}` on {datetime.now(UTC):%Y-%m-%d at %H:%M} UTC. Seconds hold for this machine "
        "in that hour only; the conclusions are ratios of what was measured in turn in one run.",
        table(("condition", "value"), list(conditions.items())),
        "## Goals",
        table(("what", "measured", "goal", "outcome"), _goals(found)),
    ]
    if "tutorial" in found:
        parts += [
            f"## {ARCHITECTURE}, from the file to the boxes",
            _when(found["tutorial"], conditions)
            + " Four rendered photographs of 1024 x 1024, weights that have learned nothing but answer with many boxes "
            "(which speed does not know). Each way looked at each photograph in turn, in a process of its own. *Same "
            "boxes*: share of the boxes with a score of 0.6 or more, of the best 100, that overlap with one of torch's "
            "by half or more. Memory, start to healthy and start to first boxes: of the real server, `spica serve`, "
            "with a cache that was seen to be warm, the middle one of three starts; of the tutorial's ways, of a "
            "script that loads the network and looks at one photograph (start to healthy: until it is loaded). Memory "
            "is the most that was held until the first photograph's boxes were there. The int8 form was made with the "
            "same photographs.",
            _table(found["tutorial"]),
            _limit(found["tutorial"]),
        ]
    if "lighter" in found:
        parts += [
            "## Other architectures",
            "The same, untrained too, and with as few proposals as a trained network makes; compare within one table. "
            "Where Spica finds more boxes, it does not stop where torchvision's own limits would cut a dense scene: at "
            "150 proposals in `fasterrcnn_mobilenet_v3_large_320_fpn`, at 300 to 1000 candidates in networks of one "
            "stage. Untrained weights give boxes of nearly the same score, so that bf16 and int8 choose others: speed "
            "is compared here, not accuracy.",
        ]
        for name, part in found["lighter"].items():
            parts += [f"### {name}", _when(part, conditions), _table(part)]
    if "http" in found:
        parts += [
            "## HTTP",
            _when(found["http"], conditions) + " Time of `/predict` divided by that of decoding and computing the "
            "same photographs in this process, in turn, f32, nothing remembered.",
            _http(found["http"]["figures"]) if "figures" in found["http"] else "",
        ]
    if "accuracy" in found:
        parts += ["## Accuracy on real photographs", _when(found["accuracy"], conditions)]
        if found["accuracy"].get("figures"):
            parts.append(_accuracy(found["accuracy"]["figures"]))
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _measured(found: Found) -> list[dict[str, Any]]:
    """Everything that was measured at one time, in the order of the report."""
    single = [found[name] for name in ("tutorial", "http", "accuracy") if name in found]
    return single[:1] + list(found.get("lighter", {}).values()) + single[1:]


def _when(part: Mapping[str, Any], conditions: Mapping[str, str]) -> str:
    """When it was measured, under which other conditions than those at the top, and whether it failed."""
    told = f"Begun {part['when'][:16].replace('T', ' at ')} UTC, busy processes at the end {part['load']}."
    threads = part.get("figures", {}).get("threads")
    if threads:
        told += f" Threads of the network: {threads}."
    others = [f"{name} {value}" for name, value in part["conditions"].items() if conditions.get(name) != value]
    if others:
        told += f" Measured under other conditions than the first part: {'; '.join(others)}."
    if "failed" in part:
        told += f" **Not measured:** {part['failed'].rstrip('.')}."
    return told


def _table(part: Mapping[str, Any]) -> str:
    if "figures" not in part:
        return ""
    notes = "".join(f"\nNote: {note}.\n" for note in part["figures"]["notes"])
    return table(_HEAD, _rows(part["figures"])) + notes


def _limit(part: Mapping[str, Any]) -> str:
    """Operations, this machine's peaks, and how near each arithmetic comes."""
    if "figures" not in part:
        return ""
    figures = part["figures"]
    lines = []
    for row in figures["rows"]:
        if row["way"] in figures["gflops"]:
            middle, best = figures["gflops"][row["way"]]
            floors = _floors(figures, row["way"])
            lines.append(
                (
                    row["way"],
                    f"{middle:.0f} / {best:.0f}",
                    f"{floors[0]:.3f} / {floors[1]:.3f}",
                    f"{row['median_s']:.3f} / {row['min_s']:.3f}",
                    f"{row['median_s'] / floors[0]:.2f} / {row['min_s'] / floors[1]:.2f}",
                )
            )
    head = ("arithmetic", "peak, GFLOP/s", "limit, s/image", "measured, s/image", "measured ÷ limit")
    return (
        f"The limit: torch counts {figures['gflop_per_image']:.1f} GFLOP an image in convolutions and products of "
        "matrices. The peak is that of three 3 x 3 convolutions of 256 channels on 200 x 200, run before and after the "
        "race by the same runtime; medians / best. The limit of int8 takes everything as int8, though the arithmetic "
        "of the boxes is never quantised. Reading the file, scaling and choosing boxes are in the measured time, not "
        "in the limit.\n\n" + table(head, lines)
    )


def _floors(figures: Mapping[str, Any], way: str) -> tuple[float, float]:
    """Seconds an image if all operations ran at the peak: at the middle one, and at the best one."""
    middle, best = figures["gflops"][way]
    return figures["gflop_per_image"] / middle, figures["gflop_per_image"] / best


def _rows(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            TITLES[row["way"]],
            f"{row['median_s']:.3f}",
            f"{row['min_s']:.3f}",
            _pair(row["times_tutorial"]),
            _pair(row["times_inference_mode"]),
            _number(row["boxes"], "d"),
            _percent(row["same_boxes"]),
            _number(row["score_difference_median"], ".5f"),
            _number(row["worst_side_px"], ".4f"),
            _number(row["memory_bytes"] and row["memory_bytes"] / 2**20, ".0f"),
            _number(row["start_to_healthy_s"] or row["start_to_loaded_s"], ".2f"),
            _number(row["start_to_first_boxes_s"], ".2f"),
        )
        for row in figures["rows"]
    ]


def _goals(found: Found) -> list[tuple[str, ...]]:
    """Every goal, measured or not; the outcome is worked out from the figures."""
    figures = found.get("tutorial", {}).get("figures") or {"rows": [], "gflops": {}}
    rows = {row["way"]: row for row in figures["rows"]}
    lines: list[tuple[str, ...]] = []
    for way, goal in _GOALS.items():
        times = rows.get(way, {}).get("times_tutorial")
        told = f"{way}: times as fast as the tutorial's way (median / min)"
        lines.append(_goal(told, _pair(times), f"≥ {goal}", times[0] >= goal if times else None))
    for way in _GOALS:
        ratios = None
        if way in rows and way in figures["gflops"]:
            floors = _floors(figures, way)
            ratios = [rows[way]["median_s"] / floors[0], rows[way]["min_s"] / floors[1]]
        told = f"{way}: times this machine's limit (median / min)"
        lines.append(_goal(told, _pair(ratios), f"≤ {_LIMIT_GOAL}", ratios[0] <= _LIMIT_GOAL if ratios else None))
    f32 = rows.get("f32", {})
    same, side = f32.get("same_boxes"), f32.get("worst_side_px")
    lines.append(
        _goal(
            "f32: boxes of torch found again; largest difference of a side",
            f"{_percent(same)}; {_number(side, '.4f')} px",
            f"100 %; < {_SAME_PX:g} px",
            None if same is None or side is None else same == 1.0 and side < _SAME_PX,
        )
    )
    for key, told, goal in (
        ("start_to_healthy_s", "start to healthy", _HEALTHY_GOAL_S),
        ("start_to_first_boxes_s", "start to first boxes", _FIRST_GOAL_S),
    ):
        for way in _GOALS:
            started = (
                rows.get(way, {}).get("start_to_healthy_s") is not None
            )  # else the figure is the race's, no server
            seconds = rows[way][key] if started else None
            lines.append(
                _goal(
                    f"{told}, second start with a warm cache, {way}",
                    f"{_number(seconds, '.2f')} s",
                    f"< {goal:g} s",
                    None if seconds is None else seconds < goal,
                )
            )
    tutorial = rows.get("tutorial", {}).get("memory_bytes")
    for way in _GOALS:
        memory = rows.get(way, {}).get("memory_bytes")
        share = memory / tutorial if memory and tutorial else None
        lines.append(
            _goal(
                f"memory of the server against the tutorial's, {way}",
                _number(share, ".2f"),
                f"≤ {_MEMORY_GOAL}",
                None if share is None else share <= _MEMORY_GOAL,
            )
        )
    for name, each in (found.get("http", {}).get("figures") or {"f32": None}).items():
        for size, tasks in (("one", "1 task"), ("many", "16 tasks")):
            ratio = each[size]["by_medians"] if each is not None else None
            told = f"/predict with {tasks} against the bare network, {name}"
            lines.append(_goal(told, _number(ratio, ".3f"), f"≤ {_HTTP_GOAL}", ratio <= _HTTP_GOAL if ratio else None))
    judged = {row["way"]: row for row in (found.get("accuracy", {}).get("figures") or {"rows": []})["rows"]}
    for way in ("bf16", "int8"):
        row = judged.get(way)
        lines.append(
            _goal(
                f"AP50 on real photographs, {way} minus f32, with its 95 % interval",
                f"{row['difference']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})" if row else "–",
                f"≥ −{_MAX_LOSS}",
                row["difference"] >= -_MAX_LOSS if row else None,
            )
        )
    return lines


def _goal(what: str, measured: str, goal: str, reached: bool | None) -> tuple[str, ...]:
    """A line; what is None was not measured."""
    if reached is None:
        return what, "–", goal, "not measured"
    return what, measured, goal, "reached" if reached else "not reached"


def _http(figures: Mapping[str, Any]) -> str:
    return table(
        ("network", "bare, s/image", "1 task: medians", "mins", "pairs, median", "16 tasks: medians", "mins", "looks"),
        [
            (
                name,
                f"{row['bare_s']:.3f}",
                *(f"{row['one'][key]:.3f}" for key in ("by_medians", "by_mins", "median")),
                *(f"{row['many'][key]:.3f}" for key in ("by_medians", "by_mins")),
                f"{row['looks']} x 1, {row['rounds']} x 16",
            )
            for name, row in figures.items()
        ],
    )


def _accuracy(figures: Mapping[str, Any]) -> str:
    names = list(figures["rows"][0]["per_class"])
    accuracies = table(
        (
            "arithmetic",
            "AP",
            "AP50",
            *(f"AP50 {name}" for name in names),
            "AP50 minus f32's",
            "95 % interval",
            "boxes shown at 0.6",
            "same boxes as f32",
        ),
        [
            (
                row["way"],
                f"{row['ap']:.4f}",
                f"{row['ap50']:.4f}",
                *(_number(row["per_class"][name], ".3f") for name in names),
                f"{row['difference']:+.4f}",
                f"{row['low']:+.4f} to {row['high']:+.4f}",
                str(row["shown"]),
                _percent(row["same"]),
            )
            for row in figures["rows"]
        ],
    )
    return (
        f"{ARCHITECTURE} with four classes, trained without pretrained weights by "
        f"`benchmarks/train_detector.py` on blood cells and pears, judged on {figures['images']} photographs of the "
        f"validation parts with {figures['boxes']} boxes that neither the training nor the int8 form has seen. The "
        "interval is a paired bootstrap over photographs (2000 resamples; tiles of one photograph together).\n\n"
        + accuracies
    )


def _pair(ratios: list[float] | None) -> str:
    return f"{ratios[0]:.2f} / {ratios[1]:.2f}" if ratios else "–"


def _number(value: float | None, form: str) -> str:
    return format(value, form) if value is not None else "–"


def _percent(share: float | None) -> str:
    return f"{100 * share:.1f} %" if share is not None else "–"
