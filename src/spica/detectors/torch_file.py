"""The two file formats of ``torch.save``: a zip archive, and before torch 1.6 a row of pickles. Read without torch."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from spica.detectors.pickles import DamagedPickleError, read
from spica.detectors.refusals import EXPECTED, SAVE_STATE_DICT, bomb, damaged, few
from spica.detectors.tensors import Storage, Tensor, refuse_code, state_dict_of
from spica.errors import WeightsError

MAX_TOTAL_BYTES = 4 * 2**30
"""No weights of a detector that is served here come near it."""

MAX_MEMBERS = 20_000
"""Files in the archive; torch writes one for each tensor, 350 for a Faster R-CNN."""

MAX_RATIO = 20
"""Unpacked to packed bytes. torch does not compress, and numbers of a trained network hardly can be."""

MAX_PICKLE_BYTES = 16 * 2**20
"""The pickle beside the numbers; 50 KB for a Faster R-CNN."""

_MAX_DIRECTORY_BYTES = 200 * MAX_MEMBERS
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py MAGIC_NUMBER


def read_zip(path: Path) -> dict[str, Tensor]:
    """Tensors by key of a file written by torch 1.6 or later.

    Raises:
        WeightsError: damaged, too large when unpacked, or no state_dict.
    """
    with path.open("rb") as file:
        _check_directory(file, path)
        try:
            with zipfile.ZipFile(file) as archive:
                _check_members(archive.infolist(), path)
                pickled, prefix = _pickle_of(archive, path)
                sizes = {info.filename: info.file_size for info in archive.infolist()}
        except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, struct.error, ValueError) as error:
            raise damaged(path, str(error)) from error
    try:
        reading = read(io.BytesIO(pickled))
    except DamagedPickleError as error:
        raise damaged(path, f"its {prefix}data.pkl: {error}") from error
    tensors = state_dict_of(reading, path)
    for storage in _storages(tensors):
        name = f"{prefix}data/{storage.key}"
        if sizes.get(name) != storage.nbytes:
            raise damaged(path, f"{name} has {sizes.get(name, 0)} bytes, not {storage.nbytes}")
    return tensors


def read_legacy(path: Path) -> dict[str, Tensor]:
    """Tensors by key of a file written before torch 1.6: magic number, protocol, system, object, storage keys (a
    pickle each), then the numbers of each storage behind their count.

    Raises:
        WeightsError: damaged, a pickle that torch did not write, or no state_dict.
    """
    with path.open("rb") as file:
        start = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    try:
        first = read(start)
        refuse_code(first, path)
        if first.value != _LEGACY_MAGIC:
            raise WeightsError(
                "a pickle, but not one that torch.save writes", where=str(path), expected=EXPECTED, hint=SAVE_STATE_DICT
            )
        for _ in ("protocol version", "system"):
            refuse_code(read(start), path)
        tensors = state_dict_of(read(start), path)
        refuse_code(read(start), path)
    except DamagedPickleError as error:
        raise damaged(path, str(error)) from error
    needed = start.tell() + sum(8 + storage.nbytes for storage in _storages(tensors))
    if path.stat().st_size < needed:
        raise damaged(path, f"{path.stat().st_size} bytes of {needed}")
    return tensors


def _storages(tensors: dict[str, Tensor]) -> Iterable[Storage]:
    return {tensor.storage.key: tensor.storage for tensor in tensors.values()}.values()


def _check_directory(file: BinaryIO, path: Path) -> None:
    """Refuse an archive whose directory alone would fill the memory, before anything reads it."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 65_557))  # the end record with the longest comment
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < 22:
        raise damaged(path, "the archive's directory, which stands at its end, is missing")
    (directory_bytes,) = struct.unpack_from("<L", tail, end + 12)
    zip64 = tail.rfind(b"PK\x06\x06", 0, end)
    if directory_bytes == 0xFFFFFFFF and zip64 >= 0 and len(tail) - zip64 >= 48:
        (directory_bytes,) = struct.unpack_from("<Q", tail, zip64 + 40)
    file.seek(0)
    if directory_bytes > _MAX_DIRECTORY_BYTES:
        raise bomb(path, f"a directory of {directory_bytes} bytes", limit_bytes=MAX_TOTAL_BYTES)


def _check_members(members: list[zipfile.ZipInfo], path: Path) -> None:
    packed = sum(member.compress_size for member in members)
    unpacked = sum(member.file_size for member in members)
    size = path.stat().st_size
    if len(members) > MAX_MEMBERS:
        raise bomb(path, f"{len(members)} files in the archive", limit_bytes=MAX_TOTAL_BYTES)
    if unpacked > MAX_TOTAL_BYTES:
        raise bomb(path, f"{unpacked} bytes when unpacked", limit_bytes=MAX_TOTAL_BYTES)
    if packed > size:
        raise bomb(path, f"files that overlap: {packed} packed bytes in a file of {size}", limit_bytes=MAX_TOTAL_BYTES)
    if unpacked > MAX_RATIO * max(packed, 1024):
        raise bomb(path, f"{unpacked} bytes unpacked from {packed}", limit_bytes=MAX_TOTAL_BYTES)


def _pickle_of(archive: zipfile.ZipFile, path: Path) -> tuple[bytes, str]:
    """The pickle in the archive, and the folder in which it lies there."""
    names = archive.namelist()
    pickles = [name for name in names if name.count("/") <= 1 and name.endswith("data.pkl")]
    if not pickles:
        raise WeightsError(
            "a zip archive, but not one that torch.save writes",
            where=str(path),
            expected=EXPECTED,
            got=few(names) or "an empty archive",
            hint="if the weights are inside, unpack them first",
        )
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in names:
        raise WeightsError(
            "this is a TorchScript archive, which holds code; nothing of it was run",
            where=str(path),
            expected=EXPECTED,
            hint=SAVE_STATE_DICT,
        )
    info = archive.getinfo(pickles[0])
    if info.file_size > MAX_PICKLE_BYTES:
        raise bomb(path, f"a pickle of {info.file_size} bytes", limit_bytes=MAX_TOTAL_BYTES)
    with archive.open(info) as file:
        return file.read(MAX_PICKLE_BYTES), prefix
