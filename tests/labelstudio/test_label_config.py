"""Labels for classes, thresholds, and the version that Label Studio sees."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spica.labelstudio.config import (
    ExtraParams,
    LabelMatch,
    LabelTag,
    RectangleControl,
    effective_threshold,
    match_controls,
    match_labels,
    parse_extra_params,
    parse_label_config,
    serving_version,
)


def control(*labels: LabelTag | str, **changes: Any) -> RectangleControl:
    tags = tuple(tag if isinstance(tag, LabelTag) else LabelTag(tag, tag) for tag in labels)
    return RectangleControl("label", "image", "rectanglelabels", "image", tags, **changes)


def meaning(value: str, *classes: str) -> LabelTag:
    return LabelTag(value, value, classes)


@pytest.mark.parametrize(
    ("classes", "tags", "labels", "rules"),
    [
        pytest.param((), ("a",), (), (), id="no-classes"),
        pytest.param(("spike",), ("spike",), ("spike",), ("exact name",), id="exact"),
        pytest.param(("spike",), (LabelTag("w", "spike"),), ("w",), ("exact name",), id="shown-name-of-an-alias"),
        pytest.param(
            ("Wheat  Spike",),
            ("wheatspike ",),
            ("wheatspike ",),
            ("name ignoring case and spaces",),
            id="case-and-spaces",
        ),
        pytest.param(
            ("が",), ("\u304b\u3099",), ("\u304b\u3099",), ("name ignoring case and spaces",), id="decomposed"
        ),
        pytest.param(("wheat_spike",), ("wheat spike",), (None,), (None,), id="underscore-is-no-space"),
        pytest.param(
            ("car",), ("car", meaning("vehicle", "car")), ("vehicle",), ("predicted_values",), id="meaning-first"
        ),
        pytest.param(("Car",), (meaning("x", "bus", "car"),), ("x",), ("predicted_values",), id="meaning-loosely"),
        pytest.param(("Car",), ("car", "Car"), ("Car",), ("exact name",), id="exact-before-loose"),
        pytest.param(
            ("car", "truck"), (meaning("v", "car", "truck"),), ("v", "v"), ("predicted_values",) * 2, id="merged"
        ),
        pytest.param(("a",), ("b",), (None,), (None,), id="named-never-by-position"),
        pytest.param(("",), ("spike",), ("spike",), ("position",), id="position"),
        pytest.param(("", ""), ("a", "b"), ("a", "b"), ("position",) * 2, id="positions"),
        pytest.param(("", ""), ("a",), (None, None), (None, None), id="counts-differ"),
        pytest.param(("", "b"), ("a", "b"), (None, "b"), (None, "exact name"), id="half-named"),
        pytest.param(("", ""), (meaning("a", "2"),), (None, "a"), (None, "predicted_values"), id="by-number"),
        pytest.param(
            ("", ""), ("a", meaning("b", "1")), ("b", "a"), ("predicted_values", "position"), id="number-then-position"
        ),
        pytest.param(("x",), (meaning("a", "1"),), (None,), (None,), id="no-number-for-a-name"),
    ],
)
def test_matching(
    classes: tuple[str, ...], tags: tuple[LabelTag | str, ...], labels: tuple[str, ...], rules: tuple[str, ...]
) -> None:
    """Classes meet labels by the first of the four rules that finds one."""
    match = match_labels(classes, control(*tags))
    assert match.labels == labels
    assert match.rules == rules


names = st.text(alphabet="aAbB _穂", max_size=4)


@given(classes=st.lists(names, max_size=5), tags=st.lists(names.filter(bool), min_size=1, max_size=5, unique=True))
def test_a_match_names_only_what_exists(classes: list[str], tags: list[str]) -> None:
    """Every class has an entry; every label given is a label of the control; the two lists of unmet names are exact."""
    match = match_labels(classes, control(*tags))
    assert len(match.labels) == len(match.rules) == len(classes)
    assert {label for label in match.labels if label is not None} <= set(tags)
    assert all((label is None) == (rule is None) for label, rule in zip(match.labels, match.rules, strict=True))
    assert len(match.unmatched_classes) == match.labels.count(None)
    assert set(match.unmatched_labels) == set(tags) - set(match.labels)
    assert match.is_empty == (len(match.unmatched_classes) == len(classes))


def test_explain_names_both_lists() -> None:
    """What can't be met is told with the model's classes, the labels, and what to write."""
    text = match_labels(("spike", ""), control("Spike", "stem")).explain()
    assert "1 of 2" in text
    assert '"spike", "class 2"' in text
    assert '"Spike", "stem"' in text
    assert "predicted_values" in text
    assert 'Never given by the model: "stem"' in text


def test_explain_is_short_when_all_is_met() -> None:
    """Nothing is advised where nothing is missing."""
    text = match_labels(("spike",), control("spike")).explain()
    assert "1 of 1" in text
    assert "predicted_values" not in text


def test_explain_names_the_labels_tag() -> None:
    """For a Rectangle with Labels, the tag to mend is the one that holds the labels."""
    paired = control("a", labels_from_name="names")
    assert '"names"' in match_labels(("b",), paired).explain()


@pytest.mark.parametrize(
    ("value", "threshold", "problem"),
    [
        pytest.param(None, None, None, id="null"),
        pytest.param("", None, None, id="empty"),
        pytest.param("  \n", None, None, id="blank"),
        pytest.param("null", None, None, id="null-text"),
        pytest.param({}, None, None, id="empty-object"),
        pytest.param({"score_threshold": None}, None, None, id="null-inside"),
        pytest.param({"score_threshold": 0.4}, 0.4, None, id="object"),
        pytest.param('{"score_threshold": 0.4}', 0.4, None, id="text"),
        pytest.param({"score_threshold": "0.4"}, 0.4, None, id="number-as-text"),
        pytest.param({"score_threshold": 0}, 0.0, None, id="zero"),
        pytest.param({"score_threshold": 1}, 1.0, None, id="one"),
        pytest.param({"score_threshold": 1.5}, None, "1.5", id="too-high"),
        pytest.param({"score_threshold": True}, None, "True", id="true"),
        pytest.param({"score_threshold": [0.4]}, None, "[0.4]", id="list"),
        pytest.param('{"score_threshold": NaN}', None, "nan", id="nan"),
        pytest.param({"score_threshold": 10**400}, None, "from 0 to 1", id="huge"),
        pytest.param({"threshold": 0.4}, None, "'threshold'", id="unknown-name"),
        pytest.param({"threshold": 0.4, "score_threshold": 0.3}, 0.3, "'threshold'", id="unknown-beside"),
        pytest.param("{score_threshold: 0.4}", None, "not JSON", id="not-json"),
        pytest.param("[" * 100_000, None, "not JSON", id="deep"),
        pytest.param("0.4", None, "a float", id="bare-number"),
        pytest.param([1], None, "a list", id="bare-list"),
    ],
)
def test_extra_params(value: Any, threshold: float | None, problem: str | None) -> None:
    """Extra params are read from all that Label Studio may store; what can't be used is told and never raised."""
    params, problems = parse_extra_params(value)
    assert params == ExtraParams(threshold)
    assert len(problems) == (problem is not None)
    if problem is not None:
        assert problem in problems[0]


