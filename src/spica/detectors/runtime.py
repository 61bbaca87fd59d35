"""OpenVINO, without the usage reports that it would send, and one core of it for the whole process."""

from __future__ import annotations

import functools
import sys
import threading
from typing import Any

_MAKING = threading.Lock()


def load_openvino() -> Any:
    """The module ``openvino``.

    Importing it reports the import to its maker's web analytics, from a process that it forks off our threads: nothing
    should leave a user's machine unasked, and a fork beside threads can hang and keep us from ending. Without its
    reporting package OpenVINO uses its own stub (``openvino/tools/ovc/telemetry_utils.py``).
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None makes its import fail
    import openvino

    return openvino


def openvino_core() -> Any:
    """The process's one ``openvino.Core``, which lasts as long as the process; threads may share it.

    On Linux a core gives the thread that first uses it a stack of its own for signals, and takes it back when the core
    goes. With two cores that go in the order they came, or one that goes in another thread, the thread is left with a
    stack that is no longer there, and the next signal (Ctrl-C) is a segmentation fault: ``SigAltStackSetup`` in
    OpenVINO's ``src/plugins/intel_cpu/src/plugin.cpp``, seen with 2026.4. A core that stays has no such end.
    """
    with _MAKING:  # two threads at once must not make two
        return _core()


@functools.cache
def _core() -> Any:
    return load_openvino().Core()
