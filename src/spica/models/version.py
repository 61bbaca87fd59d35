"""A model version: a folder of files, and what is known of them before they are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spica.detectors.weights import WeightsInfo
from spica.models.card import Card


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What a weights file will be served as; known in a moment, before any conversion.

    Attributes:
        id: what Label Studio sees as ``model_version``, and the folder's name in the store.
        name: for people, the weights file's stem.
        fingerprint: SHA-256 over all that the answers depend on, in hex; None for a version that has a card of its own.
        weights: what the file is.
        score_floor: boxes with a lower score are never kept.
        max_detections: at most so many boxes an image; None if an exported graph does not say.
        norm_eps: eps of the batch norm, None for exported graphs.
        card: of a version that has one already, whose folder is ``weights.path``; None for a weights file.
    """

    id: str
    name: str
    fingerprint: str | None
    weights: WeightsInfo
    score_floor: float
    max_detections: int | None
    norm_eps: float | None
    card: Card | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by class id; empty strings where the weights carry none."""
        return self.weights.classes

    @property
    def architecture(self) -> str:
        """The network's kind."""
        return self.weights.architecture

    @property
    def sha256(self) -> str:
        """Of the weights file, in hex."""
        return self.weights.sha256


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version whose files are there and are what its card says.

    Attributes:
        folder: where the files are.
        card: what they are.
        cache_dir: where the compiled graph may be kept; it can be deleted at any time.
        source: its weights, if torch can load them: those in the folder, else the file it was made from.
    """

    folder: Path
    card: Card
    cache_dir: Path
    source: Path | None = None

    @property
    def id(self) -> str:
        """What Label Studio sees as ``model_version``."""
        return self.card.id

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by class id; empty strings where the weights carry none."""
        return self.card.classes


@dataclass(frozen=True, slots=True)
class Origin:
    """How a trained version came about; goes into its card.

    Attributes:
        parent: id of the version that the training began with, None if it began with no version.
        base: id of the weights that the line of versions began with.
        training: what was learned from, and how; see :func:`spica.models.versions.add`.
        metrics: what was measured.
        gate: the gate's verdict, None before it was judged.
        extra_files: curves and the like, copied into the version's folder under their own names.
    """

    parent: str | None = None
    base: str | None = None
    training: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    gate: Mapping[str, Any] | None = None
    extra_files: tuple[Path, ...] = ()
