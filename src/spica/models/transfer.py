"""Versions out of the store and into it: as a folder, as a zip archive, as bare weights.

Nothing that an archive says of names or sizes is believed: what is taken out of it is what the version's card lists,
under the card's plain names, in the card's sizes, with the card's digests. Archives that hold links, or names that lead
out of their folder, are refused as a whole.
"""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from spica.detectors.networks import write_state_dict
from spica.detectors.refusals import few, shown
from spica.errors import UsageError, WeightsError
from spica.files import put_in_place, replacing, scratch, storage_error, sync, sync_folder
from spica.models.card import CARD, MAX_CARD_BYTES, WEIGHTS, Card, check_files, is_id, read_card
from spica.models.store import require_space
from spica.models.version import ModelVersion, open_version

_MAX_ENTRIES = 1000
_MAX_BYTES = 64 * 2**30
_CHUNK = 2**20
_RESERVED = {"con", "prn", "aux", "nul", *(f"{name}{number}" for name in ("com", "lpt") for number in range(10))}
"""Names that mean devices on Windows, whatever their suffix."""

Read = Callable[[str], IO[bytes]]


def export(version: ModelVersion, out: Path) -> Path:
    """Write a version, or its bare weights, somewhere else; whole, or not at all.

    Args:
        version: from :func:`spica.models.version.open_version`, so that its digests have been checked.
        out: ``….pth`` for the plain state_dict (needs torch), ``….safetensors`` for the same without torch, ``….zip``
            for the whole version in one file; else a folder for the whole version: a new one, or one in which a folder
            by the version's id is made. Files that are there are replaced, folders are not.

    Returns:
        What was written.

    Raises:
        UsageError: the folder exists.
        WeightsError: the version holds no weights, only a graph; torch is missing.
        StorageError: it can't be written.
    """
    kind = out.suffix.lower()
    if kind not in (".pth", ".pt", ".safetensors", ".zip") or out.is_dir():
        return _export_folder(version, out / version.id if out.is_dir() else out)
    if kind in (".pth", ".pt"):
        write_state_dict(_weights_of(version), out)
        return out
    with replacing(out) as aside:
        if kind == ".safetensors":
            shutil.copyfile(_weights_of(version), aside)
        else:
            with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as archive:
                for name in (CARD, *version.card.all_files):
                    archive.write(version.folder / name, f"{version.id}/{name}")
    return out


def bring_in(source: Path, data_dir: Path) -> tuple[ModelVersion, bool]:
    """Put a version, a folder or a zip archive of one, into the store, after checking every file; whether it is new.

    Raises:
        WeightsError: damaged, unsafe, or no version.
        UsageError: the store holds another version of this id.
        StorageError: the store can't be written; it is as it was.
    """
    models = data_dir / "models"
    try:
        if not source.is_dir():
            source.open("rb").close()
    except OSError as error:
        raise WeightsError(
            "this can't be read",
            where=str(source),
            expected="the folder of a model version, a .zip of one, or a weights file",
            got=error.strerror or type(error).__name__,
            hint="check the path for typing errors",
        ) from error
    with scratch(models) as aside:
        try:
            if source.is_dir():
                card = _copy_version(source, aside)
            else:
                with _opened(source) as archive:
                    card = _unpack(archive, source, aside)
        except OSError as error:
            raise storage_error(error, models) from error
        check_files(aside, card)
        sync(aside)
        is_new = put_in_place(aside, models / card.id)
        sync_folder(models)
    version = open_version(data_dir, card.id)
    if version.card.files != card.files:
        raise UsageError(
            "the store holds another version under this id",
            where=str(models / card.id),
            got=str(source),
            hint=f"`spica models delete {card.id}` first, if the one to import is the one that you want",
        )
    return version, is_new


