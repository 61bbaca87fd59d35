"""A training as the model server runs it, lower priority and half of the processors, until its input ends."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

from spica.training import loop
from spica.training.footprint import lower_priority, threads_of
from spica.training.recipe import Recipe
from spica.training.sources import load


def main() -> None:
    """Read ``{"data", "folder"}`` from the input, say ``step`` at the first step, and go on."""
    given = json.loads(sys.stdin.readline())
    lower_priority()
    stop = threading.Event()

    def end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=end, daemon=True).start()
    data = load(given["data"])
    recipe = Recipe.for_data(len(data.examples), threads=threads_of(0), epochs=1000)
    said = False

    def tell(_: object) -> None:
        nonlocal said
        if not said:
            print("step", flush=True)
            said = True

    loop.train(data, None, Path(given["folder"]), recipe, on_progress=tell, stop=stop)


if __name__ == "__main__":
    main()
