"""What a training needs to go on after a break: one file an epoch, replaced whole. This module needs torch."""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from spica.errors import TrainingError

logger = logging.getLogger(__name__)

LAST: Final = "last.ckpt"
"""Name of the checkpoint in a training's folder."""

WEIGHTS: Final = "weights.safetensors"
"""Name of the result."""

_BEST = "best-*.safetensors"
_FORMAT = 1


def save(folder: Path, state: dict[str, Any], *, key: str, best: str | None) -> None:
    """Replace the checkpoint; weights of judgements before the best one are removed.

    Args:
        folder: of the training.
        state: tensors and plain values.
        key: of the training, see :func:`load`.
        best: name of the best weights' file, which stays.

    Raises:
        TrainingError: it can't be written; the checkpoint before is still there.
    """
    path = folder / LAST
    aside = folder / f".{LAST}.{os.getpid()}"
    try:
        try:
            with aside.open("wb") as file:  # given a name, torch would turn a full disk into a RuntimeError
                torch.save({"format": _FORMAT, "key": key, **state}, file)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        for old in folder.glob(_BEST):
            if old.name != best:
                old.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(error, path) from error


def load(folder: Path, key: str) -> dict[str, Any] | None:
    """The checkpoint of the training with this key; None if there is none, or of another training, or a damaged one.

    Args:
        folder: of the training.
        key: tells data, recipe and first weights; with another key a training begins anew.
    """
    path = folder / LAST
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        logger.warning("the checkpoint %s can't be read and is left out: %s", path, error)
        return None
    if state.get("format") != _FORMAT or state.get("key") != key:
        return None
    best = state.get("best")
    return state if best is None or (folder / best).is_file() else None


def clear(folder: Path) -> None:
    """Remove what trainings before have left in the folder, their results too."""
    for path in (folder / LAST, folder / WEIGHTS, *folder.glob(_BEST), *folder.glob(f".{LAST}.*")):
        path.unlink(missing_ok=True)


def save_weights(path: Path, state_dict: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a ``.safetensors`` file whole, or not at all.

    Raises:
        TrainingError: it can't be written.
    """
    from safetensors.torch import save as as_bytes

    tensors = {name: value.detach().cpu().contiguous() for name, value in state_dict.items()}
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            aside.write_bytes(as_bytes(tensors, metadata=dict(metadata)))
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(error, path) from error


def metadata_of(
    architecture: str, classes: tuple[str, ...], *, norm: str, norm_eps: float, sizes: tuple[int, int] | None
) -> dict[str, str]:
    """What a weights file says of itself, beside its numbers."""
    told = {
        "spica.architecture": architecture,
        "spica.classes": json.dumps(classes, ensure_ascii=False),
        "spica.norm": norm,
        "spica.norm_eps": repr(norm_eps),
    }
    if sizes is not None:
        told["spica.input_size"] = json.dumps(sizes)
    return told


def cannot_write(error: OSError, path: Path) -> TrainingError:
    """The error of a training whose files can't be written."""
    full = error.errno == errno.ENOSPC
    return TrainingError(
        "the training can't keep its weights" + (": the disk is full" if full else ""),
        where=str(path),
        got=error.strerror or type(error).__name__,
        hint="free some space and start it again: it goes on with the last epoch that was kept"
        if full
        else "let yourself write there, or choose another folder",
    )
