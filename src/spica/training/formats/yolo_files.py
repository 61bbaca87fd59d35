"""Which images a YOLO folder has, part by part, and which label file belongs to which image.

Paths in a description or a list are often those of another machine: what lies in the folder under the last parts of
such a path is meant.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from spica.errors import DataSetError
from spica.labelstudio.paths import ConfinedFolder
from spica.training.formats.annotated import IMAGE_SUFFIXES, ReadingLog, matches_below
from spica.training.formats.text import read_lines, read_text

SPLITS: Final = {"train": ("train",), "val": ("val", "valid"), "valid": ("val", "valid"), "test": ("test",)}
"""The keys by which a part is described, by the name it is asked for."""
_CACHED: Final = re.compile(r"[0-9a-f]{8}__")
_UPLOADED: Final = re.compile(r"[0-9a-f]{8}-")
_NEUTRAL: Final = re.compile(r"images|labels|obj_\w+_data", re.IGNORECASE)
"""Folders that tell labels from images and nothing else: also CVAT's ``obj_train_data``."""


class Files:
    """The images and text files below a few resolved folders. Symbolic links are followed where they stay there;
    images that lead ``outside`` are known.
    """

    def __init__(self, bases: tuple[Path, ...], log: ReadingLog) -> None:
        self.bases = bases
        self.outside: set[Path] = set()
        self._log = log
        self._noted: set[Path] = set()
        paths = dict.fromkeys(path for base in bases for path in self._walk(base, set()))
        self.images = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
        self.texts = [path for path in paths if path.suffix.lower() == ".txt"]

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
            self._note("{n} folders can't be read: passed over", folder)
            return
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):  # macOS leaves such beside each file of an archive
                continue
            leads_out = entry.is_symlink() and not self._holds(Path(os.path.realpath(path)))
            if entry.is_dir() and leads_out:
                self._note("{n} folders are links that lead elsewhere: passed over", path)
            elif entry.is_dir():
                yield from self._walk(path, seen)
            elif path.suffix.lower() in IMAGE_SUFFIXES or (entry.is_file() and not leads_out):
                self.outside |= {path} if leads_out else set()
                yield path

    def _holds(self, path: Path) -> bool:
        return any(path.is_relative_to(base) for base in self.bases)

    def _note(self, sentence: str, folder: Path) -> None:
        if folder not in self._noted:
            self._noted.add(folder)
            self._log.correct(sentence, folder.name)


@dataclass(slots=True)
class Wanted:
    """The images that are asked for, and those of other parts, which label files may belong to as well.

    Attributes:
        missing: what a list of images names that is not there.
        lacking: parts that are described and are not there.
    """

    images: dict[Path, None] = field(default_factory=dict)
    others: dict[Path, None] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)


def wanted_images(body: dict[str, Any], root: Path, files: Files, split: str | None, log: ReadingLog) -> Wanted:
    """The images of one part of a data set, or of all of it.

    Without parts in the description those of a split lie in folders that are called so; where none of its parts is in
    the folder that was given for the images, all of that is meant.
    """
    keys = tuple(SPLITS) if split is None else SPLITS.get(split, (split,))
    described = {key: body[key] for key in dict.fromkeys((*SPLITS, *keys)) if body.get(key)}
    wanted = Wanted()
    for key, value in described.items():
        into = wanted.images if key in keys else wanted.others
        for entry in map(str, value if isinstance(value, list) else [value]):
            images, missing = _of_entry(key, entry, str(body.get("path") or ""), root, files, log)
            into.update(dict.fromkeys(images))
            if key not in keys:
                continue
            wanted.missing += missing
            if key == "test" and split is None and not (images or missing):  # many name one that was never given away
                log.correct("{n} parts are not there: nothing is read of them", f"{key}: {entry}")
            elif not (images or missing):
                wanted.lacking.append(f"{key}: {entry}")
    is_elsewhere = files.bases[0] != root and not (wanted.images or wanted.others or wanted.missing)
    if not described or (is_elsewhere and split is None):
        wanted = Wanted()
        for path in _undescribed(root, files, log):
            folders = (part.casefold().rstrip("0123456789") for part in files.parts(path)[:-1])  # also train2017
            is_wanted = split is None or any(folder in keys for folder in folders)
            (wanted.images if is_wanted else wanted.others)[path] = None
    return wanted


