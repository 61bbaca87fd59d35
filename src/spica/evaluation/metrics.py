"""The metrics of the COCO challenge, without its cap at 100 boxes an image.

AP is the mean of the precision at 101 levels of recall, over ten IoU from 0.50 to 0.95 and over the classes; AP50 and
AP75 are the same at one IoU; AR is the recall at ``max_detections`` an image and class, over the same IoU and
classes (https://cocodataset.org/#detection-eval). faster-coco-eval computes them, as pycocotools does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from spica.boxes import Detections
from spica.errors import UsageError
from spica.evaluation.matching import check_pairs
from spica.evaluation.truth import Truth

if TYPE_CHECKING:
    from faster_coco_eval import COCO

SIZES: Final = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""Areas in square pixels, as pycocotools has them: both ends belong to a size."""

_EVERY: Final = "all"
_DIGITS: Final = 5


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """One class over all images; None where there are no objects of it."""

    name: str
    ap: float | None
    ap50: float | None
    objects: int


@dataclass(frozen=True, slots=True)
class SizeMetrics:
    """Objects of one range of area over all classes; None where there are none."""

    ap: float | None
    ar: float | None
    objects: int


@dataclass(frozen=True, slots=True)
class Metrics:
    """How good detections are. All in [0, 1], higher is better.

    Without any object the metrics are None: nothing can be said. With objects and no detections they are 0. A class
    without objects has None and is left out of the means, whatever was detected, as in COCO.

    Attributes:
        ap: over IoU 0.50 to 0.95; ``ap50`` and ``ap75`` at one.
        ar: recall over IoU 0.50 to 0.95.
        per_class: in the order of the classes.
        per_size: by the names in ``SIZES``.
        images: how many were judged, those without objects included.
        max_detections: at most so many of an image and class count.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ar: float | None
    per_class: tuple[ClassMetrics, ...]
    per_size: Mapping[str, SizeMetrics]
    images: int
    objects: int
    detections: int
    max_detections: int

    def as_json(self) -> dict[str, Any]:
        """Rounded to five decimals, None for what can't be said."""
        body: dict[str, Any] = _rounded(asdict(self))
        body["answers"] = body.pop("detections")  # the key that files have had from the start
        return body


def evaluate(
    truths: Sequence[Truth], detections: Sequence[Detections], classes: Sequence[str], *, max_detections: int = 1000
) -> Metrics:
    """Judge detections by the truth.

    Args:
        truths: one an image.
        detections: of the same images, down to a low score: a threshold would cut the curve.
        classes: names, by the class ids of both.
        max_detections: of each image and class only the best so many count.

    Raises:
        ValueError: not as many detections as truths, or a class id that has no name.
        UsageError: the package that computes them is missing.
    """
    check_pairs(truths, detections, len(classes))
    objects = sum(map(len, truths))
    ap = recall = None
    if objects and classes:
        ap, recall = _tables(truths, detections, classes, max_detections)
    return Metrics(
        ap=_mean(ap, size=0),
        ap50=_mean(ap, size=0, iou=0),
        ap75=_mean(ap, size=0, iou=5),
        ar=_mean(recall, size=0),
        per_class=_per_class(truths, classes, ap),
        per_size=_per_size(truths, ap, recall),
        images=len(truths),
        objects=objects,
        detections=sum(map(len, detections)),
        max_detections=max_detections,
    )


Table = NDArray[np.float64]
"""float64 (T, K, A): by IoU, class, and area (all first, then ``SIZES``); NaN where there are no objects."""


def _tables(
    truths: Sequence[Truth], detections: Sequence[Detections], classes: Sequence[str], max_detections: int
) -> tuple[Table, Table]:
    """Average precision and recall."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise UsageError(
            "COCO's metrics need a package that is not installed",
            expected="faster-coco-eval",
            hint='pip install "spica[train]"',
        ) from None
    truth = COCO(_truth_as_coco(truths, classes))
    judge = COCOeval_faster(truth, _detections_as_coco(truth, detections), iouType="bbox", print_function=_silent)
    judge.params.maxDets = [max_detections]
    judge.params.areaRng = [[0.0, SIZES["large"][1]], *([low, high] for low, high in SIZES.values())]
    judge.params.areaRngLbl = [_EVERY, *SIZES]
    judge.evaluate()
    judge.accumulate()
    precision = np.asarray(judge.eval["precision"], np.float64)[..., 0]  # (T, R, K, A), -1 without objects
    recall = np.asarray(judge.eval["recall"], np.float64)[..., 0]  # (T, K, A)
    return (
        np.where(precision[:, 0] < 0, np.nan, precision.mean(axis=1)),
        np.where(recall < 0, np.nan, recall),
    )


def _silent(*_: object) -> None:
    """What the library says while it works."""


def _truth_as_coco(truths: Sequence[Truth], classes: Sequence[str]) -> dict[str, Any]:
    annotations = [
        {"image_id": image, "category_id": class_id + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for image, truth in enumerate(truths, 1)
        for box, class_id in zip(_xywh(truth.boxes_xyxy), truth.class_ids.tolist(), strict=True)
    ]
    return {
        "images": [
            {"id": image, "width": truth.width, "height": truth.height} for image, truth in enumerate(truths, 1)
        ],
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, 1)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, 1)],
    }


def _detections_as_coco(truth: COCO, detections: Sequence[Detections]) -> COCO:
    return truth.loadRes(
        [
            {"image_id": number, "category_id": class_id + 1, "bbox": box, "score": score}
            for number, image in enumerate(detections, 1)
            for box, class_id, score in zip(
                _xywh(image.boxes_xyxy), image.class_ids.tolist(), image.scores.tolist(), strict=True
            )
        ]
    )


def _xywh(boxes_xyxy: NDArray[np.float32]) -> list[list[float]]:
    boxes = boxes_xyxy.astype(np.float64)
    rows: list[list[float]] = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
    return rows


def _mean(table: Table | None, *, size: int, iou: int | None = None, class_id: int | None = None) -> float | None:
    """The mean over what is not fixed, classes without objects left out."""
    if table is None:
        return None
    part = table[
        slice(None) if iou is None else slice(iou, iou + 1),
        slice(None) if class_id is None else slice(class_id, class_id + 1),
        size,
    ]
    known = part[~np.isnan(part)]
    return float(known.mean()) if known.size else None


def _per_class(truths: Sequence[Truth], classes: Sequence[str], ap: Table | None) -> tuple[ClassMetrics, ...]:
    objects = sum((np.bincount(truth.class_ids, minlength=len(classes)) for truth in truths), np.zeros(len(classes)))
    return tuple(
        ClassMetrics(
            name,
            _mean(ap, size=0, class_id=class_id),
            _mean(ap, size=0, iou=0, class_id=class_id),
            int(objects[class_id]),
        )
        for class_id, name in enumerate(classes)
    )


def _per_size(truths: Sequence[Truth], ap: Table | None, recall: Table | None) -> dict[str, SizeMetrics]:
    sides = [truth.boxes_xyxy[:, 2:].astype(np.float64) - truth.boxes_xyxy[:, :2] for truth in truths]
    areas = np.concatenate([side.prod(axis=1) for side in sides]) if sides else np.zeros(0)
    return {
        name: SizeMetrics(
            _mean(ap, size=number), _mean(recall, size=number), int(((areas >= low) & (areas <= high)).sum())
        )
        for number, (name, (low, high)) in enumerate(SIZES.items(), 1)
    }


def _rounded(value: Any) -> Any:
    """A copy of nested records with rounded floats, for JSON."""
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return [_rounded(part) for part in value]
    return round(value, _DIGITS) if isinstance(value, float) else value
