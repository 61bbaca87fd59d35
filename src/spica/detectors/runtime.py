"""OpenVINO, without the usage reports that it would send."""

from __future__ import annotations

import sys
from typing import Any


def load_openvino() -> Any:
    """The module ``openvino``.

    Importing it reports the import to its maker's web analytics, from a process that it forks off our threads: nothing
    should leave a user's machine unasked, and a fork beside threads can hang and keep us from ending. Without its
    reporting package OpenVINO uses its own stub (``openvino/tools/ovc/telemetry_utils.py``).
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None makes its import fail
    import openvino

    return openvino
