"""What a process takes of its machine: priority, threads and memory."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

_EVERY_S = 0.25
_SECRETS = ("LABEL_STUDIO_API_KEY", "LABEL_STUDIO_ACCESS_TOKEN", "SPICA_BASIC_AUTH")
_THREADS = ("OMP_NUM", "MKL_NUM", "OPENBLAS_NUM", "NUMEXPR_NUM", "VECLIB_MAXIMUM")
_NO_MEMORY = ("DefaultCPUAllocator: not enough memory", "DefaultCPUAllocator: can't allocate memory")


def threads_of(setting: int) -> int:
    """Threads of a training: the setting, or half of the processors, at least one."""
    return setting or max(1, (os.cpu_count() or 2) // 2)


def environment(threads: int) -> dict[str, str]:
    """Of a process that trains: ours without secrets, with a bound on the threads of numerical libraries."""
    kept = {name: value for name, value in os.environ.items() if name.upper() not in _SECRETS}
    return {**kept, **{f"{name}_THREADS": str(threads) for name in _THREADS}}


def lower_priority() -> None:
    """Let everybody else go first; on Windows whoever starts the process does it."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # a container may forbid it; then it competes
            os.nice(19)


def peak_memory_bytes() -> int:
    """The most memory that this process has had resident so far, in bytes; 0 where that can't be known."""
    if sys.platform == "win32":
        return _peak_on_windows()
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # ru_maxrss of Linux is inherited from whoever started the process: VmHWM is not
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def watch_memory(limit_bytes: int, exceeded: Callable[[int], None], *, every_s: float = _EVERY_S) -> threading.Thread:
    """Watch this process's memory from a thread of its own, and call ``exceeded`` with it once it is too much.

    An address-space limit would not do: torch reserves far more than it uses.
    """

    def watch() -> None:
        waiting = threading.Event()
        while (peak := peak_memory_bytes()) <= limit_bytes:
            waiting.wait(every_s)
        exceeded(peak)

    thread = threading.Thread(target=watch, name="spica-memory", daemon=True)
    thread.start()
    return thread


def lacks_memory(error: RuntimeError) -> bool:
    """Whether an error of torch's says that memory could not be had.

    A CPU has no exception of its own for it, only the text of torch's c10/core/impl/alloc_cpu.cpp.
    """
    return type(error).__name__ == "OutOfMemoryError" or any(sign in str(error) for sign in _NO_MEMORY)


def _peak_on_windows() -> int:
    """PeakWorkingSetSize of PROCESS_MEMORY_COUNTERS (psapi.h)."""
    import ctypes
    from ctypes import wintypes

    sizes = ("peak_working_set", "working_set", "peak_paged", "paged", "peak_nonpaged", "nonpaged", "pagefile", "peak")

    class Counters(ctypes.Structure):
        _fields_ = [
            ("cb", wintypes.DWORD),
            ("page_faults", wintypes.DWORD),
            *((name, ctypes.c_size_t) for name in sizes),
        ]

    counters = Counters(cb=ctypes.sizeof(Counters))
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    kernel.GetCurrentProcess.restype = wintypes.HANDLE
    kernel.K32GetProcessMemoryInfo.argtypes = [wintypes.HANDLE, ctypes.POINTER(Counters), wintypes.DWORD]
    done = kernel.K32GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb)
    return int(counters.peak_working_set) if done else 0
