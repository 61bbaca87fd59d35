"""The process that trains, and its parent: real processes, of which only some import torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from project_keys import ONE
from spica.errors import DataSetError, SpicaError, TrainingError
from spica.training.footprint import lacks_memory, peak_memory_bytes, watch_memory
from spica.training.process import CancelledError, Request, WorkerProcess, environment, threads_of

WAIT_S = 60


def request(folder: Path, *, memory_bytes: int = 2**34, url: str = "http://127.0.0.1:9") -> Request:
    """For a Label Studio that is not there."""
    return Request(
        project=ONE,
        run="r",
        folder=str(folder),
        data_dir=str(folder),
        label_studio_url=url,
        token="a-secret-token",
        parent=None,
        parent_id=None,
        settings={
            "local_files_document_root": None,
            "label_studio_data_dir": str(folder),
            "max_image_bytes": 1000,
            "media_timeout_s": 5,
        },
        threads=1,
        memory_bytes=memory_bytes,
    )


def script(code: str) -> Sequence[str]:
    """A process in place of the worker."""
    return [sys.executable, "-c", code]


READ = "import sys, json, os, time; told = json.loads(sys.stdin.readline());"


def test_report_and_progress(tmp_path: Path) -> None:
    """Lines of progress arrive in order, other output is passed over, the report comes back."""
    code = READ + (
        "print('noise'); print('[1]'); print(json.dumps({'progress': {'epoch': 1}}));"
        "print(json.dumps({'progress': {'epoch': 2}})); print(json.dumps({'report': {'version': told['run']}}))"
    )
    told: list[dict[str, Any]] = []
    assert WorkerProcess(request(tmp_path), script(code)).run(told.append) == {"version": "r"}
    assert told == [{"epoch": 1}, {"epoch": 2}]


def test_an_error_comes_back_as_itself(tmp_path: Path) -> None:
    """What the process tells is raised as the same kind of error, with what to do."""
    error = DataSetError("nothing to learn", where="project 1", hint="annotate")
    code = READ + f"print({__import__('json').dumps(error.as_json())!r})"
    with pytest.raises(DataSetError, match="nothing to learn") as raised:
        WorkerProcess(request(tmp_path), script(code)).run(lambda _: None)
    assert raised.value.hint == "annotate"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        pytest.param("sys.exit(3)", "exit status 3", id="without a word"),
        pytest.param("raise ValueError('a bug')", "a bug", id="a traceback"),
        pytest.param(
            "os.kill(os.getpid(), 9)",
            "killed",
            id="kill -9",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals"),
        ),
    ],
)
def test_a_silent_death_is_a_failure(tmp_path: Path, code: str, told: str) -> None:
    """However it ends without a report, that is said."""
    with pytest.raises(TrainingError) as raised:
        WorkerProcess(request(tmp_path), script(READ + code)).run(lambda _: None)
    assert told in raised.value.summary


@pytest.mark.parametrize("before", [True, False], ids=["before it starts", "while it runs"])
def test_cancelled(tmp_path: Path, before: bool) -> None:
    """It ends at once when it is told to, and says so; the process is gone."""
    worker = WorkerProcess(
        request(tmp_path), script(READ + "print(json.dumps({'progress': {}}), flush=True); time.sleep(600)")
    )
    if before:
        worker.end("cancelled")
    with pytest.raises(CancelledError, match="ended"):
        worker.run(lambda _: worker.end("cancelled"))
    assert (worker.pid is None) == before


def test_secrets_go_through_standard_input_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token is neither in the environment nor in the arguments nor in what the request says of itself."""
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "a-secret-token")
    code = READ + "print(json.dumps({'report': {'env': sorted(os.environ.values()), 'argv': sys.argv}}))"
    report = WorkerProcess(request(tmp_path), script(code)).run(lambda _: None)
    assert "a-secret-token" not in str(report)
    assert "a-secret-token" not in repr(request(tmp_path))


def test_threads() -> None:
    """A bound on threads reaches the numerical libraries; by default half of the processors, at least one."""
    assert environment(3)["OMP_NUM_THREADS"] == "3"
    assert threads_of(5) == 5
    assert threads_of(0) == max(1, (os.cpu_count() or 2) // 2)


def test_memory_is_watched() -> None:
    """The peak of this process is known and positive, and going over the limit is told with it."""
    assert peak_memory_bytes() > 10 * 2**20
    found: list[int] = []
    watch_memory(2**20, found.append).join(WAIT_S)
    assert found[0] > 2**20
    assert watch_memory(2**60, found.append).is_alive()


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried", True),
        ("[enforce fail at alloc_cpu.cpp:118] data. DefaultCPUAllocator: not enough memory: you tried", True),
        ("tensors were allocated on different devices", False),
        ("Tried to use an allocator that was unallocated", False),
        ("", False),
    ],
    ids=["Linux", "Windows", "another device", "a bug", "nothing"],
)
def test_lack_of_memory_is_told_by_torchs_own_words(told: str, expected: bool) -> None:
    """Only what torch says when memory can't be had counts as that; a bug is a bug."""
    assert lacks_memory(RuntimeError(told)) == expected


@pytest.mark.torch
@pytest.mark.parametrize(
    ("memory_bytes", "told"),
    [
        pytest.param(2**34, "127.0.0.1:9", id="no Label Studio"),
        pytest.param(2**20, "more memory", id="too much memory"),
    ],
)
def test_the_real_worker_says_what_is_wrong(tmp_path: Path, memory_bytes: int, told: str) -> None:
    """The process itself answers with a sentence."""
    with pytest.raises(SpicaError) as raised:
        WorkerProcess(request(tmp_path, memory_bytes=memory_bytes)).run(lambda _: None)
    assert told in raised.value.summary
    assert "a-secret-token" not in raised.value.summary


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """A worker whose parent is killed ends by itself."""
    code = (
        "import sys, time, threading, pathlib; from spica.training import worker;"
        "threading.Thread(target=worker.end_with_parent).start();"
        "print('up', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(script(code), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline().strip() == b"up"
    process.stdin.close()
    assert process.wait(WAIT_S) == 1
    process.stdout.close()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_kill_9_of_the_child(tmp_path: Path) -> None:
    """A killed child is a failure with a hint, told as soon as it is dead."""
    begun = threading.Event()
    worker = WorkerProcess(
        request(tmp_path), script(READ + "print(json.dumps({'progress': {}}), flush=True); time.sleep(600)")
    )
    failed: list[SpicaError] = []

    def run() -> None:
        try:
            worker.run(_setting(begun))
        except SpicaError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(WAIT_S)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    thread.join(WAIT_S)
    assert "killed" in failed[0].what
    assert "starts anew" in str(failed[0].hint)


def _setting(event: threading.Event) -> Callable[[dict[str, Any]], None]:
    return lambda _: event.set()
