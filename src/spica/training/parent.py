"""The version that answers a project now: what a training begins with, and what its result is compared with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spica.classes import class_names
from spica.detectors.contract import Detector
from spica.errors import SpicaError
from spica.labelstudio.control_tags import RectangleControl
from spica.labelstudio.label_config import match_labels
from spica.models import versions
from spica.models.card import read_card, version_info
from spica.models.load import load_detector
from spica.models.serving import Serving
from spica.models.version import ModelVersion
from spica.training import initialise
from spica.training.gate import Drift
from spica.training.process import Request

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Parent:
    """The version that answers now.

    Attributes:
        folder: with its files.
        id: in the store.
        names: of its classes as the project calls them; their own where the project does not know them.
        init: the folder, if a training can begin with it, else None.
        why_not: why it can't, None if it can.
        drift: what its line has lost since its best version.
    """

    folder: Path
    id: str
    names: tuple[str, ...]
    init: Path | None
    why_not: str | None
    drift: Drift = field(default_factory=Drift)


def read(request: Request, controls: Sequence[RectangleControl]) -> Parent | None:
    """The version that a request names; None if it names none.

    Args:
        request: with its folder and id.
        controls: of the project.

    Raises:
        WeightsError: its files can't be used.
    """
    if request.parent is None or request.parent_id is None:
        return None
    folder = Path(request.parent)
    card = read_card(folder)
    info = version_info(folder, card)
    why_not = initialise.obstacle(info)
    names = _names(info.classes, controls)
    drift = Drift.of(card.gate)
    return Parent(folder, request.parent_id, names, folder if why_not is None else None, why_not, drift)


def is_stored(data_dir: Path, version: str) -> bool:
    """Whether a version has a folder in the store."""
    return (data_dir / "models" / version).is_dir()


def detector_of(
    parent: Parent, data_dir: Path, *, threads: int, serving: Serving | None = None
) -> tuple[Detector | None, str | None]:
    """The version's detector, in f32 on whole images without ``serving``; None and why if it can't be asked."""
    try:
        card = read_card(parent.folder)
        known = versions.open(data_dir, parent.id) if is_stored(data_dir, parent.id) else None
        opened = known or ModelVersion(parent.folder, card, data_dir / "cache" / f"{parent.id}-compared")
        return load_detector(opened, threads=threads, serving=serving), None
    except SpicaError as error:
        logger.warning("the version that answers now can't be compared with: %s", error.summary)
        return None, f"{parent.id} could not be asked ({error.what}), so it was compared with drawing by hand."


def _names(classes: Sequence[str], controls: Sequence[RectangleControl]) -> tuple[str, ...]:
    """A model's classes as the project calls them: by the rules that its predictions are shown by."""
    found: list[str | None] = [None] * len(classes)
    for control in controls:
        labels = match_labels(classes, control).labels
        found = [before or label for before, label in zip(found, labels, strict=True)]
    return tuple(label or own for label, own in zip(found, class_names(classes), strict=True))
