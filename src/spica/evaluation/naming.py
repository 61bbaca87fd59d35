"""Which class of a model is which of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spica.boxes import Detections
from spica.errors import DataSetError


@dataclass(frozen=True, slots=True)
class Naming:
    """A model's classes in terms of a data set's.

    Attributes:
        class_ids: for each class of the model the data set's class id, -1 for one that the data set does not have.
        notes: what does not go together, a sentence each, for people.
    """

    class_ids: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def translate(self, found: Detections) -> Detections:
        """A model's answer with the data set's class ids; boxes of classes that it does not have are left out."""
        table = np.array(self.class_ids, np.int64)
        kept = found.where(table[found.class_ids] >= 0)
        return Detections(kept.boxes_xyxy, kept.scores, table[kept.class_ids])


def align(model: Sequence[str], data: Sequence[str], *, where: str) -> Naming:
    """Find each class of the model in the data set: by its name, whatever the case and the spaces around it; classes
    without names by number.

    Args:
        model: names by class id; empty strings where the weights carry none.
        data: names by class id.
        where: of what, for messages.

    Raises:
        DataSetError: no class is common to both, or classes without names are not as many.
    """
    if not any(name.strip() for name in model):
        return _by_number(model, data, where)
    known = {_plain(name): class_id for class_id, name in enumerate(data)}
    class_ids = tuple(known.get(_plain(name), -1) for name in model)
    if max(class_ids) < 0:
        raise DataSetError(
            "the model and the data have no class in common",
            where=where,
            expected=", ".join(name or "(no name)" for name in model),
            got=", ".join(data),
            hint="say with --labels what the model's classes are called in the data, in their order",
        )
    strange = [name or "(no name)" for name, class_id in zip(model, class_ids, strict=True) if class_id < 0]
    unknown = [name for class_id, name in enumerate(data) if class_id not in class_ids]
    notes = (
        [f"The model's boxes of {', '.join(strange)} are left out: the data has no such class."] if strange else []
    ) + ([f"The model does not know {', '.join(unknown)}: all such objects count as missed."] if unknown else [])
    return Naming(class_ids, tuple(notes))


def _by_number(model: Sequence[str], data: Sequence[str], where: str) -> Naming:
    if len(model) != len(data):
        raise DataSetError(
            "the weights carry no names of classes, and they are not as many as the data's",
            where=where,
            expected=f"{len(model)} class{'' if len(model) == 1 else 'es'}",
            got=f"{len(data)}: {', '.join(data)}",
            hint="say with --labels what the model's classes are called in the data, in their order",
        )
    note = f"The weights carry no names of classes; they are taken in the data's order: {', '.join(data)}."
    return Naming(tuple(range(len(data))), (note,) if len(data) > 1 else ())


def _plain(name: str) -> str:
    return name.strip().casefold()
