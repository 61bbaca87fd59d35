"""Failed tasks with their reasons, one JSON object a line, on disk as soon as they are known."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Self, TextIO

from spica.errors import SpicaError, UsageError
from spica.prelabel.progress import failure_json

logger = logging.getLogger(__name__)


class FailureFile:
    """The file, new; used in a ``with`` block, or closed by ``close()``.

    A disk that is full later is told by :attr:`trouble`, and stops nobody from working.

    Args:
        path: of the file; what was there is replaced.

    Raises:
        UsageError: it can't be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble: str | None = None
        self.lines = 0
        self._file: TextIO | None = None
        try:
            self._file = path.open("w", encoding="utf-8", newline="\n", buffering=1)
        except OSError as error:
            raise UsageError(
                "the report can't be written",
                where=str(path),
                got=error.strerror or type(error).__name__,
                hint="give another file; its folder must exist",
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, task: int, error: SpicaError) -> None:
        """Add a failed task."""
        self.write_line(json.dumps(failure_json(task, error), ensure_ascii=False))

    def write_line(self, line: str) -> None:
        """Add a line as it is."""
        if self._file is None or self.trouble is not None:
            return
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as failure:
            self._give_up(failure)
        else:
            self.lines += 1

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            file.close()
        except OSError as failure:  # what could not be written before is tried once more here
            if self.trouble is None:
                self._give_up(failure)

    def _give_up(self, failure: OSError) -> None:
        self.trouble = f"the report in {self.path} is not complete: {failure.strerror or type(failure).__name__}"
        logger.warning("%s", self.trouble)
