"""The figures of reports."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from simulated_detectors import detect, scenes
from spica.errors import StorageError
from spica.evaluation.counting import Counting, at_threshold, count
from spica.evaluation.figures import counts, counts_svg, curves, precision_recall, precision_recall_svg
from spica.evaluation.matching import Matches, match_all

pytestmark = pytest.mark.torch  # matplotlib comes with the extra spica[train]


def text_of(svg: str) -> str:
    return " ".join(ET.fromstring(svg).itertext())  # noqa: S314 - our own


def matches(classes: int = 1, objects: float = 12) -> Matches:
    rng = np.random.default_rng(0)
    truths = scenes(rng, 4, objects=objects, classes=classes)
    return match_all(truths, detect(rng, truths, recall=0.7), classes)


def test_training_curves(tmp_path: Path) -> None:
    """Loss and metrics by epoch are drawn, epochs that were not judged and unknown metrics too."""
    history = [
        {"number": 1, "losses": {"loss": 2.0}, "metrics": None},
        {"number": 2, "losses": {"loss": 1.0}, "metrics": {"ap": 0.1, "ap50": 0.3, "ar": None}},
    ]
    curves(history, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > image.height > 300
    curves(history, tmp_path / "curves.svg")
    told = text_of((tmp_path / "curves.svg").read_text("utf-8"))
    assert "Loss" in told
    assert "mAP50" in told
    assert "mAR" not in told
    curves([], tmp_path / "curves.svg")
    assert [path.name for path in tmp_path.glob("*tmp*")] == []


def test_counts() -> None:
    """R² and bias are in the figure; without images, or where all are the same, it says less."""
    rng = np.random.default_rng(0)
    truths = scenes(rng, 5)
    found = count(truths, detect(rng, truths, recall=0.8), 0.5)
    told = text_of(counts_svg(found))
    assert f"R² = {found.r2:.2f}" in told
    assert "bias" in told
    assert "bias" not in text_of(counts_svg(Counting(np.zeros(0, np.int64), np.zeros(0, np.int64), 0.5)))


def test_names_in_any_script(tmp_path: Path) -> None:
    """Names in Japanese, with markup, formulas or a leading underscore are told as they are, without warnings."""
    names = ("小麦の穂", "<b>&$a$</b>", "_weed", "x" * 60)
    found = matches(4)
    told = text_of(precision_recall_svg(found, names))
    for name in (*names[:3], "x" * 23 + "…"):
        assert name in told
    precision_recall(found, names, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_precision_and_recall() -> None:
    """The threshold is marked for one class; many classes are cut to the most frequent; none is said."""
    found = matches()
    assert "score 0.5" in text_of(precision_recall_svg(found, ("ear",), shown=at_threshold(found, 0.5)))
    many = matches(12, objects=60)
    told = text_of(precision_recall_svg(many, [f"class {number}" for number in range(12)]))
    assert told.count("AP50") == 8
    assert "no objects" in text_of(precision_recall_svg(matches(objects=0), ("ear",)))


def test_class_without_answers() -> None:
    """A class that was never answered is named with AP50 0."""
    truths = scenes(np.random.default_rng(0), 2, classes=2)
    answers = detect(np.random.default_rng(1), truths, recall=1.0)
    found = match_all(truths, [answer.where(answer.class_ids == 0) for answer in answers], 2)
    assert "AP50 0.000 weed" in " ".join(text_of(precision_recall_svg(found, ("ear", "weed"))).split())


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """A figure that can't be written is a sentence."""
    with pytest.raises(StorageError, match="could not be written"):
        counts(Counting(np.zeros(0, np.int64), np.zeros(0, np.int64), 0.5), tmp_path / "no" / "counts.svg")
