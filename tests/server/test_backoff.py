"""When a project whose rollout failed is tried again."""

from __future__ import annotations

from project_keys import ONE, known
from spica.server.rollout import AGAIN_S, Backoff


def test_tries_come_less_and_less_often() -> None:
    """Half a minute, then twice as long each time, up to ten minutes; after a success from the beginning."""
    now = [1000.0]
    failed = Backoff(AGAIN_S, clock=lambda: now[0])
    assert failed.wait_s() is None
    waits: list[float | None] = []
    for _ in range(7):
        failed.put_off(ONE)
        waits.append(failed.wait_s())
        failed.begin(ONE)
    assert waits == [30, 60, 120, 240, 480, 600, 600]
    assert failed.wait_s() is None
    failed.put_off(ONE)
    failed.put_off(known(2))
    assert (failed.first, failed.wait_s()) == (known(2), 30)
    now[0] += 40
    assert failed.wait_s() == 0
    failed.forget(known(2))
    assert (failed.first, failed.wait_s()) == (ONE, 560)
    failed.forget(ONE)
    assert failed.wait_s() is None
    failed.put_off(ONE)
    assert failed.wait_s() == 30
