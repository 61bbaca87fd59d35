"""A version's numbers as the plain state_dict that torch users know."""

from __future__ import annotations

import os
from pathlib import Path

from spica.errors import WeightsError
from spica.files import storage_error


def write_state_dict(source: Path, target: Path) -> None:
    """Write weights as ``torch.save(model.state_dict(), target)`` would; whole, or not at all.

    Such a file loads with ``torch.load(target, weights_only=True)`` and ``model.load_state_dict``. Needs torch.

    Args:
        source: a ``.safetensors`` or ``.pth`` file of Spica's store.
        target: the file to write; one that is there is replaced.

    Raises:
        WeightsError: torch is missing, or can't read ``source``.
        StorageError: ``target`` can't be written.
    """
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            "torch is needed to write a .pth file, and it can't be loaded",
            got=str(error),
            hint='pip install "spica[train]", or export as .safetensors, which needs nothing',
        ) from error
    from spica.detectors.torchvision_export import load_state_dict

    state_dict = load_state_dict(source)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        try:
            with aside.open("wb") as file:  # given a name, torch would turn a full disk into a RuntimeError
                torch.save(state_dict, file)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, target) from error
