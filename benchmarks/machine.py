"""What a figure of the bulk job depends on: the machine, its load, the versions."""

from __future__ import annotations

import platform
import sqlite3

from spica.bench import machine

_PACKAGES = ("label-studio", "openvino", "torch", "httpx")


def conditions() -> list[tuple[str, str]]:
    """Name and value of each condition."""
    shared = "shared by Label Studio, Spica and all else"
    return [
        ("processor", f"{machine.processor()}, {machine.cores()} logical cores, {shared}"),
        ("memory", machine.memory()),
        ("system", platform.platform()),
        ("Python", f"{platform.python_version()}, SQLite {sqlite3.sqlite_version}"),
        ("packages", machine.versions(_PACKAGES)),
        ("load before the first part", machine.load()),
    ]
