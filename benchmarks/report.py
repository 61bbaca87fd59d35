"""What was measured, as Markdown: conclusions are ratios, seconds are context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .courtesy import summary

_MIB = 2**20


def markdown(measured: dict[str, Any]) -> str:
    """The whole file."""
    parts = [
        "# The bulk job, measured",
        "",
        f"Written by `{'; then by `'.join(measured['commands'])}. Seconds hold for this machine in that hour only, and "
        "other programs were at work on it where *load before* says so; the conclusions are ratios of what was "
        "measured side by side. Columns *at*: UTC, when a part had ended.",
        "",
        *_table(["condition", "value"], measured["conditions"]),
        "",
        "## Conclusions",
        "",
        *_table(["what", "measured", "goal"], conclusions(measured)),
    ]
    if measured["scale"]:
        parts += ["", *_scale(measured["scale"])]
    if measured["network"]:
        parts += ["", *_network(measured["network"])]
    if measured["courtesy"]:
        parts += ["", *_courtesy(measured["courtesy"])]
    return "\n".join(parts) + "\n"


def conclusions(measured: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What, how much, and the goal."""
    rows: list[tuple[str, str, str]] = []
    for switched in (False, True):
        runs = [run for run in measured["scale"] if run["switched"] == switched]
        if not runs:
            continue
        least, most = runs[0], runs[-1]
        span = f"{most['tasks']:,} : {least['tasks']:,} tasks, {_named(switched)}"
        if most is not least and least["memory"]["peak"] and most["memory"]["peak"]:
            ratio = most["memory"]["peak"] / least["memory"]["peak"]
            rows.append((f"peak memory of the job, {span}", f"{ratio:.2f}", "flat (1)"))
        if most is not least:
            rows.append((f"tasks a second, {span}", f"{rate(most) / rate(least):.2f}", "–"))
        rows.append(
            (
                f"share of the time outside Label Studio, {most['tasks']:,} tasks, {_named(switched)}",
                _percent(share_outside(most)),
                "–",
            )
        )
    rows += [
        (
            f"share of the time in which the network waits, {name}",
            ", ".join(_percent(waiting(run)) for run in measured["network"] if run["name"] == name),
            "< 5 %",
        )
        for name in dict.fromkeys(run["name"] for run in measured["network"])
    ]
    for run in measured["courtesy"]:
        values = summary(run)
        for name, key in (("median", "extra_median_images"), ("95th percentile", "extra_p95_images")):
            what = f"opening an image beside the job takes longer by so many images' inference, {name}, {run['name']}"
            rows.append((what, f"{values[key]:.2f}", "≤ 1"))
    return rows


def rate(run: dict[str, Any]) -> float:
    """Tasks a second, from the first question about the project to the last count."""
    return float(run["stored"] / run["seconds"])


def share_outside(run: dict[str, Any]) -> float:
    """Of the whole time, that in which no request to Label Studio was open."""
    return float(1 - run["label_studio_seconds"] / run["seconds"])


def waiting(run: dict[str, Any]) -> float:
    """Of the time between the begin of the first image and the end of the last, that in which nothing was computed."""
    return float(1 - run["network"]["busy_s"] / run["network"]["span_s"])


def _scale(runs: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        (
            _named(run["switched"]),
            f"{run['tasks']:,}",
            f"{run['stored']:,}",
            f"{rate(run):.1f}",
            f"{run['seconds']:.0f}",
            _percent(share_outside(run)),
            _percent(run["processor_seconds"] / run["seconds"]),
            _mib(run["memory"]["before"]),
            _mib(run["memory"]["peak"]),
            f"{run['import_s']:.0f}",
            run["load"],
            run["at"],
        )
        for run in runs
    ]
    head = ["Label Studio", "tasks", "stored", "tasks/s", "s", "outside Label Studio", "job's processor time / time"]
    head += ["memory before, MiB", "peak memory, MiB", "import of the tasks, s", "load before", "at"]
    kinds = sorted({kind for run in runs for kind in run["requests"]})
    costs = []
    for run in runs:
        cells = []
        for kind in kinds:
            found = run["requests"].get(kind)
            cells.append("–" if found is None else f"{found['count']} × {found['seconds'] / found['count']:.2f}")
        costs.append((_named(run["switched"]), f"{run['tasks']:,}", *cells))
    return [
        "## At scale",
        "",
        "A detector that costs nothing (three boxes on every image), a handful of photographs shown by all tasks, so "
        "that their answers are remembered; a real Label Studio, tasks imported through its API in chunks. The job is "
        "a process of its own; its memory is the whole process's. Time is outside Label Studio when no request to it "
        "is open, from sending to the last byte of the answer.",
        "",
        *_table(head, rows),
        "",
        '"As started" is Label Studio 1.23.2 as Spica starts it. "Switched" is the same with a switch of Label '
        "Studio's, as Spica starts it for folders of 2,000 photographs and more: "
        "`fflag_fix_back_4620_memory_efficient_predictions_import_08012025_short=true` in its environment. Without "
        "it, each import of predictions counts anew all tasks of the project that have predictions: the time for a "
        f"project grows with the square of its tasks. {_left_out(runs)}Each request's number and mean seconds:",
        "",
        *_table(["Label Studio", "tasks", *kinds], costs),
    ]


