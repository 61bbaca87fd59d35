"""The training itself: from a data set and a recipe to weights."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spica.errors import TrainingError
from spica.training.dataset import DataSet, require_learnable
from spica.training.footprint import lacks_memory
from spica.training.progress import Epoch, Progress
from spica.training.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from spica.training.initialise import Start
    from spica.training.module import DetectorModule

_GRADIENT_NORM = 10.0
"""Longer gradients are shortened to it: one odd image must not undo what was learned."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What came out of a training.

    Attributes:
        weights: a ``.safetensors`` file in the training's folder, the best epoch's if one was chosen, else the last
            one's; architecture, classes and input size in its metadata.
        architecture: of the network.
        classes: names by class id.
        norm: kind of its batch norm.
        history: the epochs.
        seconds: of all epochs together, those before a break included.
        best_epoch: whose weights these are.
        resumed: whether it went on from a checkpoint.
        start: where the first weights came from, for people.
        recipe: how it was done.
        notes: what people should know, a sentence each.
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
        found = self.history[self.best_epoch - 1].metrics
        return dict(found) if found is not None else None


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
    same number of threads. With anything else, what lies in the folder is removed and a new training begins.

    Args:
        data: to learn from. Images without objects are true negatives.
        valid: to judge each epoch by. Its classes are those of ``data``.
        chooses: whether the training stops early by ``valid``, and takes the best weights. Else, or without ``valid``,
            all epochs are done, and the last weights are taken: then what ``valid`` says of them is not flattered.
        folder: made where it is missing; one training at a time may use it.
        recipe: how.
        init: weights file or version's folder to begin with; None takes published weights.
        init_classes: names by class id of ``init``, for a file that carries none.
        on_progress: told after every step, in this thread.
        stop: when set, the training ends after the step that it is in.

    Raises:
        UsageError: the packages for training are missing.
        DataSetError: nothing can be learned from the data, or an image is gone.
        WeightsError: ``init`` can't be used.
        StoppedError: ``stop`` was set.
        TrainingError: not enough memory, no space on the disk, or the training diverged.
    """
    require_packages()
    notes = require_learnable(_counted(data, valid))
    if valid is not None and valid.classes != data.classes:
        raise TrainingError(
            "the validation images have other classes than the training images",
            expected=", ".join(data.classes),
            got=", ".join(valid.classes),
            hint="give both the same classes in the same order",
        )
    from spica.detectors.torch_gpu import compute_in_bf16
    from spica.training import checkpoints, initialise

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise checkpoints.cannot_write(error, folder) from error
    with _quiet(recipe), _sentences(recipe):
        start = initialise.begin(recipe, data.classes, init=init, init_classes=init_classes)
        if not start.random:
            initialise.freeze(start.network, recipe.frozen)
        if recipe.precision == "bf16":
            compute_in_bf16(start.network)
        module = _module(start, recipe, data, valid, folder, on_progress, stop, chooses)
        module.learns_norms = start.random
        state = checkpoints.load(folder, module.key)
        if state is None:
            checkpoints.clear(folder)
        else:
            module.restore(state)
        if not module.is_over:
            _fit(module, recipe)
        return _finish(module, start, recipe, folder, resumed=state is not None, notes=(*start.notes, *notes))


def _counted(data: DataSet, valid: DataSet | None) -> DataSet:
    """What there is to be said about the amount of data: one image is too few only where none is left to judge by."""
    if len(data.examples) == 1 and data.boxes and valid is not None and valid.examples:
        return replace(data, examples=data.examples + valid.examples)
    return data


def require_packages() -> None:
    """Refuse to go on without torch and what else a training needs.

    Raises:
        UsageError: one of them is missing or can't be loaded.
    """
    from importlib import import_module

    from spica.errors import UsageError

    for name in ("torch", "torchvision", "lightning", "safetensors"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of libraries, about libraries
                import_module(name)
        except (ImportError, OSError) as error:
            raise UsageError(
                "packages for training are missing",
                got=f"{name}: {error}",
                hint='pip install "spica[train]"',
            ) from error


def _module(
    start: Start,
    recipe: Recipe,
    data: DataSet,
    valid: DataSet | None,
    folder: Path,
    on_progress: Callable[[Progress], None] | None,
    stop: threading.Event | None,
    chooses: bool,
) -> DetectorModule:
    from spica.training.checkpoints import metadata_of
    from spica.training.module import DetectorModule
    from spica.training.photographs import for_network

    eps = _eps_of(start.network)
    return DetectorModule(
        start.network,
        recipe,
        data=for_network(data, start.network),
        valid=for_network(valid, start.network) if valid is not None and valid.examples else None,
        chooses=chooses,
        classes=data.classes,
        folder=folder,
        key=_key(data, valid, recipe, start, chooses),
        metadata=metadata_of(recipe.architecture, data.classes, norm=start.norm, norm_eps=eps, sizes=start.sizes),
        stopped=stop.is_set if stop is not None else lambda: False,
        tell=on_progress or (lambda _: None),
    )


def _fit(module: DetectorModule, recipe: Recipe) -> None:
    from lightning.pytorch import Trainer
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    trainer = Trainer(
        accelerator="auto" if _cuda() else "cpu",
        devices=1,
        max_epochs=recipe.epochs - len(module.history),
        gradient_clip_val=_GRADIENT_NORM,
        reload_dataloaders_every_n_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(module)
    except SIGTERMException:  # Lightning hears the system's wish to end, and would end the whole process
        raise module.stopped() from None


def _finish(
    module: DetectorModule, start: Start, recipe: Recipe, folder: Path, *, resumed: bool, notes: tuple[str, ...]
) -> Trained:
    from spica.training import checkpoints

    weights = folder / checkpoints.WEIGHTS
    if module.best is not None:
        from safetensors.torch import load_file

        best = load_file(folder / module.best)
        module.network.load_state_dict(best)
    checkpoints.save_weights(weights, module.network.state_dict(), module.metadata)
    return Trained(
        weights=weights,
        architecture=recipe.architecture,
        classes=module.classes,
        norm=start.norm,
        history=tuple(module.history),
        seconds=sum(epoch.seconds for epoch in module.history),
        best_epoch=module.best_epoch or len(module.history),
        resumed=resumed,
        start=start.origin,
        recipe=recipe,
        notes=notes,
    )


def _key(data: DataSet, valid: DataSet | None, recipe: Recipe, start: Start, chooses: bool) -> str:
    """Tells one training from another: what it learns from and is judged by, in which order, how, and from where."""
    told = {
        "data": [data.fingerprint, [example.digest for example in data.examples]],
        "valid": [valid.fingerprint if valid is not None else None, chooses],
        "recipe": asdict(recipe),
        "start": start.digest,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode("utf-8")).hexdigest()


def _eps_of(network: nn.Module) -> float:
    """Of its batch norm layers, all alike; 0 without any."""
    import torch
    from torchvision.ops import FrozenBatchNorm2d

    kinds = FrozenBatchNorm2d | torch.nn.BatchNorm2d
    return next((float(layer.eps) for layer in network.modules() if isinstance(layer, kinds)), 0.0)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@contextmanager
def _quiet(recipe: Recipe) -> Iterator[None]:
    """Have torch as the recipe wants it, and libraries that don't talk; both are given back as they were."""
    import torch

    logger = logging.getLogger("lightning.pytorch")
    level, threads = logger.level, torch.get_num_threads()
    exact, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic: Any = torch.utils.deterministic
    fills = deterministic.fill_uninitialized_memory
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and loggers is not for our users
        logger.setLevel(logging.ERROR)
        torch.use_deterministic_algorithms(True, warn_only=True)  # on CUDA torchvision's RoIAlign has no exact gradient
        deterministic.fill_uninitialized_memory = False  # it would write every tensor once more
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(exact, warn_only=warns)
            deterministic.fill_uninitialized_memory = fills
            torch.set_num_threads(threads)
            logger.setLevel(level)


@contextmanager
def _sentences(recipe: Recipe) -> Iterator[None]:
    """What a machine at its limit raises, as a sentence."""
    import torch

    hint = f"take a smaller --batch than {recipe.batch}, close other programs, or train where there is more memory"
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise TrainingError(
            "there is not enough memory for this training", got=_first_line(error), hint=hint
        ) from error
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        raise TrainingError(
            "there is not enough memory for this training", got=_first_line(error), hint=hint
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
