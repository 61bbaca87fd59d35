"""Work in a process of its own: real processes, none of which imports anything heavy."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from spica.detectors.child import Child
from spica.errors import DataSetError, ModelUnavailableError, SpicaError, TrainingError

COUNT = """
import sys
from spica.detectors.child import answer
from spica.errors import DataSetError
def work(request, say):
    print("noise")
    for number in range(request["count"]):
        say({"number": number})
    if request["count"] > 2:
        raise DataSetError("too many", where="here", hint="fewer")
    return {"count": request["count"]}
sys.exit(answer(work, repeatedly=%s))
"""


@contextmanager
def child(code: str, **options: Any) -> Iterator[Child]:
    with Child("-c", code, what="counting", where="a.txt", hint="wait", failure=TrainingError, **options) as process:
        yield process


def test_requests_are_answered_in_turn() -> None:
    """Progress comes in order, other output is passed over, an error comes back as itself, and the child lives on."""
    told: list[object] = []
    with child(COUNT % True) as process:
        assert process.ask({"count": 2}, told.append) == {"count": 2}
        assert told == [{"number": 0}, {"number": 1}]
        with pytest.raises(DataSetError, match="too many") as raised:
            process.ask({"count": 3})
        assert (raised.value.where, raised.value.hint) == ("here", "fewer")
        assert process.ask({"count": 0}) == {"count": 0}


@pytest.mark.parametrize(
    ("code", "what", "got", "hint"),
    [
        ("import sys; sys.stderr.write('no more'); sys.exit(3)", "without a result", "exit status 3: no more", "log"),
        pytest.param(
            "import os; os.kill(os.getpid(), 9)",
            "want of memory",
            "exit status -9",
            "wait",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals"),
        ),
    ],
    ids=["it dies", "it is killed"],
)
def test_a_death_without_an_answer(code: str, what: str, got: str, hint: str) -> None:
    """It is an error of the wanted kind, with the last line that the child wrote and what to do."""
    with child(code) as process, pytest.raises(TrainingError, match=what) as raised:
        process.ask({})
    assert raised.value.got == got
    assert hint in str(raised.value.hint)


def test_it_can_be_stopped_from_another_thread() -> None:
    """The one who waits for the answer is told, and the process is gone."""
    with child("import time; print('{\"progress\": 1}', flush=True); time.sleep(600)") as process:
        with pytest.raises(ModelUnavailableError, match="the counting was stopped"):
            process.ask({}, lambda _: threading.Thread(target=process.stop).start())
        with pytest.raises(SpicaError):
            process.ask({})


@pytest.mark.parametrize("background", [False, True])
def test_it_has_the_environment_it_is_given(background: bool) -> None:
    """In the background too; and no warnings of libraries among the last lines."""
    code = (
        "import os, json; print(json.dumps({'done': {name: os.environ.get(name) for name in ('A', 'PYTHONWARNINGS')}}))"
    )
    with child(code, environment={"A": "b"}, background=background) as process:
        assert process.ask({}) == {"A": "b", "PYTHONWARNINGS": "ignore"}


def test_it_ends_with_its_parent() -> None:
    """When its input ends, it ends in the middle of its work."""
    code = (
        "import time; from spica.detectors.child import answer;"
        "answer(lambda request, say: (say('begun'), time.sleep(600)))"
    )
    arguments = [sys.executable, "-c", code]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"{}\n")
        process.stdin.flush()
        assert b"begun" in process.stdout.readline()
        process.stdin.close()
        assert process.wait(60) == 1
