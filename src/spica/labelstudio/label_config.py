"""What a model makes of a project's labelling configuration: labels for its classes, thresholds, and a version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spica.classes import Rule, class_names, match_classes
from spica.labelstudio.control_tags import (
    LabelConfig,
    LabelTag,
    RectangleControl,
    in_unit_interval,
    parse_label_config,
    quoted,
)

__all__ = [
    "ExtraParams",
    "LabelConfig",
    "LabelMatch",
    "LabelTag",
    "RectangleControl",
    "effective_threshold",
    "match_controls",
    "match_labels",
    "parse_extra_params",
    "parse_label_config",
    "recipe_digest",
    "serving_version",
]


@dataclass(frozen=True, slots=True)
class LabelMatch:
    """How a model's classes meet the labels of one control tag.

    Attributes:
        control: name of the tag that holds the labels.
        classes: the model's class names by class id; empty strings where the weights carry no names.
        label_names: the project's labels, as Label Studio stores them.
        labels: by class id, the label or None.
        rules: by class id, the rule by which they met or None.
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
        """One line that tells what met and what did not, with both lists of names."""
        met = len(self.classes) - len(self.unmatched_classes)
        text = f'control tag "{self.control}": {met} of {len(self.classes)} model classes have a label'
        lists = f"the model's classes: {quoted(class_names(self.classes))}; labels: {quoted(self.label_names)}"
        if not self.unmatched_classes and not self.unmatched_labels:
            return f"{text} ({lists})"
        parts = [f"{text} ({lists})"]
        if self.unmatched_classes:
            parts.append(f"Without a label, and so never shown: {quoted(self.unmatched_classes)}")
            parts.append(
                'To tell which class a label means, write <Label value="…" predicted_values="class name"/> '
                "(or the class's number, from 1, where the weights carry no names)"
            )
        if self.unmatched_labels:
            parts.append(f"Never given by the model: {quoted(self.unmatched_labels)}")
        return ". ".join(parts)


def match_labels(classes: Sequence[str], control: RectangleControl) -> LabelMatch:
    """Match a model's classes with a control's labels, by :func:`spica.classes.match_classes`.

    Args:
        classes: names by class id; empty strings where the weights carry no names.
        control: the control with the labels. An alias and the text on the button are both a label's name.
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


# Thresholds and the version that Label Studio sees


@dataclass(frozen=True, slots=True)
class ExtraParams:
    """What a connected model's extra params may say. ``score_threshold``: in [0, 1]; None: not said."""

    score_threshold: float | None = None


def parse_extra_params(value: Any) -> tuple[ExtraParams, list[str]]:
    """Read a connected model's extra params: nothing, an object, or a text with JSON (Label Studio's form sends text).

    Returns:
        The parameters, and one line for each thing that could not be used. Nothing here stops a model from connecting.
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
    given = value.get("score_threshold")
    threshold = in_unit_interval(given)
    if given is not None and threshold is None:
        problems.append(f"extra params: score_threshold must be a number from 0 to 1, got {given!r:.60}: not used")
    return ExtraParams(threshold), problems


def effective_threshold(default: float, extra_params: ExtraParams, control: RectangleControl) -> float:
    """The lowest score that is shown in a control, in [0, 1].

    The narrowest word counts: the control tag's over the extra params', theirs over the server's ``default``.
    """
    said = (control.score_threshold, extra_params.score_threshold)
    return next((threshold for threshold in said if threshold is not None), default)


def recipe_digest(config: LabelConfig, matches: Sequence[LabelMatch], thresholds: Sequence[float]) -> str:
    """4 hex digits of what turns raw detections into a project's regions: names, labels by class, thresholds.

    Colours, hotkeys, layout, order of attributes and of controls, and controls that stay without boxes don't count.
    The same on every machine.

    Args:
        config: the project's configuration.
        matches: one per control, in their order.
        thresholds: one per control, in their order, in [0, 1].
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
