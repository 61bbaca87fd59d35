"""The folders of the store: by id, and never by anything that could lead elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from spica.detectors.refusals import shown
from spica.errors import UsageError, WeightsError
from spica.models.card import CARD, WEIGHTS, Card, FileEntry, read_card, version_info
from spica.models.version import ModelVersion

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DEEPEST = 1000
_SUFFIX = re.compile(r"(-bf16|-int8-[0-9a-f]{4})?(-t(a|[0-9]+)o[0-9]+)?(\.[0-9a-f]+)?")
"""What the name under which predictions are stored adds to a version's id: arithmetic, tiles, recipe."""


def folder_of(data_dir: Path, version: str) -> Path:
    """Where a version is, or would be.

    Raises:
        UsageError: this is no id of a version.
    """
    if not is_id(version):
        raise UsageError(
            "this is no id of a model version",
            where=str(data_dir / "models"),
            expected="letters, digits, dots and dashes",
            got=shown(version),
            hint="`spica models list` shows the ids",
        )
    return data_dir / "models" / version


def is_id(text: object) -> bool:
    """Whether a text could be the id of a version."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def answers_with(told: str, version: str) -> bool:
    """Whether the name of a project's predictions is that of a version, in whatever arithmetic."""
    return told.startswith(version) and _SUFFIX.fullmatch(told[len(version) :]) is not None


def ids(data_dir: Path) -> list[str]:
    """The ids of all folders in the store, damaged ones included, sorted."""
    models = data_dir / "models"
    if not models.is_dir():
        return []
    return sorted(path.name for path in models.iterdir() if is_id(path.name) and path.is_dir())


def find(data_dir: Path, text: str) -> str:
    """The one id that a person means: the id itself, its beginning, or the eight digits at its end.

    Raises:
        UsageError: there is none, or more than one.
    """
    known = ids(data_dir)
    found = [text] if text in known else [each for each in known if each.startswith(text) or each.endswith(f"-{text}")]
    if len(found) == 1 and text:
        return found[0]
    raise UsageError(
        "several model versions begin or end like this" if len(found) > 1 else "there is no such model version",
        where=str(data_dir / "models"),
        expected="one of " + ", ".join((found or known)[:8]) if found or known else "no version is stored there",
        got=shown(text),
        hint="`spica models list` shows the ids; --data-dir says where they are",
    )


def open_version(data_dir: Path, version: str) -> ModelVersion:
    """A version whose every file has the digest that its card says. Reads all of its bytes.

    Raises:
        UsageError: no id, or no such version.
        WeightsError: damaged: the card can't be read, is another version's, or a file is missing or differs.
    """
    folder = folder_of(data_dir, version)
    card = peek(data_dir, version)
    info = version_info(folder, card)
    source = folder / WEIGHTS if WEIGHTS in card.files else None
    return ModelVersion(folder, card, data_dir / "cache" / f"{version}-{info.sha256[:8]}", source)


def peek(data_dir: Path, version: str) -> Card:
    """A version's card, if the files that it names are there in their sizes. Reads the card alone.

    Raises:
        UsageError: no id, or no such version.
        WeightsError: damaged, as far as that shows without reading the files.
    """
    folder = folder_of(data_dir, version)
    if not folder.is_dir():
        raise UsageError(
            "there is no such model version",
            where=str(folder.parent),
            got=version,
            hint="`spica models list` shows the ids; --data-dir says where they are",
        )
    card = read_card(folder)
    if card.id != version:
        raise _damaged(folder, f"the card of {card.id}")
    for name, entry in files_of(card).items():
        path = folder / name
        try:
            size = path.stat().st_size if path.is_file() else None
        except OSError:  # deleted between the two
            size = None
        if size != entry.bytes:
            raise _damaged(path, "missing" if size is None else f"{size} bytes instead of {entry.bytes}")
    return card


def files_of(card: Card) -> dict[str, FileEntry]:
    """All files of a version by name, those of its other arithmetics too; the card itself is not among them."""
    own = [form.files for form in card.precisions.values()]
    return {name: entry for files in (card.files, *own) for name, entry in files.items()}


def base_of(data_dir: Path, version: str) -> str | None:
    """The id of the weights that a version's line began with; None for a version without any parent."""
    return next((base for base in _line(data_dir, version)), None)


def _line(data_dir: Path, version: str) -> Iterator[str]:
    """The base as the nearest card tells it, else the farthest parent whose name is known."""
    seen, now = {version}, version
    for _ in range(_DEEPEST):
        try:
            card = read_card(folder_of(data_dir, now))
        except (WeightsError, UsageError):
            break
        if is_id(card.base):
            yield str(card.base)
            return
        if not is_id(card.parent) or card.parent in seen:
            break
        now = str(card.parent)
        seen.add(now)
    if now != version:
        yield now


def _damaged(path: Path, got: str) -> WeightsError:
    return WeightsError(
        "this model version is damaged",
        where=str(path),
        expected=f"what its {CARD} says",
        got=shown(got),
        hint="restore the folder from a copy, import it again, or delete it with `spica models delete`",
    )
