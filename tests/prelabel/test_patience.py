"""What is waited for, and what is not."""

from __future__ import annotations

import threading

import pytest

from spica.errors import LabelStudioError, LabelStudioRefusedError
from spica.prelabel import patience as module
from spica.prelabel.patience import Patience


def refused(status: int) -> LabelStudioRefusedError:
    """Label Studio's answer with this status."""
    return LabelStudioRefusedError("Label Studio refused a request", status)


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
