"""The bytes of a task's image, wherever the task says they are: on disk first, then over HTTP.

How Label Studio writes each address, and how it reads it, was taken from label-studio 1.23.2:
``io_storages/localfiles/models.py`` and ``views.py``, ``data_import/models.py`` and ``api.py``,
``io_storages/proxy_api.py``.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import SplitResult, parse_qsl, quote, unquote, unquote_to_bytes, urlsplit

import httpx

from spica.errors import MediaError
from spica.http import is_local
from spica.labelstudio.download import Downloader, DownloadError, shown_url
from spica.labelstudio.paths import (
    ConfinedFolder,
    check_name,
    escape_reason,
    printable,
    read_file,
    too_many_bytes,
)
from spica.settings import Settings

_LOCAL_FILES: Final = re.compile(r"(?:^|/)data/local-files/?$")
_UPLOAD: Final = re.compile(r"(?:^|/)data/upload/(?P<name>.+)$", re.DOTALL)
_UPLOAD_NAME: Final = re.compile(r"(?:\d+/)?[0-9a-f]{8}-")  # data_import/models.py, upload_name_generator
_STORED: Final = re.compile(r"(?:^|/)storage-data/uploaded/?$")
_RESOLVED: Final = re.compile(r"/(?:tasks|projects)/\d+/(?:resolve|presign|file-proxy)/?$")
_CLOUD: Final = frozenset({"s3", "gs", "azure-blob", "azure_spi"})

_ROOT: Final = "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"
_SET_KEY: Final = "Set LABEL_STUDIO_API_KEY, so that the image can be asked from Label Studio."


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an address of Label Studio's own may be read."""

    folder: ConfinedFolder | None
    setting: str  # what to set where ``folder`` is None or wrong
    names: tuple[str, ...]  # relative to the folder; more than one where an address can be read in two ways
    paths: tuple[str, ...]  # below Label Studio's address, encoded
    hints: dict[int, str]  # by the HTTP status of Label Studio's answer


def media_for(settings: Settings, auth: httpx.Auth | None) -> MediaReader:
    """Reads images as the settings say, from Label Studio with this token; closed by the caller."""
    return MediaReader(
        label_studio_url=settings.label_studio_url,
        auth=auth,
        document_root=settings.local_files_document_root,
        media_dir=settings.label_studio_data_dir / "media",
        max_bytes=settings.max_image_bytes,
        timeout_s=settings.media_timeout_s,
        loopback=is_local(settings.host),
    )


