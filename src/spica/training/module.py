"""The network while it learns, as Lightning wants it. This module needs torch and Lightning."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from spica.errors import TrainingError
from spica.evaluation.metrics import evaluate
from spica.training import checkpoints, photographs
from spica.training.answers import answers
from spica.training.photographs import Batch, Photographs, mixed
from spica.training.progress import Epoch, Progress
from spica.training.recipe import Recipe

_WARM_UP = 0.1
"""Share of all steps in which the learning rate rises, at most ``_WARM_UP_STEPS``."""

_WARM_UP_STEPS = 50


class StoppedError(TrainingError):
    """Somebody wanted the training to stop; the checkpoint of its last whole epoch is kept."""

    code = "training_stopped"


class DetectorModule(LightningModule):  # type: ignore[misc]  # Lightning ships no types that are followed
    """A detector of torchvision's family, its optimizer, its judgements and its checkpoints.

    Args:
        network: with its first weights.
        recipe: how it learns.
        data: to learn from.
        valid: to judge by, None for none.
        chooses: whether the judgements choose an epoch, and end the training early.
        classes: names by class id.
        folder: for checkpoints.
        key: of the training, see :func:`spica.training.checkpoints.load`.
        metadata: for weights files.
        stopped: asked before each step and each image; true ends the training.
        tell: given the progress.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        *,
        data: Photographs,
        valid: Photographs | None,
        chooses: bool,
        classes: tuple[str, ...],
        folder: Path,
        key: str,
        metadata: dict[str, str],
        stopped: Callable[[], bool],
        tell: Callable[[Progress], None],
    ) -> None:
        super().__init__()
        self.network, self.recipe = network, recipe
        self.history: list[Epoch] = []
        self.best: str | None = None
        self.best_epoch: int | None = None
        self._data, self._valid, self._chooses, self.classes = data, valid, chooses, classes
        self._folder, self.key, self.metadata = folder, key, metadata
        self._wished, self._tell = stopped, tell
        self._steps = len(photographs.batches(data, recipe, 1))
        # judging costs a third of learning: with many validation images not each epoch is judged
        self._judge_every = max(1, round(len(valid) / (2 * len(data)))) if valid is not None else 0
        self._restored: dict[str, Any] | None = None
        self._step = 0
        self._sums: dict[str, float] = {}
        self._began = self._epoch_began = time.monotonic()
        self._step_s: list[float] = []
        self._judge_s = 0.0

    # --- what Lightning asks for

    def train_dataloader(self) -> Any:
        """Batches of the epoch that is due; Lightning asks again for each."""
        return photographs.loader(self._data, self.recipe, len(self.history) + 1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on what is not frozen; norms and biases don't decay."""
        learning = [each for each in self.network.parameters() if each.requires_grad]
        groups = [
            {"params": [each for each in learning if each.ndim > 1], "weight_decay": self.recipe.weight_decay},
            {"params": [each for each in learning if each.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([group for group in groups if group["params"]], lr=self.recipe.lr)

    learns_norms = False
    """Whether the statistics are learned: only where the training begins with random numbers."""

    def on_train_start(self) -> None:
        """Go on where a checkpoint ended."""
        if self._restored is not None:
            self._optimizer.load_state_dict(self._restored["optimizer"])
            self._restored = None
        self._began = time.monotonic()

    def on_train_epoch_start(self) -> None:
        """A new sum of losses; batch norm keeps its statistics: a batch of four can't give better ones."""
        self.network.train()
        for layer in self.network.modules():
            if isinstance(layer, nn.BatchNorm2d) and not self.learns_norms:
                layer.eval()
        self._step, self._sums, self._epoch_began = 0, {}, time.monotonic()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """The learning rate of this step, which depends on its number alone, or on a limited time."""
        self.check()
        done, steps = len(self.history) * self._steps + self._step, self.recipe.epochs * self._steps
        if self.recipe.max_minutes is not None:  # it falls to 0 until then, too
            spent = sum(epoch.seconds for epoch in self.history) + time.monotonic() - self._epoch_began
            done = min(steps, max(done, round(steps * spent / (60 * self.recipe.max_minutes))))
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.lr * learning_rate(done, steps)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of the network's losses.

        Raises:
            TrainingError: it is no finite number.
        """
        began = time.monotonic()
        images, targets = batch
        torch.manual_seed(mixed(self.recipe.seed, "step", len(self.history), self._step))  # for the drawing of samples
        losses: dict[str, Tensor] = self.network(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(loss):
            raise TrainingError(
                "the training diverged: its loss is no finite number any more",
                where=f"epoch {len(self.history) + 1}, step {self._step + 1}",
                got=", ".join(f"{name} {float(value):g}" for name, value in losses.items()),
                hint=f"train again with a lower learning rate, --lr {self.recipe.lr / 5:g}",
            )
        for name, value in {**losses, "loss": loss}.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach())
        self._step += 1
        self._step_began = began
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Tell how far it is."""
        self._step_s.append(time.monotonic() - self._step_began)
        self._tell(self._progress())

    def on_train_epoch_end(self) -> None:
        """Judge, keep the best, write the checkpoint, and stop if it gets no better."""
        number = len(self.history) + 1
        due = self._valid is not None and (number % self._judge_every == 0 or number == self.recipe.epochs)
        metrics = self._judged() if due else None
        epoch = Epoch(
            number,
            {name: value / max(1, self._step) for name, value in self._sums.items()},
            float(self._optimizer.param_groups[0]["lr"]),
            time.monotonic() - self._epoch_began,
            metrics,
        )
        better = self._is_better(epoch)
        self.history.append(epoch)
        if better:
            self.best_epoch, self.best = number, f"best-{number:05}.safetensors"
            checkpoints.save_weights(self._folder / self.best, self.network.state_dict(), self.metadata)
        self._save()
        self._step, self._sums = 0, {}
        self._tell(self._progress())
        if self.is_over:
            self.trainer.should_stop = True

    # --- what the loop asks for

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to do: all epochs, patience or time."""
        if len(self.history) >= self.recipe.epochs:
            return True
        judged = [epoch.number for epoch in self.history if epoch.metrics is not None]
        since = sum(1 for number in judged if number > (self.best_epoch or 0))
        if self.recipe.patience and self.best_epoch is not None and since >= self.recipe.patience:
            return True
        limit = self.recipe.max_minutes
        return limit is not None and sum(epoch.seconds for epoch in self.history) >= 60 * limit

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint; the optimizer follows when Lightning has made it."""
        self.network.load_state_dict(state["network"])
        self.history = [Epoch.from_json(told) for told in state["history"]]
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self._restored = state

    def check(self) -> None:
        """Raise if it is to stop.

        Raises:
            StoppedError: it is.
        """
        if self._wished():
            raise self.stopped()

    def stopped(self) -> StoppedError:
        """The error of a training that was stopped."""
        return StoppedError(
            "the training was stopped",
            where=str(self._folder),
            got=f"{len(self.history)} of {self.recipe.epochs} epochs",
            hint="the last whole epoch is kept: start it again and it goes on from there",
        )

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)  # noqa: S101 - one was configured
        return optimizer

    def _judged(self) -> dict[str, Any]:
        assert self._valid is not None  # noqa: S101 - or it would not be due
        began = time.monotonic()
        self._tell(self._progress(judging=True))
        found = answers(self.network, self._valid, between=self.check)
        truths = [example.truth for example in self._valid.examples]
        metrics = evaluate(truths, found, self.classes).as_json()
        self._judge_s = time.monotonic() - began
        return metrics

    def _is_better(self, epoch: Epoch) -> bool:
        if epoch.ap50 is None or not self._chooses:
            return False
        best = next((each for each in self.history if each.number == self.best_epoch), None)
        return best is None or (epoch.ap50, _ap(epoch)) > (best.ap50 or 0.0, _ap(best))

    def _save(self) -> None:
        state = {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "history": [epoch.as_json() for epoch in self.history],
            "best": self.best,
            "best_epoch": self.best_epoch,
        }
        checkpoints.save(self._folder, state, key=self.key, best=self.best)

    def _progress(self, *, judging: bool = False) -> Progress:
        return Progress(
            epoch=min(len(self.history) + 1, self.recipe.epochs),
            epochs=self.recipe.epochs,
            step=self._step,
            steps=self._steps,
            losses={name: value / max(1, self._step) for name, value in self._sums.items()},
            seconds=time.monotonic() - self._began,
            eta_s=self._eta_s(),
            judging=judging,
            history=tuple(self.history),
            best_epoch=self.best_epoch,
        )

    def _eta_s(self) -> float | None:
        recent = sorted(self._step_s[-50:])
        if not recent:
            return None
        left = (self.recipe.epochs - len(self.history)) * self._steps - self._step
        judgements = 0 if not self._judge_every else (self.recipe.epochs - len(self.history)) / self._judge_every
        return left * recent[len(recent) // 2] + judgements * self._judge_s


def learning_rate(step: int, steps: int) -> float:
    """Share of the highest learning rate: up on a line, down to 0 on a cosine (https://arxiv.org/abs/1608.03983).

    Args:
        step: from 0.
        steps: of the whole training.
    """
    rise = min(_WARM_UP_STEPS, max(1, round(_WARM_UP * steps)))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _ap(epoch: Epoch) -> float:
    return float((epoch.metrics or {}).get("ap") or 0.0)
