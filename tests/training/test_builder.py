"""Boxes as people leave them, made fit to learn from."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotated_images import CLASSES, example, photograph
from spica.errors import DataSetError, UsageError
from spica.evaluation.truth import Truth
from spica.training.builder import correct
from spica.training.dataset import DataSet, require_learnable
from spica.training.formats.annotated import ReadingLog

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("boxes", "ids", "kept", "told"),
    [
        pytest.param([], [], [], [], id="empty"),
        pytest.param([[1, 2, 3, 4]], [0], [[1, 2, 3, 4]], [], id="good"),
        pytest.param([[0, 0, 64, 48]], [0], [[0, 0, 64, 48]], [], id="the whole image"),
        pytest.param([[-5, 2, 9, 9]], [0], [[0, 2, 9, 9]], ["1 boxes reached beyond"], id="beyond the image"),
        pytest.param([[-0.4, 2, 9, 9]], [0], [[0, 2, 9, 9]], [], id="beyond by rounding, which is not told"),
        pytest.param([[9, 2, 5, 9]], [0], [[5, 2, 9, 9]], ["1 boxes had exchanged corners"], id="a negative width"),
        pytest.param([[9, 9, 5, 5]], [0], [[5, 5, 9, 9]], ["1 boxes had exchanged corners"], id="inverted"),
        pytest.param([[5, 5, 6, 9]], [0], [[5, 5, 6, 9]], [], id="a pixel wide"),
        pytest.param([[1, 2, 9, 9]] * 3, [0] * 3, [[1, 2, 9, 9]], ["2 boxes were there twice"], id="doubled"),
        pytest.param([[1, 2, 9, 9]] * 2, [0, 1], [[1, 2, 9, 9]] * 2, [], id="two classes in one place"),
        pytest.param([[0, 0, 20, 10], [0, 0, 19, 10]], [0, 0], [[0, 0, 20, 10]], ["twice"], id="IoU 0.95"),
        pytest.param(
            [[0, 0, 20, 10], [0, 0, 18.9, 10]], [0, 0], [[0, 0, 20, 10], [0, 0, 18.9, 10]], [], id="IoU 0.945"
        ),
    ],
)
def test_correct(boxes: list[list[float]], ids: list[int], kept: list[list[float]], told: list[str]) -> None:
    """Each kind of box that can be corrected is corrected by its rule, and noted with its number and the image."""
    log = ReadingLog()
    found = corrected(boxes, ids, log)
    assert isinstance(found, Truth), found
    assert found.boxes_xyxy.dtype == np.float32
    assert found.class_ids.shape == (len(kept),)
    np.testing.assert_allclose(found.boxes_xyxy, np.array(kept, np.float32).reshape(-1, 4))
    sentences = log.sentences()
    assert len(sentences) == len(told)
    for sentence, words in zip(sentences, told, strict=True):
        assert words in sentence
        assert sentence.endswith("(a.jpg)")


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        pytest.param([NAN, 0, 9, 9], "no numbers", id="NaN"),
        pytest.param([0, 0, INF, 9], "no numbers", id="infinity"),
        pytest.param([70, 2, 90, 9], "outside", id="right of the image"),
        pytest.param([64, 2, 70, 9], "outside", id="touching the image from outside"),
        pytest.param([63.5, 2, 90, 9], "outside", id="under a pixel when cut"),
        pytest.param([5, 5, 5, 9], "less than a pixel", id="no width"),
        pytest.param([5, 5, 5.9, 9], "less than a pixel", id="under a pixel"),
    ],
)
@pytest.mark.parametrize("others", [[], [[1, 2, 9, 9]]], ids=["alone", "beside a good one"])
def test_doubt(box: list[float], others: list[list[float]], reason: str) -> None:
    """A box that can't be learned puts its whole image in doubt, whatever else is in it, and nothing is corrected."""
    log = ReadingLog()
    found = corrected([*others, [-5, 2, 9, 9], box], [0] * (len(others) + 2), log)
    assert isinstance(found, str)
    assert reason in found
    assert log.sentences() == ()


