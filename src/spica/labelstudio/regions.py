"""Detections as Label Studio's regions, and the check of every answer before it leaves."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from spica.boxes import Detections, xyxy_to_xywh_percent
from spica.errors import LabelConfigError
from spica.labelstudio.drawing import Drawn, parse_context, select_for_context
from spica.labelstudio.label_config import LabelMatch, RectangleControl, parse_label_config

if TYPE_CHECKING:
    from label_studio_sdk.label_interface import LabelInterface

__all__ = [
    "Drawn",
    "check_result",
    "parse_context",
    "prediction",
    "prediction_score",
    "select_for_context",
    "suggestions",
    "to_regions",
]

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
        width: of the oriented image, in pixels, at least 1.
        height: of the oriented image, in pixels, at least 1.
        threshold: lowest shown score, in [0, 1].
        item_index: which image of a ``valueList``, from 0; None is the first there, and nothing elsewhere.
        id_salt: ids depend on it, the control, the box and its place in the answer. The same detections give the same
            ids; a suggestion must not (see :func:`suggestions`).

    Returns:
        Items with percent clamped to [0, 100], ids unique among all controls of an answer, and the score beside
        ``value``. ``origin`` lets Label Studio tell accepted boxes from drawn ones.
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

    Args:
        detections: raw, down to the floor score.
        control: where the regions go.
        match: labels by class id.
        context: ``params.context`` as Label Studio sends it, or anything else: junk counts as no drawing.
        width: of the oriented image, in pixels, at least 1.
        height: of the oriented image, in pixels, at least 1.
        threshold: lowest score of the usual answer, which is given where nothing was drawn.
        item_index: which image of a ``valueList``, from 0.
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
    met = np.array([label is not None for label in match.labels], np.bool_)
    return met[detections.class_ids] if len(detections) else np.zeros((0,), np.bool_)


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
    if control.kind == "rectanglelabels":
        one = {
            "from_name": control.from_name,
            "type": "rectanglelabels",
            "value": {**value, "rectanglelabels": [label]},
        }
        return [{**common, **one}]
    box = {"from_name": control.from_name, "type": "rectangle", "value": value}
    # Label Studio itself stores the geometry in the labels' item too, and its exports read it from there.
    name = {"from_name": control.labels_from_name, "type": "labels", "value": {**value, "labels": [label]}}
    return [{**common, **box}, {**common, **name}]


def prediction_score(shown_scores: Sequence[float], raw_max: float) -> float:
    """A prediction's own score in [0, 1], by which Label Studio orders tasks: low means that a person should look.

    Args:
        shown_scores: one per shown box, in [0, 1].
        raw_max: highest raw score of the image, 0 without any.

    Returns:
        The mean of the shown scores; without any, one minus ``raw_max``: the more certain that nothing is there, the
        higher. Never NaN.
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


def check_result(label_config: str, results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with a prediction's result items, in the words of the SDK's ``LabelInterface``; empty if nothing.

    Besides, what ``LabelInterface`` lets pass: negative percent, boxes that leave the image, and ids that are shared by
    items that are not one region.

    Raises:
        LabelConfigError: the configuration can't be read at all.
    """
    interface = _interface(label_config)
    numbers = [_numbers(item) for item in results]
    problems: list[str] = _problems(interface, _one_of_each(results, numbers))
    if problems:  # in whose words the regions have other numbers
        problems = _problems(interface, results)
    counted = Counter((item.get("id"), item.get("type")) for item in results)
    problems += [f"the id {name!r} is used {count} times" for (name, _), count in counted.items() if count > 1]
    told = enumerate(numbers)  # of what has none, LabelInterface has told it already
    problems += [f"Region {index}: outside the image" for index, each in told if each is not None and not _inside(each)]
    return problems


def _problems(interface: LabelInterface, results: Sequence[Mapping[str, Any]]) -> list[str]:
    told: list[str] = interface.validate_prediction({"result": list(results)}, return_errors=True)
    return told


def _one_of_each(
    results: Sequence[Mapping[str, Any]], numbers: Sequence[tuple[float, ...] | None]
) -> list[Mapping[str, Any]]:
    """One of the regions inside the image that differ in nothing but percent, and all others.

    ``LabelInterface`` takes as long for a few hundred boxes as a light network for the whole photograph.
    """
    firsts: dict[Any, Mapping[str, Any]] = {}
    for item, each in zip(results, numbers, strict=True):
        kind = _kind(item) if each is not None and _inside(each) else None
        firsts.setdefault(kind or object(), item)
    return list(firsts.values())


def _kind(item: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """All but percent, score and id; None for what is too odd to be compared."""
    value = item["value"]
    try:
        names = (*value.get("rectanglelabels", ()), *value.get("labels", ()))
        kind = (item["from_name"], item["to_name"], item["type"], value.get("rotation"), names, (*item,), (*value,))
        hash(kind)
    except (KeyError, TypeError):
        return None
    return kind


def _numbers(item: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Left, top, width and height in percent; None where they are not all numbers."""
    value = item.get("value", {})
    try:
        x, y, width, height = value["x"], value["y"], value["width"], value["height"]
        return float(x), float(y), float(width), float(height)
    except (KeyError, TypeError, ValueError):
        return None


def _inside(numbers: tuple[float, ...]) -> bool:
    x, y, width, height = numbers
    return x >= 0 and y >= 0 and width > 0 and height > 0 and x + width <= 100 and y + height <= 100


@lru_cache(maxsize=128)
def _interface(label_config: str) -> LabelInterface:
    from label_studio_sdk._legacy.exceptions import LabelStudioXMLSyntaxErrorSentryIgnored
    from label_studio_sdk.label_interface import LabelInterface

    parse_label_config(label_config)  # refuses entities and malformed XML, which the SDK would try to read
    try:
        return LabelInterface(label_config)
    except (LabelStudioXMLSyntaxErrorSentryIgnored, ValueError) as error:
        raise LabelConfigError(
            "Label Studio's SDK can't read the labelling configuration",
            got=str(error)[:200],
            hint="An encoding in the <?xml … ?> line is not accepted, nor tags nested deeper than 256: take it out.",
        ) from error
