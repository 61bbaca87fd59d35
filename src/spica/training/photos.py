"""A folder of images by digest: what was read from Label Studio once is not read again.

Beside the images lies ``index.jsonl``, a line an address: its SHA-256 (addresses may hold signatures), the file and its
size. Both are a cache: delete the folder, and the images are read anew. An address is taken to keep its image; give a
changed image a new name, as Label Studio's own uploads do.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from spica.files import storage_error
from spica.training.assembly import Photo, inspect

_INDEX: Final = "index.jsonl"
_KINDS: Final = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"II*\x00", ".tif"),
    (b"MM\x00*", ".tif"),
    (b"BM", ".bmp"),
    (b"GIF8", ".gif"),
)


def photos_in(data_dir: Path) -> Path:
    """The folder for :class:`PhotoFolder` in a data folder; a training and an export share it."""
    return data_dir / "cache" / "images"


class PhotoFolder:
    """Images by digest, found again by address.

    Args:
        folder: made when the first image is put into it.
        scope: tells apart what may have the same addresses, such as two Label Studios.
        max_pixels: larger images are refused.
    """

    def __init__(self, folder: Path, *, scope: str, max_pixels: int) -> None:
        self.folder = folder
        self._scope = scope
        self._max_pixels = max_pixels
        self._known = _read(folder / _INDEX)

    def get(self, uri: str, read: Callable[[], bytes]) -> Photo:
        """The image at an address; ``read`` is called where it is not there yet.

        Raises:
            ImageError: no image, damaged or too large.
            StorageError: it can't be written.
            SpicaError: whatever ``read`` raises.
        """
        key = hashlib.sha256(f"{self._scope}\n{uri}".encode("utf-8", "surrogatepass")).hexdigest()
        known = self._photo(self._known.get(key))
        if known is not None:
            return known
        data = read()
        photo = inspect(data, Path(), where=uri[:200], max_pixels=self._max_pixels)
        path = self.folder / f"{photo.digest}{_suffix(data)}"
        entry = {
            "key": key,
            "file": path.name,
            "bytes": len(data),
            "width": photo.width,
            "height": photo.height,
            "orientation": photo.orientation,
        }
        try:
            _write(path, data)
            with (self.folder / _INDEX).open("a", encoding="utf-8", newline="\n") as lines:
                lines.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise storage_error(error, path) from error
        self._known[key] = entry
        return Photo(path, photo.digest, photo.width, photo.height, photo.orientation)

    def _photo(self, entry: dict[str, Any] | None) -> Photo | None:
        """What is known of an image whose file is still there, whole."""
        if entry is None:
            return None
        path = self.folder / str(entry["file"])
        try:
            if path.stat().st_size != entry["bytes"]:
                return None
        except OSError:
            return None
        return Photo(path, path.stem, int(entry["width"]), int(entry["height"]), int(entry["orientation"]))


def _read(path: Path) -> dict[str, dict[str, Any]]:
    known: dict[str, dict[str, Any]] = {}
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return known
    for line in lines:
        try:
            entry = json.loads(line)
            if Path(str(entry["file"])).name == entry["file"] and {"bytes", "width", "height", "orientation"} <= set(
                entry
            ):
                known[str(entry["key"])] = entry
        except (ValueError, KeyError, TypeError):  # a line that a killed process left half written
            continue
    return known


def _write(path: Path, data: bytes) -> None:
    """Put a file in place whole; one of that digest and size that is there already is left alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size == len(data):
        return
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _suffix(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for begin, suffix in _KINDS if data.startswith(begin)), "")
