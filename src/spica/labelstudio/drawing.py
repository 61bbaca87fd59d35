"""What a person has drawn in interactive pre-annotation, and which detections answer it.

Label Studio sends the open annotation's regions of the drawn kind and label, the drawn one last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from spica.boxes import Detections, Float32Array, area_xyxy, iou_xyxy
from spica.labelstudio.config import LabelMatch, RectangleControl

_SAME_OBJECT_IOU = 0.5  # the overlap from which COCO and Pascal VOC count two boxes as one object

_FARTHEST = 1e6
"""Larger numbers are no percent and no image sizes, and would overflow."""

_RECTANGLES = {"rectangle", "rectanglelabels"}
_POINTS = {"keypoint", "keypointlabels"}

Corners = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A person's drawing, as far as it concerns one control.

    Attributes:
        kind: "rectangle", "point", "none" (nothing was drawn, or nothing that can be understood), or "other" (drawn,
            but not for this control, or not as a rectangle or positive point).
        box_xyxy_percent: of the rectangle: left, top, right, bottom.
        point_xy_percent: of the point.
        label: the label that the person has chosen, if the control has it.
        item_index: which image of a ``valueList``, from 0.
        present_xyxy_percent: the control's other regions on the same image.
    """

    kind: Literal["rectangle", "point", "none", "other"]
    box_xyxy_percent: Corners | None = None
    point_xy_percent: tuple[float, float] | None = None
    label: str | None = None
    item_index: int = 0
    present_xyxy_percent: tuple[Corners, ...] = ()


_NOTHING = Drawn("none")
_OTHER = Drawn("other")


def parse_context(context: Any, control: RectangleControl) -> Drawn:
    """Understand ``params.context`` of an interactive request. Never raises: junk is no drawing.

    A rectangle counts for the control it was drawn with; a point for all controls on the same image, since it is drawn
    with a tag of its own. A negative point (``is_positive`` false) is left aside for the last positive one before it.
    A rotated rectangle counts as the upright one around it.
    """
    items = context.get("result") if isinstance(context, Mapping) else None
    if not isinstance(items, list):
        return _NOTHING
    regions = _by_id([item for item in items if isinstance(item, Mapping) and isinstance(item.get("value"), Mapping)])
    negatives = 0
    while regions and any(part.get("is_positive") is False for part in regions[-1]):
        regions.pop()
        negatives += 1
    if not regions:
        return _OTHER if negatives else _NOTHING
    return _drawn(regions[-1], regions[:-1], control)