class MediaReader:
    """Reads the images of tasks. Thread-safe; close it, or use it as a context manager.

    What is read on disk lies below ``document_root`` or ``media_dir``'s ``upload`` after symbolic links are followed.

    Args:
        label_studio_url: address of Label Studio, with its sub-path if it has one.
        auth: its token (:class:`spica.labelstudio.auth.LabelStudioAuth`); without, Label Studio is not asked.
        document_root: the folder below which Label Studio serves local files, or None to ask Label Studio for them.
        media_dir: the folder ``media`` in Label Studio's data folder, or None to ask Label Studio for uploads.
        max_bytes: of an image file.
        timeout_s: seconds for one image that comes over HTTP.
        loopback: whether images are read from this machine's own addresses too, besides Label Studio's.
        transport: for tests; the network if None.
    """

    def __init__(
        self,
        *,
        label_studio_url: str,
        auth: httpx.Auth | None,
        document_root: Path | None,
        media_dir: Path | None,
        max_bytes: int,
        timeout_s: float,
        loopback: bool = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url = label_studio_url.rstrip("/")
        self._netloc = urlsplit(self._url).netloc.lower()
        self._has_token = auth is not None
        self._root = None if document_root is None else ConfinedFolder(document_root, setting=_ROOT)
        uploads = "Label Studio's folder of uploads (LABEL_STUDIO_BASE_DATA_DIR)"
        self._uploads = None if media_dir is None else ConfinedFolder(media_dir / "upload", setting=uploads)
        self._max_bytes = max_bytes
        limits: dict[str, Any] = {"max_bytes": max_bytes, "timeout_s": timeout_s, "loopback": loopback}
        self._web = Downloader(label_studio_url=self._url, auth=auth, transport=transport, **limits)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back; more than once is fine."""
        self._web.close()

    def read(self, uri: str, *, task_id: int | None = None) -> bytes:
        """The bytes of the image at ``uri``.

        Args:
            uri: as the task's data say: ``/data/local-files/?d=…`` and ``/data/upload/…`` (relative or absolute, with
                or without a sub-path), ``/storage-data/uploaded/?filepath=…``, http(s), ``s3://``, ``gs://``,
                ``azure-blob://``, ``azure_spi://``, ``data:``.
            task_id: of the task; addresses in object storage need it.

        Raises:
            ConfinementError: the address leads out of the folders that may be read.
            MediaError: nothing there, no permission, too large, or no address of an image at all.
        """
        address = uri.strip()
        if address[:5].lower() == "data:":
            return _embedded(address, self._max_bytes)
        try:
            parts = urlsplit(address)
        except ValueError as error:
            raise _unknown(address) from error
        if address.partition("://")[0].lower() in _CLOUD:  # urlsplit knows no scheme with an underscore
            return self._resolve(address, task_id)
        is_web = parts.scheme in ("http", "https") and parts.netloc != ""
        is_relative = parts.scheme == "" and parts.netloc == "" and parts.path.startswith("/")
        if not is_web and not is_relative:
            raise _unknown(address)
        place = self._place(address, parts)
        if place is not None:
            return self._read_place(place, address if is_web else None, uri=address)
        if is_web:
            return self._fetch([address], {}, uri=address)
        resolved = _RESOLVED.search(parts.path)
        if resolved is not None and self._has_token:
            return self._fetch([f"{self._url}{resolved.group()}?{parts.query}"], _RESOLVE_HINTS, uri=address)
        raise _unknown(address) if resolved is None else _failed(address, [], [_SET_KEY])

    def _place(self, address: str, parts: SplitResult) -> _Place | None:
        """Where to look for an address of Label Studio's own; None if it is not one."""
        if _LOCAL_FILES.search(parts.path):
            names = readings(address, parts, "d")
            paths = tuple(f"/data/local-files/?d={_quoted(name)}" for name in names[:1])
            return _Place(self._root, _ROOT, names, paths, _LOCAL_FILES_HINTS)
        if _STORED.search(parts.path):
            stored = readings(address, parts, "filepath")
            stored += tuple(unquote(name) for name in stored)  # Label Studio decodes this one twice
            names = tuple(name.removeprefix("upload/") for name in stored if name.startswith("upload/"))
            # A Label Studio that keeps uploads on disk answers 400 to the first.
            ways = ("/storage-data/uploaded/?filepath=upload/", "/data/upload/")
            paths = tuple(way + _quoted(name) for name in names[:1] for way in ways)
            return _Place(self._uploads, "LABEL_STUDIO_BASE_DATA_DIR", names, paths, _UPLOAD_HINTS)
        upload = _UPLOAD.search(parts.path)
        if upload is None:
            return None
        if parts.netloc.lower() not in ("", self._netloc) and not _UPLOAD_NAME.match(upload["name"]):
            return None  # another site may have such a path too, but hardly such names
        literal = _UPLOAD.search(address)  # also what follows a bare # or ?
        names = (unquote(upload["name"]), *([unquote(literal["name"])] if literal is not None else []))
        paths = (f"/data/upload/{_quoted(names[0])}",)
        return _Place(self._uploads, "LABEL_STUDIO_BASE_DATA_DIR", names, paths, _UPLOAD_HINTS)

    def _read_place(self, place: _Place, absolute: str | None, *, uri: str) -> bytes:
        """Disk, then Label Studio at the address that we know, then the one in the task, its other name perhaps."""
        if not place.names:
            raise _unknown(uri)
        folder = place.folder
        tried: list[str] = []
        hints: list[str] = []
        if folder is None:
            check_name(place.names[0], setting=place.setting)
            hints.append(f"Set {place.setting} as Label Studio has it, so that the image can be read on disk.")
        else:
            data = self._read_disk(folder, place.names, tried)
            if data is not None:
                return data
            hints.append(f"Check {place.setting}: it must be the same as Label Studio's.")
        if not self._has_token:
            hints.append(_SET_KEY)
        own = [self._url + path for path in place.paths] if self._has_token else []
        elsewhere = [absolute] if absolute is not None and absolute not in own else []
        return self._fetch([*own, *elsewhere], place.hints, uri=uri, tried=tried, hints=hints)

    def _read_disk(self, folder: ConfinedFolder, names: Iterable[str], tried: list[str]) -> bytes | None:
        first, *others = dict.fromkeys(names)
        for name in [first, *(other for other in others if escape_reason(other) is None)]:
            path = folder.find(name)
            if path is None:
                tried.append(f"{printable(folder.shown(name))}: no such file")
                continue
            try:
                return read_file(path, max_bytes=self._max_bytes)
            except OSError as error:  # Label Studio may be allowed to
                tried.append(f"{printable(str(path))}: {error.strerror or type(error).__name__}")
        return None

    def _resolve(self, uri: str, task_id: int | None) -> bytes:
        """An object in a bucket, by way of Label Studio, which has the bucket's keys."""
        if task_id is None or not self._has_token:
            needed = "The task's id is needed to ask Label Studio for it." if self._has_token else _SET_KEY
            raise _failed(uri, [], [needed])
        try:
            encoded = base64.urlsafe_b64encode(uri.encode()).decode()
        except UnicodeEncodeError as error:
            raise _unknown(uri) from error
        return self._fetch([f"{self._url}/tasks/{task_id}/resolve/?fileuri={encoded}"], _RESOLVE_HINTS, uri=uri)

    def _fetch(
        self,
        addresses: Iterable[str],
        hints_by_status: dict[int, str],
        *,
        uri: str,
        tried: list[str] | None = None,
        hints: list[str] | None = None,
    ) -> bytes:
        """The bytes at the first address that has them; else one error about all that was tried."""
        tried, hints = list(tried or ()), list(hints or ())
        cause: DownloadError | None = None
        for address in addresses:
            try:
                return self._web.get(address)
            except DownloadError as error:
                cause = error
                tried.append(f"{error.where}: {error.got}")
                hint = hints_by_status.get(error.http_status or 0)
                hints += [text for text in (hint, error.hint) if text is not None]
                if error.http_status == httpx.codes.UNAUTHORIZED and not self._has_token:
                    hints.append(_SET_KEY)
        raise _failed(uri, tried, hints) from cause


