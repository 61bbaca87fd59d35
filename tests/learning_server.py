"""`spica serve` in a process of its own that may be killed, with trainings of seconds.

``python learning_server.py RECIPE PIDS ARGUMENTS…`` runs ``spica ARGUMENTS…``. RECIPE is a JSON object of fields of
:class:`spica.training.recipe.Recipe`, which every training takes; to the file PIDS the number of each process that
trains is added, a line each.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from spica import cli
from spica.server import learning
from spica.training.process import Request, WorkerProcess


class NotedProcess(WorkerProcess):
    """Tells its number as soon as it has one."""

    recipe: dict[str, Any]
    pids: Path

    def __init__(self, request: Request) -> None:
        super().__init__(replace(request, settings={**request.settings, "recipe": self.recipe}))

    def _start(self, said: IO[bytes]) -> subprocess.Popen[str]:
        process = super()._start(said)
        with self.pids.open("a", encoding="utf-8") as file:
            file.write(f"{process.pid}\n")
        return process


def main() -> None:
    """Run the command."""
    NotedProcess.recipe = json.loads(sys.argv[1])
    NotedProcess.pids = Path(sys.argv[2])
    owner: Any = learning
    owner.WorkerProcess = NotedProcess
    sys.argv = ["spica", *sys.argv[3:]]
    cli.main()


if __name__ == "__main__":
    main()