@pytest.mark.parametrize(
    ("tag", "extra", "expected"),
    [
        pytest.param(None, None, 0.6, id="default"),
        pytest.param(None, 0.4, 0.4, id="extra-params"),
        pytest.param(0.3, 0.4, 0.3, id="tag"),
        pytest.param(0.0, 0.4, 0.0, id="tag-zero"),
        pytest.param(None, 0.0, 0.0, id="extra-zero"),
    ],
)
def test_the_narrowest_threshold_wins(tag: float | None, extra: float | None, expected: float) -> None:
    """The tag counts over the extra params, and these over the default; 0 is a word too."""
    assert effective_threshold(0.6, ExtraParams(extra), control("a", score_threshold=tag)) == expected


PLAIN = (
    '<View><Image name="image" value="$image"/>'
    '<RectangleLabels name="label" toName="image" model_score_threshold="0.5">'
    '<Label value="spike"/><Label value="leaf"/></RectangleLabels></View>'
)


def version(xml: str, classes: tuple[str, ...] = ("spike", "leaf"), default: float = 0.6) -> str:
    config = parse_label_config(xml)
    thresholds = [effective_threshold(default, ExtraParams(), each) for each in config.controls]
    return serving_version("wheat-1", config, match_controls(classes, config), thresholds)


