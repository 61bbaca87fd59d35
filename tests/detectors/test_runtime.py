"""OpenVINO as we load it."""

from __future__ import annotations

import subprocess
import sys


def test_loading_openvino_reports_to_nobody() -> None:
    """The package that reports usage is not there for it, and no process is forked off."""
    code = (
        "import multiprocessing.process, sys\n"
        "started = []\n"
        "multiprocessing.process.BaseProcess.start = lambda self: started.append(self)\n"
        "from spica.detectors.runtime import load_openvino\n"
        "assert load_openvino().Core().available_devices\n"
        "import openvino.tools.ovc.telemetry_utils as used\n"
        "assert used.tm.__name__ == 'openvino.tools.ovc.telemetry_stub', used.tm\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
        "assert not started\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
