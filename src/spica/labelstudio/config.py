"""A project's labelling configuration: which control tags can hold labelled rectangles, and what a model makes of them.

Tag names are read as Label Studio reads them (the editor and the SDK ignore the case of control and object tags, not
that of ``Label`` and of attributes).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from spica.classes import ClassLabel, Rule, class_names, match_classes
from spica.errors import LabelConfigError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

Kind = Literal["rectanglelabels", "rectangle+labels"]

EXAMPLE = (
    '<View><Image name="image" value="$image"/>'
    '<RectangleLabels name="label" toName="image"><Label value="spike"/></RectangleLabels></View>'
)
_WHOLE_VARIABLE = re.compile(r"\$[^, ]+")  # as label_studio_sdk's ObjectTag.value_is_variable


@dataclass(frozen=True, slots=True)
class LabelTag(ClassLabel):
    """One ``<Label>``.

    Attributes:
        value: what Label Studio stores in a region: the ``alias`` where there is one, otherwise the ``value``.
        shown: what a person reads on the button: the ``value``.
        predicted_values: names of model classes that mean this label, from the attribute of that name.
        category: the attribute of that name, which Label Studio's exports take as the label's number; None without.
    """

    category: int | None = None


@dataclass(frozen=True, slots=True)
class RectangleControl:
    """A control tag in which rectangles with labels can be stored, on one ``<Image>``.

    Attributes:
        from_name: name of the ``<RectangleLabels>`` or ``<Rectangle>`` tag.
        to_name: name of the ``<Image>`` tag.
        kind: one tag, or a ``<Rectangle>`` with a ``<Labels>`` tag on the same image.
        image_key: where in a task's data the image's address is, without ``$``.
        labels: in the order of the configuration, at least one.
        labels_from_name: name of the ``<Labels>`` tag; None for ``rectanglelabels``.
        image_list: whether the address is a list of addresses (``valueList``); regions then carry an ``item_index``.
        score_threshold: in [0, 1], of the attribute ``model_score_threshold`` or ``score_threshold``; None: not said.
        smart: whether the control takes part in interactive pre-annotation.
    """

    from_name: str
    to_name: str
    kind: Kind
    image_key: str
    labels: tuple[LabelTag, ...]
    labels_from_name: str | None = None
    image_list: bool = False
    score_threshold: float | None = None
    smart: bool = False


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """What a detector can fill in a project: controls in their order, at least one.

    ``problems``: one line for each tag that looks meant for boxes and can't be used, or only in part.
    """

    controls: tuple[RectangleControl, ...]
    problems: tuple[str, ...] = ()


@lru_cache(maxsize=128)
def parse_label_config(xml: str) -> LabelConfig:
    """Read a labelling configuration. The same text is read once.

    Raises:
        LabelConfigError: the text is no XML, declares entities or a document type, or has no control tag that can
            hold labelled rectangles on an image.
    """
    root = _parse_xml(xml)
    images = {name: tag for tag in root.iter() if _is(tag, "Image") and (name := tag.get("name"))}
    repeated = {tag for repeater in root.iter() if _is(repeater, "Repeater") for tag in repeater.iter()}
    label_sets = [tag for tag in root.iter() if _is(tag, "Labels")]
    controls: list[RectangleControl] = []
    errors: list[LabelConfigError] = []
    for tag in root.iter():
        if not _is(tag, "RectangleLabels", "Rectangle"):
            continue
        try:
            if tag in repeated:
                raise LabelConfigError("controls inside a <Repeater> can't be filled", where=_described(tag))
            controls.append(_control(tag, images, label_sets, errors))
        except LabelConfigError as error:
            errors.append(error)
    if not controls:
        raise errors[0] if errors else _nothing_to_fill(root)
    return LabelConfig(tuple(controls), tuple(error.summary for error in errors))


def _parse_xml(xml: str) -> Element:
    hint = f"Correct it in the project under Settings > Labeling Interface. A complete example: {EXAMPLE}"
    try:
        root: Element = fromstring(xml, forbid_dtd=True)
    except ParseError as error:
        line, column = error.position
        raise LabelConfigError(
            "the labelling configuration is not well-formed XML",
            where=f"line {line}, column {column + 1}",
            got=str(error).split(":", maxsplit=1)[0],
            hint=hint,
        ) from error
    except DefusedXmlException as error:
        line = xml[: max(xml.find("<!DOCTYPE"), 0)].count("\n") + 1
        raise LabelConfigError(
            "the labelling configuration declares a document type or entities, which Spica does not read",
            where=f"line {line}",
            hint=hint,
        ) from error
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can carry and XML can't
        raise LabelConfigError("the labelling configuration has an invalid character", hint=hint) from error
    return root


def _is(tag: Element, *names: str) -> bool:
    return tag.tag.lower() in {name.lower() for name in names}


def _described(tag: Element) -> str:
    return f'<{tag.tag} name="{tag.get("name", "")}">'


def _control(
    tag: Element, images: dict[str, Element], label_sets: Sequence[Element], errors: list[LabelConfigError]
) -> RectangleControl:
    name, to_name = tag.get("name"), tag.get("toName")
    if not name or not to_name:
        raise LabelConfigError("a control tag lacks its name or toName", where=_described(tag), hint=f"As in {EXAMPLE}")
    image = images.get(to_name)
    if image is None:
        raise LabelConfigError(
            f'toName="{to_name}" is not the name of an <Image> tag',
            where=_described(tag),
            expected=f"one of {quoted(images)}" if images else "an <Image> tag in the configuration",
            hint=f"As in {EXAMPLE}",
        )
    image_list = image.get("valueList") is not None
    value = image.get("valueList") if image_list else image.get("value")
    if value is None or not _WHOLE_VARIABLE.fullmatch(value):
        raise LabelConfigError(
            "an <Image> tag does not name a field of the task's data",
            where=_described(image),
            expected='value="$image", or valueList="$images" for several images',
            got=f'"{value}"' if value is not None else "neither value nor valueList",
        )
    smart = any(key.lower() in {"smart", "smartonly"} and text == "true" for key, text in tag.attrib.items())
    paired = _is(tag, "Rectangle")
    labels_tag = _labels_beside(tag, to_name, label_sets) if paired else tag
    return RectangleControl(
        from_name=name,
        to_name=to_name,
        kind="rectangle+labels" if paired else "rectanglelabels",
        image_key=value[1:],
        labels=_labels(labels_tag),
        labels_from_name=labels_tag.get("name") if paired else None,
        image_list=image_list,
        score_threshold=_tag_threshold(tag, errors),
        smart=smart,
    )


def _labels_beside(rectangle: Element, to_name: str, label_sets: Sequence[Element]) -> Element:
    """The first ``<Labels>`` on the same image; a second would mean the same boxes twice, which nobody asked for."""
    for labels in label_sets:
        if labels.get("toName") == to_name and labels.get("name"):
            return labels
    raise LabelConfigError(
        "a <Rectangle> tag has no <Labels> tag on the same image",
        where=_described(rectangle),
        expected=f'<Labels name="label" toName="{to_name}"> with a <Label> for each kind of object',
        hint="Or use <RectangleLabels> instead of <Rectangle>.",
    )


def _labels(parent: Element) -> tuple[LabelTag, ...]:
    labels: dict[str, LabelTag] = {}  # the last of two equal labels counts, as in Label Studio
    for tag in parent.iter("Label"):
        shown = tag.get("value") or ""
        stored = tag.get("alias") or shown
        if not stored:
            continue
        meant = tuple(part for text in tag.get("predicted_values", "").split(",") if (part := text.strip()))
        number = (tag.get("category") or "").strip()
        category = int(number) if number.isascii() and number.isdecimal() and len(number) < 10 else None
        labels[stored] = LabelTag(value=stored, shown=shown or stored, predicted_values=meant, category=category)
    if not labels:
        dynamic = parent.get("value", "").startswith("$")
        raise LabelConfigError(
            "a control tag takes its labels from the task's data, which Spica does not read"
            if dynamic
            else "a control tag has no labels",
            where=_described(parent),
            expected='at least one <Label value="…"/> inside it',
            hint=f"As in {EXAMPLE}",
        )
    return tuple(labels.values())


def _tag_threshold(tag: Element, errors: list[LabelConfigError]) -> float | None:
    """The tag's own threshold; a wrong one is reported and not used, since boxes can be shown without it."""
    for name in ("model_score_threshold", "score_threshold"):
        text = tag.get(name)
        if text is None:
            continue
        threshold = in_unit_interval(text)
        if threshold is None:
            what, expected = f"{name} is not a threshold and is not used", "a number from 0 to 1"
            errors.append(LabelConfigError(what, where=_described(tag), expected=expected, got=f'"{text}"'))
            continue
        return threshold
    return None


