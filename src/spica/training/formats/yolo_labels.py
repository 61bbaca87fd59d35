"""Which label file belongs to which image of a YOLO folder; where that is in doubt, none does.

In this order: as Ultralytics finds it (the last ``images`` in the path read as ``labels``) or beside the image; of the
same name in folders of the same names, or of fewer of them, so that ``labels/`` may be flat; as Label Studio's export
names it. No file is ever given to two images; an image that a further file fits, which says something else, gets none.

Label Studio 1.23 names a label file like the last part of its image's address (``converter.py``, ``get_local_path``):
percent-encoded where that holds more than ASCII, with ``<8 hex digits>__`` before it unless the image was found on its
disk. An upload has ``<8 hex digits>-`` before its name from the start.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from spica.errors import DataSetError
from spica.training.cleaning import Tally
from spica.training.formats.text import read_text
from spica.training.formats.yolo_folder import Files

_CACHED: Final = re.compile(r"[0-9a-f]{8}__")
_UPLOADED: Final = re.compile(r"[0-9a-f]{8}-")
_NEUTRAL: Final = re.compile(r"images|labels|obj_\w+_data", re.IGNORECASE)
"""Folders that tell labels from images and nothing else: also CVAT's ``obj_train_data``."""

Keys = Callable[[str], set[str]]


@dataclass(slots=True)
class Pairs:
    """What belongs together.

    Attributes:
        label_of: label files by image.
        shared: images with a label file that may be another image's, or with several; and those label files.
        spare: label files that belong to no image.
    """

    label_of: dict[Path, Path] = field(default_factory=dict)
    shared: set[Path] = field(default_factory=set)
    spare: list[Path] = field(default_factory=list)


def pair(images: Iterable[Path], files: Files) -> Pairs:
    """Find the label files of images.

    Args:
        images: those of all parts, each once: a label file is theirs too.
        files: what is there.
    """
    pairs, images = Pairs(), list(images)
    _by_path(images, files, pairs)
    for of_image, of_label in _KEYS:
        _by_keys(images, files, pairs, of_image, of_label)
    used = {*pairs.label_of.values(), *pairs.shared}
    pairs.spare = [path for path in files.texts if path not in used]
    return pairs


def _by_path(images: list[Path], files: Files, pairs: Pairs) -> None:
    there = {path.with_suffix(".txt"): path for path in files.texts}
    claims: dict[Path, list[Path]] = defaultdict(list)
    for image in images:
        label = next((there[path] for path in _usual(image, files) if path in there), None)
        if label is not None:
            claims[label].append(image)
    for label, owners in claims.items():
        if len(owners) == 1:
            pairs.label_of[owners[0]] = label
        else:
            pairs.shared.update((label, *owners))


def _usual(image: Path, files: Files) -> list[Path]:
    parts = files.parts(image)
    base = Path(*image.parts[: len(image.parts) - len(parts)])
    last = max((index for index, part in enumerate(parts[:-1]) if part == "images"), default=None)
    swapped = [] if last is None else [base.joinpath(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt")]
    return [*swapped, image.with_suffix(".txt")]


def _by_keys(images: list[Path], files: Files, pairs: Pairs, of_image: Keys, of_label: Keys) -> None:
    """Pair those whose keys meet in nobody else's, among images and label files that are left."""
    used = {*pairs.label_of.values(), *pairs.shared}
    left = [path for path in files.texts if path not in used]
    if not left:
        return
    owners: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        for key in of_image(image.name):
            owners[key].append(image)
    options: dict[Path, list[Path]] = defaultdict(list)  # label files by image
    together = {image.parent for image in images}
    for label in left:
        folders = _folders(label, files)
        met = {image for key in of_label(label.name) for image in owners.get(key, ())}
        met = {image for image in met if folders <= _folders(image, files)}
        named = _address(Path(label.name).stem)[:-1]
        if named:  # an image in a folder must be in the one that is named
            flat = {*files.bases, *(together if len(together) == len(files.bases) == 1 else ())}
            met = {image for image in met if image.parent in flat or _nfc(image.parent.name) == named[-1]}
        for image in met:
            options[image].append(label)
        if len(met) > 1:
            pairs.shared |= {label, *met} - pairs.label_of.keys()
    for image, labels in options.items():
        own = pairs.label_of.get(image)
        if own is not None:
            others = [label for label in labels if not _say_the_same(own, label)]
            if others:
                del pairs.label_of[image]
                pairs.shared.update((image, own, *others))
        elif len(labels) > 1:
            pairs.shared.update((image, *labels))
        elif image not in pairs.shared:
            pairs.label_of[image] = labels[0]


def _say_the_same(one: Path, other: Path) -> bool:
    try:
        return read_text(one, Tally()).split() == read_text(other, Tally()).split()
    except DataSetError:
        return False


def _folders(path: Path, files: Files) -> frozenset[str]:
    return frozenset(part for part in files.parts(path)[:-1] if not _NEUTRAL.fullmatch(part))


def _stem(name: str) -> set[str]:
    return {Path(name).stem}


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
    (_stem, _stem),
    (_plain_image, _plain_label),
    (_plain_image, lambda name: _uploaded(_plain_label(name))),
    (lambda name: _uploaded(_plain_image(name)), _plain_label),
)
