"""Reading labelling configurations."""

from __future__ import annotations

import pytest

from spica.errors import LabelConfigError
from spica.labelstudio.config import EXAMPLE, LabelTag, parse_label_config

IMAGE = '<Image name="image" value="$image"/>'
LABELS = '<Label value="spike"/><Label value="leaf"/>'


def boxes(inside: str = LABELS, **attributes: str) -> str:
    every = {"name": "label", "toName": "image", **attributes}
    written = " ".join(f'{name}="{value}"' for name, value in every.items())
    return f"<RectangleLabels {written}>{inside}</RectangleLabels>"


def view(*tags: str) -> str:
    return f"<View>{''.join(tags)}</View>"


def test_rectangle_labels() -> None:
    """A RectangleLabels tag on an Image is one control with the names, key and labels of the tags."""
    (control,) = parse_label_config(view(IMAGE, boxes())).controls
    assert (control.from_name, control.to_name, control.kind) == ("label", "image", "rectanglelabels")
    assert control.image_key == "image"
    assert [label.value for label in control.labels] == ["spike", "leaf"]
    assert control.labels_from_name is None
    assert not control.image_list
    assert not control.smart
    assert control.score_threshold is None


def test_rectangle_with_labels() -> None:
    """A Rectangle and a Labels tag on the same image are one control; Labels of another image are not taken."""
    xml = view(
        '<Image name="other" value="$other"/>',
        IMAGE,
        '<Labels name="l2" toName="other"><Label value="no"/></Labels>',
        '<Rectangle name="box" toName="image" smart="true"/>',
        f'<Labels name="names" toName="image">{LABELS}</Labels>',
    )
    (control,) = parse_label_config(xml).controls
    assert (control.from_name, control.labels_from_name, control.kind) == ("box", "names", "rectangle+labels")
    assert [label.value for label in control.labels] == ["spike", "leaf"]
    assert control.smart


def test_the_example_of_the_messages_is_right() -> None:
    """The configuration that error messages show can itself be used."""
    assert parse_label_config(EXAMPLE).problems == ()


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        pytest.param('<Label value="a"/>', LabelTag("a", "a"), id="value"),
        pytest.param('<Label value="Wheat" alias="w"/>', LabelTag("w", "Wheat"), id="alias-is-stored"),
        pytest.param('<Label alias="w"/>', LabelTag("w", "w"), id="alias-only"),
        pytest.param(
            '<Label value="a" predicted_values="car, truck ,,"/>', LabelTag("a", "a", ("car", "truck")), id="predicted"
        ),
        pytest.param('<View><Header value="x"/><Label value="a"/></View>', LabelTag("a", "a"), id="nested"),
        pytest.param('<Label/><Label value=""/><Label value="a"/>', LabelTag("a", "a"), id="nameless-skipped"),
        pytest.param('<Label value="穂 波"/>', LabelTag("穂 波", "穂 波"), id="japanese"),
    ],
)
def test_labels(inside: str, expected: LabelTag) -> None:
    """A label is what Label Studio would store, with what is shown and what it means for models."""
    (control,) = parse_label_config(view(IMAGE, boxes(inside))).controls
    assert control.labels == (expected,)


def test_labels_are_those_of_the_sdk() -> None:
    """What we take for the stored labels is what Label Studio's own SDK takes for them."""
    from label_studio_sdk.label_interface import LabelInterface

    inside = (
        '<Label value="Wheat" alias="w"/><View><Label value="b"/></View><Label alias="c"/><Label/><label value="d"/>'
    )
    xml = view(IMAGE, boxes(inside))
    (control,) = parse_label_config(xml).controls
    assert [label.value for label in control.labels] == LabelInterface(xml).get_control("label").labels


def test_several_images_and_controls() -> None:
    """Each control keeps its own image, in the order of the configuration."""
    xml = view(
        '<Image name="a" value="$left"/><Image name="b" value="$right"/>',
        boxes(name="on_a", toName="a"),
        boxes(name="on_b", toName="b"),
        boxes(name="again_a", toName="a"),
    )
    controls = parse_label_config(xml).controls
    assert [(c.from_name, c.to_name, c.image_key) for c in controls] == [
        ("on_a", "a", "left"),
        ("on_b", "b", "right"),
        ("again_a", "a", "left"),
    ]


def test_value_list() -> None:
    """An image tag with valueList holds a list of images, whatever its value says."""
    (control,) = parse_label_config(view('<Image name="image" value="$x" valueList="$pages"/>', boxes())).controls
    assert control.image_list
    assert control.image_key == "pages"


