"""Detections as regions, and the check of answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdk_check import check_result
from spica.boxes import Detections, xywh_percent_to_xyxy
from spica.errors import LabelConfigError
from spica.labelstudio.config import RectangleControl, match_labels, parse_label_config
from spica.labelstudio.regions import misfits, prediction, prediction_score, suggestions, to_regions

ONE_TAG = (
    '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">'
    '<Label value="spike"/><Label value="Leaf" alias="leaf"/></RectangleLabels></View>'
)
PAIR = (
    '<View><Image name="image" value="$image"/><Rectangle name="box" toName="image"/>'
    '<Labels name="label" toName="image">'
    '<Label value="spike"/><Label value="Leaf" alias="leaf"/></Labels></View>'
)
IMAGE = '<Image name="image" value="$image"/>'
LABELS = '<Label value="spike"/><Label value="Leaf" alias="leaf"/>'
CONFIGS = {
    "one tag": ONE_TAG,
    "pair": PAIR,
    "Japanese": '<View><Image name="画像" value="$写真"/><RectangleLabels name="ラベル" toName="画像">'
    '<Label value="穂" predicted_values="spike"/></RectangleLabels></View>',
    "smart": ONE_TAG.replace('toName="image">', 'toName="image" smart="true" model_score_threshold="0.1">'),
    "styled": f'<View style="display: flex">{IMAGE}<View><Header value="Boxes"/><RectangleLabels name="label" '
    f'toName="image" choice="multiple" maxUsages="3" canRotate="false">{LABELS}</RectangleLabels></View></View>',
    "per region": f'<View>{IMAGE}<RectangleLabels name="label" toName="image">{LABELS}</RectangleLabels>'
    '<Choices name="ripe" toName="image" perRegion="true"><Choice value="yes"/><Choice value="no"/></Choices>'
    '<TextArea name="note" toName="image" perRegion="true" required="true"/></View>',
    "with other kinds": f'<View>{IMAGE}<PolygonLabels name="area" toName="image"><Label value="plot"/></PolygonLabels>'
    f'<RectangleLabels name="label" toName="image">{LABELS}</RectangleLabels>'
    '<KeyPointLabels name="point" toName="image" smart="true"><Label value="spike"/></KeyPointLabels></View>',
    "pair among others": f'<View>{IMAGE}<Brush name="brush" toName="image"/><Rectangle name="box" toName="image"/>'
    f'<Polygon name="area" toName="image"/><Labels name="label" toName="image">{LABELS}</Labels></View>',
    "image list": ONE_TAG.replace("value=", "valueList=", 1),
    "pair on an image list": PAIR.replace("value=", "valueList=", 1),
    "two controls": f'<View>{IMAGE}<RectangleLabels name="a" toName="image"><Label value="spike"/></RectangleLabels>'
    f'<RectangleLabels name="b" toName="image">{LABELS}</RectangleLabels></View>',
    "two images": '<View><Image name="left" value="$left"/><Image name="right" value="$right"/>'
    f'<RectangleLabels name="a" toName="left">{LABELS}</RectangleLabels>'
    f'<RectangleLabels name="b" toName="right">{LABELS}</RectangleLabels></View>',
    "two images in two ways": '<View><Image name="left" value="$left"/><Image name="right" value="$right"/>'
    f'<RectangleLabels name="a" toName="left">{LABELS}</RectangleLabels>'
    f'<Rectangle name="box" toName="right"/><Labels name="b" toName="right">{LABELS}</Labels></View>',
}
BOTH = pytest.mark.parametrize("xml", [pytest.param(ONE_TAG, id="one-tag"), pytest.param(PAIR, id="pair")])
CLASSES = ("spike", "leaf", "stone")
WIDTH, HEIGHT = 640, 480


def seen(*rows: tuple[float, ...]) -> Detections:
    """Detections from rows of left, top, right, bottom, score, class."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    return Detections(table[:, :4].astype(np.float32), table[:, 4].astype(np.float32), table[:, 5].astype(np.int64))


def control_of(xml: str) -> RectangleControl:
    return parse_label_config(xml).controls[0]


def regions_of(xml: str, detections: Detections, threshold: float = 0.5, **options: Any) -> list[dict[str, Any]]:
    control = control_of(xml)
    size = {"width": WIDTH, "height": HEIGHT, **options}
    return to_regions(detections, control, match_labels(CLASSES, control), threshold=threshold, **size)


