"""Runs Label Studio in a process of its own that ends when the one that started it does.

Started by :mod:`spica.labelstudio.launch` by the path of this file, so it imports nothing of Spica.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading


def _end_with_parent() -> None:
    """End this process when its standard input closes, which happens however the parent ended, killed included."""
    # os.read and not sys.stdin: a thread inside a buffered read makes the interpreter's own end fail.
    while os.read(0, 4096):
        pass
    os._exit(0)  # SQLite survives that; waiting for open requests would keep a forgotten server alive


def main() -> int:
    """Label Studio's own command line, with the arguments of this process."""
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    server = importlib.import_module("label_studio.server")
    return int(server.main() or 0)


if __name__ == "__main__":
    sys.exit(main())