_LOCAL_FILES_HINTS: Final = {
    403: "Label Studio does not serve local files: start it with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true.",
    404: "Label Studio has no local storage for that folder (Settings > Cloud Storage > Local files), or no such file.",
}
_UPLOAD_HINTS: Final = {
    403: "The token's user may not see that project.",
    404: "Label Studio's file of that upload is gone.",
    500: "Label Studio answers so when it knows no upload of that name.",
}
_RESOLVE_HINTS: Final = {
    403: "The token's user may not see that task.",
    404: "No storage of the task's project has that bucket (Settings > Cloud Storage), or its credentials failed.",
}


def readings(address: str, parts: SplitResult, key: str) -> tuple[str, ...]:
    """The values that ``key`` in the query may have, decoded once, Label Studio's own reading first.

    Label Studio writes ``urllib.parse.quote`` and reads a form, where a bare ``+`` is a space and ``&`` and ``#`` end
    the value. Only addresses written by hand contain those; for them the second reading takes all literally.
    """
    values = [value for name, value in parse_qsl(parts.query, keep_blank_values=True) if name == key]
    _before, key_there, rest = address.partition(f"?{key}=")
    literal = [unquote(rest)] if key_there else []
    return tuple(dict.fromkeys(value for value in [*values[-1:], *literal] if value))


def _embedded(uri: str, max_bytes: int) -> bytes:
    """The bytes of a ``data:`` address (RFC 2397), in base64 or percent-encoded."""
    head, comma, payload = uri.partition(",")
    where = f"{printable(head, 60)},… ({len(uri)} characters)"
    is_base64 = head.lower().rstrip().endswith(";base64")
    if len(payload) > (4 * max_bytes if is_base64 else 3 * max_bytes) + 4096:  # before anything is copied
        raise too_many_bytes(where, f"{len(payload)} encoded characters", max_bytes)
    try:
        data = unquote_to_bytes(payload)
        if is_base64:
            packed = b"".join(data.split()).rstrip(b"=")
            data = base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError("a data: address is damaged", where=where, expected="base64", got=str(error)) from error
    if not comma or not data:
        raise MediaError("a data: address holds nothing", where=where, expected="data:image/png;base64,…")
    if len(data) > max_bytes:
        raise too_many_bytes(where, f"{len(data)} bytes", max_bytes)
    return data


def _quoted(name: str) -> str:
    """As Label Studio writes it; what is not valid Unicode is refused before this is sent."""
    return quote(name, safe="/", errors="surrogatepass")


def _shown(uri: str) -> str:
    return shown_url(uri) if "://" in uri else printable(uri)


def _unknown(uri: str) -> MediaError:
    return MediaError(
        "an address that is not of an image",
        where=_shown(uri),
        expected="/data/local-files/?d=…, /data/upload/…, http(s), s3://, gs://, azure-blob:// or data:",
        hint="Files on disk are read below Label Studio's document root only: add the folder as a local storage "
        "(Settings > Cloud Storage > Local files).",
    )


def _failed(uri: str, tried: list[str], hints: list[str]) -> MediaError:
    return MediaError(
        "the image of a task can't be read",
        where=_shown(uri),
        got="; ".join(tried) or None,
        hint=" ".join(dict.fromkeys(hints)) or None,
    )
