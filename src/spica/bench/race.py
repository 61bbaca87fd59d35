"""The ways of computing, measured in turn: every round each of them looks at the same photograph once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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


@dataclass(slots=True)
class Measured:
    """What was measured of one way.

    Attributes:
        way: of computing.
        load_s: from the process's start until its network is ready.
        first_s: from the process's start to the boxes of the first photograph.
        seconds: of each further look, in the order of the rounds.
        answers: by photograph.
        memory_bytes: the most that the process has held; None where the system does not tell.
    """

    way: Way
    load_s: float = 0.0
    first_s: float = 0.0
    seconds: list[float] = field(default_factory=list)
    answers: dict[Path, Detections] = field(default_factory=dict)
    memory_bytes: int | None = None

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
        ModelUnavailableError: a process died.
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
        self._began = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "spica.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env=environment,
        )
        self._start = start

    def __enter__(self) -> Self:
        try:
            self._ask(self._start.as_json())
            self.measured.load_s = time.perf_counter() - self._began
            self.look(self._first, count=False)
            self.measured.first_s = time.perf_counter() - self._began
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def look(self, image: Path, *, count: bool) -> None:
        told = self._ask({"path": str(image)})
        if count:
            self.measured.seconds.append(float(told["seconds"]))
        self.measured.answers[image] = Detections(
            boxes_xyxy=np.array(told["boxes"], np.float32).reshape(-1, 4),
            scores=np.array(told["scores"], np.float32),
            class_ids=np.array(told["classes"], np.int64),
        )
        self.measured.memory_bytes = told["memory"]

    def _ask(self, line: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        answer = ""
        if stdin is not None and stdout is not None:
            try:
                stdin.write(json.dumps(line) + "\n")
                stdin.flush()
            except BrokenPipeError:
                pass  # it has died, and says nothing below
            answer = stdout.readline()
        if not answer:
            raise ModelUnavailableError(
                "the process of a measurement died",
                where=self.measured.title,
                got=f"exit status {self._process.wait(_END_S)}",
                hint="close other programs (it may be for want of memory), or leave this way out with --ways",
            )
        told: dict[str, Any] = json.loads(answer)
        if "error" in told:
            raise _rebuilt(told["error"], self.measured.title)
        return told

    def _end(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _rebuilt(told: dict[str, Any], way: str) -> SpicaError:
    return WeightsError(
        str(told["message"]),
        where=told.get("where") or way,
        expected=told.get("expected"),
        got=told.get("got"),
        hint=told.get("hint"),
    )
