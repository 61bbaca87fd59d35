"""How far a training is, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spica.training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over the data.

    Attributes:
        number: from 1.
        losses: means by the network's own names, ``loss`` is their sum.
        lr: at its end.
        seconds: validation included.
        metrics: COCO's, as JSON; None if it was not validated.
    """

    number: int
    losses: Mapping[str, float]
    lr: float
    seconds: float
    metrics: Mapping[str, Any] | None = None

    @property
    def ap50(self) -> float | None:
        """mAP50 on the validation images, in [0, 1]; None where there is none."""
        value = (self.metrics or {}).get("ap50")
        return None if value is None else float(value)

    def as_json(self) -> dict[str, Any]:
        """For cards and checkpoints."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Progress:
    """After each step and each epoch.

    Attributes:
        epoch: the one under way, from 1, of ``epochs`` at most.
        step: steps done in this epoch, of ``steps``.
        losses: running means of this epoch, as :attr:`Epoch.losses`.
        eta_s: seconds to go if it does not stop early; None before the first step is done.
        validating: whether the validation images are being looked at.
        history: the epochs that are over.
        best_epoch: the best of them by mAP50, None before the first validation.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    losses: Mapping[str, float]
    eta_s: float | None
    validating: bool = False
    history: tuple[Epoch, ...] = ()
    best_epoch: int | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """What came out of a training.

    Attributes:
        weights: a ``.safetensors`` file in the training's folder; architecture, classes and input size in its metadata.
        classes: names by class id.
        seconds: of all epochs together, those before a break included.
        best_epoch: whose weights these are: the best one if it was chosen, else the last.
        resumed: whether it went on from a checkpoint.
        start: where the first weights came from, for people.
        notes: for people, a sentence each.
    """

    weights: Path
    architecture: str
    classes: tuple[str, ...]
    norm: str
    history: tuple[Epoch, ...]
    seconds: float
    best_epoch: int
    resumed: bool
    start: str
    recipe: Recipe
    notes: tuple[str, ...] = ()

    @property
    def metrics(self) -> dict[str, Any] | None:
        """Of the epoch whose weights these are, on the validation images; None without any."""
        metrics = self.history[self.best_epoch - 1].metrics
        return dict(metrics) if metrics is not None else None
