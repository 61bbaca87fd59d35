"""The training itself: from a data set and a recipe to weights. This module needs torch."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from spica import files
from spica.detectors.torch_gpu import compute_in_bf16
from spica.errors import StorageError, TrainingError
from spica.evaluation.metrics import evaluate
from spica.training import initialise, samples
from spica.training.dataset import DataSet, require_learnable
from spica.training.detection import detect
from spica.training.footprint import lacks_memory
from spica.training.initialise import Start
from spica.training.progress import Epoch, Progress, Trained
from spica.training.recipe import Recipe
from spica.training.samples import Batch, TrainingImages, for_network, mixed

logger = logging.getLogger(__name__)

CHECKPOINT: Final = "last.ckpt"
"""Name of the file in a training's folder by which it is resumed; one an epoch, replaced whole."""

WEIGHTS: Final = "weights.safetensors"
"""Name of the result in a training's folder."""

_FORMAT = 2
_GRADIENT_NORM = 10.0
"""Longer gradients are shortened to it: one odd image must not undo what was learned."""
_WARM_UP = 0.1
"""Share of all steps in which the learning rate rises, at most ``_WARM_UP_STEPS``."""
_WARM_UP_STEPS = 50


class StoppedError(TrainingError):
    """Somebody wanted the training to stop; the checkpoint of its last whole epoch is kept."""

    code = "training_stopped"


def train(
    data: DataSet,
    valid: DataSet | None,
    folder: Path,
    recipe: Recipe,
    *,
    chooses: bool = True,
    init: Path | None = None,
    init_classes: Sequence[str] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
) -> Trained:
    """Train a detector.

    After each epoch the state is kept in ``folder``. Called again with the same data, recipe and first weights, it goes
    on after the last whole epoch, and what comes out is what an unbroken training gives, bit for bit on a CPU with the
    same number of threads. With anything else a new training begins.

    Args:
        data: to learn from. Images without objects are true negatives.
        valid: to validate each epoch by, with the classes of ``data``.
        folder: one training at a time may use it.
        recipe: how.
        chooses: whether the training stops early by ``valid``, and takes the best weights. Else all epochs are done,
            and the last weights are taken: then the metrics on ``valid`` are not flattered.
        init: weights file or version's folder to begin with; None takes published weights.
        init_classes: names by class id of ``init``, for a file that carries none.
        on_progress: called after every step, in this thread.
        stop: when set, the training ends after the step under way.

    Raises:
        DataSetError: nothing can be learned from the data, or an image is gone.
        WeightsError: ``init`` can't be used.
        StoppedError: ``stop`` was set.
        StorageError: the folder can't be written.
        TrainingError: not enough memory, or the training diverged.
    """
    notes = require_learnable(_counted(data, valid))
    if valid is not None and valid.classes != data.classes:
        raise TrainingError(
            "the validation images have other classes than the training images",
            expected=", ".join(data.classes),
            got=", ".join(valid.classes),
            hint="give both the same classes in the same order",
        )
    with _torch_settings(recipe), _plain_errors(recipe):
        start = initialise.begin(recipe, data.classes, init=init, init_classes=init_classes)
        try:
            folder.mkdir(parents=True, exist_ok=True)  # before the first epoch, which may take long
        except OSError as error:
            raise files.storage_error(error, folder) from error
        try:
            loop = _Loop(start, recipe, data, valid, folder, chooses, on_progress, stop)
            resumed = loop.resume(_key(data, valid, recipe, start, chooses))
            while not loop.is_over:
                loop.run_epoch()
            loop.save_result()
        finally:
            with suppress(OSError):  # nothing was kept
                folder.rmdir()
    return Trained(
        weights=folder / WEIGHTS,
        architecture=recipe.architecture,
        classes=data.classes,
        norm=start.norm,
        history=tuple(loop.history),
        seconds=sum(epoch.seconds for epoch in loop.history),
        best_epoch=loop.best_epoch or len(loop.history),
        resumed=resumed,
        start=start.origin,
        recipe=recipe,
        notes=(*start.notes, *notes),
    )


