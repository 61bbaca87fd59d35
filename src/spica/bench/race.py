"""The ways of computing, measured in turn: every round each of them looks at the same photograph once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

import numpy as np

from spica.bench.contestants import TITLES, Start, Way
from spica.boxes import Detections
from spica.errors import ModelUnavailableError, SpicaError, WeightsError

Say = Callable[[str], None]

_END_S = 10.0
_TAIL_BYTES = 2000


@dataclass(slots=True)
class Measured:
    """What was measured of one way.

    Attributes:
        way: of computing.
        load_s: from the process's start until its network is ready.
        first_s: from the process's start to the boxes of the first photograph.
        seconds: of each further look, in the order of the rounds.
        answers: by photograph.
        memory_bytes: the most that the process had held when it had answered for the first photograph, as that of
            :class:`spica.bench.startup.Startup`; None where the system does not tell.
        threads: of the network; None where the runtime does not tell.
    """

    way: Way
    load_s: float = 0.0
    first_s: float = 0.0
    seconds: list[float] = field(default_factory=list)
    answers: dict[Path, Detections] = field(default_factory=dict)
    memory_bytes: int | None = None
    threads: int | None = None

    @property
    def title(self) -> str:
        """How the way is called in tables."""
        return TITLES[self.way]

    @property
    def median_s(self) -> float:
        """Seconds an image, from the file to its boxes."""
        return median(self.seconds)

    @property
    def min_s(self) -> float:
        """The shortest look."""
        return min(self.seconds)


def race(starts: Sequence[Start], images: Sequence[Path], *, rounds: int, say: Say) -> list[Measured]:
    """Measure each way, in turn.

    Each way has a process of its own. All see every photograph once before anything counts, then ``rounds`` times one
    photograph after the other, each photograph by all ways before the next.

    Args:
        starts: one each.
        images: photographs.
        rounds: how often each photograph is looked at.
        say: told what is being done.

    Raises:
        WeightsError: a way can't run these weights.
        ModelUnavailableError: a process died; with the last line that it wrote.
    """
    with ExitStack() as stack:
        runners: list[_Runner] = []
        for start in starts:
            say(f"Loading: {TITLES[start.way]}")
            runners.append(stack.enter_context(_Runner(start, images[0])))
        for image in images[1:]:
            for runner in runners:
                runner.look(image, count=False)
        for number in range(rounds):
            say(f"Round {number + 1} of {rounds}")
            for image in images:
                # whoever comes first meets a cooler processor: the order turns
                turn = (number + images.index(image)) % len(runners)
                for runner in runners[turn:] + runners[:turn]:
                    runner.look(image, count=True)
    return [runner.measured for runner in runners]


class _Runner:
    def __init__(self, start: Start, first: Path) -> None:
        self.measured = Measured(start.way)
        self._first = first
        environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONWARNINGS": "ignore"}
        self._told = tempfile.TemporaryFile()  # noqa: SIM115 - closed in _end; a pipe that nobody reads would fill
        self._began = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "spica.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._told,
            encoding="utf-8",
            env=environment,
        )
        self._start = start

    def __enter__(self) -> Self:
        try:
            self.measured.threads = self._ask(self._start.as_json())["threads"]
            self.measured.load_s = time.perf_counter() - self._began
            self.measured.memory_bytes = self.look(self._first, count=False)
            self.measured.first_s = time.perf_counter() - self._began
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def look(self, image: Path, *, count: bool) -> int | None:
        """Have a photograph looked at; the most memory that the process has held so far."""
        told = self._ask({"path": str(image)})
        if count:
            self.measured.seconds.append(float(told["seconds"]))
        self.measured.answers[image] = Detections(
            boxes_xyxy=np.array(told["boxes"], np.float32).reshape(-1, 4),
            scores=np.array(told["scores"], np.float32),
            class_ids=np.array(told["classes"], np.int64),
        )
        memory: int | None = told["memory"]
        return memory

    def _ask(self, line: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        answer = ""
        if stdin is not None and stdout is not None:
            try:
                stdin.write(json.dumps(line) + "\n")
                stdin.flush()
            except OSError:  # a broken pipe, or what Windows says instead
                pass  # it has died, and says nothing below
            answer = stdout.readline()
        if not answer:
            raise ModelUnavailableError(
                "the process of a measurement died",
                where=self.measured.title,
                got=f"{self._ended()}{self._last_words()}",
                hint="close other programs (it may be for want of memory), or leave this way out with --ways",
            )
        told: dict[str, Any] = json.loads(answer)
        if "error" in told:
            raise _rebuilt(told["error"], self.measured.title)
        return told

    def _ended(self) -> str:
        try:
            return f"exit status {self._process.wait(_END_S)}"
        except subprocess.TimeoutExpired:
            return "an output that ended while the process went on"

    def _last_words(self) -> str:
        """The last line that the process wrote for people, after a semicolon; empty if there is none."""
        self._told.seek(max(0, self._told.seek(0, os.SEEK_END) - _TAIL_BYTES))
        lines = self._told.read().decode("utf-8", "replace").strip().splitlines()
        return f"; {lines[-1].strip()[:300]}" if lines else ""

    def _end(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._told.close()


def _rebuilt(told: dict[str, Any], way: str) -> SpicaError:
    return WeightsError(
        str(told["message"]),
        where=told.get("where") or way,
        expected=told.get("expected"),
        got=told.get("got"),
        hint=told.get("hint"),
    )
