"""What is tried again, how long, and what is not."""

from __future__ import annotations

import threading
from collections.abc import Callable

import httpx
import pytest

from spica import retry
from spica.errors import LabelStudioError, LabelStudioRefusedError, LabelStudioUnreachableError
from spica.retry import doubling, is_passing, may_still_happen, repeat_briefly, retry_after_s, retrying


def refused(status: int, retry_after_s: float | None = None) -> LabelStudioRefusedError:
    """Label Studio's answer with this status."""
    return LabelStudioRefusedError("Label Studio refused a request", status, retry_after_s=retry_after_s)


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
        assert may_still_happen(error) is open_


def script(*answers: object) -> Callable[[], object]:
    """Answers one after the other; exceptions are raised."""
    left = list(answers)

    def ask() -> object:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ask


def test_asks_again_until_it_is_answered() -> None:
    """Trouble that passes is waited out, and said meanwhile."""
    said: list[tuple[BaseException, float]] = []
    troubles = refused(500), refused(503)
    again = retrying(first_s=0.0, on_wait=lambda error, since_s: said.append((error, since_s)))
    assert again(script(*troubles, 7)) == 7
    assert [error for error, _ in said] == [*troubles]
    assert said[0][1] == 0


@pytest.mark.parametrize("reason", ["limit", "stop", "refused", "tries"])
def test_gives_up(reason: str) -> None:
    """After the limit, when the job is stopped, or for what will not pass, the failure itself is raised at once."""
    stop = threading.Event()
    if reason == "stop":
        stop.set()
    failure = refused(403 if reason == "refused" else 503)
    again = retrying(limit_s=0 if reason == "limit" else 1000, tries=1 if reason == "tries" else None, stop=stop)
    with pytest.raises(LabelStudioRefusedError) as caught:
        again(script(failure, 7))
    assert caught.value is failure


def test_stopping_ends_a_pause() -> None:
    """Nobody waits for the end of a long pause; what failed last is raised."""
    stop = threading.Event()
    again = retrying(first_s=600.0, longest_s=600.0, stop=stop, on_wait=lambda *_: stop.set())
    with pytest.raises(LabelStudioRefusedError):
        again(script(refused(503), refused(503)))


def test_a_busy_server_says_how_long_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Retry-After lengthens the pause, but not beyond a minute."""
    pauses: list[float | None] = []
    stop = threading.Event()
    monkeypatch.setattr(stop, "wait", lambda timeout: pauses.append(timeout))
    assert retrying(stop=stop)(script(refused(429, 7.0), refused(429, 0.0), refused(429, 3600.0), "done")) == "done"
    assert pauses == [7.0, 1.0, 60.0]


def test_pauses_double_up_to_the_longest() -> None:
    """Also after a weekend of failures."""
    assert [doubling(failures, 0.5, 15.0) for failures in (1, 2, 3, 6, 100_000)] == [0.5, 1.0, 2.0, 15.0, 15.0]


@pytest.fixture
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_BRIEF_FIRST_S", 0.0)


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_answer_is_asked_for_again(status: int) -> None:
    """A moment later it may be another."""
    fine = httpx.Response(200)
    left = [httpx.Response(status), httpx.Response(status), fine]
    assert repeat_briefly(lambda: left.pop(0)) is fine


@pytest.mark.usefixtures("_no_waiting")
def test_the_last_of_four_answers_is_the_answer() -> None:
    """What stays busy is for the caller to explain."""
    answers = [httpx.Response(503) for _ in range(5)]
    left = list(answers)
    assert repeat_briefly(lambda: left.pop(0)) is answers[3]


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_a_refusal_is_not_asked_for_again(status: int) -> None:
    """Asking twice would not change it."""
    answer = httpx.Response(status)
    left = [answer]
    assert repeat_briefly(lambda: left.pop(0)) is answer


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),  # it is over
        ("Wed, 21 Oct 2015 07:28:00", None),
    ],
)
def test_retry_after(header: str, seconds: float | None) -> None:
    """Seconds or a date (RFC 9110, 10.2.3); what is neither is none."""
    assert retry_after_s(httpx.Response(503, headers={"retry-after": header})) == seconds