def test_tag_names_ignore_case() -> None:
    """Control and object tags are found in any case, as the editor finds them."""
    xml = view('<image name="image" value="$image"/>', boxes().replace("RectangleLabels", "rectanglelabels"))
    assert len(parse_label_config(xml).controls) == 1


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        pytest.param({"model_score_threshold": "0"}, 0.0, id="zero"),
        pytest.param({"model_score_threshold": "1"}, 1.0, id="one"),
        pytest.param({"score_threshold": "0.25"}, 0.25, id="short-name"),
        pytest.param({"score_threshold": "0.2", "model_score_threshold": "0.3"}, 0.3, id="long-name-first"),
        pytest.param({}, None, id="not-said"),
    ],
)
def test_threshold(attributes: dict[str, str], expected: float | None) -> None:
    """The control tag's threshold is read under both names."""
    config = parse_label_config(view(IMAGE, boxes(LABELS, **attributes)))
    assert config.controls[0].score_threshold == expected
    assert config.problems == ()


@pytest.mark.parametrize("text", ["1.01", "-0.1", "nan", "inf", "high", "", "0,4"])
def test_a_wrong_threshold_is_told_and_not_used(text: str) -> None:
    """A threshold outside [0, 1] does not stop the boxes; the tag and the text are told."""
    config = parse_label_config(view(IMAGE, boxes(LABELS, model_score_threshold=text)))
    assert config.controls[0].score_threshold is None
    (problem,) = config.problems
    assert "model_score_threshold" in problem
    assert f'"{text}"' in problem
    assert 'name="label"' in problem


@pytest.mark.parametrize(("attribute"), ["smart", "smartOnly", "smartonly"])
def test_smart(attribute: str) -> None:
    """Each of the editor's two attributes makes a control interactive; "false" does not."""
    assert parse_label_config(view(IMAGE, boxes(LABELS, **{attribute: "true"}))).controls[0].smart
    assert not parse_label_config(view(IMAGE, boxes(LABELS, **{attribute: "false"}))).controls[0].smart


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        pytest.param("", ["not well-formed", "line 1", "<RectangleLabels"], id="empty"),
        pytest.param("<View>\n<Image\n</View>", ["not well-formed", "line 3"], id="malformed"),
        pytest.param("boxes please", ["not well-formed"], id="no-xml"),
        pytest.param("<View>\ud800</View>", ["invalid character"], id="surrogate"),
        pytest.param("<View></View>", ["no control tag", "no control tags", EXAMPLE], id="nothing"),
        pytest.param(
            view(IMAGE, '<PolygonLabels name="p" toName="image"><Label value="a"/></PolygonLabels>'),
            ["no control tag", "<PolygonLabels>"],
            id="polygons",
        ),
        pytest.param(
            view('<Text name="image" value="$text"/>', boxes()), ['toName="image"', "an <Image> tag"], id="not-an-image"
        ),
        pytest.param(
            view(IMAGE, boxes(toName="picture")), ['toName="picture"', 'one of "image"', 'name="label"'], id="no-target"
        ),
        pytest.param(view(IMAGE, boxes(toName="")), ["lacks its name or toName"], id="no-toname"),
        pytest.param(view(IMAGE, boxes("")), ["has no labels"], id="no-labels"),
        pytest.param(view(IMAGE, boxes("", value="$classes")), ["from the task's data"], id="dynamic-labels"),
        pytest.param(
            view(IMAGE, '<Rectangle name="r" toName="image"/>'), ["no <Labels> tag on the same image"], id="rectangle"
        ),
        pytest.param(
            view('<Image name="image" value="https://example.org/$image"/>', boxes()),
            ["does not name a field", "https://example.org/$image"],
            id="prefix",
        ),
        pytest.param(view('<Image name="image"/>', boxes()), ["neither value nor valueList"], id="no-value"),
        pytest.param(
            view('<Repeater on="$images"><Image name="image" value="$image"/>', boxes(), "</Repeater>"),
            ["<Repeater>"],
            id="repeater",
        ),
    ],
)
def test_what_can_not_be_used_is_told(xml: str, words: list[str]) -> None:
    """Each unusable configuration is refused with the place and what would be right."""
    with pytest.raises(LabelConfigError) as caught:
        parse_label_config(xml)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "doctype",
    [
        pytest.param('<!DOCTYPE v [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>', id="entity-bomb"),
        pytest.param('<!DOCTYPE v [<!ENTITY x SYSTEM "file:///etc/passwd">]>', id="external-entity"),
        pytest.param('<!DOCTYPE v SYSTEM "http://127.0.0.1:1/x.dtd">', id="external-dtd"),
    ],
)
def test_entities_are_refused(doctype: str) -> None:
    """A document type is refused with its line before anything in it is expanded or fetched."""
    with pytest.raises(LabelConfigError, match="document type or entities") as caught:
        parse_label_config(f"<?xml version='1.0'?>\n{doctype}\n{EXAMPLE}")
    assert caught.value.where == "line 2"


def test_one_usable_control_is_enough() -> None:
    """A control that can't be used is told and does not take the others with it."""
    config = parse_label_config(view(IMAGE, boxes(name="bad", toName="nowhere"), boxes()))
    assert [control.from_name for control in config.controls] == ["label"]
    (problem,) = config.problems
    assert 'name="bad"' in problem


def test_the_same_text_is_read_once() -> None:
    """A configuration that was read is not read again."""
    xml = view(IMAGE, boxes(name="once"))
    assert parse_label_config(xml) is parse_label_config(xml)