def test_one_tag() -> None:
    """A detection becomes one item with percent, label, size, and its score beside the value."""
    (region,) = regions_of(ONE_TAG, seen((64, 48, 320, 240, 0.9, 1)))
    assert region.pop("id")
    assert region == {
        "from_name": "label",
        "to_name": "image",
        "type": "rectanglelabels",
        "value": {"x": 10, "y": 10, "width": 40, "height": 40, "rotation": 0, "rectanglelabels": ["leaf"]},
        "original_width": 640,
        "original_height": 480,
        "image_rotation": 0,
        "origin": "prediction",
        "score": 0.9,
    }


def test_pair() -> None:
    """For Rectangle with Labels a detection becomes two items of one id, both with geometry and score."""
    box, name = regions_of(PAIR, seen((64, 48, 320, 240, 0.9, 0)))
    assert box["id"] == name["id"]
    assert (box["from_name"], box["type"]) == ("box", "rectangle")
    assert (name["from_name"], name["type"]) == ("label", "labels")
    geometry = {"x": 10, "y": 10, "width": 40, "height": 40, "rotation": 0}
    assert box["value"] == geometry
    assert name["value"] == {**geometry, "labels": ["spike"]}
    assert box["score"] == name["score"] == 0.9


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        pytest.param((1, 1, 9, 9, 0.5, 0), True, id="at-the-threshold"),
        pytest.param((1, 1, 9, 9, 0.49, 0), False, id="below-the-threshold"),
        pytest.param((1, 1, 9, 9, 0.9, 2), False, id="class-without-label"),
        pytest.param((9, 1, 9, 9, 0.9, 0), False, id="no-width"),
        pytest.param((1, 9, 9, 9, 0.9, 0), False, id="no-height"),
        pytest.param((-1, 1, 0, 9, 0.9, 0), False, id="left-of-the-image"),
        pytest.param((640, 1, 641, 9, 0.9, 0), False, id="right-of-the-image"),
        pytest.param((-1, -1, 641, 481, 0.9, 0), True, id="over-all-edges"),
        pytest.param((639, 479, 640, 480, 0.9, 0), True, id="last-pixel"),
    ],
)
def test_what_is_shown(row: tuple[float, ...], shown: bool) -> None:
    """Score, label and what is left of the box decide whether a detection is shown."""
    assert bool(regions_of(ONE_TAG, seen(row))) == shown


def test_a_threshold_counts_as_the_scores_are_stored() -> None:
    """A float32 score of 0.6 is not below the threshold 0.6."""
    assert len(regions_of(ONE_TAG, seen((1, 1, 9, 9, 0.6, 0)), threshold=0.6)) == 1


@BOTH
def test_no_detections(xml: str) -> None:
    """No detections are no regions, and that is a valid answer."""
    assert regions_of(xml, Detections.empty()) == []
    assert check_result(xml, []) == []


def test_item_index() -> None:
    """Regions of an image list say which image is theirs, those of a single image don't."""
    listed = ONE_TAG.replace("value=", "valueList=", 1)
    detections = seen((1, 1, 9, 9, 0.9, 0))
    assert regions_of(listed, detections, item_index=2)[0]["item_index"] == 2
    assert regions_of(listed, detections)[0]["item_index"] == 0
    assert "item_index" not in regions_of(ONE_TAG, detections)[0]
    assert check_result(listed, regions_of(listed, detections, item_index=2)) == []


def test_ids() -> None:
    """Ids are the same for the same answer, and differ by box, image of a list, control and salt."""
    twice = seen((1, 1, 9, 9, 0.9, 0), (1, 1, 9, 9, 0.9, 0))
    other = ONE_TAG.replace('"label"', '"other"')
    ids = [
        region["id"]
        for answer in (
            regions_of(ONE_TAG, twice),
            regions_of(other, twice),
            regions_of(ONE_TAG, twice, item_index=1),
            regions_of(ONE_TAG, twice, id_salt="x"),
        )
        for region in answer
    ]
    assert len(set(ids)) == len(ids) == 8
    assert regions_of(ONE_TAG, twice) == regions_of(ONE_TAG, twice)


# Percent have four digits: on an image of at most 20,000 pixels half a step is 0.01 pixels.
sides = st.integers(1, 20_000)
fractions = st.floats(-0.01, 1.01)


