"""What a person has drawn, and which detections answer it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spica.boxes import Detections
from spica.labelstudio.config import RectangleControl, match_labels, parse_label_config
from spica.labelstudio.drawing import Drawn, parse_context, select_for_context

XML = (
    '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image" smart="true">'
    '<Label value="spike"/><Label value="leaf"/><Label value="unmet"/></RectangleLabels>'
    '<KeyPointLabels name="point" toName="image" smart="true"><Label value="spike"/><Label value="other"/>'
    "</KeyPointLabels></View>"
)
PAIR = (
    '<View><Image name="image" value="$image"/><Rectangle name="box" toName="image"/>'
    '<Labels name="label" toName="image"><Label value="spike"/></Labels></View>'
)


def control_of(xml: str) -> RectangleControl:
    return parse_label_config(xml).controls[0]


def rectangle(
    x: float, y: float, width: float, height: float, label: str | None = "spike", **more: Any
) -> dict[str, Any]:
    value: dict[str, Any] = {"x": x, "y": y, "width": width, "height": height, "rotation": 0}
    if label is not None:
        value["rectanglelabels"] = [label]
    item = {"id": f"{x}-{y}", "from_name": "label", "to_name": "image", "type": "rectanglelabels", "value": value}
    return {**item, "original_width": 200, "original_height": 100, **more}


def point(x: float, y: float, label: str = "spike", **more: Any) -> dict[str, Any]:
    value = {"x": x, "y": y, "width": 1, "keypointlabels": [label]}
    item = {"id": f"p{x}-{y}", "from_name": "point", "to_name": "image", "type": "keypointlabels", "value": value}
    return {**item, "is_positive": True, **more}


def parse(*items: Any, xml: str = XML) -> Drawn:
    return parse_context({"result": list(items)}, control_of(xml))


def test_the_last_region_is_the_drawn_one() -> None:
    """The last rectangle was drawn; those before it are there already."""
    drawn = parse(rectangle(1, 1, 5, 5, origin="prediction"), rectangle(50, 50, 5, 5), rectangle(20, 30, 10, 15))
    assert drawn.kind == "rectangle"
    assert drawn.box_xyxy_percent == (20, 30, 30, 45)
    assert drawn.label == "spike"
    assert drawn.present_xyxy_percent == ((1, 1, 6, 6), (50, 50, 55, 55))


def test_a_point() -> None:
    """A keypoint of another tag on the same image counts, with the control's rectangles as present."""
    drawn = parse(rectangle(1, 1, 5, 5), point(3, 4))
    assert (drawn.kind, drawn.point_xy_percent, drawn.label) == ("point", (3, 4), "spike")
    assert drawn.present_xyxy_percent == ((1, 1, 6, 6),)
    assert parse(point(3, 4, "other")).label is None


def test_negative_points() -> None:
    """A negative point is left aside for the positive one before it; negative points alone ask for nothing."""
    assert parse(point(3, 4), point(8, 9, is_positive=False)).point_xy_percent == (3, 4)
    assert parse(point(8, 9, is_positive=False)).kind == "other"


def test_a_drawn_pair() -> None:
    """A Rectangle and its Labels, two items of one id, are one drawing and not present beside itself."""
    shared = {"id": "pair", "to_name": "image"}
    value = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0}
    box = {**shared, "from_name": "box", "type": "rectangle", "value": value}
    name = {**shared, "from_name": "label", "type": "labels", "value": {**value, "labels": ["spike"]}}
    earlier = [{**box, "id": "earlier"}, {**name, "id": "earlier"}]
    for order in ([box, name], [name, box]):
        drawn = parse(*earlier, *order, xml=PAIR)
        assert (drawn.kind, drawn.box_xyxy_percent, drawn.label) == ("rectangle", (10, 20, 40, 60), "spike")
        assert drawn.present_xyxy_percent == ((10, 20, 40, 60),)


