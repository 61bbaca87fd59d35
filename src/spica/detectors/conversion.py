"""Conversion of a weights file in a process of its own."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any, cast

from spica.detectors.architecture import Norm
from spica.errors import ModelUnavailableError, SpicaError, StorageError, WeightsError

logger = logging.getLogger(__name__)

_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be converted.

    Attributes:
        weights: the file, a state_dict.
        sha256: of its bytes, in hex; another file is refused.
        folder: an existing folder, where ``model.xml`` and ``model.bin`` are written.
        architecture: torchvision's name.
        classes: names by class id.
        norm: the kind of batch norm the weights were trained with.
        norm_eps: eps of the batch norm.
        score_floor: boxes with a score not above it are dropped by the graph.
        max_detections: the graph answers at most so many boxes.
    """

    weights: str
    sha256: str
    folder: str
    architecture: str
    classes: tuple[str, ...]
    norm: Norm
    norm_eps: float
    score_floor: float
    max_detections: int


def convert(
    request: Request, *, progress: Callable[[str], None] | None = None, stop: threading.Event | None = None
) -> dict[str, Any]:
    """Convert in a child process, and return what its comparison with torch measured.

    Takes about ten seconds and up to three gigabytes.

    Args:
        request: what is to be converted.
        progress: told what is being done, in a few words.
        stop: when set, the child is ended.

    Raises:
        WeightsError: torch is missing, the weights are not usable, or the converted network answers differently.
        StorageError: the folder can't be written.
        ModelUnavailableError: ``stop`` was set.
    """
    # -P: a file named torch.py in the working folder is not torch
    command = [sys.executable, "-P", "-m", "spica.detectors.convert"]
    environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONWARNINGS": "ignore"}
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(  # noqa: S603 - this interpreter, with arguments of our own
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            text=True,
            encoding="utf-8",
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        ) as process,
    ):
        try:
            if stop is not None:
                threading.Thread(target=_end_when, args=(process, stop), daemon=True).start()
            report = _converse(process, request, progress or (lambda _: None))
        finally:
            process.kill()
            process.wait()
        if stop is not None and stop.is_set():
            raise ModelUnavailableError("the conversion was stopped", where=request.weights)
        if report is None:
            raise _silent_death(request, process.returncode, _tail(errors))
    if "error" in report:
        raise _rebuilt(report["error"], request.weights)
    return dict(report["metrics"])


def _converse(
    process: subprocess.Popen[str], request: Request, progress: Callable[[str], None]
) -> dict[str, Any] | None:
    """Send the request, listen to the end; the report, None if there was none."""
    stdin, stdout = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)  # both are pipes
    try:
        stdin.write(json.dumps(asdict(request)) + "\n")
        stdin.flush()
    except OSError:  # it is dead already; what it said tells why
        pass
    for line in stdout:
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if "progress" in told:
            logger.info("converting %s: %s", request.weights, told["progress"])
            progress(str(told["progress"]))
        else:
            return dict(told)
    process.wait()
    return None


def _end_when(process: subprocess.Popen[str], stop: threading.Event) -> None:
    while process.poll() is None:
        if stop.wait(_POLL_S):
            process.kill()
            return


def _rebuilt(told: dict[str, Any], weights: str) -> SpicaError:
    kinds: Sequence[type[SpicaError]] = (WeightsError, StorageError)
    kind = next((kind for kind in kinds if kind.code == told.get("code")), WeightsError)
    return kind(
        str(told["message"]),
        where=told.get("where") or weights,
        expected=told.get("expected"),
        got=told.get("got"),
        hint=told.get("hint"),
    )


def _silent_death(request: Request, status: int, said: str) -> WeightsError:
    killed = status in (-9, 137)
    if said:
        logger.error("the conversion of %s ended with status %d:\n%s", request.weights, status, said)
    return WeightsError(
        "the conversion ended without a result"
        + (": the system killed it, probably for want of memory" if killed else ""),
        where=request.weights,
        got=f"exit status {status}" + (f": {said.splitlines()[-1]}" if said else ""),
        hint="close other programs and try again; it needs about 3 GB" if killed else "see the log",
    )


def _tail(errors: IO[bytes]) -> str:
    errors.seek(max(0, errors.seek(0, os.SEEK_END) - 4000))
    return errors.read().decode("utf-8", errors="replace").strip()
