"""Which class of a model is which class of a project or of a data set: one rule for all."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from spica.errors import DataSetError

if TYPE_CHECKING:
    from spica.boxes import Detections

Rule = Literal["predicted_values", "exact name", "name ignoring case and spaces", "position"]


@dataclass(frozen=True, slots=True)
class ClassLabel:
    """A class as a project or a data set calls it.

    Attributes:
        value: its name, as it is stored.
        shown: its name, as a person reads it; mostly the same.
        predicted_values: names of model classes that it claims before all others; or their numbers, counted from 1 as
            torchvision counts (0 is the background), where the weights carry no names.
    """

    value: str
    shown: str
    predicted_values: tuple[str, ...] = ()


def match_classes(classes: Sequence[str], labels: Sequence[ClassLabel]) -> tuple[tuple[int, Rule] | None, ...]:
    """For each class of a model the position of its label, and the rule by which they match; None for no label.

    The first rule that matches counts: ``predicted_values``, the exact name, the name ignoring case and spaces; last,
    only if no class has a name and there are as many classes as labels, the position. Several classes may have one
    label.

    Args:
        classes: names by class id; empty strings where the weights carry no names.
        labels: to choose from.
    """
    matches = [_match_one(name, number, labels) for number, name in enumerate(classes, start=1)]
    if len(classes) == len(labels) and not any(classes):
        taken = {match[0] for match in matches if match is not None}
        free = [position for position in range(len(labels)) if position not in taken]
        unmatched = [class_id for class_id, match in enumerate(matches) if match is None]
        if len(free) == len(unmatched):
            for class_id, position in zip(unmatched, free, strict=True):
                matches[class_id] = (position, "position")
    return tuple(matches)


def _match_one(name: str, number: int, labels: Sequence[ClassLabel]) -> tuple[int, Rule] | None:
    rules: list[tuple[Rule, Callable[[ClassLabel], bool]]]
    if not name:
        rules = [("predicted_values", lambda label: str(number) in label.predicted_values)]
    else:
        alike = _folded(name)
        rules = [
            ("predicted_values", lambda label: name in label.predicted_values),
            ("predicted_values", lambda label: alike in map(_folded, label.predicted_values)),
            ("exact name", lambda label: name in (label.value, label.shown)),
            ("name ignoring case and spaces", lambda label: alike in (_folded(label.value), _folded(label.shown))),
        ]
    return next(
        ((position, rule) for rule, matches in rules for position, label in enumerate(labels) if matches(label)), None
    )


def _folded(name: str) -> str:
    """A name without case and spaces; composed, since macOS and Windows write the same kana in two ways."""
    return "".join(unicodedata.normalize("NFC", name).casefold().split())


def class_names(classes: Iterable[str]) -> tuple[str, ...]:
    """Names to show: a class without one is called by its number, from 1."""
    return tuple(name or f"class {number}" for number, name in enumerate(classes, start=1))


@dataclass(frozen=True, slots=True)
class ClassMap:
    """A model's class ids in terms of a data set's.

    Attributes:
        class_ids: for each class of the model the data set's class id, -1 for one that the data set does not have.
        notes: what does not match, a sentence each.
    """

    class_ids: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def translate(self, detections: Detections) -> Detections:
        """Detections with the data set's class ids; boxes of classes that it does not have are left out."""
        import numpy as np  # not for a command that only reads a labelling configuration

        table = np.array(self.class_ids, np.int64)
        kept = detections.where(table[detections.class_ids] >= 0)
        return replace(kept, class_ids=table[kept.class_ids])


def map_classes(model: Sequence[str], data: Sequence[str], *, where: str | None = None) -> ClassMap:
    """The class ids of a model in a data set, matched as :func:`match_classes` does.

    Args:
        model: names by class id; empty strings where the weights carry none.
        data: names by class id.
        where: what the two are, for the error; None where it is none to have no class in common.

    Raises:
        DataSetError: they have no class in common.
    """
    model = tuple(name.strip() for name in model)
    matches = match_classes(model, [ClassLabel(name, name) for name in data])
    class_ids = tuple(-1 if match is None else match[0] for match in matches)
    if where is not None and all(class_id < 0 for class_id in class_ids):
        raise _no_common_class(model, data, where)
    if not any(model):
        in_order = f"The weights carry no names of classes; they are taken in the data's order: {', '.join(data)}."
        return ClassMap(class_ids, (in_order,) if len(data) > 1 else ())
    notes: list[str] = []
    foreign = [name or "(no name)" for name, class_id in zip(model, class_ids, strict=True) if class_id < 0]
    unknown = [name for class_id, name in enumerate(data) if class_id not in class_ids]
    if foreign:
        notes.append(f"The model's boxes of {', '.join(foreign)} are left out: the data has no such class.")
    if unknown:
        notes.append(f"The model does not know {', '.join(unknown)}: all such objects count as missed.")
    return ClassMap(class_ids, tuple(notes))


def _no_common_class(model: Sequence[str], data: Sequence[str], where: str) -> DataSetError:
    named = any(model)
    return DataSetError(
        "the model and the data have no class in common"
        if named
        else "the weights carry no names of classes, and they are not as many as the data's",
        where=where,
        expected=", ".join(name or "(no name)" for name in model)
        if named
        else f"{len(model)} class{'' if len(model) == 1 else 'es'}",
        got=", ".join(data) if named else f"{len(data)}: {', '.join(data)}",
        hint="say with --labels what the model's classes are called in the data, in their order",
    )
