"""Text that people keep beside their images: lists of classes and of images, and YOLO's labels.

It is UTF-8, or UTF-16 as Windows' tools write it. Editors in Japan and China may still write Shift-JIS and GBK, which
carry no mark; one of them is assumed where most letters are common ones in it and fewer are in the other. The log says
what was assumed, for a wrong guess makes wrong names.
"""

from __future__ import annotations

import codecs
import io
from pathlib import Path
from typing import Final

from spica.errors import DataSetError
from spica.training.formats.annotated import ReadingLog

_MARKED: Final = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_UNMARKED: Final = {"cp932": "Shift-JIS", "gbk": "GBK", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16"}
_COMMON: Final = 0.5
_JIS_LEVEL_2: Final = 0x99  # the lead byte from which Shift-JIS has rare kanji; none of half-width katakana is as low


def read_text(path: Path, log: ReadingLog) -> str:
    """The text of a file, its lines ended as Python ends them.

    Args:
        path: of a regular file.
        log: gets a note of an encoding that was guessed.

    Raises:
        DataSetError: it can't be read, or is in no encoding that is clear.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataSetError("the file can't be read", where=str(path), got=error.strerror) from error
    encoding = _encoding(data)
    if encoding is None:
        raise DataSetError(
            "the text can't be read: its encoding is not clear",
            where=str(path),
            expected="UTF-8",
            got="bytes that are neither UTF-8 nor UTF-16, nor clearly Shift-JIS or GBK",
            hint="open it in the editor that wrote it, and save it as UTF-8",
        )
    if encoding in _UNMARKED:
        log.correct(f"{{n}} text files are not UTF-8, read as {_UNMARKED[encoding]}: check the names in it", path.name)
    return io.StringIO(data.decode(encoding), newline=None).read()


def read_lines(path: Path, log: ReadingLog) -> list[str]:
    """The lines of a file without the spaces around them. Blank ones stay, so that lines keep their numbers.

    Raises:
        DataSetError: as :func:`read_text`.
    """
    return [line.strip() for line in read_text(path, log).split("\n")]  # str.splitlines knows further ends of lines


def _encoding(data: bytes) -> str | None:
    """Python's name of the encoding; None where it is not clear."""
    marked = next((name for mark, name in _MARKED if data.startswith(mark)), None)
    if marked is not None:
        return _if_decodable(data, marked)
    if b"\0" in data:  # every text has ends of lines or spaces, and UTF-16 writes them with a zero
        return _if_decodable(data, "utf-16-le" if data[1::2].count(0) > data[::2].count(0) else "utf-16-be")
    if _if_decodable(data, "utf-8"):
        return "utf-8"
    shares = {name: _common_share(data, name) for name in ("cp932", "gbk")}
    likely, other = sorted(shares, key=shares.__getitem__, reverse=True)
    return likely if shares[likely] > max(_COMMON, shares[other]) else None


def _if_decodable(data: bytes, encoding: str) -> str | None:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return None
    return encoding


def _common_share(data: bytes, encoding: str) -> float:
    """The share of letters beyond ASCII that are common in an encoding: for GBK those of its older form, GB 2312."""
    text = data.decode(encoding) if _if_decodable(data, encoding) else ""
    letters = [letter for letter in text if not letter.isascii()]
    if encoding == "gbk":
        common = sum(bool(letter.encode("gb2312", "ignore")) for letter in letters)
    else:
        pairs = (letter.encode(encoding) for letter in letters)
        common = sum(len(pair) == 2 and pair[0] < _JIS_LEVEL_2 for pair in pairs)
    return common / max(len(letters), 1)
