"""Lists of classes and of images, as editors all over the world write them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spica.errors import DataSetError
from spica.training.formats.annotated import ReadingLog
from spica.training.formats.text import read_lines, read_text

JAPANESE = ("穂\n葉\n", "小麦\nトマト\n", "りんご", "麦\n", "spike\n穂", "車\n自転車\n歩行者", "病斑\r\n健全\r\n")
CHINESE = ("小麦\n稻穗\n", "苹果\n梨\n", "水稻", "spike\n稻", "人\n车\n自行车", "病害\r\n健康\r\n")


@pytest.mark.parametrize(
    ("text", "encoding", "told"),
    [
        pytest.param("", "utf-8", "", id="empty"),
        pytest.param("spike\nweed\n", "ascii", "", id="ASCII"),
        pytest.param("穂\n葉", "utf-8", "", id="UTF-8"),
        pytest.param("穂\n葉", "utf-8-sig", "", id="UTF-8 with its mark"),
        pytest.param("穂\n葉", "utf-16", "", id="UTF-16 with its mark"),
        pytest.param("\ufeff穂\n葉", "utf-16-be", "", id="UTF-16 with its mark, the other way round"),
        pytest.param("穂\n葉", "utf-16-le", "UTF-16", id="UTF-16 without mark"),
        pytest.param("穂\n葉", "utf-16-be", "UTF-16", id="UTF-16 without mark, the other way round"),
        *[pytest.param(text, "cp932", "Shift-JIS", id=f"Shift-JIS {n}") for n, text in enumerate(JAPANESE)],
        *[pytest.param(text, "gbk", "GBK", id=f"GBK {n}") for n, text in enumerate(CHINESE)],
    ],
)
def test_encodings(tmp_path: Path, text: str, encoding: str, told: str) -> None:
    """Each encoding in use is read, and one that was guessed is told."""
    (tmp_path / "classes.txt").write_bytes(text.encode(encoding))
    log = ReadingLog()
    assert read_text(tmp_path / "classes.txt", log) == text.lstrip("\ufeff").replace("\r\n", "\n")
    assert [told in sentence and "classes.txt" in sentence for sentence in log.sentences()] == [True] * bool(told)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("maïs\nblé".encode("latin-1"), id="French"),
        pytest.param("Käse\nGurke".encode("latin-1"), id="German"),
        pytest.param("小麥\n稻穗".encode("big5"), id="Taiwan"),
        pytest.param(b"a\0b", id="half a letter of UTF-16"),
        pytest.param(b"\xff\xfe\0\xd8", id="half a pair of UTF-16"),
        pytest.param(b"\xef\xbb\xbf\xff", id="no UTF-8 after its mark"),
    ],
)
def test_an_encoding_that_can_not_be_told(tmp_path: Path, data: bytes) -> None:
    """Names are not guessed from bytes that may mean anything: the file is named, and what to do."""
    (tmp_path / "classes.txt").write_bytes(data)
    with pytest.raises(DataSetError, match="encoding") as caught:
        read_text(tmp_path / "classes.txt", ReadingLog())
    assert "classes.txt" in str(caught.value)
    assert "UTF-8" in str(caught.value)


def test_lines_keep_their_numbers(tmp_path: Path) -> None:
    """Only ends of lines end a line, blank lines count, and spaces around a name don't."""
    (tmp_path / "a.txt").write_bytes("one\r\n\r\n three\x85\u2028x \rfour".encode())
    assert read_lines(tmp_path / "a.txt", ReadingLog()) == ["one", "", "three\x85\u2028x", "four"]


def test_no_file(tmp_path: Path) -> None:
    """A file that is not there is an error that names it."""
    with pytest.raises(DataSetError, match="can't be read"):
        read_text(tmp_path / "none.txt", ReadingLog())


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=40))
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    """Whatever the bytes are, there is a text or an error for people."""
    (tmp_path / "any.txt").write_bytes(data)
    with contextlib.suppress(DataSetError):
        read_text(tmp_path / "any.txt", ReadingLog())