def test_a_turned_rectangle() -> None:
    """A rectangle turned by 90 degrees around its first corner, in pixels, counts as the upright one around it."""
    turned = rectangle(50, 20, 10, 10)  # 20 x 10 pixels of 200 x 100
    turned["value"]["rotation"] = 90
    assert parse(turned).box_xyxy_percent == pytest.approx((45, 20, 50, 40))


def test_image_lists() -> None:
    """A drawing on one image of a list has only that image's regions present."""
    drawn = parse(
        rectangle(1, 1, 5, 5, item_index=0), rectangle(2, 2, 5, 5, item_index=1), rectangle(9, 9, 9, 9, item_index=1)
    )
    assert drawn.item_index == 1
    assert drawn.present_xyxy_percent == ((2, 2, 7, 7),)


@pytest.mark.parametrize(
    "item",
    [
        pytest.param(rectangle(1, 1, 5, 5, from_name="another"), id="rectangle-of-another-control"),
        pytest.param(rectangle(1, 1, 5, 5, to_name="another"), id="another-image"),
        pytest.param({**rectangle(1, 1, 5, 5), "type": "ellipselabels"}, id="ellipse"),
        pytest.param({**rectangle(1, 1, 5, 5), "type": None}, id="no-type"),
    ],
)
def test_drawings_that_are_not_for_the_control(item: dict[str, Any]) -> None:
    """Something was drawn, but this control has no answer to it."""
    assert parse(item).kind == "other"


@pytest.mark.parametrize(
    "context",
    [
        None,
        {},
        [],
        "result",
        {"result": None},
        {"result": []},
        {"result": {}},
        {"result": [None, 3, "x", {}, {"value": 3}]},
        {"result": [rectangle(float("nan"), 1, 1, 1)]},
        {"result": [rectangle(10**400, 1, 1, 1)]},
        {"result": [{**rectangle(1, 1, 1, 1), "value": {"x": "1"}}]},
        {"result": [point(float("inf"), 1)]},
    ],
)
def test_junk_is_no_drawing(context: Any) -> None:
    """What can't be understood is no drawing, and never an exception."""
    assert parse_context(context, control_of(XML)).kind == "none"


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["result", "value", "id", "type", "to_name", "x", "y", "width", "height", "rotation", "labels"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)
numbers = st.floats() | st.integers() | junk
fuzzed_item = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["rectanglelabels", "keypointlabels"]) | junk,
        "to_name": st.just("image") | junk,
        "from_name": st.just("label") | junk,
        "value": st.fixed_dictionaries(
            dict.fromkeys(("x", "y", "width", "height", "rotation", "rectanglelabels"), numbers)
        )
        | junk,
        "original_width": numbers,
        "original_height": numbers,
        "is_positive": st.booleans() | junk,
        "item_index": st.integers() | junk,
        "id": st.text(max_size=2) | junk,
    }
)


@settings(deadline=None)
@given(context=junk | st.fixed_dictionaries({"result": st.lists(fuzzed_item, max_size=4)}))
def test_no_context_breaks_it(context: Any) -> None:
    """Any JSON at all is understood or left aside, without an exception or a warning, down to the selection."""
    control = control_of(XML)
    drawn = parse_context(context, control)
    chosen = select_for_context(SEEN, drawn, match_labels(CLASSES, control), width=100, height=100, threshold=0.5)
    assert len(chosen) <= len(SEEN)


CLASSES = ("spike", "leaf", "stone")
SEEN = Detections(
    np.array([[10, 10, 30, 30], [12, 12, 20, 20], [50, 50, 70, 70], [14, 14, 26, 26], [60, 60, 64, 64]], np.float32),
    np.array([0.9, 0.8, 0.7, 0.4, 0.1], np.float32),
    np.array([0, 1, 0, 2, 0], np.int64),
)


def chosen(drawn: Drawn, detections: Detections = SEEN) -> list[float]:
    """The scores of what is selected on an image of 100 x 100 pixels, where percent are pixels."""
    match = match_labels(CLASSES, control_of(XML))
    selected = select_for_context(detections, drawn, match, width=100, height=100, threshold=0.5)
    return [round(float(score), 3) for score in selected.scores]