SECOND = '<RectangleLabels name="second" toName="image"><Label value="{}"/></RectangleLabels></View>'


@pytest.mark.parametrize(
    "xml",
    [
        pytest.param(PLAIN.replace("><", ">\n  <"), id="whitespace"),
        pytest.param(
            PLAIN.replace('<Label value="spike"', '<Label background="red" hotkey="1" value="spike"'), id="look"
        ),
        pytest.param(PLAIN.replace('name="label" toName="image"', 'toName="image" name="label"'), id="attribute-order"),
        pytest.param(PLAIN.replace("</View>", '<Header value="Hello"/></View>'), id="header"),
        pytest.param(PLAIN.replace('"0.5"', '"0.50"'), id="same-number"),
        pytest.param(
            PLAIN.replace("<Label ", '<Label predicted_values="spike" ', 1), id="same-mapping-by-another-rule"
        ),
        pytest.param(PLAIN.replace("</View>", SECOND.format("unmet")), id="a-control-without-boxes"),
        pytest.param(PLAIN.replace("<RectangleLabels", '<RectangleLabels smart="true"'), id="smart"),
    ],
)
def test_a_version_stays_when_answers_stay(xml: str) -> None:
    """What does not change an answer does not change the version."""
    assert xml != PLAIN
    assert version(xml) == version(PLAIN)


@pytest.mark.parametrize(
    "xml",
    [
        pytest.param(PLAIN.replace('"label"', '"labels"'), id="from-name"),
        pytest.param(PLAIN.replace('"image"', '"img"'), id="to-name"),
        pytest.param(PLAIN.replace("$image", "$photo"), id="image-key"),
        pytest.param(PLAIN.replace('value="$image"', 'valueList="$image"'), id="image-list"),
        pytest.param(PLAIN.replace('"0.5"', '"0.51"'), id="threshold"),
        pytest.param(PLAIN.replace('<Label value="leaf"/>', ""), id="label-gone"),
        pytest.param(PLAIN.replace('"leaf"', '"stem" predicted_values="leaf"'), id="label-renamed"),
        pytest.param(PLAIN.replace('value="leaf"', 'value="leaf" alias="l"'), id="alias"),
        pytest.param(PLAIN.replace("</View>", SECOND.format("leaf")), id="second-control"),
    ],
)
def test_a_version_changes_when_answers_change(xml: str) -> None:
    """What changes an answer changes the version."""
    assert xml != PLAIN
    assert version(xml) != version(PLAIN)


def test_a_version_begins_with_the_model() -> None:
    """The version is the model's id and four hex digits."""
    model, digest = version(PLAIN).rsplit(".", 1)
    assert model == "wheat-1"
    assert len(digest) == 4
    int(digest, 16)


def test_the_default_threshold_counts_where_the_tag_says_nothing() -> None:
    """The server's threshold changes the version of a project that relies on it, and of no other."""
    assert version(PLAIN, default=0.6) == version(PLAIN, default=0.4)
    relying = PLAIN.replace(' model_score_threshold="0.5"', "")
    assert version(relying, default=0.6) != version(relying, default=0.4)


def test_control_order_does_not_count() -> None:
    """Two controls in the other order are the same answer."""
    first = '<RectangleLabels name="a" toName="image"><Label value="spike"/></RectangleLabels>'
    second = '<RectangleLabels name="b" toName="image"><Label value="leaf"/></RectangleLabels>'
    image = '<View><Image name="image" value="$image"/>'
    assert version(f"{image}{first}{second}</View>") == version(f"{image}{second}{first}</View>")


def test_a_version_is_the_same_in_another_process() -> None:
    """No hash seed gets into the version."""
    code = "\n".join(
        [
            "from spica.labelstudio.config import *",
            f"config = parse_label_config('''{PLAIN}''')",
            "print(serving_version('wheat-1', config, match_controls(('spike', 'leaf'), config), [0.5]))",
        ]
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == version(PLAIN)


def test_match_is_hashable() -> None:
    """A match can be a key of a cache."""
    assert isinstance(hash(match_labels(("a",), control("a"))), int)
    assert LabelMatch.__dataclass_params__.frozen  # type: ignore[attr-defined]  # not in typeshed's protocol