def _undescribed(root: Path, files: Files, log: ReadingLog) -> list[Path]:
    """The images where nothing describes them: in images/, and the splits' images/; else all."""
    paths = [path for path in files.images if path.is_relative_to(files.bases[0])]
    usual = [path for path in paths if any(part.casefold() == "images" for part in files.parts(path)[:2])]
    if files.bases[0] != root or not usual:
        return paths
    for path in sorted(set(paths) - set(usual)):
        log.correct("{n} images lie elsewhere than in images/: passed over", path.name)
    return usual


def _of_entry(
    key: str, entry: str, prefix: str, root: Path, files: Files, log: ReadingLog
) -> tuple[list[Path], list[str]]:
    """The images of a folder, or those that a text file lists and what it lists in vain."""
    bases = (*files.bases, root)
    place = find(f"{prefix}/{entry}", bases)
    if place is None:
        return [], []
    parts = _parts(entry)
    if place.parts[-len(parts) :] != parts and not any(base.joinpath(*parts).exists() for base in bases):
        log.correct("{n} parts are not where it is said: what is called so in the folder is taken", f"{key}: {entry}")
    if place.is_dir():
        return files.images_in(place), []
    by_name = {_nfc("/".join(files.parts(path))): path for path in files.images}
    beside = "/".join(files.parts(place)[:-1])
    images: list[Path] = []
    missing: list[str] = []
    for line in filter(None, read_lines(place, log)):
        names = (name for tail in _tails(line) for name in (f"{beside}/{tail}", tail))
        path = next((by_name[name] for name in names if name in by_name), None)
        if path is None:
            missing.append(line)
        else:
            images.append(path)
    return images, missing


def find(entry: str, bases: tuple[Path, ...]) -> Path | None:
    """What lies below one of the folders under a path, or else under its last parts; links resolved."""
    folders = [ConfinedFolder(base, setting="the folder of the data") for base in bases]
    return next((path for name in _tails(entry) for path in matches_below(name, folders)), None)


def _parts(entry: str) -> tuple[str, ...]:
    """A path's parts without those that say where it begins, and without steps up."""
    return tuple(part for part in re.split(r"[/\\]+", entry) if part not in ("", ".", ".."))


def _tails(entry: str) -> Iterator[str]:
    parts = _parts(_nfc(entry))
    for start in range(max(len(parts), 1)):
        yield "/".join(parts[start:])


Keys = Callable[[str], set[str]]


