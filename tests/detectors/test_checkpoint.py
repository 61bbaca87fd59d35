"""Reading state dicts that mean harm: nothing is run, and neither memory nor time is taken on their word."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spica.detectors import checkpoint
from spica.errors import WeightsError

FILE = Path("gwhd.pth")
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5) | st.tuples(inner, inner),
    max_leaves=20,
)


def follow(content: bytes) -> object:
    return checkpoint._follow(io.BytesIO(content), FILE)


class _Runs:
    """Its unpickling makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@given(value=PLAIN, protocol=st.integers(3, pickle.HIGHEST_PROTOCOL))
@settings(deadline=None)
def test_plain_data_is_read_as_pickle_reads_it(value: object, protocol: int) -> None:
    """Dicts, lists, tuples and scalars come out as they went in."""
    assert follow(pickle.dumps(value, protocol)) == value


@given(value=PLAIN, noise=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=5))
@settings(deadline=None, max_examples=300)
def test_noise_in_a_pickle_raises_nothing_but_weights_errors(value: object, noise: list[tuple[int, int]]) -> None:
    """Whatever the bytes are, the reader gives an answer or refuses."""
    content = bytearray(pickle.dumps(OrderedDict(a=value)))
    for place, byte in noise:
        content[place % len(content)] = byte
    with contextlib.suppress(WeightsError):
        follow(bytes(content))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_run(tmp_path: Path, protocol: int) -> None:
    """A pickle that calls os.mkdir makes no folder at any protocol, and the call is named."""
    target = tmp_path / "made"
    content = pickle.dumps({"weights": _Runs(target)}, protocol)
    with pytest.raises(WeightsError, match="nothing of it was run") as refused:
        follow(content)
    assert "mkdir" in str(refused.value.got)
    assert not target.exists()
    pickle.loads(content)  # noqa: S301 - it is our own: the pickle does what the reader did not
    assert target.exists()


def test_what_is_called_without_being_imported_by_name(tmp_path: Path) -> None:
    """Instructions of old protocols and of extensions run nothing either."""
    made = str(tmp_path / "made").encode()
    for content in (
        b"(S'" + made + b"'\nios\nmkdir\n.",  # INST
        b"(cos\nmkdir\nS'" + made + b"'\no.",  # OBJ
        b"\x80\x02cos\nmkdir\n(S'" + made + b"'\nt\x81.",  # NEWOBJ
        b"\x80\x04cos\nmkdir\n(S'" + made + b"'\nt}\x92.",  # NEWOBJ_EX
        b"\x80\x02\x82\x01.",  # EXT1
    ):
        with pytest.raises(WeightsError):
            follow(content)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b".", id="an end mark alone"),
        pytest.param(b"\x80\x02}(X\x01\x00\x00\x00au.", id="a key without a value"),
        pytest.param(b"\x80\x02K\x01K\x02\x93.", id="an import of numbers"),
        pytest.param(b"\x80\x02h\x07.", id="a memo that was never filled"),
        pytest.param(b"\x80\x02R.", id="a call of nothing"),
        pytest.param(b"\x80\x02t.", id="a tuple without a mark"),
        pytest.param(b"\x80\x04B\xff\xff\xff\x7fabc.", id="a text of two gigabytes"),
        pytest.param(b"\x80\x05\x96" + b"\xff" * 7 + b"\x0fabc.", id="a bytearray of an exabyte"),
        pytest.param(b"\x80\x05\x97.", id="an out-of-band buffer"),
        pytest.param(b"i\\ \nx\n.", id="odd escapes in an old instruction"),
        pytest.param(b"\x80\x02]" + b"2a" * 200 + b"q", id="a list that holds itself, cut off"),
    ],
)
def test_unsound_pickles_are_damaged(content: bytes) -> None:
    """What pickle's own machine could not follow is refused."""
    with pytest.raises(WeightsError, match="damaged"):
        follow(content)


def test_memory_is_not_taken_on_a_pickles_word() -> None:
    """A memo entry with a number of four billion takes the place of one."""
    assert follow(b"\x80\x02K\x01r\xff\xff\xff\xffj\xff\xff\xff\xff.") == 1


def test_deep_and_doubled_structures_end() -> None:
    """Tuples nested a hundred thousand deep, and keys and members of sets that double at each step, take a moment."""
    deep = b"\x80\x02)" + b"\x85" * 100_000 + b"."
    assert isinstance(follow(deep), tuple)
    doubling = b"K\x01" + b"2\x86" * 200
    assert isinstance(follow(b"\x80\x02}" + doubling + b"Ns."), dict)
    assert isinstance(follow(b"\x80\x04\x8f(" + doubling + b"\x90."), list)
    assert isinstance(follow(b"\x80\x04(" + doubling + b"\x91."), list)


def test_endless_pickles_are_not_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle of too many instructions is refused."""
    monkeypatch.setattr(checkpoint, "MAX_OPERATIONS", 100)
    with pytest.raises(WeightsError, match="damaged") as refused:
        follow(b"\x80\x02" + b"N0" * 200 + b"N.")
    assert "instructions" in str(refused.value.got)
