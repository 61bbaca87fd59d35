"""Files below one folder, and nothing else.

Task data are other people's input. A name is refused for what it says (``..``, drive letters, device names, encoded
dots) before the disk is asked anything, and for where it leads after symbolic links are followed. A refusal never
depends on whether the file outside exists.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import unicodedata
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from spica.errors import ConfinementError, MediaError

_SEPARATORS: Final = re.compile(r"[/\\]")
_DRIVE: Final = re.compile(r"[/\\]*[A-Za-z]:([/\\]|$)")
# https://learn.microsoft.com/windows/win32/fileio/naming-a-file; with any extension they are still devices
_WINDOWS_DEVICE: Final = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE)


def escape_reason(name: str, *, windows: bool = os.name == "nt") -> str | None:
    """Why ``name`` can't be that of a file below a folder, or None if it may be.

    Args:
        name: decoded once, relative to the folder; leading slashes are taken as Label Studio takes them, as none.
        windows: whether the disk is Windows', where more names are special.
    """
    if "\0" in name:
        return "it contains a NUL character"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    if name.startswith(("//", "\\")):
        return "it names another machine or drive"
    if "%2525" in name:
        return "it is encoded over and over"
    once = unquote(name, errors="replace")  # whoever reads the name next may decode it once or twice more
    readings = (name, once, unquote(once, errors="replace"))
    return next((reason for text in readings if (reason := _lexical_reason(text, windows=windows))), None)


def _lexical_reason(name: str, *, windows: bool) -> str | None:
    if _DRIVE.match(name):
        return "it names a drive"
    for part in _SEPARATORS.split(name):
        if part.startswith("..") and not part.strip(" ."):  # Windows ignores dots and spaces at the end
            return "it contains .."
        if windows and (":" in part or part != part.rstrip(" .") != "" or _WINDOWS_DEVICE.fullmatch(part)):
            return "it contains a name that is special on Windows"
    return None


def check_name(name: str, *, setting: str) -> None:
    """Refuse a name for what it says, without asking the disk.

    Raises:
        ConfinementError: ``name`` can't be that of a file below the folder that ``setting`` names.
    """
    reason = escape_reason(name)
    if reason is not None:
        raise _outside(name, setting, reason)


class ConfinedFolder:
    """The files below ``root``, after symbolic links are followed.

    Args:
        root: the folder; it need not exist yet.
        setting: what the folder is called in messages and where it is set.
    """

    def __init__(self, root: Path, *, setting: str) -> None:
        self.root = root
        self.setting = setting

    def shown(self, name: str) -> str:
        """The path that ``name`` stands for, for messages."""
        return str(self.root / name.lstrip("/"))

    def find(self, name: str) -> Path | None:
        """The file or folder that ``name`` stands for, links resolved; None if there is none.

        Tried in this order: the name as it is, composed and decomposed (macOS stores decomposed names), and on other
        systems than Windows once more with backslashes as separators, as a Label Studio on Windows writes them.

        Raises:
            ConfinementError: ``name`` leads outside, whether or not something is there.
        """
        setting = f"{self.setting}, {self.root}"
        check_name(name, setting=setting)
        root = Path(os.path.realpath(self.root))
        relative = name.lstrip("/")
        names = [relative, *(unicodedata.normalize(form, relative) for form in ("NFC", "NFD"))]
        if os.sep == "/" and "\\" in relative:
            names += [variant.replace("\\", "/") for variant in names]
        for variant in dict.fromkeys(names):
            path = Path(os.path.realpath(self.root / variant))  # also of what does not exist
            if not path.is_relative_to(root):
                raise _outside(name, setting, "a symbolic link leads out of it")
            if _exists(path):
                return path
        if name != relative:
            raise _outside(name, setting, "it is an absolute path")
        return None


def _outside(name: str, setting: str, reason: str) -> ConfinementError:
    return ConfinementError(
        "an image's address lies outside the folder that may be read",
        where=printable(name),
        expected=f"a path relative to {setting}",
        got=reason,
        hint="Put the image below that folder and address it relative to it.",
    )


def _exists(path: Path) -> bool:
    """Whether something is there; a folder that may not be searched counts, reading it says why."""
    try:
        path.stat()
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EPERM)
    return True


def read_file(path: Path, *, max_bytes: int) -> bytes:
    """All bytes of a regular file.

    Args:
        path: of the file itself, links resolved.
        max_bytes: a larger file is refused before it is read.

    Raises:
        MediaError: no regular file, or too large.
        OSError: it can't be opened or read.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # before opening: a device or a pipe may wait for ever
        raise _irregular(path)
    # Not through a link that was put there in between, and as bytes on Windows too.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise _irregular(path)
        if status.st_size > max_bytes:
            raise too_many_bytes(str(path), f"{status.st_size} bytes", max_bytes)
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:  # it grew
        raise too_many_bytes(str(path), f"more than {max_bytes} bytes", max_bytes)
    return data


def _irregular(path: Path) -> MediaError:
    got = "a folder" if path.is_dir() else "neither a file nor a folder"
    return MediaError("an image's address is not that of a file", where=str(path), expected="a file", got=got)


def too_many_bytes(where: str, got: str, max_bytes: int) -> MediaError:
    """The error for a file over the limit."""
    return MediaError(
        "an image file is too large",
        where=where,
        expected=f"at most {max_bytes} bytes",
        got=got,
        hint="Raise SPICA_MAX_IMAGE_BYTES if the memory allows it.",
    )


def printable(text: str, limit: int = 300) -> str:
    """``text`` without characters that would disturb a terminal or a log, at most ``limit`` long."""
    cut = text if len(text) <= limit else text[:limit] + "…"
    return "".join(character if character.isprintable() else "�" for character in cut)