class Pairs:
    """Which label file belongs to which image; where that is in doubt, none does.

    In this order: as Ultralytics finds it (the last ``images`` in the path read as ``labels``) or beside the image; of
    the same name in folders of the same names, or of fewer of them, so that ``labels/`` may be flat; as Label Studio's
    export names it. No file is given to two images; an image that a further file fits, which says something else, gets
    none.

    Label Studio 1.23 names a label file like the last part of its image's address (``converter.py``,
    ``get_local_path``): percent-encoded where that holds more than ASCII, with ``<8 hex digits>__`` before it unless
    the image was found on its disk. An upload has ``<8 hex digits>-`` before its name from the start.

    Args:
        images: those of all parts, each once: a label file is theirs too.
        files: what is there.

    Attributes:
        label_of: label files by image.
        ambiguous: images with a label file that may be another image's, or with several; and those label files.
    """

    def __init__(self, images: Iterable[Path], files: Files) -> None:
        self.label_of: dict[Path, Path] = {}
        self.ambiguous: set[Path] = set()
        images = list(images)
        texts = {path.with_suffix(".txt"): path for path in files.texts}
        claims: dict[Path, set[Path]] = defaultdict(set)  # images by label file
        for image in images:
            label = next((texts[path] for path in _usual_labels(image, files) if path in texts), None)
            if label is not None:
                claims[label].add(image)
        self._settle(claims)
        for of_image, of_label in _KEYS:
            self._settle(self._by_keys(images, files, of_image, of_label))

    def left(self, files: Files) -> list[Path]:
        """Text files that belong to no image."""
        used = {*self.label_of.values(), *self.ambiguous}
        return [path for path in files.texts if path not in used]

    def _by_keys(self, images: list[Path], files: Files, of_image: Keys, of_label: Keys) -> dict[Path, set[Path]]:
        """For each label file that is left the images whose keys it has."""
        owners: dict[str, list[Path]] = defaultdict(list)
        for image in images:
            for key in of_image(image.name):
                owners[key].append(image)
        together = {image.parent for image in images}
        flat = {*files.bases, *(together if len(together) == len(files.bases) == 1 else ())}
        claims: dict[Path, set[Path]] = {}
        for label in self.left(files):
            folders = _folders(label, files)
            named = _address(Path(label.name).stem)[:-1]  # an image in a folder must be in the one that is named
            claims[label] = {
                image
                for key in of_label(label.name)
                for image in owners.get(key, ())
                if folders <= _folders(image, files)
                and (not named or image.parent in flat or _nfc(image.parent.name) == named[-1])
            }
        return claims

    def _settle(self, claims: Mapping[Path, set[Path]]) -> None:
        """Pair what claims each other and nothing else."""
        options: dict[Path, list[Path]] = defaultdict(list)  # label files by image
        for label, images in claims.items():
            for image in images:
                options[image].append(label)
            if len(images) > 1:
                self.ambiguous |= {label, *images} - self.label_of.keys()
        for image, labels in options.items():
            own = self.label_of.get(image)
            if own is not None:
                others = [label for label in labels if not _say_the_same(own, label)]
                if others:
                    del self.label_of[image]
                    self.ambiguous.update((image, own, *others))
            elif len(labels) > 1:
                self.ambiguous.update((image, *labels))
            elif image not in self.ambiguous:
                self.label_of[image] = labels[0]


def _usual_labels(image: Path, files: Files) -> list[Path]:
    parts = files.parts(image)
    base = Path(*image.parts[: len(image.parts) - len(parts)])
    last = max((index for index, part in enumerate(parts[:-1]) if part == "images"), default=None)
    swapped = [] if last is None else [base.joinpath(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt")]
    return [*swapped, image.with_suffix(".txt")]


def _say_the_same(one: Path, other: Path) -> bool:
    try:
        return read_text(one, ReadingLog()).split() == read_text(other, ReadingLog()).split()
    except DataSetError:
        return False


def _folders(path: Path, files: Files) -> frozenset[str]:
    return frozenset(part for part in files.parts(path)[:-1] if not _NEUTRAL.fullmatch(part))


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _address(name: str) -> list[str]:
    """The parts of a path that Label Studio made a name of."""
    return re.split(r"[/\\]", _nfc(unquote(_CACHED.sub("", name, count=1))).rpartition("?d=")[2])


def _plain(name: str) -> str:
    """A name without what Label Studio's cache and addresses add, its last part alone; letters' case is disregarded."""
    return _address(name)[-1].casefold()


def _plain_image(name: str) -> set[str]:
    """With its suffix too: some tools write ``a.jpg.txt``."""
    return {_plain(Path(name).stem), _plain(name)}


def _plain_label(name: str) -> set[str]:
    return {_plain(Path(name).stem)}


def _uploaded(names: Iterable[str]) -> set[str]:
    return {_UPLOADED.sub("", name, count=1) for name in names if _UPLOADED.match(name)}


_KEYS: Final[tuple[tuple[Keys, Keys], ...]] = (
    (lambda name: {Path(name).stem}, lambda name: {Path(name).stem}),
    (_plain_image, _plain_label),
    (_plain_image, lambda name: _uploaded(_plain_label(name))),
    (lambda name: _uploaded(_plain_image(name)), _plain_label),
)
"""By which names images and label files are compared, the surest first."""
