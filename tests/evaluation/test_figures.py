"""The figures of reports."""

from __future__ import annotations

import io
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from simulated_detectors import detect, scenes
from spica.evaluation.counting import Counting, at_threshold, count
from spica.evaluation.figures import counts, curves, precision_recall
from spica.evaluation.matching import Matches, match_all

pytestmark = pytest.mark.torch  # matplotlib comes with the extra spica[train]


def text_of(svg: bytes) -> str:
    return " ".join(ET.fromstring(svg).itertext())  # noqa: S314 - our own


def matches(classes: int = 1, objects: float = 12) -> Matches:
    rng = np.random.default_rng(0)
    truths = scenes(rng, 4, objects=objects, classes=classes)
    return match_all(truths, detect(rng, truths, recall=0.7), classes)


def test_training_curves() -> None:
    """Loss and metrics by epoch are drawn, epochs that were not judged and unknown metrics too."""
    history = [
        {"number": 1, "losses": {"loss": 2.0}, "metrics": None},
        {"number": 2, "losses": {"loss": 1.0}, "metrics": {"ap": 0.1, "ap50": 0.3, "ar": None}},
    ]
    with Image.open(io.BytesIO(curves(history, "png"))) as image:
        assert image.width > image.height > 300
    told = text_of(curves(history, "svg"))
    assert "Loss" in told
    assert "mAP50" in told
    assert "mAR" not in told
    assert "not judged" in text_of(curves([], "svg"))


def test_counts() -> None:
    """R² and bias are in the figure; without images, or where all are the same, it says less."""
    rng = np.random.default_rng(0)
    truths = scenes(rng, 5)
    found = count(truths, detect(rng, truths, recall=0.8), 0.5)
    told = text_of(counts(found, "svg"))
    assert f"R² = {found.r2:.2f}" in told
    assert "bias" in told
    assert "bias" not in text_of(counts(Counting(np.zeros(0, np.int64), np.zeros(0, np.int64), 0.5), "svg"))


def test_names_in_any_script() -> None:
    """Names in Japanese, with markup, formulas or a leading underscore are told as they are, without warnings."""
    names = ("小麦の穂", "<b>&$a$</b>", "_weed", "x" * 60)
    found = matches(4)
    told = text_of(precision_recall(found, names, "svg"))
    for name in (*names[:3], "x" * 23 + "…"):
        assert name in told
    assert len(precision_recall(found, names, "png")) > 1000


def test_precision_and_recall() -> None:
    """The threshold is marked for one class; many classes are cut to the most frequent; none is said."""
    found = matches()
    assert "score 0.5" in text_of(precision_recall(found, ("ear",), "svg", shown=at_threshold(found, 0.5)))
    many = matches(12, objects=60)
    told = text_of(precision_recall(many, [f"class {number}" for number in range(12)], "svg"))
    assert told.count("AP50") == 8
    assert "no objects" in text_of(precision_recall(matches(objects=0), ("ear",), "svg"))


def test_class_without_answers() -> None:
    """A class that was never answered is named with AP50 0."""
    truths = scenes(np.random.default_rng(0), 2, classes=2)
    answers = detect(np.random.default_rng(1), truths, recall=1.0)
    found = match_all(truths, [answer.where(answer.class_ids == 0) for answer in answers], 2)
    assert "AP50 0.000 weed" in " ".join(text_of(precision_recall(found, ("ear", "weed"), "svg")).split())