class _Loop:
    """A network, its optimizer, and how far they are."""

    def __init__(
        self,
        start: Start,
        recipe: Recipe,
        data: DataSet,
        valid: DataSet | None,
        folder: Path,
        chooses: bool,
        on_progress: Callable[[Progress], None] | None,
        stop: threading.Event | None,
    ) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = start.network.to(self._device)
        if not start.random:
            initialise.freeze(self._network, recipe.frozen)
        if recipe.precision == "bf16":
            compute_in_bf16(self._network)
        self._metadata = _metadata(start, recipe, data.classes)
        self._learns_norms = start.random  # a batch of four gives no better statistics than those that were learned
        self._optimizer = _optimizer(self._network, recipe)
        self._recipe, self._classes, self._folder = recipe, data.classes, folder
        self._data = for_network(data, self._network)
        self._valid = for_network(valid, self._network) if valid is not None and valid.examples else None
        self._chooses, self._tell, self._stop = chooses, on_progress or (lambda _: None), stop
        self._steps = len(samples.batch_indices(len(self._data), recipe, 1))
        self._validate_every = _validate_every(self._data, self._valid)
        self._key = ""
        self.history: list[Epoch] = []
        self.best_epoch: int | None = None
        self._best: dict[str, Tensor] | None = None
        self._step, self._sums = 0, dict[str, float]()
        self._began = time.monotonic()
        self._step_s: list[float] = []
        self._validation_s = 0.0

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to do: all epochs, patience or time."""
        if len(self.history) >= self._recipe.epochs:
            return True
        if self._recipe.patience and self.best_epoch is not None:
            worse = [epoch for epoch in self.history[self.best_epoch :] if epoch.metrics is not None]
            if len(worse) >= self._recipe.patience:
                return True
        limit = self._recipe.max_minutes
        return limit is not None and sum(epoch.seconds for epoch in self.history) >= 60 * limit

    def run_epoch(self) -> None:
        """Learn from each image once, validate, and write the checkpoint."""
        number = len(self.history) + 1
        self._began = time.monotonic()
        self._step, self._sums = 0, {}
        self._network.train()
        for layer in self._network.modules():
            if isinstance(layer, nn.BatchNorm2d) and not self._learns_norms:
                layer.eval()
        before = time.monotonic()
        for batch in samples.batches(self._data, self._recipe, number):
            self._check()
            self._learn(batch, number)
            now = time.monotonic()
            self._step_s.append(now - before)
            before = now
            self._tell(self._progress())
        due = self._valid is not None and (number % self._validate_every == 0 or number == self._recipe.epochs)
        metrics = self._validated() if due else None
        losses = {name: value / self._step for name, value in self._sums.items()}
        rate = float(self._optimizer.param_groups[0]["lr"])
        epoch = Epoch(number, losses, rate, time.monotonic() - self._began, metrics)
        if self._is_better(epoch):
            self.best_epoch = number
            self._best = {name: value.detach().cpu().clone() for name, value in self._network.state_dict().items()}
        self.history.append(epoch)
        self._save()
        self._step, self._sums = 0, {}
        self._tell(self._progress())

    def resume(self, key: str) -> bool:
        """Go on where the checkpoint of the training with this key ended; whether there is one."""
        self._key = key
        state = _read_checkpoint(self._folder / CHECKPOINT, key)
        if state is None:
            for name in (CHECKPOINT, WEIGHTS):
                (self._folder / name).unlink(missing_ok=True)
            return False
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.history = [Epoch(**fields) for fields in state["history"]]
        self.best_epoch, self._best = state["best_epoch"], state["best"]
        return True

    def save_result(self) -> None:
        """Write the weights: the best epoch's if one was chosen, else the last one's."""
        from safetensors.torch import save_file

        state = self._best if self._best is not None else self._network.state_dict()
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        with files.replacing(self._folder / WEIGHTS) as aside:
            save_file(tensors, aside, self._metadata)

    def _save(self) -> None:
        state = {
            "format": _FORMAT,
            "key": self._key,
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "history": [epoch.as_json() for epoch in self.history],
            "best_epoch": self.best_epoch,
            "best": self._best,
        }
        path = self._folder / CHECKPOINT
        with files.replacing(path) as aside, aside.open("wb") as file:  # of a name, torch hides a full disk
            torch.save(state, file)

    def _learn(self, batch: Batch, epoch: int) -> None:
        """One step.

        Raises:
            TrainingError: the loss is no finite number.
        """
        self._set_rate()
        images, targets = batch
        torch.manual_seed(mixed(self._recipe.seed, "step", epoch - 1, self._step))  # for the sampling of proposals
        losses: dict[str, Tensor] = self._network(
            [image.to(self._device) for image in images],
            [{name: value.to(self._device) for name, value in target.items()} for target in targets],
        )
        loss = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(loss):
            raise TrainingError(
                "the training diverged: its loss is no finite number any more",
                where=f"epoch {epoch}, step {self._step + 1}",
                got=", ".join(f"{name} {float(value.detach()):g}" for name, value in losses.items()),
                hint=f"train again with a lower learning rate, --lr {self._recipe.lr / 5:g}",
            )
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._network.parameters(), _GRADIENT_NORM)
        self._optimizer.step()
        for name, value in {**losses, "loss": loss}.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach())
        self._step += 1

    def _set_rate(self) -> None:
        """The learning rate of this step, which depends on its number alone, or on a limited time."""
        done, steps = len(self.history) * self._steps + self._step, self._recipe.epochs * self._steps
        if self._recipe.max_minutes is not None:  # it falls to 0 until then, too
            spent = sum(epoch.seconds for epoch in self.history) + time.monotonic() - self._began
            done = min(steps, max(done, round(steps * spent / (60 * self._recipe.max_minutes))))
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.lr * learning_rate(done, steps)

    def _validated(self) -> dict[str, Any]:
        assert self._valid is not None  # noqa: S101 - or it would not be due
        began = time.monotonic()
        self._tell(self._progress(validating=True))
        detections = detect(self._network, self._valid, between=self._check)
        metrics = evaluate([example.truth for example in self._valid.examples], detections, self._classes).as_json()
        self._validation_s = time.monotonic() - began
        return metrics

    def _is_better(self, epoch: Epoch) -> bool:
        if epoch.ap50 is None or not self._chooses:
            return False
        if self.best_epoch is None:
            return True
        best = self.history[self.best_epoch - 1]
        return (epoch.ap50, _ap(epoch)) > (best.ap50 or 0.0, _ap(best))

    def _check(self) -> None:
        """Raise if it is to stop.

        Raises:
            StoppedError: it is.
        """
        if self._stop is not None and self._stop.is_set():
            raise StoppedError(
                "the training was stopped",
                where=str(self._folder),
                got=f"{len(self.history)} of {self._recipe.epochs} epochs",
                hint="the last whole epoch is kept: start it again and it goes on from there",
            )

    def _progress(self, *, validating: bool = False) -> Progress:
        return Progress(
            epoch=min(len(self.history) + 1, self._recipe.epochs),
            epochs=self._recipe.epochs,
            step=self._step,
            steps=self._steps,
            losses={name: value / max(1, self._step) for name, value in self._sums.items()},
            eta_s=self._eta_s(),
            validating=validating,
            history=tuple(self.history),
            best_epoch=self.best_epoch,
        )

    def _eta_s(self) -> float | None:
        recent = sorted(self._step_s[-50:])
        if not recent:
            return None
        epochs = self._recipe.epochs - len(self.history)
        validations = epochs / self._validate_every if self._validate_every else 0
        return (epochs * self._steps - self._step) * recent[len(recent) // 2] + validations * self._validation_s


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


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW on what is not frozen; norms and biases don't decay."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in learning if parameter.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [parameter for parameter in learning if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=recipe.lr)


def _validate_every(data: TrainingImages, valid: TrainingImages | None) -> int:
    """After so many epochs, so that validating costs a third of learning at most; 0 for never."""
    return max(1, round(len(valid) / (2 * len(data)))) if valid is not None else 0


def _ap(epoch: Epoch) -> float:
    return float((epoch.metrics or {}).get("ap") or 0.0)


def _read_checkpoint(path: Path, key: str) -> dict[str, Any] | None:
    """None if there is none, or it is of another training, or damaged."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        logger.warning("the checkpoint %s can't be read and is left out: %s", path, error)
        return None
    return state if state.get("format") == _FORMAT and state.get("key") == key else None


