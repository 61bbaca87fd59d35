"""OpenVINO as we load it."""

from __future__ import annotations

import subprocess
import sys

import pytest


def _run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or f"ended with {done.returncode}"


def test_loading_openvino_reports_to_nobody() -> None:
    """The package that reports usage is not there for it, and no process is forked off."""
    _run(
        "import multiprocessing.process, sys\n"
        "started = []\n"
        "multiprocessing.process.BaseProcess.start = lambda self: started.append(self)\n"
        "from spica.detectors.openvino import openvino_core\n"
        "assert openvino_core().available_devices\n"
        "import openvino.tools.ovc.telemetry_utils as used\n"
        "assert used.tm.__name__ == 'openvino.tools.ovc.telemetry_stub', used.tm\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
        "assert not started\n"
    )


@pytest.mark.parametrize(
    "dropped",
    [
        pytest.param("first = None; second = None", id="in the order they came"),
        pytest.param(
            "held = [first, second]; first = second = None\n"
            "thread = threading.Thread(target=held.clear); thread.start(); thread.join()",
            id="in another thread",
        ),
    ],
)
def test_a_signal_after_detectors_have_gone_is_still_heard(dropped: str) -> None:
    """Ctrl-C reaches its handler after a version was replaced; with a core for each detector Linux ended the process.

    In a process of its own: the tests' one has handlers and stacks for signals already.
    """
    _run(
        "import gc, signal, threading\n"
        "from spica.demo import model_folder\n"
        "from spica.detectors.openvino import OpenVINODetector\n"
        "first, second = (OpenVINODetector(model_folder() / 'model.onnx', ('spike',)) for _ in range(2))\n"
        f"{dropped}\n"
        "gc.collect()\n"
        "heard = []\n"
        "signal.signal(signal.SIGINT, lambda *_: heard.append(True))\n"
        "signal.raise_signal(signal.SIGINT)\n"
        "assert heard\n"
    )


def test_threads_share_one_core() -> None:
    """Also where many ask for it at once and first."""
    _run(
        "import threading\n"
        "from spica.detectors.openvino import openvino_core\n"
        "cores, all_here = [], threading.Barrier(8)\n"
        "def ask():\n"
        "    all_here.wait()\n"
        "    cores.append(openvino_core())\n"
        "threads = [threading.Thread(target=ask) for _ in range(8)]\n"
        "[thread.start() for thread in threads], [thread.join() for thread in threads]\n"
        "assert len(cores) == 8 and len({id(core) for core in cores}) == 1\n"
    )