def in_unit_interval(value: Any) -> float | None:
    """``value``, a number or its text, if it is one in [0, 1]; otherwise None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0.0 <= number <= 1.0 else None


def _nothing_to_fill(root: Element) -> LabelConfigError:
    tags = sorted({tag.tag for tag in root.iter() if tag.get("name") and tag.get("toName")})
    return LabelConfigError(
        "the labelling configuration has no control tag for labelled rectangles",
        expected="<RectangleLabels>, or <Rectangle> with <Labels>, on an <Image>",
        got=", ".join(f"<{name}>" for name in tags) or "no control tags",
        hint=f"Set it in the project under Settings > Labeling Interface, for instance: {EXAMPLE}",
    )


def quoted(names: Iterable[str]) -> str:
    """Names as a person reads them in a message; "none" for no names."""
    return ", ".join(f'"{name}"' for name in names) or "none"


# What a model makes of it


@dataclass(frozen=True, slots=True)
class LabelMatch:
    """How a model's classes match the labels of one control tag.

    Attributes:
        control: name of the tag that holds the labels.
        classes: the model's class names by class id; empty strings where the weights carry no names.
        label_names: the project's labels, as Label Studio stores them.
        labels: by class id, the label or None.
        rules: by class id, the rule by which they match or None.
    """

    control: str
    classes: tuple[str, ...]
    label_names: tuple[str, ...]
    labels: tuple[str | None, ...]
    rules: tuple[Rule | None, ...]

    @property
    def is_empty(self) -> bool:
        """Whether no class at all has a label: such a control stays without boxes."""
        return all(label is None for label in self.labels)

    @property
    def unmatched_classes(self) -> tuple[str, ...]:
        """Classes whose boxes can't be shown; a class without a name is called by its number, from 1."""
        names = class_names(self.classes)
        return tuple(name for name, label in zip(names, self.labels, strict=True) if label is None)

    @property
    def unmatched_labels(self) -> tuple[str, ...]:
        """Labels that the model never gives."""
        return tuple(name for name in self.label_names if name not in self.labels)

    def explain(self) -> str:
        """One line about which classes have labels and which do not, with both lists of names."""
        matched = len(self.classes) - len(self.unmatched_classes)
        text = f'control tag "{self.control}": {matched} of {len(self.classes)} model classes have a label'
        lists = f"the model's classes: {quoted(class_names(self.classes))}; labels: {quoted(self.label_names)}"
        if not self.unmatched_classes and not self.unmatched_labels:
            return f"{text} ({lists})"
        parts = [f"{text} ({lists})"]
        if self.unmatched_classes:
            parts.append(f"Without a label, and so never shown: {quoted(self.unmatched_classes)}")
            parts.append(
                'To say which class a label means, write <Label value="…" predicted_values="class name"/> '
                "(or the class's number, from 1, where the weights carry no names)"
            )
        if self.unmatched_labels:
            parts.append(f"Never given by the model: {quoted(self.unmatched_labels)}")
        return ". ".join(parts)


