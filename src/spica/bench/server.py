"""How long the real server takes to be healthy and to give the first boxes, and how much memory it holds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import httpx

from spica.bench.machine import status_bytes
from spica.errors import ModelUnavailableError

_LABELS = (
    '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">{labels}'
    "</RectangleLabels></View>"
)
_PATIENCE_S = 300.0
_POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class Startup:
    """Seconds from the start of ``spica serve``.

    Attributes:
        healthy_s: until ``/health`` is answered.
        first_s: until the first photograph's boxes are answered.
        memory_bytes: the most that the process has held by then; None where the system does not tell.
    """

    healthy_s: float
    first_s: float
    memory_bytes: int | None


def measure_startup(
    image: Path,
    options: list[str],
    *,
    classes: int,
    names: Sequence[str] = (),
    environment: dict[str, str] | None = None,
) -> Startup:
    """Start the server, ask for the boxes of one photograph, and stop it.

    Args:
        image: the photograph.
        options: of ``spica serve``, ``--weights`` and ``--data-dir`` among them.
        classes: of the network; so many labels are asked for.
        names: of the classes, empty strings where they have none; what the labels are called.
        environment: more variables.

    Raises:
        ModelUnavailableError: it ended or did not answer.
    """
    with server(image.parent, options, environment) as running:
        running.wait_healthy()
        healthy = time.perf_counter() - running.began
        with httpx.Client(timeout=_PATIENCE_S, trust_env=False) as client:
            ask(client, running.url, [image], image.parent, classes=classes, names=names)
        return Startup(healthy, time.perf_counter() - running.began, status_bytes("VmHWM", running.process.pid))


def ask(
    client: httpx.Client, url: str, images: list[Path], root: Path, *, classes: int, names: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The answers of ``/predict`` to photographs below ``root``, as Label Studio would ask.

    Raises:
        ModelUnavailableError: anything but an answer for each.
    """
    called = [name or str(number) for number, name in enumerate(names or [""] * classes)]
    labels = "".join(f"<Label value={quoteattr(name)}/>" for name in called)
    tasks = [
        {"id": number, "data": {"image": f"/data/local-files/?d={quote(image.relative_to(root).as_posix())}"}}
        for number, image in enumerate(images, 1)
    ]
    body = {"tasks": tasks, "project": "1.1", "label_config": _LABELS.format(labels=labels), "params": {}}
    try:
        answer = client.post(f"{url}/predict", json=body)
    except httpx.HTTPError as error:
        raise ModelUnavailableError("the server did not answer", where=url, got=repr(error)) from error
    results = answer.json().get("results", []) if answer.status_code == httpx.codes.OK else []
    if len(results) != len(images) or any("result" not in result for result in results):
        raise ModelUnavailableError("the server did not answer with boxes", where=url, got=answer.text[:300])
    return list(results)


class server:  # noqa: N801 - reads as the context manager that it is
    """A ``spica serve`` on a free port, stopped on leaving the block.

    Args:
        root: folder of the photographs.
        options: of ``spica serve``.
        environment: more variables.
    """

    def __init__(self, root: Path, options: list[str], environment: dict[str, str] | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        more = {"PYTHONUTF8": "1", "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(root), **(environment or {})}
        self.began = time.perf_counter()
        self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-P", "-m", "spica", "serve", "--port", str(port), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **more},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def wait_healthy(self) -> None:
        """Wait until ``/health`` is answered.

        Raises:
            ModelUnavailableError: the server ended by itself, or took too long.
        """
        with httpx.Client(
            timeout=10, trust_env=False
        ) as client:  # made once: loading certificates would be measured too
            while True:
                try:
                    if client.get(f"{self.url}/health").status_code == httpx.codes.OK:
                        return
                except httpx.TransportError:
                    self._require_alive()
                if time.perf_counter() - self.began > _PATIENCE_S:
                    raise ModelUnavailableError("the server does not become healthy", where=self.url)
                time.sleep(_POLL_S)

    def _require_alive(self) -> None:
        if self.process.poll() is not None:
            raise ModelUnavailableError(
                "the server ended by itself",
                where=self.url,
                got=f"exit status {self.process.returncode}",
                hint="run `spica serve` with the same options to see why",
            )
