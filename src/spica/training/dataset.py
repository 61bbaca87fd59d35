"""Annotated images: what a training learns from, and what a model is judged by."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from spica.evaluation.truth import Truth


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One image and what is in it.

    Attributes:
        path: the image file.
        digest: of the file's bytes, as :func:`spica.images.digest_of` gives it.
        truth: its objects; an image without objects is a true negative.
        name: for people and exports: the file's own name, unique within a data set.
        task: number of Label Studio's task, None for data from files.
        annotation: number of the annotation that was taken, None for data from files.
        updated: when that annotation was last changed, ISO 8601 as Label Studio says it; None for data from files.
        group: photographs that show the same thing (tiles of one photo, near-duplicates) share it; None if unknown.
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
        examples: in a stable order.
        problems: what was left out or mended and why, a sentence each, for people.
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
