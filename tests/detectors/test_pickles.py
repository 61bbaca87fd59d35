from __future__ import annotations

import contextlib
import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spica.detectors import pickles
from spica.detectors.pickles import Call, DamagedPickleError, External, Global, read

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(), inner, max_size=5)
        | st.tuples(inner, inner)
        | st.tuples(inner, inner, inner, inner)
    ),
    max_leaves=20,
)


class _Runs:
    """Its unpickling makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


class _WithExternals(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        return ("storage", len(obj)) if isinstance(obj, bytes) else None


@given(value=PLAIN, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
@settings(deadline=None)
def test_plain_data_is_read_as_pickle_reads_it(value: object, protocol: int) -> None:
    """Dicts, lists, tuples and scalars come out as they went in, at every protocol."""
    content = pickle.dumps(value, protocol)
    assume(protocol >= 3 or (b"bytes" not in content and b"_codecs" not in content))  # bytes are a call there
    reading = read(io.BytesIO(content))
    assert reading.value == value
    assert reading.imports == []


@given(value=PLAIN, cut=st.floats(0, 1, exclude_max=True), protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
@settings(deadline=None)
def test_a_cut_pickle_is_damaged(value: object, cut: float, protocol: int) -> None:
    """A pickle that lacks its end is never taken for whole."""
    whole = pickle.dumps(value, protocol)
    with pytest.raises(DamagedPickleError):
        read(io.BytesIO(whole[: int(cut * len(whole))]))


@given(value=PLAIN, noise=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=5))
@settings(deadline=None, max_examples=300)
def test_noise_in_a_pickle_raises_nothing_but_damage(value: object, noise: list[tuple[int, int]]) -> None:
    """Whatever the bytes are, the reader gives an answer or says that they are damaged."""
    content = bytearray(pickle.dumps(OrderedDict(a=value)))
    for place, byte in noise:
        content[place % len(content)] = byte
    with contextlib.suppress(DamagedPickleError):
        read(io.BytesIO(bytes(content)))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_run(tmp_path: Path, protocol: int) -> None:
    """A pickle that calls os.mkdir makes no folder, and is told to ask for it."""
    target = tmp_path / "made"
    content = pickle.dumps({"weights": _Runs(target)}, protocol)
    reading = read(io.BytesIO(content))
    assert not target.exists()
    assert [wanted.name for wanted in reading.imports] == ["mkdir"]
    assert isinstance(reading.value, dict)
    call = reading.value["weights"]
    assert isinstance(call, Call)
    assert call.arguments == (str(target),)
    pickle.loads(content)  # noqa: S301 - it is our own: the pickle does what the reader did not
    assert target.exists()


def test_objects_kept_outside_are_named() -> None:
    """A persistent id is told as it is, as torch's storages are."""
    out = io.BytesIO()
    _WithExternals(out).dump([b"numbers"])
    value = read(io.BytesIO(out.getvalue())).value
    assert isinstance(value, list)
    assert isinstance(value[0], External)
    assert value[0].pid == ("storage", 7)


def test_an_ordered_dict_is_a_dict() -> None:
    """An OrderedDict, with attributes as torch gives it, reads as a dict."""
    made = OrderedDict(a=1, b=2)
    made._metadata = {"version": 1}  # type: ignore[attr-defined]  # torch does so
    reading = read(io.BytesIO(pickle.dumps(made, 2)))
    assert reading.value == {"a": 1, "b": 2}
    assert reading.imports == [Global("collections", "OrderedDict")]


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
        pytest.param(b"\x80\x05\x97.", id="an out-of-band buffer"),
    ],
)
def test_unsound_pickles_are_damaged(content: bytes) -> None:
    """What pickle's own machine could not follow is refused."""
    with pytest.raises(DamagedPickleError):
        read(io.BytesIO(content))


def test_memory_is_not_taken_on_a_pickles_word() -> None:
    """A memo entry with a number of four billion takes the place of one."""
    assert read(io.BytesIO(b"\x80\x02K\x01r\xff\xff\xff\xffj\xff\xff\xff\xff.")).value == 1


def test_deep_and_doubled_structures_end() -> None:
    """Tuples nested a hundred thousand deep, and keys that double at each step, are read in a moment."""
    deep = b"\x80\x02)" + b"\x85" * 100_000 + b"."
    assert isinstance(read(io.BytesIO(deep)).value, tuple)
    doubling = b"\x80\x02}K\x01" + b"2\x86" * 200 + b"Ns."
    assert isinstance(read(io.BytesIO(doubling)).value, dict)


def test_endless_pickles_are_not_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle of too many instructions is refused."""
    monkeypatch.setattr(pickles, "MAX_OPERATIONS", 100)
    with pytest.raises(DamagedPickleError, match="instructions"):
        read(io.BytesIO(b"\x80\x02" + b"N0" * 200 + b"N."))


def test_odd_escapes_in_an_old_text_opcode_are_no_warning() -> None:
    """The standard library's reader warns of them; the user can do nothing about that."""
    with pytest.raises(DamagedPickleError):
        read(io.BytesIO(b"i\\ \nx\n."))