def _left_out(runs: Sequence[dict[str, Any]]) -> str:
    """Says so when the largest project was run with the switch only."""
    started = [run for run in runs if not run["switched"]]
    largest = max(run["tasks"] for run in runs)
    if len(started) < 2 or started[-1]["tasks"] == largest:
        return ""
    first, last = started[0], started[-1]
    return (
        f"**{largest:,} tasks as started were not run**: {last['tasks']:,} tasks took "
        f"{last['seconds'] / first['seconds']:.0f} times as long as {first['tasks']:,}, and these would take hours. "
    )


def _network(runs: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        (
            run["name"],
            f"{run['stored']:,}",
            _percent(waiting(run)),
            f"{run['network']['image_s'] / run['network']['alone_s']:.2f}",
            f"{run['network']['span_s'] / run['network']['images'] / run['network']['alone_s']:.2f}",
            f"{run['network']['alone_s'] * 1000:.0f}",
            _percent(share_outside(run)),
            run["load"],
            run["at"],
        )
        for run in runs
    ]
    head = [
        "network",
        "tasks",
        "the network waits",
        "its time an image : alone",
        "the job's time an image : alone",
    ]
    head += ["alone, ms", "outside Label Studio", "load before", "at"]
    return [
        "## With a real network",
        "",
        "Every task shows a file of its own. The network waits when it computes nothing between the begin of the first "
        "image and the end of the last. *Alone* is the mean time of the network for an image in the same process "
        "before and after the job; beside the job it shares the processor with reading, with decoding and with Label "
        "Studio itself, which the ratios to it show.",
        "",
        *_table(head, rows),
    ]


def _courtesy(runs: Sequence[dict[str, Any]]) -> list[str]:
    rows = []
    for run in runs:
        values = summary(run)
        rows.append(
            (
                run["name"],
                f"{len(run['idle_s'])} / {len(run['busy_s'])} in {run['rounds']} rounds each",
                f"{values['idle_median_s']:.2f} / {values['busy_median_s']:.2f}",
                f"{values['idle_p95_s']:.2f} / {values['busy_p95_s']:.2f}",
                f"{run['image_s']:.2f}",
                f"{values['extra_median_images']:.2f}",
                f"{values['extra_p95_images']:.2f}",
                str(run["job_images"]),
                str(run["missed"]),
                run["load"],
                run["at"],
            )
        )
    head = [
        "network",
        "images opened idle / beside the job",
        "median s idle / beside",
        "95th percentile s idle / beside",
    ]
    head += ["one image's inference, s", "extra, median, in images", "extra, 95th percentile, in images"]
    head += ["images of the job meanwhile", "left out: job had ended", "load before", "at"]
    return [
        "## Courtesy",
        "",
        "`POST /predict` with one image that the server has not seen, sent to `spica serve` at a random moment, beside "
        "a job over the same network and without one, in rounds that take turns and show the same photographs. *Extra* "
        "is what an answer beside the job takes longer, divided by the network's mean time for an image when idle.",
        "",
        *_table(head, rows),
    ]


def _named(switched: bool) -> str:
    return "switched" if switched else "as started"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _mib(count: int | None) -> str:
    return "–" if count is None else f"{count / _MIB:.0f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if any(len(row) != len(head) for row in rows):
        raise ValueError(f"the rows do not fit the head of the table, {head}")
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]
