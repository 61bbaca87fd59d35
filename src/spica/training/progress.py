"""How far a training is, and what came of each epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over the data.

    Attributes:
        number: from 1.
        losses: means by the network's own names, ``loss`` is their sum.
        lr: learning rate at its end.
        seconds: that it took, judging included.
        metrics: :meth:`spica.evaluation.metrics.Metrics.as_json` on the validation images; None if it was not judged.
    """

    number: int
    losses: Mapping[str, float]
    lr: float
    seconds: float
    metrics: Mapping[str, Any] | None = None

    @property
    def ap50(self) -> float | None:
        """mAP50 on the validation images, in [0, 1]; None if nothing can be said."""
        found = self.metrics.get("ap50") if self.metrics is not None else None
        return None if found is None else float(found)

    def as_json(self) -> dict[str, Any]:
        """For cards and checkpoints."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Epoch:
        """The opposite of :meth:`as_json`."""
        return cls(told["number"], told["losses"], told["lr"], told["seconds"], told["metrics"])


@dataclass(frozen=True, slots=True)
class Progress:
    """Told after every step, and after every epoch.

    Attributes:
        epoch: the one under way, from 1.
        epochs: how many there will be at most.
        step: steps done in this epoch.
        steps: of an epoch.
        losses: running means of this epoch, by the network's own names; ``loss`` is their sum.
        seconds: since the start, or since it was resumed.
        eta_s: seconds to go if it does not stop early; None before the first step is done.
        judging: whether the validation images are being looked at.
        history: the epochs that are over.
        best_epoch: the best of them by mAP50, None before the first judgement.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    losses: Mapping[str, float]
    seconds: float
    eta_s: float | None
    judging: bool = False
    history: tuple[Epoch, ...] = ()
    best_epoch: int | None = None

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)