def match_labels(classes: Sequence[str], control: RectangleControl) -> LabelMatch:
    """Match a model's classes, "" where the weights carry no name, with a control's labels.

    By :func:`spica.classes.match_classes`; an alias and the text on the button are both a label's name.
    """
    matches = match_classes(classes, control.labels)
    return LabelMatch(
        control=control.labels_from_name or control.from_name,
        classes=tuple(classes),
        label_names=tuple(label.value for label in control.labels),
        labels=tuple(match and control.labels[match[0]].value for match in matches),
        rules=tuple(match and match[1] for match in matches),
    )


def match_controls(classes: Sequence[str], config: LabelConfig) -> tuple[LabelMatch, ...]:
    """:func:`match_labels` for every control of a configuration, in their order. Each is filled on its own."""
    return tuple(match_labels(classes, control) for control in config.controls)


@dataclass(frozen=True, slots=True)
class ExtraParams:
    """What a connected model's extra params may say. ``score_threshold``: in [0, 1]; None: not said."""

    score_threshold: float | None = None


def parse_extra_params(value: Any) -> tuple[ExtraParams, list[str]]:
    """Read a connected model's extra params: nothing, an object, or a text with JSON (Label Studio's form sends text).

    Returns them with one line for each thing that could not be used: nothing here stops a model from connecting.
    """
    if isinstance(value, str):
        if not value.strip():
            return ExtraParams(), []
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return ExtraParams(), ['extra params are not JSON and are not used; write {"score_threshold": 0.4}']
    if value is None:
        return ExtraParams(), []
    if not isinstance(value, dict):
        kind = type(value).__name__
        return ExtraParams(), [f'extra params are a {kind} and not an object like {{"score_threshold": 0.4}}: not used']
    problems = [f"extra params: unknown name {str(key)!r:.60} is ignored" for key in value if key != "score_threshold"]
    wanted = value.get("score_threshold")
    threshold = in_unit_interval(wanted)
    if wanted is not None and threshold is None:
        problems.append(f"extra params: score_threshold must be a number from 0 to 1, got {wanted!r:.60}: not used")
    return ExtraParams(threshold), problems


