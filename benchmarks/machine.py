"""What a figure depends on: the machine, its load, the versions; and the memory of this process."""

from __future__ import annotations

import os
import platform
import sqlite3
import sys
from importlib import metadata
from pathlib import Path

_PACKAGES = ("label-studio", "openvino", "torch", "httpx")


def conditions() -> list[tuple[str, str]]:
    """Name and value of each condition."""
    versions = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    return [
        ("processor", f"{_processor()}, {os.cpu_count()} logical cores, shared by Label Studio, Spica and all else"),
        ("memory", _memory()),
        ("system", platform.platform()),
        ("Python", f"{platform.python_version()}, SQLite {sqlite3.sqlite_version}"),
        ("packages", versions),
        ("load before the first part", load()),
    ]


def load() -> str:
    """Mean number of busy processes over the last minute, others' included; "unknown" on Windows."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def resident_bytes() -> int | None:
    """Memory of this process at present; None where the system does not tell simply."""
    return _status_bytes("VmRSS")


def peak_resident_bytes() -> int | None:
    """The most memory that this process has held; None on Windows."""
    # On Linux ru_maxrss begins with that of the process which started this one, VmHWM does not.
    peak = _status_bytes("VmHWM")
    if peak is not None or sys.platform == "win32":
        return peak
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def _status_bytes(name: str) -> int | None:
    try:
        text = Path("/proc/self/status").read_text("ascii")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _memory() -> str:
    if not hasattr(os, "sysconf"):
        return "unknown"
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