def _by_id(items: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Items grouped to regions (a ``Rectangle`` and its ``Labels`` share an id), ordered by their last item."""
    regions: dict[object, list[Mapping[str, Any]]] = {}
    for place, item in enumerate(items):
        name = item.get("id")
        key = name if isinstance(name, str) and name else place
        parts = regions.pop(key, [])
        regions[key] = [*parts, item]
    return list(regions.values())


def _drawn(region: list[Mapping[str, Any]], others: list[list[Mapping[str, Any]]], control: RectangleControl) -> Drawn:
    if any(part.get("to_name") != control.to_name for part in region):
        return _OTHER
    types = {str(part.get("type", "")).lower() for part in region}
    known = {label.value for label in control.labels}
    label = next((name for part in region for name in _label_names(part) if name in known), None)
    index = _item_index(region)
    mine = [parts for parts in others if _belongs(parts, control) and _item_index(parts) == index]
    present = tuple(box for parts in mine if (box := _first_corners(parts)) is not None)
    if types & _RECTANGLES:
        box = _first_corners(region)
        if not _belongs(region, control):
            return _OTHER
        if box is None:
            return _NOTHING
        return Drawn("rectangle", box_xyxy_percent=box, label=label, item_index=index, present_xyxy_percent=present)
    if types & _POINTS:
        x, y = (_number(region[0]["value"].get(name)) for name in ("x", "y"))
        if x is None or y is None:
            return _NOTHING
        return Drawn("point", point_xy_percent=(x, y), label=label, item_index=index, present_xyxy_percent=present)
    return _OTHER


def _belongs(region: Sequence[Mapping[str, Any]], control: RectangleControl) -> bool:
    names = [name for name in (control.from_name, control.labels_from_name) if name is not None]
    return any(part.get("from_name") in names and part.get("to_name") == control.to_name for part in region)


def _label_names(item: Mapping[str, Any]) -> list[str]:
    """The labels of a result item: the list under ``labels``, ``rectanglelabels``, ``keypointlabels``."""
    lists = [names for key, names in item["value"].items() if str(key).endswith("labels") and isinstance(names, list)]
    return [name for names in lists for name in names if isinstance(name, str)]


def _item_index(region: Sequence[Mapping[str, Any]]) -> int:
    index = region[-1].get("item_index")
    return index if isinstance(index, int) and not isinstance(index, bool) and index >= 0 else 0


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= _FARTHEST else None  # NaN is refused too


def _first_corners(region: Sequence[Mapping[str, Any]]) -> Corners | None:
    return next((box for part in region if (box := _corners(part)) is not None), None)


def _corners(item: Mapping[str, Any]) -> Corners | None:
    """The upright box around a rectangle item, in percent; None if its numbers can't be used."""
    values = (_number(item["value"].get(name)) for name in ("x", "y", "width", "height"))
    numbers = [number for number in values if number is not None]
    if len(numbers) < 4:
        return None
    x, y, width, height = numbers
    # Label Studio turns a rectangle clockwise around its first corner, in pixels: percent have two different scales.
    angle = math.radians(_number(item["value"].get("rotation")) or 0.0)
    sizes = [_number(item.get(name)) or 0.0 for name in ("original_width", "original_height")]
    scale_x, scale_y = sizes if min(sizes) >= 1 else (1.0, 1.0)
    cos, sin = math.cos(angle), math.sin(angle)
    across_x, across_y = width * cos, width * sin * scale_x / scale_y
    down_x, down_y = -height * sin * scale_y / scale_x, height * cos
    xs = [x, x + across_x, x + across_x + down_x, x + down_x]
    ys = [y, y + across_y, y + across_y + down_y, y + down_y]
    return min(xs), min(ys), max(xs), max(ys)


def select_for_context(
    detections: Detections, drawn: Drawn, match: LabelMatch, *, width: int, height: int, threshold: float
) -> Detections:
    """The detections that answer a drawing, without those of classes that have no label.

    A rectangle gives all whose centre lies in it (its edge included), down to the floor score: so a hasty rectangle
    around one object finds it, and a wide one fills an area. A point gives the one of the highest score among the boxes
    that contain it, of equal ones the smallest; none if no box does. A label that the person has chosen keeps other
    labels out. A detection that overlaps a region of the control that is already there by an IoU of 0.5 or more is
    left out, or it would be suggested each time; the drawn rectangle itself does not count, Label Studio removes it.
    Where nothing was drawn, the usual answer is given: all from ``threshold`` on.
    """
    wanted = np.array([label is not None and drawn.label in (None, label) for label in match.labels], np.bool_)
    if drawn.kind == "other" or len(detections) == 0:
        return Detections.empty()
    keep: NDArray[np.bool_] = wanted[detections.class_ids]
    if drawn.kind == "none":
        return detections.where(keep & (detections.scores >= threshold))
    keep &= ~_is_present(detections.boxes_xyxy, drawn.present_xyxy_percent, width, height)
    scale = np.array([width, height], np.float64) / 100.0
    left_top = detections.boxes_xyxy[:, :2].astype(np.float64)
    right_bottom = detections.boxes_xyxy[:, 2:].astype(np.float64)
    if drawn.box_xyxy_percent is not None:
        corners = np.array(drawn.box_xyxy_percent, np.float64)
        centres = (left_top + right_bottom) / 2  # (N, 2)
        inside = (centres >= corners[:2] * scale) & (centres <= corners[2:] * scale)
        return detections.where(keep & inside.all(axis=1))
    point = np.array(drawn.point_xy_percent, np.float64) * scale
    around = detections.where(keep & ((left_top <= point) & (point <= right_bottom)).all(axis=1))
    if len(around) == 0:
        return around
    best = np.lexsort((area_xyxy(around.boxes_xyxy), -around.scores))[0]
    return around.where(np.arange(len(around)) == best)


def _is_present(
    boxes_xyxy: Float32Array, present_xyxy_percent: Sequence[Corners], width: int, height: int
) -> NDArray[np.bool_]:
    """Whether each box, bool (N,), is one of the regions that are there."""
    scale = np.array([width, height, width, height], np.float64) / 100.0
    present = np.array(present_xyxy_percent, np.float64).reshape(-1, 4) * scale
    overlap = iou_xyxy(boxes_xyxy, present.astype(np.float32))  # (N, M)
    return np.asarray((overlap >= _SAME_OBJECT_IOU).any(axis=1), np.bool_)
