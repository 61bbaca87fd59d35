"""What every benchmark's report makes of figures and of failures, and what the benchmark of speed says of them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from spica.errors import WeightsError


def test_a_failure_is_a_line_and_ends_nothing(tmp_path: Path) -> None:
    """What was measured before stays with its own conditions, a failing part leaves its reason, the next one runs."""
    from benchmarks import report

    figures = tmp_path / "figures.json"
    before = {"figures": 1, "when": "then", "conditions": {"processor": "before"}, "load": "0"}
    figures.write_text(json.dumps({"first": before}), "utf-8")

    def fail() -> None:
        raise WeightsError("it can't be run")

    options = argparse.Namespace(figures=figures)
    measured = report.measure(options, {"second": fail, "third": lambda: 3})
    assert measured == json.loads(figures.read_text("utf-8"))
    assert measured["first"] == before
    assert measured["second"]["failed"] == "it can't be run"
    assert measured["third"]["figures"] == 3
    text = report.text("Title", "Why.", measured, {name: (name.title(), str) for name in ("first", "second", "third")})
    assert "**Not measured:** it can't be run." in text
    assert "Other conditions than above: processor" in text
    assert text.index("## First") < text.index("## Second") < text.index("## Third")


def test_a_row_fits_its_head() -> None:
    """A table whose row is too short is a mistake, and a bar in a cell stays in it."""
    from benchmarks.report import table

    assert table(("a", "b"), [("x|y", 1)]) == "| a | b |\n| --- | --- |\n| x\\|y | 1 |\n"
    with pytest.raises(ValueError, match="does not fit"):
        table(("a", "b"), [("x",)])


def test_the_ratio_of_http() -> None:
    """Requests are divided by the bare network of the same kind of round."""
    from benchmarks.speed import _http

    times = {"one": [1.1, 1.2], "bare": [1.0, 1.0], "many": [2.2], "bare_many": [2.0]}
    assert "| net | 1.000 | 1.150 | 1.100 | 1.100 | 1.100 |" in _http({"net": times})