def is_archive(path: Path) -> bool:
    """Whether a file is a zip archive of a version, which the ``.pth`` of torch, a zip archive too, is not."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(PurePosixPath(name).name == CARD for name in archive.namelist())


# --- out ------------------------------------------------------------------------------------------------------------


def _weights_of(version: ModelVersion) -> Path:
    if version.source is None:
        raise WeightsError(
            "this version holds no weights, only the graph that was made of them",
            where=str(version.folder),
            expected=f"{WEIGHTS} beside the graph",
            got=f"{version.card.graph} alone",
            hint="export it as a folder or a .zip; the weights are in the file it was made from"
            + (f", {shown(str(version.card.weights['name']))}" if "name" in version.card.weights else ""),
        )
    return version.source


def _export_folder(version: ModelVersion, out: Path) -> Path:
    exists = UsageError("there is something of this name already", where=str(out), hint="give another --out")
    if out.exists():
        raise exists
    with scratch(out.parent) as aside:
        try:
            for name in (CARD, *version.card.all_files):
                shutil.copyfile(version.folder / name, aside / name)
        except OSError as error:
            raise storage_error(error, out) from error
        if not put_in_place(aside, out):
            raise exists
    return out


# --- in -------------------------------------------------------------------------------------------------------------


def _copy_version(source: Path, folder: Path) -> Card:
    def read(name: str) -> IO[bytes]:
        path = source / name
        if path.is_symlink() or not path.is_file():
            raise WeightsError(
                "this is no plain file of a model version",
                where=str(path),
                expected="a file of its own",
                got="a link" if path.is_symlink() else "nothing",
            )
        return path.open("rb")

    return _take(read, source, folder)


@contextmanager
def _opened(source: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(source) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise WeightsError(
            "this archive is damaged, encrypted, or no zip archive",
            where=str(source),
            expected="what `spica models export --out FILE.zip` writes",
            got=shown(str(error) or type(error).__name__),
        ) from error


def _unpack(archive: zipfile.ZipFile, source: Path, folder: Path) -> Card:
    entries = archive.infolist()
    if len(entries) > _MAX_ENTRIES:
        raise _unsafe(source, f"{len(entries)} entries")
    bad = [entry.filename for entry in entries if not _is_plain(entry)]
    if bad:
        raise _unsafe(source, few(bad))
    files = {PurePosixPath(entry.filename): entry for entry in entries if not entry.is_dir()}
    if len(files) != sum(not entry.is_dir() for entry in entries):
        raise _unsafe(source, "a name twice")
    cards = [path for path in files if path.name == CARD]
    if len(cards) != 1:
        raise WeightsError(
            "this archive holds no model version" if not cards else "this archive holds several model versions",
            where=str(source),
            expected=f"one folder with {CARD} in it",
            got=few([str(path) for path in cards or files]) or "nothing",
        )
    top = cards[0].parent

    def read(name: str) -> IO[bytes]:
        entry = files.get(top / name)
        if entry is None:
            raise WeightsError("a file of the model version is missing", where=str(source), expected=shown(name))
        return archive.open(entry)

    return _take(read, source, folder)


def _is_plain(entry: zipfile.ZipInfo) -> bool:
    name, mode = entry.filename, entry.external_attr >> 16
    parts = name.rstrip("/").split("/")
    return (
        not (stat.S_ISLNK(mode) or entry.flag_bits & 1)
        and not any(char in name for char in "\\:\0")
        and all(part not in ("", ".", "..") for part in parts)
    )


def _take(read: Read, source: Path, folder: Path) -> Card:
    """Copy the card, then what it lists; each in its size, no byte more."""
    with read(CARD) as file:
        text = file.read(MAX_CARD_BYTES + 1)
    (folder / CARD).write_bytes(text)
    card = read_card(folder)  # refuses one that is too large, and names that are not plain
    files = card.all_files
    names = [name.casefold() for name in (CARD, *files)]
    reserved = [name for name in names if name.partition(".")[0] in _RESERVED]
    if len(set(names)) != len(names) or reserved or not is_id(card.id):
        raise _unsafe(source, few(reserved) or "a name twice")
    needed = sum(max(0, entry.bytes) for entry in files.values())
    if needed > _MAX_BYTES:
        raise _unsafe(source, f"{needed / 2**30:.0f} GB of files")
    require_space(folder, needed, "this version")
    for name, entry in files.items():
        with read(name) as file, (folder / name).open("xb") as copy:
            _copy(file, copy, entry.bytes, source, name)
    return card


def _copy(file: IO[bytes], copy: IO[bytes], size: int, source: Path, name: str) -> None:
    left = size
    while left >= 0 and (chunk := file.read(min(_CHUNK, left + 1))):
        left -= len(chunk)
        copy.write(chunk)
    if left:
        raise WeightsError(
            "a file of the model version has another size than its card says",
            where=f"{source}: {name}",
            expected=f"{size} bytes",
            got="more" if left < 0 else f"{size - left} bytes",
            hint="copy it again",
        )


def _unsafe(source: Path, got: str) -> WeightsError:
    return WeightsError(
        "this is not taken into the store, because its contents are not safe; nothing of it was kept",
        where=str(source),
        expected="a folder of plain files, as `spica models export` writes it",
        got=shown(got),
        hint="get it from a source you trust",
    )
