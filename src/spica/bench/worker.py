"""The process of one contestant: lines of JSON in, lines of JSON out.

The first line that comes is the contestant's :class:`spica.bench.contestants.Start`, each further one an image to look
at, ``{"path": …}``. Answers are ``{"threads": …}`` when it is ready, then
``{"seconds", "boxes", "scores", "classes", "memory"}`` for each image, or ``{"error": …}``. When the input ends, the
process ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from spica.bench.contestants import Contestant, Start, prepare
from spica.errors import SpicaError, WeightsError
from spica.training.footprint import peak_memory_bytes


def main() -> int:
    """Answer until the input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries that print must not get between our lines
    with out:
        try:
            contestant = prepare(Start(**json.loads(sys.stdin.readline())))
        except SpicaError as error:
            _tell(out, error.as_json())
            return 0
        except ModuleNotFoundError as error:
            missing = WeightsError("torch is not installed", got=str(error), hint='pip install "spica[train]"')
            _tell(out, missing.as_json())
            return 0
        _tell(out, {"threads": contestant.threads})
        for line in sys.stdin:
            try:
                _tell(out, _measured(contestant, Path(json.loads(line)["path"])))
            except SpicaError as error:
                _tell(out, error.as_json())
    return 0


def _measured(contestant: Contestant, path: Path) -> dict[str, Any]:
    started = time.perf_counter()
    found = contestant.detect(path)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "boxes": found.boxes_xyxy.tolist(),
        "scores": found.scores.tolist(),
        "classes": found.class_ids.tolist(),
        "memory": peak_memory_bytes() or None,
    }


def _tell(out: TextIO, line: dict[str, Any]) -> None:
    out.write(json.dumps(line) + "\n")
    out.flush()


if __name__ == "__main__":
    sys.exit(main())
