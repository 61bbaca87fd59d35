"""`spica serve` in a process of its own that may be killed, with trainings of seconds.

``python learning_server.py RECIPE PIDS ARGUMENTS…`` runs ``spica ARGUMENTS…``. RECIPE is a JSON object of fields of
:class:`spica.training.recipe.Recipe`, which every training takes; to the file PIDS the number of each process that
trains is added, a line each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from spica import cli
from spica.server import trainer
from spica.training.runs import TrainingJob


def main() -> None:
    """Run the command."""
    recipe, pids = json.loads(sys.argv[1]), Path(sys.argv[2])
    train = trainer.train_in_child

    def short(job: TrainingJob, report: Callable[[dict[str, Any]], None], stop: threading.Event) -> dict[str, Any]:
        return train(replace(job, recipe=recipe), report, stop)

    class NotedPopen(subprocess.Popen[Any]):
        """Writes its number down as soon as it has one."""

        def __init__(self, command: Any, *arguments: Any, **options: Any) -> None:
            super().__init__(command, *arguments, **options)
            if "spica.training.session" in command:
                with pids.open("a", encoding="utf-8") as file:
                    file.write(f"{self.pid}\n")

    trainer.train_in_child = short
    subprocess.Popen = NotedPopen  # type: ignore[misc, assignment]
    sys.argv = ["spica", *sys.argv[3:]]
    cli.main()


if __name__ == "__main__":
    main()
