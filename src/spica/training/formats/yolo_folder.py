"""The images of a YOLO folder, and the text files beside them.

Paths in a description or a list are often those of another machine: what lies in the folder under the last parts of
such a path is meant.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from spica.errors import ConfinementError
from spica.labelstudio.confinement import ConfinedFolder
from spica.training.cleaning import Tally
from spica.training.formats.sketch import IMAGE_SUFFIXES
from spica.training.formats.text import read_lines

SPLITS: Final = {"train": ("train",), "val": ("val", "valid"), "valid": ("val", "valid"), "test": ("test",)}
"""The keys by which a part is described, by the name it is asked for."""
_ALL: Final = tuple(SPLITS)
_SEPARATORS: Final = re.compile(r"[/\\]+")


class Files:
    """The images and text files below a few folders. Symbolic links are followed where they stay there.

    Args:
        bases: the folders, resolved.
        tally: told of folders that can't be read, and of those that lie elsewhere.

    Attributes:
        images: all of them.
        texts: all of them.
        outside: images that are links to somewhere else.
    """

    def __init__(self, bases: tuple[Path, ...], tally: Tally) -> None:
        self.bases = bases
        self.outside: set[Path] = set()
        self._tally = tally
        self._told: set[Path] = set()
        there = [path for base in bases for path in self._walk(base, set())]
        self.images = [path for path in dict.fromkeys(there) if path.suffix.lower() in IMAGE_SUFFIXES]
        self.texts = [path for path in dict.fromkeys(there) if path.suffix.lower() == ".txt"]

    def images_in(self, folder: Path) -> list[Path]:
        """The images of one folder below, and of its sub-folders, by name."""
        return [path for path in self._walk(folder, set()) if path.suffix.lower() in IMAGE_SUFFIXES]

    def parts(self, path: Path) -> tuple[str, ...]:
        """The parts of a path below its folder."""
        base = next(base for base in self.bases if path.is_relative_to(base))
        return path.relative_to(base).parts

    def _walk(self, folder: Path, seen: set[Path]) -> Iterator[Path]:
        real = Path(os.path.realpath(folder))
        if real in seen:
            return
        seen.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            self._tell("{n} folders can't be read: passed over", folder)
            return
        for entry in entries:
            path = folder / entry.name
            is_image = path.suffix.lower() in IMAGE_SUFFIXES
            if entry.name.startswith("."):  # macOS leaves such beside each file of an archive
                continue
            leads_out = entry.is_symlink() and not self._holds(Path(os.path.realpath(path)))
            if entry.is_dir() and leads_out:
                self._tell("{n} folders are links that lead elsewhere: passed over", path)
            elif entry.is_dir():
                yield from self._walk(path, seen)
            elif is_image or (entry.is_file() and not leads_out):
                self.outside |= {path} if leads_out else set()
                yield path

    def _holds(self, path: Path) -> bool:
        return any(path.is_relative_to(base) for base in self.bases)

    def _tell(self, sentence: str, folder: Path) -> None:
        if folder not in self._told:
            self._told.add(folder)
            self._tally.add(sentence, folder.name)


@dataclass(slots=True)
class Wanted:
    """The images that are asked for.

    Attributes:
        images: in order, each once.
        others: the images of other parts, among which label files are shared out too.
        missing: what a list of images names that is not there.
        lacking: parts that are described and are not there, for people.
    """

    images: dict[Path, None] = field(default_factory=dict)
    others: dict[Path, None] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)


def wanted_images(body: dict[str, Any], root: Path, files: Files, split: str | None, tally: Tally) -> Wanted:
    """The images of one part of a data set, or of all of it.

    Args:
        body: the description. Without parts in it those of a split lie in folders that are called so; where none of its
            parts is in the folder that was given for the images, all of that is meant.
        root: the folder of the description.
        files: what is there. Images are looked for in the first of its folders first.
        split: the part; None for all.
        tally: told of what is found elsewhere than it is said to be.
    """
    keys = _ALL if split is None else SPLITS.get(split, (split,))
    described = {key: _listed(body.get(key)) for key in dict.fromkeys((*_ALL, *keys)) if body.get(key)}
    wanted = Wanted()
    for key, entries in described.items():
        into = wanted.images if key in keys else wanted.others
        for entry in entries:
            found, missing = _of_entry(key, entry, str(body.get("path") or ""), root, files, tally)
            into.update(dict.fromkeys(found))
            if key in keys:
                wanted.missing += missing
            if key not in keys or found or missing:
                continue
            if key == "test" and split is None:  # many descriptions name one that was never given away
                tally.add("{n} parts are not there: nothing is read of them", f"{key}: {entry}")
            else:
                wanted.lacking.append(f"{key}: {entry}")
    is_elsewhere = files.bases[0] != root and not (wanted.images or wanted.others or wanted.missing)
    if not described or (is_elsewhere and split is None):
        wanted = Wanted()
        for path in _plain(root, files, tally):
            is_wanted = split is None or any(_is_of(part, keys) for part in files.parts(path)[:-1])
            (wanted.images if is_wanted else wanted.others)[path] = None
    return wanted


def _listed(value: Any) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else [str(value)]


def _is_of(folder: str, keys: tuple[str, ...]) -> bool:
    """Whether a folder holds a part: ``train``, or ``train2017``."""
    return folder.casefold().rstrip("0123456789") in keys


def _plain(root: Path, files: Files, tally: Tally) -> list[Path]:
    """The images where nothing describes them: in images/, and the splits' images/; else all."""
    there = [path for path in files.images if path.is_relative_to(files.bases[0])]
    usual = [path for path in there if any(part.casefold() == "images" for part in files.parts(path)[:2])]
    if files.bases[0] != root or not usual:
        return there
    for path in sorted(set(there) - set(usual)):
        tally.add("{n} images lie elsewhere than in images/: passed over", path.name)
    return usual