@settings(deadline=None)
@given(
    size=st.tuples(sides, sides),
    rows=st.lists(
        st.tuples(fractions, fractions, fractions, fractions, st.floats(0, 1), st.integers(0, 2)), max_size=8
    ),
    threshold=st.floats(0, 1),
    xml=st.sampled_from([ONE_TAG, PAIR]),
)
def test_every_answer_is_valid(
    size: tuple[int, int], rows: list[tuple[float, float, float, float, float, int]], threshold: float, xml: str
) -> None:
    """Whatever a detector says, the regions pass the SDK's check, stay in the image, and lead back to the boxes."""
    width, height = size
    pixels = [
        (min(a, c) * width, min(b, d) * height, max(a, c) * width, max(b, d) * height, score, class_id)
        for a, b, c, d, score, class_id in rows
    ]
    detections = seen(*pixels)
    result = regions_of(xml, detections, threshold, width=width, height=height)
    assert check_result(xml, result) == []
    json.dumps(result, allow_nan=False)
    for region in result:
        value = region["value"]
        assert 0 <= value["x"] < value["x"] + value["width"] <= 100
        assert 0 <= value["y"] < value["y"] + value["height"] <= 100
        percent = np.array([[value[name] for name in ("x", "y", "width", "height")]], np.float64)
        back = xywh_percent_to_xyxy(percent, width, height)
        limits = np.array([width, height, width, height], np.float32)
        distances = np.abs(np.clip(detections.boxes_xyxy, 0, limits) - back).max(axis=1)
        assert distances.min() <= 0.02


@pytest.mark.parametrize("xml", CONFIGS.values(), ids=CONFIGS)
def test_answers_on_every_kind_of_configuration(xml: str) -> None:
    """Label Studio's own SDK finds nothing wrong with a whole answer, all controls together."""
    detections = seen(
        (64, 48, 320, 240, 0.9, 0), (-3, -3, 9, 9, 0.8, 1), (600, 400, 700, 500, 0.7, 2), (1, 1, 2, 2, 0.6, 0)
    )
    config = parse_label_config(xml)
    assert config.problems == ()
    result = [
        region
        for control in config.controls
        for index in ((0, 3) if control.image_list else (None,))
        for region in to_regions(
            detections,
            control,
            match_labels(CLASSES, control),
            width=WIDTH,
            height=HEIGHT,
            threshold=0.5,
            item_index=index,
        )
    ]
    assert {region["to_name"] for region in result} == {control.to_name for control in config.controls}
    assert check_result(xml, result) == []
    assert misfits(xml, result) == []


@pytest.mark.parametrize(
    ("shown", "raw_max", "expected"),
    [
        pytest.param([], 0.0, 1.0, id="nothing-at-all"),
        pytest.param([], 0.3, 0.7, id="nothing-shown"),
        pytest.param([], 1.0, 0.0, id="nothing-shown-but-sure"),
        pytest.param([0.9], 0.9, 0.9, id="one"),
        pytest.param([0.9, 0.7], 0.9, 0.8, id="mean"),
        pytest.param([0.0], 0.0, 0.0, id="zero"),
        pytest.param([], float("nan"), 0.0, id="nan"),
        pytest.param([float("inf")], 1.0, 0.0, id="infinite"),
    ],
)
def test_prediction_score(shown: list[float], raw_max: float, expected: float) -> None:
    """The score is the mean of what is shown, otherwise one minus the highest raw score, and never NaN."""
    assert prediction_score(shown, raw_max) == pytest.approx(expected)


@given(shown=st.lists(st.floats(0, 1), max_size=9), raw_max=st.floats(0, 1))
def test_prediction_score_is_a_score(shown: list[float], raw_max: float) -> None:
    """The score is in [0, 1]."""
    assert 0 <= prediction_score(shown, raw_max) <= 1


def test_prediction() -> None:
    """A prediction has exactly the three keys that Label Studio stores, and never an empty version."""
    assert prediction([], 1.0, "v1") == {"result": [], "score": 1.0, "model_version": "v1"}
    with pytest.raises(ValueError, match="version"):
        prediction([], 1.0, "")


def change(region: dict[str, Any], **changes: Any) -> dict[str, Any]:
    value = {**region["value"], **changes.pop("value", {})}
    return {**region, "value": value, **changes}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        pytest.param({"from_name": "nobody"}, "nobody", id="unknown-control"),
        pytest.param({"to_name": "nothing"}, "nothing", id="unknown-image"),
        pytest.param({"type": "polygonlabels"}, "polygonlabels", id="type"),
        pytest.param({"value": {"rectanglelabels": ["stone"]}}, "stone", id="unknown-label"),
        pytest.param({"value": {"rectanglelabels": [["spike"]]}}, "Region", id="no-label"),
        pytest.param({"value": {"rectanglelabels": None}}, "Region", id="null-for-labels"),
        pytest.param({"value": {"x": None}}, "Region", id="null-for-percent"),
        pytest.param({"value": {"rotation": 361}}, "Region", id="rotation"),
        pytest.param({"value": {"x": 101.0}}, "101", id="percent"),
        pytest.param({"value": {"x": -1.0}}, "outside the image", id="negative"),
        pytest.param({"value": {"x": 70.0, "width": 31.0}}, "outside the image", id="over-the-edge"),
        pytest.param({"value": {"width": float("nan")}}, "outside the image", id="nan"),
        pytest.param({"value": {"width": 0.0}}, "outside the image", id="no-width"),
    ],
)
def test_check_result_tells(changes: dict[str, Any], word: str) -> None:
    """What does not fit the configuration or the image is told."""
    good = regions_of(ONE_TAG, seen((64, 48, 320, 240, 0.9, 0)))[0]
    assert check_result(ONE_TAG, [good]) == []
    problems = check_result(ONE_TAG, [change(good, **changes)])
    assert any(word in problem for problem in problems), problems


