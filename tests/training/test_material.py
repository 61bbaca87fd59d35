"""What a run has begun with is found again when it is taken up."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from spica.evaluation.truth import Truth
from spica.training import material
from spica.training.dataset import DataSet
from spica.training.submissions import learned
from training_data import example, wheat


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    """Three images, the last without objects, as they come from Label Studio."""
    found = wheat(tmp_path / "images", range(1000, 1002), width=96, height=64)
    empty = Truth(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), 8, 8)
    bare = example(tmp_path / "images" / "bare.png", np.zeros((8, 8, 3), np.uint8), empty)
    examples = [
        replace(each, task=number, annotation=10 + number, updated=f"2026-11-0{number + 1}T00:00:00Z")
        for number, each in enumerate((*found.examples, bare))
    ]
    return DataSet(("spike",), (replace(examples[0], group="a"), *examples[1:]), ("one left out",), ((7, "then"),))


def test_round_trip(tmp_path: Path, data: DataSet) -> None:
    """Images, boxes to the last bit, annotations and their times come back as they were."""
    material.write(tmp_path, data, parent="v-1")
    found, why_not = material.read(tmp_path, parent="v-1", classes=("spike",))
    assert why_not is None
    assert found is not None
    assert (found.fingerprint, found.problems) == (data.fingerprint, data.problems)
    assert learned(found) == learned(data)
    for one, other in zip(found.examples, data.examples, strict=True):
        assert np.array_equal(one.truth.boxes_xyxy, other.truth.boxes_xyxy)
        for field in fields(one):
            assert field.name == "truth" or getattr(one, field.name) == getattr(other, field.name)


def test_nothing_was_kept(tmp_path: Path) -> None:
    """A run that begins has nothing to go on with, and nothing to say about it."""
    assert material.read(tmp_path, parent=None, classes=("spike",)) == (None, None)


@pytest.mark.parametrize(
    ("parent", "classes", "told"),
    [("v-2", ("spike",), "another version answers"), ("v-1", ("spike", "weed"), "labels of the project have changed")],
    ids=["another version", "another label"],
)
def test_another_training(tmp_path: Path, data: DataSet, parent: str, classes: tuple[str, ...], told: str) -> None:
    """Where version or labels have changed it is another training, and why is said."""
    material.write(tmp_path, data, parent="v-1")
    found, why_not = material.read(tmp_path, parent=parent, classes=classes)
    assert found is None
    assert told in str(why_not)


@pytest.mark.parametrize("gone", [True, False], ids=["gone", "cut short"])
def test_images_that_are_gone(tmp_path: Path, data: DataSet, gone: bool) -> None:
    """An image that has left the cache, or is no longer whole, is named."""
    material.write(tmp_path, data, parent=None)
    path = data.examples[1].path
    if gone:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    found, why_not = material.read(tmp_path, parent=None, classes=("spike",))
    assert found is None
    assert f"{path.name} the first of 1" in str(why_not)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"format": 2}', '{"format": 1, "parent": null, "classes": ["spike"], "examples": [{"name": "a"}]}'],
    ids=["empty", "a list", "a later format", "half of an entry"],
)
def test_damaged(tmp_path: Path, text: str) -> None:
    """A record that can't be read is told, and nothing breaks."""
    (tmp_path / material.MATERIAL).write_text(text, "utf-8")
    assert material.read(tmp_path, parent=None, classes=("spike",)) == (None, "the record of its images can't be read")


def test_it_is_plain_json(tmp_path: Path, data: DataSet) -> None:
    """The file is JSON that any program reads."""
    material.write(tmp_path, data, parent=None)
    assert json.loads((tmp_path / material.MATERIAL).read_text("utf-8"))["examples"][2]["boxes_xyxy"] == []
