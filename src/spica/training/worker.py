"""The process that trains: fetch, hold out, train, judge, store; a line of JSON for each step.

Started by :mod:`spica.training.process`, so that the process that serves never imports torch, and a training that
breaks breaks nothing else. It is given one line of JSON on its standard input and puts out lines of JSON:
``{"progress": …}``, and at the end ``{"report": …}`` or ``{"error": …}``. When its input ends, its parent has gone, and
it ends too.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

from spica.detectors.child import end_with_parent
from spica.errors import SpicaError, TrainingError
from spica.files import storage_error
from spica.training.footprint import lacks_memory, lower_priority, watch_memory
from spica.training.process import Request


def main() -> int:
    """Read the request, train, report. The exit status is 0 if the report was given, even of a failure."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries that print must not get between our lines
    line = sys.stdin.readline()
    if not line.strip():
        return 1
    request = Request.from_json(json.loads(line))
    lower_priority()
    threading.Thread(target=end_with_parent, name="spica-parent", daemon=True).start()
    voice = Voice(out)
    watch_memory(request.memory_bytes, lambda peak: _end_for_memory(voice, request, peak))
    with out:
        try:
            from spica.training.session import run

            voice.say(report=run(request, lambda **told: voice.say(progress=told)))
        except SpicaError as error:
            voice.say(**error.as_json())
        except MemoryError:
            voice.say(**_too_much(request, "all there is").as_json())
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            voice.say(**storage_error(error, Path(request.folder)).as_json())
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
            voice.say(**_too_much(request, "all there is").as_json())
    return 0


class Voice:
    """Lines of JSON to the parent, whole ones from any thread."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.Lock()

    def say(self, **line: Any) -> None:
        """Put out one line."""
        with self._lock:
            self._out.write(json.dumps(line) + "\n")
            self._out.flush()


def _too_much(request: Request, got: str) -> TrainingError:
    return TrainingError(
        "the training needs more memory than it may have",
        where=f"project {request.project}",
        expected=f"at most {request.memory_bytes // 2**20} MB",
        got=got,
        hint="raise SPICA_TRAIN_MEMORY_BYTES, or train on a machine with more memory with `spica train`",
    )


def _end_for_memory(voice: Voice, request: Request, peak: int) -> None:
    voice.say(**_too_much(request, f"{peak // 2**20} MB").as_json())
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main())
