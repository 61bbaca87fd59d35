"""The one retry policy: which failures may pass, how long to wait between tries, when to give up.

A request that stores something is never repeated blindly: :func:`may_still_happen` says when Label Studio may have
carried it out although no answer came, so that the caller asks what is stored before sending it again.
"""

from __future__ import annotations

import email.utils
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime

import httpx
import tenacity

from spica.errors import LabelStudioError, LabelStudioRefusedError, LabelStudioUnreachableError, SpicaError
from spica.http import certificate_trouble

logger = logging.getLogger(__name__)

LIMIT_S = 600.0
"""How long a job waits for Label Studio: an update with migrations takes minutes."""
BUSY_STATUSES = frozenset({408, 425, 429, 502, 503, 504})
"""HTTP statuses of a server or a proxy that may answer otherwise a moment later."""

_BRIEF_TRIES = 4
_BRIEF_FIRST_S = 0.2
_BRIEF_LONGEST_S = 10.0
_RETRY_AFTER_LONGEST_S = 60.0
_LOCKED = "database-is-locked-error"
"""Anchor in Label Studio's text for a busy SQLite (core/utils/exceptions.py)."""
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed later: no answer, an overloaded or failing server, a proxy's page."""
    if isinstance(error, LabelStudioRefusedError):
        return error.http_status >= 500 or error.http_status in BUSY_STATUSES
    return isinstance(error, LabelStudioError)


def may_still_happen(error: LabelStudioError) -> bool:
    """Whether Label Studio may still be working on the request: nobody has heard how it ended."""
    if isinstance(error, LabelStudioRefusedError):
        return error.http_status in (502, 504)  # a proxy gave up waiting
    return not (isinstance(error, LabelStudioUnreachableError) and isinstance(error.__cause__, _NEVER_SENT))


def doubling(failures: int, first_s: float, longest_s: float) -> float:
    """Seconds to wait after this many failures in a row, at least one: ``first_s``, twice as long each time."""
    return min(first_s * 2.0 ** min(failures - 1, 60), longest_s)


def retrying(
    *,
    passing: Callable[[BaseException], bool] = is_passing,
    tries: int | None = None,
    limit_s: float = LIMIT_S,
    first_s: float = 0.5,
    longest_s: float = 15.0,
    stop: threading.Event | None = None,
    on_wait: Callable[[BaseException, float], None] | None = None,
) -> tenacity.Retrying:
    """Tries again with growing pauses while a failure may pass, then raises the failure itself.

    One for each call: ``retrying(...)(ask)``, or for what has to be looked into between two tries::

        for attempt in retrying(...):
            with attempt:
                ...

    Args:
        passing: whether a failure may pass.
        tries: at most this many, the first included; None for no bound.
        limit_s: seconds after the first failure from which on nothing is tried again.
        first_s: the first pause; the next is twice as long each time. A failure's ``retry_after_s`` lengthens it.
        longest_s: of a pause.
        stop: ends the waiting; what failed then is raised.
        on_wait: called before each pause with the failure and the seconds since the first one.
    """
    event = stop or threading.Event()
    first_failure: list[float] = []

    def since_s(state: tenacity.RetryCallState) -> float:
        ended = state.outcome_timestamp or 0.0
        first_failure[:] = [ended] if state.attempt_number == 1 else first_failure
        return ended - first_failure[0]

    def is_over(state: tenacity.RetryCallState) -> bool:
        return since_s(state) >= limit_s or event.is_set() or state.attempt_number == tries

    def pause_s(state: tenacity.RetryCallState) -> float:
        asked_s = getattr(_failure(state), "retry_after_s", None) or 0.0
        return max(doubling(state.attempt_number, first_s, longest_s), min(asked_s, _RETRY_AFTER_LONGEST_S))

    def note(state: tenacity.RetryCallState) -> None:
        error, wait_s = _failure(state), state.next_action.sleep if state.next_action else 0.0
        text = error.summary if isinstance(error, SpicaError) else str(error)
        logger.warning("%s; trying again in %.1f s", text, wait_s)
        if on_wait is not None:
            on_wait(error, since_s(state))

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(passing),
        wait=pause_s,
        stop=is_over,
        sleep=tenacity.sleep_using_event(event),
        before_sleep=note,
        reraise=True,
    )


def repeat_briefly(send: Callable[[], httpx.Response]) -> httpx.Response:
    """The answer to a request that may be repeated, sent up to four times within seconds.

    Got over are connections that fail or break off, busy servers (with their ``Retry-After``, up to 10 s) and a locked
    SQLite; not timeouts, which would only load a slow server more, nor certificates that are not trusted.

    Raises:
        httpx.TransportError: the last try's.
    """

    def pause_s(state: tenacity.RetryCallState) -> float:
        asked_s = None
        if state.outcome is not None and not state.outcome.failed:
            asked_s = retry_after_s(state.outcome.result())
        return min(max(_BRIEF_FIRST_S * 3.0 ** (state.attempt_number - 1), asked_s or 0.0), _BRIEF_LONGEST_S)

    def last(state: tenacity.RetryCallState) -> httpx.Response:
        if state.outcome is None:
            raise AssertionError("nothing was tried")
        response: httpx.Response = state.outcome.result()
        return response

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_brief) | tenacity.retry_if_result(_is_busy),
        wait=pause_s,
        stop=tenacity.stop_after_attempt(_BRIEF_TRIES),
        retry_error_callback=last,
    )(send)


def retry_after_s(response: httpx.Response) -> float | None:
    """Seconds that an answer's ``Retry-After`` asks to wait, at least 0; None without a readable one."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        until = email.utils.parsedate_to_datetime(value)
        return max(0.0, (until - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # the second: a date without a time zone
        return None


def _is_brief(error: BaseException) -> bool:
    if not isinstance(error, httpx.TransportError) or isinstance(error, httpx.TimeoutException):
        return False
    return certificate_trouble(error) is None


def _is_busy(response: httpx.Response) -> bool:
    return response.status_code in BUSY_STATUSES or (response.status_code == 500 and _LOCKED in response.text)


def _failure(state: tenacity.RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome is not None else None
    return error if error is not None else AssertionError("nothing failed")