def _of_entry(
    key: str, entry: str, prefix: str, root: Path, files: Files, tally: Tally
) -> tuple[list[Path], list[str]]:
    """The images of a folder, or those that a text file lists and what it lists in vain."""
    bases = (*files.bases, root)
    place = find(f"{prefix}/{entry}", bases)
    if place is None:
        return [], []
    said = _parts(entry)
    if place.parts[-len(said) :] != said and not any(base.joinpath(*said).exists() for base in bases):
        tally.add("{n} parts are not where it is said: what is called so in the folder is taken", f"{key}: {entry}")
    if place.is_dir():
        return files.images_in(place), []
    by_name = {unicodedata.normalize("NFC", "/".join(files.parts(path))): path for path in files.images}
    beside = "/".join(files.parts(place)[:-1])
    found: list[Path] = []
    missing: list[str] = []
    for line in filter(None, read_lines(place, tally)):
        names = (name for tail in _tails(line) for name in (f"{beside}/{tail}", tail))
        path = next((by_name[name] for name in names if name in by_name), None)
        if path is None:
            missing.append(line)
        else:
            found.append(path)
    return found, missing


def find(entry: str, bases: tuple[Path, ...]) -> Path | None:
    """What lies below one of the folders under a path, or else under its last parts; links resolved."""
    for name in _tails(entry):
        for base in bases:
            try:
                found = ConfinedFolder(base, setting="the folder of the data").find(name)
            except ConfinementError:
                continue
            if found is not None:
                return found
    return None


def _parts(entry: str) -> tuple[str, ...]:
    """A path's parts without those that say where it begins, and without steps up."""
    return tuple(part for part in _SEPARATORS.split(entry) if part not in ("", ".", ".."))


def _tails(entry: str) -> Iterator[str]:
    parts = _parts(unicodedata.normalize("NFC", entry))
    for start in range(max(len(parts), 1)):
        yield "/".join(parts[start:])
