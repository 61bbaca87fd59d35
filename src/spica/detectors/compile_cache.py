"""OpenVINO's compiled models on disk, trusted only while their digests are the ones written beside them.

OpenVINO takes a damaged file of its cache for whole, and then fails or computes nonsense.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from spica.errors import StorageError
from spica.files import discard, put_in_place, remove, scratch, sha256_file

logger = logging.getLogger(__name__)

T = TypeVar("T")

_DIGESTS = "digests.json"


def compiled(compile_with: Callable[[dict[str, str]], T], folder: Path) -> T:
    """What ``compile_with`` gives, from the cache in ``folder`` if it is sound; else compiled anew and kept there.

    A cache that can't be written is no failure: the model is compiled at each start then.

    Args:
        compile_with: compiles, with these settings of OpenVINO's besides its own.
        folder: this cache's own, named ``<version of the runtime>_<what was compiled>``. Siblings that other versions
            of the runtime wrote are removed.
    """
    try:
        if folder.exists():
            if _sound(folder):
                return compile_with({"CACHE_DIR": str(folder)})
            logger.warning("the compiled model in %s is damaged; compiling it again", folder)
            discard(folder)
        return _fill(compile_with, folder)
    except (StorageError, OSError, RuntimeError) as error:  # OpenVINO raises RuntimeError only
        logger.warning("the cache of compiled models in %s can't be used: %s", folder, error)
        remove(folder)
        return compile_with({})


def _fill(compile_with: Callable[[dict[str, str]], T], folder: Path) -> T:
    with scratch(folder.parent) as aside:
        made = compile_with({"CACHE_DIR": str(aside)})
        digests = {path.name: sha256_file(path) for path in sorted(aside.iterdir()) if path.is_file()}
        (aside / _DIGESTS).write_text(json.dumps(digests), "utf-8")
        if put_in_place(aside, folder):
            runtime = folder.name.partition("_")[0]
            for other in folder.parent.iterdir():
                if other.name.partition("_")[0] != runtime and not other.name.startswith("."):
                    remove(other)
    return made


def _sound(folder: Path) -> bool:
    try:
        digests = json.loads((folder / _DIGESTS).read_text("utf-8"))
        found = {path.name: sha256_file(path) for path in folder.iterdir() if path.name != _DIGESTS}
    except (OSError, ValueError):
        return False
    return bool(digests == found)
