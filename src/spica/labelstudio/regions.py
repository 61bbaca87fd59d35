"""Detections as Label Studio's regions."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spica.boxes import Detections, xyxy_to_xywh_percent
from spica.labelstudio.config import LabelMatch, RectangleControl, parse_label_config
from spica.labelstudio.drawing import parse_context, select_for_context

_PERCENT_DIGITS = 4  # half a step is 0.08 pixels at a width of 150,000
_SCORE_DIGITS = 4


def to_regions(
    detections: Detections,
    control: RectangleControl,
    match: LabelMatch,
    *,
    width: int,
    height: int,
    threshold: float,
    item_index: int | None = None,
    id_salt: str = "",
) -> list[dict[str, Any]]:
    """Label Studio's result items for the detections that are shown, in the order of the detections.

    A detection is shown if its score is at least ``threshold``, its class has a label, and something of its box is left
    after it is cut to the image. It becomes one item, or for ``rectangle+labels`` two that share an id.

    Args:
        detections: of one image, boxes in pixels.
        control: where the regions go.
        match: labels by class id.
        width: of the oriented image, in pixels, at least 1; so is ``height``.
        height: see ``width``.
        threshold: lowest shown score, in [0, 1].
        item_index: which image of a ``valueList``, from 0; None is the first there, and nothing elsewhere.
        id_salt: ids depend on it, the control, the box and its place in the answer, and are unique in the answer.
    """
    if item_index is None and control.image_list:
        item_index = 0
    shown = detections.where(_has_label(detections, match) & (detections.scores >= threshold))
    boxes_percent = xyxy_to_xywh_percent(shown.boxes_xyxy, width, height)  # (N, 4)
    regions: list[dict[str, Any]] = []
    for index, (box, score, class_id) in enumerate(zip(boxes_percent, shown.scores, shown.class_ids, strict=True)):
        value = _value(*box.tolist())
        label = match.labels[int(class_id)]
        if value is None or label is None:
            continue
        identity = (id_salt, control.from_name, control.to_name, item_index, index, label, *value.values())
        common: dict[str, Any] = {
            "id": hashlib.sha256(repr(identity).encode("utf-8")).hexdigest()[:16],
            "to_name": control.to_name,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "origin": "prediction",
            "score": round(float(score), _SCORE_DIGITS),
        }
        if item_index is not None:
            common["item_index"] = item_index
        regions += _items(control, label, value, common)
    return regions


def suggestions(
    detections: Detections,
    control: RectangleControl,
    match: LabelMatch,
    context: Any,
    *,
    width: int,
    height: int,
    threshold: float,
    item_index: int | None = None,
) -> list[dict[str, Any]]:
    """The regions that answer a person's drawing, given as the ``context`` of an interactive request.

    Their ids are new each time: the open annotation keeps the ids of the prediction it was made from, and accepting a
    suggestion with the id of a region that is there replaces that region, the person's corrections included.

    ``detections`` are raw, down to the floor score; ``threshold`` is for the usual answer, where nothing was drawn; the
    rest as for :func:`to_regions`. A ``context`` that can't be understood counts as no drawing.
    """
    drawn = parse_context(context, control)
    if drawn.kind in {"rectangle", "point"} and (item_index or 0) != drawn.item_index:
        return []
    chosen = select_for_context(detections, drawn, match, width=width, height=height, threshold=threshold)
    salt = secrets.token_hex(8)
    return to_regions(
        chosen, control, match, width=width, height=height, threshold=0.0, item_index=item_index, id_salt=salt
    )


def _has_label(detections: Detections, match: LabelMatch) -> np.typing.NDArray[np.bool_]:
    labelled = np.array([label is not None for label in match.labels], np.bool_)
    return labelled[detections.class_ids] if len(detections) else np.zeros((0,), np.bool_)


def _value(x: float, y: float, width: float, height: float) -> dict[str, float] | None:
    """Percent, with the edges rounded rather than the sides, so that none leaves the image; None if nothing is left."""
    left, right = (min(100.0, round(edge, _PERCENT_DIGITS)) for edge in (x, x + width))
    top, bottom = (min(100.0, round(edge, _PERCENT_DIGITS)) for edge in (y, y + height))
    width, height = round(right - left, _PERCENT_DIGITS), round(bottom - top, _PERCENT_DIGITS)
    if width <= 0 or height <= 0:
        return None
    return {"x": left, "y": top, "width": width, "height": height, "rotation": 0}


def _items(
    control: RectangleControl, label: str, value: dict[str, float], common: dict[str, Any]
) -> list[dict[str, Any]]:
    box: dict[str, Any] = {"from_name": control.from_name, "type": "rectangle", "value": value}
    if control.kind == "rectanglelabels":
        return [{**common, **box, "type": "rectanglelabels", "value": {**value, "rectanglelabels": [label]}}]
    # Label Studio itself stores the geometry in the labels' item too, and its exports read it from there.
    name = {"from_name": control.labels_from_name, "type": "labels", "value": {**value, "labels": [label]}}
    return [{**common, **box}, {**common, **name}]


def prediction_score(shown_scores: Sequence[float], raw_max: float) -> float:
    """A prediction's own score in [0, 1], by which Label Studio orders tasks: low means that a person should look.

    The mean of the shown scores; without any, one minus ``raw_max``, the highest raw score of the image: the more
    certain that nothing is there, the higher. Never NaN.
    """
    score = sum(shown_scores) / len(shown_scores) if shown_scores else 1.0 - raw_max
    return round(min(1.0, max(0.0, score)), _SCORE_DIGITS) if math.isfinite(score) else 0.0


def prediction(results: Sequence[dict[str, Any]], score: float, model_version: str) -> dict[str, Any]:
    """One prediction as Label Studio stores it; an empty ``results`` says that the image has no objects.

    ``model_version`` must not be empty: Label Studio would refuse null, and ask again and again for anything else than
    what ``/setup`` answers.
    """
    if not model_version:
        raise ValueError("a prediction needs a model version")
    return {"result": list(results), "score": score, "model_version": model_version}


def misfits(label_config: str, results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which control tags and labels of a prediction's items a labelling configuration does not have, a line each.

    Raises:
        LabelConfigError: it has no control tag for labelled rectangles.
    """
    labels: dict[object, set[str]] = {}
    for control in parse_label_config(label_config).controls:
        for name in (control.from_name, control.labels_from_name):
            labels.setdefault(name, set()).update(label.value for label in control.labels)
    lines: dict[str, None] = {}
    for item in results:
        name, value = item["from_name"], item["value"]
        used = (*value.get("rectanglelabels", ()), *value.get("labels", ()))
        if name not in labels:
            lines[f'the labelling configuration has no control tag "{name}"'] = None
        lines.update(
            (f'"{name}" has no label "{label}"', None) for label in used if label not in labels.get(name, used)
        )
    return list(lines)