@pytest.mark.parametrize(
    ("drawn", "scores"),
    [
        pytest.param(Drawn("none"), [0.9, 0.8, 0.7], id="usual-answer"),
        pytest.param(Drawn("other"), [], id="not-for-us"),
        pytest.param(Drawn("rectangle", (0, 0, 100, 100)), [0.9, 0.8, 0.7, 0.1], id="all-down-to-the-floor"),
        pytest.param(Drawn("rectangle", (0, 0, 100, 100), label="spike"), [0.9, 0.7, 0.1], id="chosen-label"),
        pytest.param(Drawn("rectangle", (0, 0, 100, 100), label="unmet"), [], id="label-without-class"),
        pytest.param(Drawn("rectangle", (20, 20, 22, 22)), [0.9], id="centre-on-the-corner"),
        pytest.param(Drawn("rectangle", (20.1, 20, 22, 22)), [], id="centre-just-outside"),
        pytest.param(Drawn("rectangle", (18, 18, 20, 20)), [0.9], id="centre-on-the-far-corner"),
        pytest.param(Drawn("rectangle", (18, 18, 20, 19.9)), [], id="centre-just-beyond"),
        pytest.param(Drawn("rectangle", (59, 59, 61, 61)), [0.7], id="smaller-than-the-object"),
        pytest.param(
            Drawn("rectangle", (0, 0, 40, 40), present_xyxy_percent=((11, 11, 31, 31),)), [0.8], id="already-there"
        ),
        pytest.param(
            Drawn("rectangle", (0, 0, 40, 40), present_xyxy_percent=((10, 10, 30, 19),)), [0.9, 0.8], id="hardly-there"
        ),
        pytest.param(Drawn("point", point_xy_percent=(15, 15)), [0.9], id="point-highest-score"),
        pytest.param(Drawn("point", point_xy_percent=(15, 15), label="leaf"), [0.8], id="point-with-label"),
        pytest.param(
            Drawn("point", point_xy_percent=(15, 15), present_xyxy_percent=((10, 10, 30, 30),)), [0.8], id="point-next"
        ),
        pytest.param(Drawn("point", point_xy_percent=(70, 70)), [0.7], id="point-on-the-corner"),
        pytest.param(Drawn("point", point_xy_percent=(45, 45)), [], id="point-beside"),
    ],
)
def test_selection(drawn: Drawn, scores: list[float]) -> None:
    """A drawing selects what its documentation says; a class without a label is never selected."""
    assert chosen(drawn) == scores


def test_equal_scores_give_the_smallest() -> None:
    """Of two boxes of the same score around a point the smaller one is meant."""
    boxes = np.array([[0, 0, 50, 50], [10, 10, 20, 20]], np.float32)
    equal = Detections(boxes, np.array([0.5, 0.5], np.float32), np.array([0, 0], np.int64))
    match = match_labels(CLASSES, control_of(XML))
    drawn = Drawn("point", point_xy_percent=(15, 15))
    selected = select_for_context(equal, drawn, match, width=100, height=100, threshold=0.5)
    assert selected.boxes_xyxy.tolist() == [[10, 10, 20, 20]]


def test_nothing_seen_selects_nothing() -> None:
    """Zero detections are answered with zero suggestions."""
    for drawn in (Drawn("none"), Drawn("rectangle", (0, 0, 9, 9)), Drawn("point", point_xy_percent=(1, 1))):
        assert chosen(drawn, Detections.empty()) == []


def test_the_drawn_rectangle_does_not_hide_its_object() -> None:
    """A rectangle drawn exactly on an object still gets the object: Label Studio takes the drawing away."""
    drawn = parse(rectangle(10, 10, 20, 20, original_width=100))
    assert 0.9 in chosen(drawn)


def test_what_was_accepted_is_not_suggested_again() -> None:
    """Drawing twice over the same object suggests it once."""
    accepted = rectangle(10, 10, 20, 20, origin="prediction", original_width=100)
    assert 0.9 not in chosen(parse(accepted, rectangle(9, 9, 22, 22, original_width=100)))
