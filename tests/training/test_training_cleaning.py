"""Boxes as people leave them, made fit to learn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotated_images import CLASSES, example, photograph
from spica.errors import DataSetError
from spica.training.cleaning import Tally, clean, require_learnable, unjudged
from spica.training.dataset import DataSet

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("boxes", "ids", "kept", "told"),
    [
        pytest.param([], [], [], [], id="empty"),
        pytest.param([[1, 2, 3, 4]], [0], [[1, 2, 3, 4]], [], id="good"),
        pytest.param([[0, 0, 64, 48]], [0], [[0, 0, 64, 48]], [], id="the whole image"),
        pytest.param([[NAN, 0, 9, 9], [0, 0, INF, 9]], [0, 0], [], ["2 boxes were no numbers"], id="no numbers"),
        pytest.param([[1, 2, 9, 9]], [-1], [], ["1 boxes of an unknown class"], id="unknown class"),
        pytest.param([[-5, 2, 9, 9]], [0], [[0, 2, 9, 9]], ["1 boxes reached beyond"], id="beyond the image"),
        pytest.param([[-0.4, 2, 9, 9]], [0], [[0, 2, 9, 9]], [], id="beyond by rounding, which is not told"),
        pytest.param([[70, 2, 90, 9]], [0], [], ["1 boxes lay outside"], id="right of the image"),
        pytest.param([[64, 2, 70, 9]], [0], [], ["1 boxes lay outside"], id="touching the image from outside"),
        pytest.param([[5, 5, 5, 9]], [0], [], ["1 boxes were less than a pixel"], id="no width"),
        pytest.param([[9, 9, 5, 5]], [0], [], ["1 boxes were less than a pixel"], id="inverted"),
        pytest.param([[5, 5, 5.9, 9]], [0], [], ["1 boxes were less than a pixel"], id="under a pixel"),
        pytest.param([[5, 5, 6, 9]], [0], [[5, 5, 6, 9]], [], id="a pixel wide"),
        pytest.param([[63.5, 2, 90, 9]], [0], [], ["reached beyond", "less than a pixel"], id="under a pixel when cut"),
        pytest.param([[1, 2, 9, 9]] * 3, [0] * 3, [[1, 2, 9, 9]], ["2 boxes were there twice"], id="doubled"),
        pytest.param([[1, 2, 9, 9]] * 2, [0, 1], [[1, 2, 9, 9]] * 2, [], id="two classes in one place"),
        pytest.param([[0, 0, 20, 10], [0, 0, 19, 10]], [0, 0], [[0, 0, 20, 10]], ["twice"], id="IoU 0.95"),
        pytest.param(
            [[0, 0, 20, 10], [0, 0, 18.9, 10]], [0, 0], [[0, 0, 20, 10], [0, 0, 18.9, 10]], [], id="IoU 0.945"
        ),
    ],
)
def test_clean(boxes: list[list[float]], ids: list[int], kept: list[list[float]], told: list[str]) -> None:
    """Each kind of bad box is mended or dropped by its rule, and told with its number and the image."""
    tally = Tally()
    found, found_ids = clean(
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(ids, np.int64),
        width=64,
        height=48,
        image="a.jpg",
        tally=tally,
    )
    assert found.dtype == np.float32
    assert found_ids.shape == (len(kept),)
    np.testing.assert_allclose(found, np.array(kept, np.float32).reshape(-1, 4))
    sentences = tally.sentences()
    assert len(sentences) == len(told)
    for sentence, words in zip(sentences, told, strict=True):
        assert words in sentence
        assert sentence.endswith("(a.jpg)")


SIDE = st.floats(-100, 200, width=32) | st.just(NAN) | st.just(INF)


@settings(deadline=None)
@given(st.lists(st.tuples(SIDE, SIDE, SIDE, SIDE, st.integers(-1, 2)), max_size=12))
def test_cleaned_boxes_can_be_learned_from(rows: list[tuple[float, float, float, float, int]]) -> None:
    """Whatever goes in, what comes out has area, lies in the image, has a class, and is not changed a second time."""
    boxes = np.array([row[:4] for row in rows], np.float64).reshape(-1, 4)
    ids = np.array([row[4] for row in rows], np.int64)
    kept, kept_ids = clean(boxes, ids, width=64, height=48, image="a", tally=Tally())
    assert (kept >= 0).all()
    assert (kept <= np.array([64, 48, 64, 48])).all()
    assert (kept[:, 2:] - kept[:, :2] >= 0.99).all()
    assert (kept_ids >= 0).all()
    again = Tally()
    same, same_ids = clean(kept.astype(np.float64), kept_ids, width=64, height=48, image="a", tally=again)
    np.testing.assert_array_equal(same, kept)
    np.testing.assert_array_equal(same_ids, kept_ids)
    assert again.sentences() == ()


def test_many_images_are_not_all_named() -> None:
    """A sentence names the first three images and counts the others."""
    tally = Tally()
    for number in range(5):
        tally.add("{n} boxes went", f"{number}.jpg", 2)
    tally.add("{n} others", "x.jpg", 0)
    assert tally.sentences() == ("10 boxes went (0.jpg, 1.jpg, 2.jpg and 2 more)",)


def test_what_nothing_can_be_learned_from(tmp_path: Path) -> None:
    """No image, no object and a single image are each refused with a sentence; a class without objects is told."""
    one = example(tmp_path, "a.jpg", photograph(1), [[1, 2, 9, 9]], [0])
    empty = example(tmp_path, "b.jpg", photograph(2))
    for examples, words in (((), "no annotated image"), ((empty, empty), "no object"), ((one,), "one annotated image")):
        with pytest.raises(DataSetError, match=words):
            require_learnable(DataSet(CLASSES, examples))
    both = DataSet(CLASSES, (one, empty))
    assert require_learnable(both) == ('no image has an object of class "weed": nothing can be learned about it',)
    assert ['"weed"' in sentence for sentence in unjudged(both)] == [True]
    assert require_learnable(DataSet(("spike",), both.examples)) == ()