def _metadata(start: Start, recipe: Recipe, classes: tuple[str, ...]) -> dict[str, str]:
    """What a weights file says of itself, beside its numbers."""
    norms = (layer for layer in start.network.modules() if isinstance(layer, FrozenBatchNorm2d | nn.BatchNorm2d))
    metadata = {
        "spica.architecture": recipe.architecture,
        "spica.classes": json.dumps(classes, ensure_ascii=False),
        "spica.norm": start.norm,
        "spica.norm_eps": repr(next((float(layer.eps) for layer in norms), 0.0)),
    }
    if start.sizes is not None:
        metadata["spica.input_size"] = json.dumps(start.sizes)
    return metadata


def _key(data: DataSet, valid: DataSet | None, recipe: Recipe, start: Start, chooses: bool) -> str:
    """Tells one training from another: what it learns from and is validated by, in which order, how, from where."""
    parts = {
        "data": [data.fingerprint, [example.digest for example in data.examples]],
        "valid": [valid.fingerprint if valid is not None else None, chooses],
        "recipe": asdict(recipe),
        "start": start.digest,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8")).hexdigest()


def _counted(data: DataSet, valid: DataSet | None) -> DataSet:
    """For the note on the amount of data: one image is too few only where none is left to validate by."""
    if len(data.examples) == 1 and data.boxes and valid is not None and valid.examples:
        return replace(data, examples=data.examples + valid.examples)
    return data


@contextmanager
def _torch_settings(recipe: Recipe) -> Iterator[None]:
    """Have torch compute as the recipe wants it; everything is set back at the end."""
    threads = torch.get_num_threads()
    exact, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic: Any = torch.utils.deterministic
    fills = deterministic.fill_uninitialized_memory
    with torch.random.fork_rng():
        # on CUDA torchvision would replace its RoIAlign by one in Python, with which an epoch takes minutes
        torch.use_deterministic_algorithms(not torch.cuda.is_available(), warn_only=True)
        deterministic.fill_uninitialized_memory = False  # it would write every tensor once more
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(exact, warn_only=warns)
            deterministic.fill_uninitialized_memory = fills
            torch.set_num_threads(threads)


@contextmanager
def _plain_errors(recipe: Recipe) -> Iterator[None]:
    """What a machine at its limit raises, with what to do about it."""
    try:
        yield
    except StorageError as error:
        hint = "free some space, or let yourself write there, and start it again: the last whole epoch is kept"
        raise StorageError(error.what, where=error.where, got=error.got, hint=hint) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not lacks_memory(error):
            raise
        raise TrainingError(
            "there is not enough memory for this training",
            got=str(error).partition("\n")[0][:200] or type(error).__name__,
            hint=f"take a smaller --batch than {recipe.batch}, close other programs, or train on a larger machine",
        ) from error
