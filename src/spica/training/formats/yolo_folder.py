"""Where a YOLO folder keeps things: its description, the names of its classes, and the images of its parts.

The description is a yaml file as Ultralytics has it, or Darknet's ``obj.data``, which CVAT exports as "YOLO 1.1". Paths
in it are often those of another machine: what lies below the folder under the last parts of such a path is meant.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from spica.errors import ConfinementError, DataSetError
from spica.labelstudio.confinement import ConfinedFolder
from spica.training.cleaning import Tally
from spica.training.formats.sketch import IMAGE_SUFFIXES
from spica.training.formats.text import read_lines, read_text

SPLITS: Final = {"train": ("train",), "val": ("val", "valid"), "valid": ("val", "valid"), "test": ("test",)}
"""The keys by which a part is described, by the name it is asked for."""
_ALL: Final = ("train", "val", "valid", "test")
_MAX_YAML: Final = 2**18  # letters; they take seconds, and a thousand names take 2**15
_MAX_NUMBER: Final = 9  # digits of a class
_SEPARATORS: Final = re.compile(r"[/\\]+")
_NOT_NAMED: Final = "the names of the classes can't be read"


def yaml_files(folder: Path) -> list[Path]:
    """The yaml files of a folder, data.yaml first."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".yaml", ".yml") and path.is_file())
    return sorted(found, key=lambda path: path.stem not in ("data", "dataset"))


def is_yolo(folder: Path) -> bool:
    """Whether a folder looks like this format."""
    if any((folder / name).is_file() for name in ("obj.data", "obj.names", "classes.txt", "labels/classes.txt")):
        return True
    if (folder / "labels").is_dir() and (folder / "images").is_dir():
        return True
    if any((folder / split / "labels").is_dir() for split in _ALL):
        return True
    return any(_is_description(_attempt(path)) for path in yaml_files(folder))


def describe(data: Path, tally: Tally) -> tuple[Path, dict[str, Any]]:
    """The description at or in ``data``, and the file it is from; empty if there is none.

    Other yaml files may lie there, such as ``args.yaml`` of a training: the one that names classes and images counts.

    Raises:
        DataSetError: several might be meant, or the only one is damaged.
    """
    if data.is_file():
        return data, _read_yaml(data, tally)
    files = yaml_files(data)
    read = {path: body for path in files if _is_description(body := _attempt(path))}
    best = max(map(_rank, read.values()), default=0)
    meant = [path for path, body in read.items() if _rank(body) == best]
    if len(meant) > 1 and meant[0].stem not in ("data", "dataset"):
        raise DataSetError(
            "there are several data sets in the folder",
            where=str(data),
            got=", ".join(path.name for path in meant[:10]),
            hint="give one of these files",
        )
    if meant:
        return meant[0], read[meant[0]]
    if (data / "obj.data").is_file():
        pairs = (line.partition("=") for line in read_lines(data / "obj.data", tally))
        return data / "obj.data", {
            key.strip(): value.strip().removeprefix("data/") for key, _, value in pairs if value.strip()
        }
    if files and files[0].stem in ("data", "dataset"):
        return files[0], _read_yaml(files[0], tally)  # damaged: what it said may be another order of classes
    return data, {}


def _is_description(body: dict[str, Any]) -> bool:
    return bool(body.get("names")) or isinstance(body.get("train"), str | list)


def _rank(body: dict[str, Any]) -> int:
    return 2 * bool(body.get("names")) + any(body.get(key) for key in ("train", "val", "valid", "path"))


def _attempt(path: Path) -> dict[str, Any]:
    try:
        return _read_yaml(path, Tally())
    except DataSetError:
        return {}


def _read_yaml(path: Path, tally: Tally) -> dict[str, Any]:
    """A yaml file in which every value is text, or null: a class may be called "no", "1e3" or "2026-01-01".

    Raises:
        DataSetError: it can't be read, or is no description.
    """
    yaml = importlib.import_module("yaml")  # heavy for a command that needs none; and it carries no types

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        yaml_implicit_resolvers: Final = {
            first: [each for each in known if each[0] == "tag:yaml.org,2002:null"]
            for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):  # a few lines may stand for gigabytes
                raise yaml.YAMLError(f"aliases and tags are not read, line {event.start_mark.line + 1}")
            return super().compose_node(parent, index)

    text = read_text(path, tally)
    try:
        if len(text) > _MAX_YAML:
            raise ValueError(f"{len(text)} letters")
        body = yaml.load(text, Loader)
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:  # the last two for "\UFFFFFFFF"
        raise DataSetError(
            "the file can't be read",
            where=str(path),
            expected="YAML, without aliases (*) and tags (!)",
            got=str(error)[:200],
        ) from error
    if not isinstance(body, dict):
        raise DataSetError("this is no data set of YOLO", where=str(path), expected="names:, train: and val:")
    return body


def class_names(body: dict[str, Any], described: Path, root: Path, tally: Tally) -> dict[int, str]:
    """Names by the number that stands in label files, without numbers that have none.

    Raises:
        DataSetError: there are none, or they can't be read.
    """
    names: Any = body.get("names") or _listed_names(root, tally)
    if isinstance(names, str):
        place = find(names, (root,))
        names = read_lines(place, tally) if place is not None and place.is_file() else None
    if isinstance(names, list):
        names = {str(number): name for number, name in enumerate(names)}
    if not isinstance(names, dict) or not all(_is_named(number, name) for number, name in names.items()):
        raise DataSetError(_NOT_NAMED, where=str(described), expected="a list of texts, or 0: name …")
    numbered = {int(number): (name or "").strip() for number, name in names.items()}
    if len(numbered) < len(names) or not any(numbered.values()):
        raise DataSetError(_NOT_NAMED, where=str(described), got="one number twice" if any(names) else "blank names")
    return {number: numbered[number] for number in sorted(numbered) if numbered[number]}


def _is_named(number: Any, name: Any) -> bool:
    is_number = isinstance(number, str) and number.isdecimal() and len(number) <= _MAX_NUMBER
    if name is None or not is_number:
        return bool(is_number)
    return isinstance(name, str) and not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)


def _listed_names(root: Path, tally: Tally) -> list[str] | dict[str, Any]:
    """The names that lie beside the images, a line each. In Label Studio's export lines are not always the numbers."""
    for name in ("classes.txt", "obj.names", "labels/classes.txt", "images/classes.txt"):
        if (root / name).is_file():
            return _label_studio_names(root / "notes.json") or read_lines(root / name, tally)
    raise DataSetError(
        "the names of the classes are missing",
        where=str(root),
        expected="data.yaml with names:, or classes.txt with a name a line",
    )


def _label_studio_names(notes: Path) -> dict[str, Any] | None:
    """The names by number, as Label Studio's export tells them beside ``classes.txt``."""
    try:
        return {str(each["id"]): each["name"] for each in json.loads(notes.read_text("utf-8"))["categories"]}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


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
        body: the description; without parts in it, those of a split lie in folders that are called so.
        root: the folder of the description.
        files: what is there. Images are looked for in the first of its folders first.
        split: the part; None for all.
        tally: told of what is found elsewhere than it is said to be.
    """
    keys = _ALL if split is None else SPLITS.get(split, (split,))
    described = {key: _listed(body.get(key)) for key in dict.fromkeys((*_ALL, *keys)) if body.get(key)}
    wanted = Wanted()
    if not described:
        for path in _plain(root, files, tally):
            is_wanted = split is None or any(_is_of(part, keys) for part in files.parts(path)[:-1])
            (wanted.images if is_wanted else wanted.others)[path] = None
        return wanted
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
