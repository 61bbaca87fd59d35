"""The figures of :mod:`benchmarks.speed` as a report."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from spica.bench.contestants import TITLES
from spica.bench.material import ARCHITECTURE
from spica.bench.table import markdown

Found = dict[str, Any]

_GOALS = {"f32": 2.3, "bf16": 4.5, "int8": 7.5}
"""Times as fast as the tutorial's way."""

_MAX_LOSS = 0.005
_HTTP_GOAL = 1.05
_HEALTHY_GOAL_S = 1.0
_FIRST_GOAL_S = 3.0
_MEMORY_GOAL = 0.25

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
    parts = [
        "# Speed, measured",
        f"Written by `{command.strip()}` on {datetime.now(UTC):%Y-%m-%d at %H:%M} UTC. Seconds hold for this machine "
        "in that hour only; the conclusions are ratios of what was measured in turn in one run.",
        markdown(("condition", "value"), [(name, str(value)) for name, value in found["conditions"].items()]),
        "## Goals",
        markdown(("what", "measured", "goal", "reached"), _goals(found)),
    ]
    if "tutorial" in found:
        parts += [
            f"## {ARCHITECTURE}, from the file to the boxes",
            _when(found["tutorial"])
            + " Four rendered photographs of 1024 x 1024, weights that have learned nothing but answer with many boxes "
            "(which speed does not know). Each way looked at each photograph in turn, in a process of its own. *Same "
            "boxes*: share of the boxes with a score of 0.6 or more, of the best 100, that overlap with one of torch's "
            "by half or more. Memory, start to healthy and start to first boxes: of the real server, `spica serve`, "
            "with a warm cache; of the tutorial's ways, of a script that loads the network and looks at one photograph "
            "(start to healthy: until the network is loaded). The int8 form was made with the same photographs.",
            markdown(_HEAD, _rows(found["tutorial"]["figures"])),
        ]
    if "lighter" in found:
        parts += [
            "## Other architectures",
            _when(found["lighter"]) + " The same, untrained too; compare within one table.",
        ]
        for name, figures in found["lighter"]["figures"].items():
            parts += [f"### {name}", markdown(_HEAD, _rows(figures))]
    if "http" in found:
        parts += [
            "## HTTP",
            _when(found["http"]) + " Time of `/predict` divided by that of decoding and computing the "
            "same photographs in this process, in turn, f32, nothing remembered.",
            _http(found["http"]["figures"]),
        ]
    if found.get("accuracy", {}).get("figures"):
        parts += ["## Accuracy on real photographs", _accuracy(found["accuracy"])]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _when(part: Mapping[str, Any]) -> str:
    return f"Begun {part['when'][:16].replace('T', ' at ')} UTC, busy processes at the end {part['load']}."


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
    lines: list[tuple[str, ...]] = []
    if "tutorial" in found:
        rows = {row["way"]: row for row in found["tutorial"]["figures"]["rows"]}
        for way, goal in _GOALS.items():
            if way in rows:
                median, low = rows[way]["times_tutorial"]
                lines.append(
                    _goal(
                        f"{way}: times as fast as the tutorial's way (median / min)",
                        f"{median:.2f} / {low:.2f}",
                        f"≥ {goal}",
                        median >= goal,
                    )
                )
        f32 = rows["f32"]
        same, side = f32["same_boxes"], f32["worst_side_px"]
        lines.append(
            _goal(
                "f32: boxes of torch found again; largest difference of a side",
                f"{_percent(same)}; {_number(side, '.4f')} px",
                "identical",
                same == 1.0 and side < 0.5,
            )
        )
        lines.append(
            _goal(
                "start to healthy, f32",
                f"{f32['start_to_healthy_s']:.2f} s",
                f"< {_HEALTHY_GOAL_S:g} s",
                f32["start_to_healthy_s"] < _HEALTHY_GOAL_S,
            )
        )
        for way in _GOALS:
            if way in rows:
                first = rows[way]["start_to_first_boxes_s"]
                lines.append(
                    _goal(
                        f"start to first boxes, warm cache, {way}",
                        f"{first:.2f} s",
                        f"< {_FIRST_GOAL_S:g} s",
                        first < _FIRST_GOAL_S,
                    )
                )
        for way in _GOALS:
            if way in rows and rows[way]["memory_bytes"] and rows["tutorial"]["memory_bytes"]:
                share = rows[way]["memory_bytes"] / rows["tutorial"]["memory_bytes"]
                lines.append(
                    _goal(
                        f"memory of the server against the tutorial's, {way}",
                        f"{share:.2f}",
                        f"≤ {_MEMORY_GOAL}",
                        share <= _MEMORY_GOAL,
                    )
                )
    if "http" in found:
        for name, figures in found["http"]["figures"].items():
            for size, tasks in (("one", "1 task"), ("many", "16 tasks")):
                ratio = figures[size]["by_medians"]
                lines.append(
                    _goal(
                        f"/predict with {tasks} against the bare network, {name}",
                        f"{ratio:.3f}",
                        f"≤ {_HTTP_GOAL}",
                        ratio <= _HTTP_GOAL,
                    )
                )
    if found.get("accuracy", {}).get("figures"):
        lines += [
            _goal(
                f"AP50 on real photographs, {row['way']} minus f32, with its 95 % interval",
                f"{row['difference']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})",
                f"≥ −{_MAX_LOSS}",
                row["difference"] >= -_MAX_LOSS,
            )
            for row in found["accuracy"]["figures"]["rows"][1:]
        ]
    return lines


def _goal(what: str, measured: str, goal: str, reached: bool) -> tuple[str, ...]:
    return what, measured, goal, "yes" if reached else "no"


def _http(figures: Mapping[str, Any]) -> str:
    return markdown(
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


def _accuracy(part: Mapping[str, Any]) -> str:
    figures = part["figures"]
    names = list(figures["rows"][0]["per_class"])
    table = markdown(
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
        f"{_when(part)} {ARCHITECTURE} with four classes, trained without pretrained weights by "
        f"`benchmarks/train_detector.py` on blood cells and pears, judged on {figures['images']} photographs of the "
        f"validation parts with {figures['boxes']} boxes that neither the training nor the int8 form has seen. The "
        "interval is a paired bootstrap over photographs (2000 resamples; tiles of one photograph together).\n\n"
        + table
    )


def _pair(ratios: list[float] | None) -> str:
    return f"{ratios[0]:.2f} / {ratios[1]:.2f}" if ratios else "–"


def _number(value: float | None, form: str) -> str:
    return format(value, form) if value is not None else "–"


def _percent(share: float | None) -> str:
    return f"{100 * share:.1f} %" if share is not None else "–"
