"""The way between the job's threads: bounded, ended in order, or at once."""

from __future__ import annotations

import threading

import pytest

from spica.prelabel.channel import Channel, EndOfChannel

WAIT_S = 30


def drain(channel: Channel[int]) -> list[int]:
    """All that is still to come."""
    taken: list[int] = []
    while True:
        try:
            item = channel.get()
        except EndOfChannel:
            return taken
        assert item is not None
        taken.append(item)


def test_everything_arrives_in_order_through_a_narrow_channel() -> None:
    """A producer that is faster than the consumer waits, and nothing is lost or doubled."""
    channel: Channel[int] = Channel(2)
    highest = 0

    def produce() -> None:
        for number in range(1, 201):
            assert channel.put(number)
        channel.end()

    thread = threading.Thread(target=produce)
    thread.start()
    taken = []
    while True:
        try:
            item = channel.get()
        except EndOfChannel:
            break
        assert item is not None
        taken.append(item)
        highest = max(highest, len(channel._items))
    thread.join(WAIT_S)
    assert taken == list(range(1, 201))
    assert highest <= 2


def test_ends_only_after_the_last_producer() -> None:
    """What one producer still brings after another has ended comes out."""
    channel: Channel[int] = Channel(5, producers=2)
    channel.put(1)
    channel.end()
    channel.put(2)
    channel.end()
    assert drain(channel) == [1, 2]


def test_a_wait_can_be_bounded() -> None:
    """With nothing to take, a bounded wait gives None, and the channel goes on."""
    channel: Channel[int] = Channel(1)
    assert channel.get(0) is None
    assert channel.get(0.01) is None
    channel.put(7)
    assert channel.get(0) == 7


def test_abort_frees_both_sides() -> None:
    """A producer that waits for room is told that nobody takes it, a consumer that there is nothing."""
    channel: Channel[int] = Channel(1)
    channel.put(1)
    told: list[bool] = []
    thread = threading.Thread(target=lambda: told.append(channel.put(2)))
    thread.start()
    channel.abort()
    thread.join(WAIT_S)
    assert told == [False]
    with pytest.raises(EndOfChannel):
        channel.get()
