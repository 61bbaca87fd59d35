"""Annotated images: what a training learns from, and what a model is judged by."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from spica.errors import DataSetError
from spica.evaluation.truth import Truth


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One image and what is in it.

    Attributes:
        digest: of the file's bytes, as :func:`spica.images.digest_of` gives it.
        truth: its objects; an image without objects is a true negative.
        name: the file's own name, unique within a data set.
        task: number of Label Studio's task; like the next two None for data from files.
        annotation: number of the annotation that was taken.
        updated: when that annotation was last changed, ISO 8601.
        group: images that show the same thing (tiles of one photo, near-duplicates) share it; None if unknown.
    """

    path: Path
    digest: str
    truth: Truth
    name: str
    task: int | None = None
    annotation: int | None = None
    updated: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class DataSet:
    """Examples, and the names of their classes.

    Attributes:
        classes: names by class id, at least one.
        problems: what was left out or corrected and why, a sentence each.
        left_out: number and time of last change of the annotations that were read and gave no example, so that they
            don't count as new for ever.
    """

    classes: tuple[str, ...]
    examples: tuple[Example, ...]
    problems: tuple[str, ...] = ()
    left_out: tuple[tuple[int, str], ...] = ()

    @property
    def boxes(self) -> int:
        """Objects in all images together."""
        return sum(len(example.truth) for example in self.examples)

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hex over the classes, the images' contents and their boxes, whatever the order or the names."""
        lines = sorted(
            json.dumps(
                [
                    example.digest,
                    sorted(
                        [int(class_id), *(round(float(side), 2) for side in box)]
                        for box, class_id in zip(example.truth.boxes_xyxy, example.truth.class_ids, strict=True)
                    ),
                ]
            )
            for example in self.examples
        )
        return hashlib.sha256("\n".join([json.dumps(self.classes), *lines]).encode("utf-8")).hexdigest()

    def classes_without_objects(self) -> tuple[str, ...]:
        """Names of classes of which no image has an object, in quotes."""
        present = {int(class_id) for example in self.examples for class_id in example.truth.class_ids}
        return tuple(f'"{name}"' for number, name in enumerate(self.classes) if number not in present)


def require_learnable(dataset: DataSet) -> tuple[str, ...]:
    """Check that something can be learned from a data set at all.

    Returns:
        A sentence for each class without a single object: nothing can be learned about it.

    Raises:
        DataSetError: no image, no object, or one image only, which leaves none to judge by.
    """
    hint = "label some more tasks and submit them"
    if not dataset.examples:
        raise DataSetError("there is no annotated image to learn from", hint=hint)
    if dataset.boxes == 0:
        raise DataSetError(
            "no object to learn from: all annotated images are empty",
            got=f"{len(dataset.examples)} images without boxes",
            expected=f"boxes of {', '.join(dataset.classes)}",
            hint=hint,
        )
    if len(dataset.examples) == 1:
        raise DataSetError(
            "one annotated image is not enough: one is learned from, another is to judge by",
            got="1 image",
            expected="at least 2, better 20",
            hint=hint,
        )
    return tuple(
        f"no image has an object of class {name}: nothing can be learned about it"
        for name in dataset.classes_without_objects()
    )
