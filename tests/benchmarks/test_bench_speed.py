"""The benchmark of speed: what a failure leaves, what is kept, and what the report makes of figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report_speed
from spica.errors import WeightsError

CONDITIONS = {"processor": "a", "packages": "torch 2"}


def row(way: str, **changes: Any) -> dict[str, Any]:
    told = {
        "way": way,
        "median_s": 1.0,
        "min_s": 0.9,
        "times_tutorial": [2.3, 2.2],
        "times_inference_mode": None,
        "boxes": 10,
        "same_boxes": 1.0,
        "score_difference_median": 0.0,
        "worst_side_px": 0.01,
        "threads": 2,
        "memory_bytes": 2**28,
        "start_to_healthy_s": 0.5,
        "start_to_loaded_s": 0.4,
        "start_to_first_boxes_s": 3.0,
    }
    return told | changes


def part(figures: Any, **changes: Any) -> dict[str, Any]:
    return {"figures": figures, "when": "2026-01-02T03:04+00:00", "conditions": CONDITIONS, "load": "1.0"} | changes


def tutorial(*rows: dict[str, Any]) -> dict[str, Any]:
    return part(
        {"rows": rows, "notes": [], "threads": "2", "gflops": {"f32": [200.0, 220.0]}, "gflop_per_image": 170.0}
    )


def goals(found: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """What was measured and the outcome, by the goal."""
    return {line[0]: (line[1], line[3]) for line in report_speed._goals(found)}


def test_outcomes_follow_from_the_figures() -> None:
    """A goal is reached at its very value where that is allowed, not reached beside it, and told where not measured."""
    script = row("tutorial", times_tutorial=[1.0, 1.0], memory_bytes=2**30, start_to_healthy_s=None)
    told = goals({"tutorial": tutorial(script, row("f32"))})
    assert told["f32: times as fast as the tutorial's way (median / min)"] == ("2.30 / 2.20", "reached")
    assert told["f32: times this machine's limit (median / min)"] == ("1.18 / 1.16", "reached")
    assert told["start to healthy, second start with a warm cache, f32"] == ("0.50 s", "reached")
    assert told["start to first boxes, second start with a warm cache, f32"] == ("3.00 s", "not reached")
    assert told["memory of the server against the tutorial's, f32"] == ("0.25", "reached")
    assert told["bf16: times as fast as the tutorial's way (median / min)"] == ("–", "not measured")
    assert told["AP50 on real photographs, int8 minus f32, with its 95 % interval"] == ("–", "not measured")


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        pytest.param({}, "reached", id="same"),
        pytest.param({"worst_side_px": None}, "not measured", id="no pairs"),
        pytest.param({"same_boxes": 0.99}, "not reached", id="a box is missing"),
        pytest.param({"worst_side_px": 0.5}, "not reached", id="moved"),
    ],
)
def test_identical_boxes(changes: dict[str, Any], outcome: str) -> None:
    """Without a pair of boxes nothing is known about their sides, and the report is written nevertheless."""
    found = {"tutorial": tutorial(row("f32", **changes))}
    assert goals(found)["f32: boxes of torch found again; largest difference of a side"][1] == outcome
    assert "# Speed, measured" in report_speed.text(found, command="x")


def test_a_report_without_servers_and_of_a_failed_part() -> None:
    """Starts that were not measured are no outcome, and what failed stands in the report with its reason."""
    without = tutorial(row("f32", start_to_healthy_s=None))
    failed = {**part(None), "failed": "no memory", "conditions": {**CONDITIONS, "processor": "b"}}
    del failed["figures"]
    found = {"tutorial": without, "lighter": {"ssd300_vgg16": failed}, "http": failed}
    assert goals(found)["start to first boxes, second start with a warm cache, f32"] == ("–", "not measured")
    text = report_speed.text(found, command="x")
    assert text.count("**Not measured:** no memory.") == 2
    assert "other conditions than the first part: processor b" in text


def test_figures_are_kept_after_each_architecture_and_a_failure_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured before stays with its own conditions, and a failing architecture ends nothing."""
    pytest.importorskip("torch", reason="needs the extra spica[train]")
    from benchmarks import speed

    figures, report = tmp_path / "figures.json", tmp_path / "report.md"
    before = part({"rows": [row("f32")], "notes": [], "threads": "2"}, conditions={"processor": "before"})
    figures.write_text(json.dumps({"lighter": {"ssd300_vgg16": before}, "conditions": {}}), "utf-8")
    kept: list[list[str]] = []

    def lighter(name: str, *_: object) -> dict[str, Any]:
        kept.append(sorted(json.loads(figures.read_text("utf-8"))["lighter"]))
        if name.startswith("retinanet"):
            raise WeightsError("it can't be run")
        return {"rows": [row("f32")], "notes": ["a note"], "threads": "2"}

    monkeypatch.setattr(speed, "_lighter", lighter)
    names = ["retinanet_resnet50_fpn", "fcos_resnet50_fpn"]
    asked = ["--only", "lighter", "--architectures", *names, "--figures", str(figures), "--results", str(report)]
    monkeypatch.setattr(sys, "argv", ["speed", *asked])
    speed.main()
    assert kept == [["ssd300_vgg16"], ["retinanet_resnet50_fpn", "ssd300_vgg16"]]
    found = json.loads(figures.read_text("utf-8"))["lighter"]
    assert found["ssd300_vgg16"]["conditions"] == {"processor": "before"}
    assert found["retinanet_resnet50_fpn"]["failed"] == "it can't be run"
    assert found["fcos_resnet50_fpn"]["conditions"]["processor"] != "before"
    text = report.read_text("utf-8")
    assert "Note: a note." in text
    assert "**Not measured:** it can't be run." in text
    assert not list(tmp_path.glob(".*"))


def test_the_limit_of_a_network(tmp_path: Path) -> None:
    """Operations are counted for the photograph's size, and this machine's peak is some operations a second."""
    torch = pytest.importorskip("torch", reason="needs the extra spica[train]")
    from PIL import Image

    from benchmarks import limit
    from spica.detectors.networks import build

    weights = tmp_path / "w.pth"
    torch.save(build("fasterrcnn_mobilenet_v3_large_320_fpn", 2).state_dict(), weights)
    sizes = {}
    for name, size in (("square", (320, 320)), ("wide", (640, 320))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
        sizes[name] = limit.gflop_per_image(weights, [tmp_path / f"{name}.png"])
    assert 1 < sizes["square"] < sizes["wide"] < 100
    peaks = limit.Peaks()
    peaks.measure(runs=1)
    assert all(1 < middle <= best for middle, best in peaks.gflops().values())
    assert "f32" in peaks.gflops()
