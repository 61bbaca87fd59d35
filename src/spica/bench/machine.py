"""What a figure depends on: the machine, its load, the versions; and the memory of a process."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

_INSTRUCTION_SETS = [
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
]
"""Of a processor's flags those that decide how fast a network is."""


def conditions(packages: Sequence[str], *, threads: str) -> list[tuple[str, str]]:
    """Name and value of what figures depend on."""
    return [
        ("processor", processor()),
        ("instruction sets", instruction_sets()),
        ("logical cores", str(cores())),
        ("threads", threads),
        ("memory", memory()),
        ("packages", versions(packages)),
    ]


def processor() -> str:
    """The processor's name, "unknown" where the system does not tell."""
    return _cpuinfo("model name") or platform.processor() or "unknown"


def instruction_sets() -> str:
    """Those of the processor that matter for networks, as Linux names them; "unknown" elsewhere."""
    flags = set((_cpuinfo("flags") or _cpuinfo("Features") or "").split())
    return ", ".join(name for name in _INSTRUCTION_SETS if name in flags) or "unknown"


def memory() -> str:
    """Of the machine, in GiB."""
    if not hasattr(os, "sysconf"):
        return "unknown"
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def cores() -> int:
    """Logical processors."""
    return os.cpu_count() or 1


def load() -> str:
    """Mean number of busy processes over the last minute, others' included; "unknown" on Windows."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def versions(packages: Sequence[str]) -> str:
    """Names and versions of packages, separated by commas."""
    return ", ".join(f"{name} {_version(name)}" for name in packages)


def status_bytes(name: str, process: int | str = "self") -> int | None:
    """An entry of Linux' ``/proc/<process>/status`` that is given in kB; None elsewhere."""
    try:
        text = Path(f"/proc/{process}/status").read_text("ascii", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def _cpuinfo(key: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), None)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
