"""A process that works on a store for as long as it lives: adds, judges, activates, goes back, cleans up.

``python store_worker.py DATA_DIR SEED`` prints a word for each thing it has done.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from project_keys import known
from spica.models import active, space, store
from tiny_versions import add_tiny, fake_conversion, safetensors

PROJECT = 1
BASE = "gwhd-00000000"


def work(data_dir: Path, seed: str) -> None:
    """Never ends by itself."""
    chance = random.Random(seed)  # noqa: S311 - seeded on purpose
    weights = data_dir.parent / f"{seed}.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        fake_conversion(patch)
        while True:
            weights.write_bytes(safetensors({"w": [chance.random() for _ in range(2000)]}))
            pointer = active.read(data_dir, known(PROJECT))
            parent = pointer.version if pointer is not None else None
            version = add_tiny(data_dir, weights, parent=parent)
            store.record(data_dir, version, gate={"accepted": chance.random() < 0.5})
            print("added", flush=True)
            active.activate(data_dir, known(PROJECT), version, base=BASE, why="better", by=seed)
            print("activated", flush=True)
            if chance.random() < 0.3:
                active.rollback(data_dir, known(PROJECT), by=seed)
                print("rolled back", flush=True)
            # Two seconds of youth keep what the other process has just made and not yet activated.
            print("deleted", len(space.prune(data_dir, 60_000, young_s=2).deleted), flush=True)


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2])