def test_check_result_tells_shared_ids() -> None:
    """Two regions of one id would be one region in Label Studio; the pair of Rectangle and Labels is meant so."""
    good = regions_of(PAIR, seen((64, 48, 320, 240, 0.9, 0)))
    assert check_result(PAIR, good) == []
    (first, second) = check_result(PAIR, good * 2)
    assert "is used 2 times" in first
    assert "is used 2 times" in second


def test_what_a_changed_configuration_no_longer_has() -> None:
    """Labels and control tags that are gone are named once each."""
    pair = regions_of(PAIR, seen((64, 48, 320, 240, 0.9, 0), (1, 1, 9, 9, 0.9, 0), (9, 9, 20, 20, 0.9, 1)))
    assert misfits(PAIR, pair) == []
    assert misfits(PAIR.replace("spike", "ear"), pair) == ['"label" has no label "spike"']
    assert misfits(ONE_TAG, pair) == ['the labelling configuration has no control tag "box"']
    with pytest.raises(LabelConfigError):
        misfits("<View/>", pair)


def test_suggestions_without_a_drawing() -> None:
    """Without a drawing the usual answer is given."""
    control = control_of(ONE_TAG)
    detections = seen((64, 48, 320, 240, 0.9, 0), (1, 1, 9, 9, 0.1, 0))
    answer = suggestions(
        detections, control, match_labels(CLASSES, control), None, width=WIDTH, height=HEIGHT, threshold=0.5
    )
    usual = regions_of(ONE_TAG, detections)
    assert [{**region, "id": ""} for region in answer] == [{**region, "id": ""} for region in usual]


def test_suggestions_have_new_ids() -> None:
    """A suggestion's id is never that of a stored prediction or of an earlier suggestion, which it would replace."""
    control = control_of(ONE_TAG)
    detections = seen((64, 48, 320, 240, 0.9, 0))
    drawn = change(regions_of(ONE_TAG, detections)[0], id="drawn")

    def ask(**options: Any) -> list[dict[str, Any]]:
        size = {"width": WIDTH, "height": HEIGHT, "threshold": 0.5, **options}
        return suggestions(detections, control, match_labels(CLASSES, control), {"result": [drawn]}, **size)

    ids = [region["id"] for answer in (ask(), ask(), regions_of(ONE_TAG, detections)) for region in answer]
    assert len(set(ids)) == 3
    assert check_result(ONE_TAG, ask()) == []
    assert ask(item_index=1) == []  # drawn on another image of the list


@BOTH
def test_coco_export_finds_the_boxes(xml: str, tmp_path: Path) -> None:
    """Label Studio's COCO export of an accepted prediction has the detector's boxes, in pixels, with their label."""
    from label_studio_sdk.converter import Converter

    result = regions_of(xml, seen((64, 48, 320, 240, 0.9, 0), (10, 20, 30, 50, 0.8, 1)))
    task = {
        "id": 1,
        "data": {"image": "absent.jpg"},
        "annotations": [{"id": 1, "completed_by": {"id": 1}, "was_cancelled": False, "result": result}],
    }
    export = tmp_path / "export.json"
    export.write_text(json.dumps([task]), encoding="utf-8")
    converter = Converter(config=xml, project_dir=str(tmp_path), download_resources=False)
    converter.convert_to_coco(str(export), str(tmp_path / "coco"), is_dir=False)
    coco = json.loads((tmp_path / "coco" / "result.json").read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in coco["categories"]}
    boxes = {names[each["category_id"]]: each["bbox"] for each in coco["annotations"]}
    assert boxes["spike"] == pytest.approx([64, 48, 256, 192], abs=0.01)
    assert boxes["leaf"] == pytest.approx([10, 20, 20, 30], abs=0.01)
    assert len(coco["annotations"]) == 2
    assert coco["images"][0]["width"] == WIDTH
