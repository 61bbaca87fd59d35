"""Build the wheel, install it alone into a new environment, and try it there.

What ships must work without the development tools, without torch, without Label Studio, and without the sources.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONFIG = (
    '<View><Image name="image" value="$image"/>'
    '<RectangleLabels name="label" toName="image"><Label value="spike"/></RectangleLabels></View>'
)
DEADLINE_S = 120


def main() -> None:
    """Exit with 0 when everything works."""
    with tempfile.TemporaryDirectory(prefix="spica-wheel-") as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", str(folder / "dist"), cwd=ROOT)
        (wheel,) = (folder / "dist").glob("*.whl")
        python = environment(folder / "venv")
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel), cwd=folder)
        run(python, "-m", "pip", "check", cwd=folder)
        out = run(python, "-m", "spica", "--help", cwd=folder)
        expect("spica up photos" in out, "`spica --help` shows the main command")
        for command in ("up", "demo", "serve", "connect", "predictions", "doctor"):
            run(python, "-m", "spica", command, "--help", cwd=folder)
        where = run(python, "-c", "import spica; print(spica.__file__)", cwd=folder).strip()
        expect(str(folder) in where, f"the installed package is used, not the sources ({where})")
        serve_demo(python, folder)
    print("wheel: installed alone, commands explain themselves, the demo's model is served")


def environment(folder: Path) -> str:
    """A new virtual environment; the path of its interpreter."""
    venv.create(folder, with_pip=True)
    return str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def serve_demo(python: str, folder: Path) -> None:
    """Start the server on the shipped model and ask it as Label Studio does, with an image in a data: address."""
    model = run(python, "-c", "import spica.demo; print(spica.demo.model_folder())", cwd=folder).strip()
    uri = run(python, "-c", FIELD_AS_URI, cwd=folder).strip()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [
        python,
        "-m",
        "spica",
        "serve",
        "--weights",
        model,
        "--port",
        str(port),
        "--data-dir",
        str(folder / "d"),
    ]
    server = subprocess.Popen(arguments, cwd=folder)
    try:
        base = f"http://127.0.0.1:{port}"
        wait_for(f"{base}/health", server)
        version = ask(f"{base}/setup", {"project": "1.1", "schema": CONFIG})["model_version"]
        task = {"id": 1, "data": {"image": uri}}
        answer = ask(f"{base}/predict", {"tasks": [task], "project": "1.1", "label_config": CONFIG})
        (prediction,) = answer["results"]
        expect(prediction["model_version"] == version, "the version of the answer is the one announced")
        expect(len(prediction["result"]) > 0, "the demo's model finds wheat")
    finally:
        server.terminate()
        server.wait(30)


FIELD_AS_URI = (
    "import base64, io; from PIL import Image; from spica.demo.field import render_field; "
    "file = io.BytesIO(); Image.fromarray(render_field(5).pixels).save(file, 'PNG'); "
    "print('data:image/png;base64,' + base64.b64encode(file.getvalue()).decode())"
)


def ask(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """POST JSON, and the JSON answer."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310 - our own server
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:  # noqa: S310
        value: dict[str, Any] = json.load(answer)
    return value


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    """Until the server answers."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        expect(server.poll() is None, "the server stays up")
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(url, timeout=2).close()  # noqa: S310
            return
        time.sleep(0.1)
    expect(condition=False, what="the server answers in time")


def run(*arguments: str, cwd: Path) -> str:
    """Run a command; what it printed. Exits when it fails."""
    done = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(arguments)} failed with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def expect(condition: bool, what: str) -> None:
    """Exit unless the condition holds."""
    if not condition:
        sys.exit(f"wheel: not so: {what}")


if __name__ == "__main__":
    main()
