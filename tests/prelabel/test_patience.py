"""What is waited for, and what is not."""

from __future__ import annotations

import threading

import httpx
import pytest

from spica.errors import LabelStudioError, LabelStudioUnreachableError
from spica.labelstudio.api.transport import LabelStudioRefusedError
from spica.prelabel import patience as module
from spica.prelabel.patience import Patience, is_passing, is_still_open, was_never_sent


def refused(status: int) -> LabelStudioRefusedError:
    """Label Studio's answer with this status."""
    return LabelStudioRefusedError("Label Studio refused a request", status)


def unreachable(cause: Exception) -> LabelStudioUnreachableError:
    """A request that this ended."""
    error = LabelStudioUnreachableError("Label Studio can't be reached")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "passing", "open_"),
    [
        pytest.param(unreachable(httpx.ConnectError("refused")), True, False, id="stopped: never sent"),
        pytest.param(unreachable(httpx.ReadTimeout("late")), True, True, id="no answer in time: may be at work"),
        pytest.param(unreachable(httpx.RemoteProtocolError("cut")), True, True, id="cut off: may have done it"),
        pytest.param(refused(500), True, False, id="a locked database has answered"),
        pytest.param(refused(504), True, True, id="a proxy gave up, Label Studio perhaps not"),
        pytest.param(refused(429), True, False, id="too many requests"),
        pytest.param(refused(403), False, False, id="no permission"),
        pytest.param(refused(404), False, False, id="the project is gone"),
    ],
)
def test_kinds_of_trouble(error: LabelStudioError, passing: bool, open_: bool) -> None:
    """Each failure is known as passing or not, and as heard the end of or not."""
    assert is_passing(error) is passing
    if passing:
        assert is_still_open(error) is open_
    assert was_never_sent(error) is (isinstance(error.__cause__, httpx.ConnectError))


def test_asks_again_until_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trouble that passes is waited out, told meanwhile, and forgotten afterwards."""
    monkeypatch.setattr(module, "_FIRST_WAIT_S", 0.0)
    told: list[str | None] = []
    answers: list[LabelStudioError | int] = [refused(500), refused(503), 7]

    def ask() -> int:
        answer = answers.pop(0)
        if isinstance(answer, LabelStudioError):
            raise answer
        return answer

    assert Patience(tell=told.append).call(ask) == 7
    assert told[-1] is None
    assert [each is None for each in told] == [False, False, True]


@pytest.mark.parametrize("reason", ["limit", "stop", "refused"])
def test_gives_up(reason: str) -> None:
    """After the limit, when the job is stopped, or for what will not pass, the failure itself is raised at once."""
    stop = threading.Event()
    if reason == "stop":
        stop.set()
    failure = refused(403 if reason == "refused" else 503)

    def ask() -> int:
        raise failure

    with pytest.raises(LabelStudioRefusedError) as caught:
        Patience(limit_s=0 if reason == "limit" else 1000, stop=stop, tell=lambda _: None).call(ask)
    assert caught.value is failure