def corrected(boxes: list[list[float]], ids: list[int], log: ReadingLog) -> Truth | str:
    rows = np.array(boxes, np.float64).reshape(-1, 4)
    return correct(rows, np.array(ids, np.int64), width=64, height=48, image="a.jpg", log=log)


SIDE = st.floats(-100, 200, width=32) | st.just(NAN) | st.just(INF)


@settings(deadline=None)
@given(st.lists(st.tuples(SIDE, SIDE, SIDE, SIDE, st.integers(0, 2)), max_size=12))
def test_corrected_boxes_can_be_learned_from(rows: list[tuple[float, float, float, float, int]]) -> None:
    """Whatever goes in, what comes out has area, lies in the image, has a class, and is not changed a second time."""
    found = corrected([list(row[:4]) for row in rows], [row[4] for row in rows], ReadingLog())
    if isinstance(found, str):
        return
    kept, kept_ids = found.boxes_xyxy, found.class_ids
    assert (kept >= 0).all()
    assert (kept <= np.array([64, 48, 64, 48])).all()
    assert (kept[:, 2:] - kept[:, :2] >= 0.99).all()
    assert (kept_ids >= 0).all()
    again = ReadingLog()
    same = corrected(kept.tolist(), kept_ids.tolist(), again)
    assert isinstance(same, Truth)
    np.testing.assert_array_equal(same.boxes_xyxy, kept)
    np.testing.assert_array_equal(same.class_ids, kept_ids)
    assert again.sentences() == ()


def test_many_images_are_not_all_named() -> None:
    """A sentence names the first three images and counts the others."""
    log = ReadingLog()
    for number in range(5):
        log.correct("{n} boxes went", f"{number}.jpg", 2)
        log.leave_out(f"{number}.png", "a doubt")
    log.correct("{n} others", "x.jpg", 0)
    log.leave_out("\ud800\n.jpg", "another")
    assert log.sentences() == (
        "5 images left out: a doubt (0.png, 1.png, 2.png and 2 more)",
        "1 image left out: another (��.jpg)",
        "10 boxes went (0.jpg, 1.jpg, 2.jpg and 2 more)",
    )


@pytest.mark.parametrize(("doubtful", "copies", "asked"), [(1, 5, False), (2, 0, True)])
def test_more_than_a_tenth(tmp_path: Path, doubtful: int, copies: int, asked: bool) -> None:
    """Where more than a tenth of the images is in doubt the caller is asked; the notes name each in either case."""
    log = ReadingLog()
    for number in range(doubtful):
        log.leave_out(f"穂{number}.jpg", "no label file")
    for _ in range(copies):
        log.leave_out("copy.jpg", "once more", is_doubt=False)
    notes = tmp_path / "notes.txt"
    with pytest.raises(DataSetError, match="2 of 11") if asked else nullcontext() as refused:
        log.check(9, where="here", allow_partial=False, notes=notes)
    if refused is not None:
        assert "--allow-partial" in str(refused.value)
        assert "穂0.jpg, 穂1.jpg" in str(refused.value)
    lines = notes.read_text("utf-8").splitlines()
    assert lines[0] == "穂0.jpg\tno label file"
    assert len(lines) == doubtful + copies
    log.check(9, where="here", allow_partial=True, notes=None)
    with pytest.raises(UsageError, match="notes"):
        log.check(9, where="here", allow_partial=True, notes=tmp_path)


def test_what_nothing_can_be_learned_from(tmp_path: Path) -> None:
    """No image, no object and a single image are each refused with a sentence; a class without objects is told."""
    one = example(tmp_path, "a.jpg", photograph(1), [[1, 2, 9, 9]], [0])
    empty = example(tmp_path, "b.jpg", photograph(2))
    for examples, words in (((), "no annotated image"), ((empty, empty), "no object"), ((one,), "one annotated image")):
        with pytest.raises(DataSetError, match=words):
            require_learnable(DataSet(CLASSES, examples))
    both = DataSet(CLASSES, (one, empty))
    assert require_learnable(both) == ('no image has an object of class "weed": nothing can be learned about it',)
    assert both.classes_without_objects() == ('"weed"',)
    assert require_learnable(DataSet(("spike",), both.examples)) == ()
