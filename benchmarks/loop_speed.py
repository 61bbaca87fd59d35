"""How long an opened photograph waits while a training runs, against while nothing else does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx

from spica.bench import server
from spica.bench.photographs import ARCHITECTURE
from spica.training.dataset import DataSet
from spica.training.footprint import environment, threads_of

from .untrained import write_untrained

ARCHITECTURES = ("fasterrcnn_efficientnet_lite0_fpn", ARCHITECTURE)
_ROUNDS = 4
"""Blocks without and with a training, in turn."""
_LOOKS = 8
_PATIENCE_S = 300.0


def measure(data: DataSet, place: Path, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds to answer one opened photograph, idle and beside a training, for two networks."""
    photographs = [example.path for example in data.examples[:_LOOKS]]
    return {name: _measure(name, photographs, place, say=say) for name in ARCHITECTURES}


def _measure(architecture: str, photographs: list[Path], place: Path, *, say: Callable[[str], None]) -> dict[str, Any]:
    folder = place / architecture
    folder.mkdir()
    weights = write_untrained(folder / "untrained.pth", architecture)
    options = ["--weights", str(weights), "--data-dir", str(folder / "data"), "--precision", "f32"]
    idle: list[float] = []
    beside: list[float] = []
    root = photographs[0].parent
    with server.server(root, options, {"SPICA_MEMORY_BYTES": "0"}) as running:
        running.wait_healthy()
        with httpx.Client(timeout=_PATIENCE_S, trust_env=False) as client:

            def look(photograph: Path) -> float:
                began = time.perf_counter()
                server.ask(client, running.url, [photograph], root, classes=1)
                return time.perf_counter() - began

            look(photographs[0])
            for number in range(_ROUNDS):
                say(f"{architecture}: block {number + 1} of {_ROUNDS}")
                idle += [look(photograph) for photograph in photographs]
                with _training(root.parent / "train.json", folder / f"run-{number}"):
                    beside += [look(photograph) for photograph in photographs]
    return {
        "idle": _told(idle),
        "beside": _told(beside),
        "median": median(beside) / median(idle),
        "p95": _told(beside)["p95"] / _told(idle)["p95"],
    }


def _told(seconds: list[float]) -> dict[str, float]:
    return {"median": median(seconds), "p95": quantiles(seconds, n=20)[-1], "looks": len(seconds)}


class _training:  # noqa: N801 - reads as the context manager that it is
    """A training under way, at its first step on entering the block, ended on leaving it."""

    def __init__(self, data: Path, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.loop_trainer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env=environment(threads_of(0)),
        )
        self._request = json.dumps({"data": str(data), "folder": str(folder)}) + "\n"

    def __enter__(self) -> None:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("no pipes")
        stdin.write(self._request)
        stdin.flush()
        while (line := stdout.readline()) and line.strip() != "step":
            pass
        if not line:
            raise RuntimeError(f"the training ended with {self._process.wait()}")

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
