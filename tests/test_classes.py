"""Which class of a model is which of a data set."""

from __future__ import annotations

import pytest

from scripted_detector import detections
from spica.classes import map_classes
from spica.errors import DataSetError


@pytest.mark.parametrize(
    ("model", "data", "class_ids", "told"),
    [
        (("ear",), ("ear",), (0,), []),
        (("ear", "weed"), ("weed", "ear"), (1, 0), []),
        ((" Ear ",), ("ear",), (0,), []),
        (("Ear", "ear"), ("ear", "Ear"), (1, 0), []),
        (("\u304c",), ("\u304b\u3099",), (0,), []),
        (("",), ("ear",), (0,), []),
        (("", ""), ("ear", "weed"), (0, 1), ["taken in the data's order: ear, weed"]),
        (("ear", "stone"), ("ear",), (0, -1), ["boxes of stone are left out"]),
        (("ear",), ("weed", "ear"), (1,), ["does not know weed"]),
    ],
    ids=[
        "same",
        "other order",
        "case and spaces",
        "exact first",
        "decomposed kana",
        "one without name",
        "two without names",
        "more",
        "fewer",
    ],
)
def test_classes_match_by_name(
    model: tuple[str, ...], data: tuple[str, ...], class_ids: tuple[int, ...], told: list[str]
) -> None:
    """Names are matched by name, missing ones by number, and what does not go together is told."""
    found = map_classes(model, data, where="here")
    assert found.class_ids == class_ids
    assert len(found.notes) == len(told)
    assert all(part in note for part, note in zip(told, found.notes, strict=True))


@pytest.mark.parametrize(
    ("model", "data"), [(("ear",), ("weed",)), (("", ""), ("ear",))], ids=["no common name", "not as many"]
)
def test_refused(model: tuple[str, ...], data: tuple[str, ...]) -> None:
    """Classes that can't be told apart are refused with a way out."""
    with pytest.raises(DataSetError) as failure:
        map_classes(model, data, where="here")
    assert "--labels" in str(failure.value)


def test_translate() -> None:
    """An answer gets the data's class ids; boxes of classes that the data does not have are gone."""
    classes = map_classes(("stone", "ear"), ("weed", "ear"), where="here")
    answer = detections((0, 0, 9, 9, 0.9), (10, 10, 19, 19, 0.8), (20, 20, 29, 29, 0.7))
    answer.class_ids[:] = (1, 0, 1)
    found = classes.translate(answer)
    assert found.class_ids.tolist() == [1, 1]
    assert found.scores.tolist() == pytest.approx([0.9, 0.7])


def test_nothing_in_common_may_be_no_error() -> None:
    """Who does not say where gets a map that leaves every box out."""
    assert map_classes(("ear",), ("weed",)).class_ids == (-1,)