def effective_threshold(default: float, extra_params: ExtraParams, control: RectangleControl) -> float:
    """The lowest score that is shown in a control: the control tag's, else the extra params', else ``default``."""
    said = (control.score_threshold, extra_params.score_threshold)
    return next((threshold for threshold in said if threshold is not None), default)


def recipe_digest(config: LabelConfig, matches: Sequence[LabelMatch], thresholds: Sequence[float]) -> str:
    """4 hex digits of what turns raw detections into a project's regions: names, labels by class, thresholds.

    Colours, hotkeys, layout, order of attributes and of controls, and controls that stay without boxes don't count.
    The same on every machine. ``matches`` and ``thresholds``: one per control, in their order.
    """
    recipe = sorted(
        json.dumps(
            [
                *(control.from_name, control.to_name, control.labels_from_name, control.kind),
                *(control.image_key, control.image_list, match.labels, float(threshold)),
            ]
        )
        for control, match, threshold in zip(config.controls, matches, thresholds, strict=True)
        if not match.is_empty
    )
    return hashlib.sha256("\n".join(recipe).encode("ascii")).hexdigest()[:4]


def serving_version(
    model_id: str, config: LabelConfig, matches: Sequence[LabelMatch], thresholds: Sequence[float]
) -> str:
    """The version under which a project's predictions are stored: ``<model id>.<recipe digest>``.

    It changes when, and only when, the answers can change: with the model, or with what the project makes of its raw
    detections (see :func:`recipe_digest` for the arguments).
    """
    return f"{model_id}.{recipe_digest(config, matches, thresholds)}"
