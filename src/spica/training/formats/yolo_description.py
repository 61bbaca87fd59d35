"""What a YOLO folder says of itself: its description and the names of its classes.

The description is a yaml file as Ultralytics has it, or Darknet's ``obj.data``, which CVAT exports as "YOLO 1.1".
"""

from __future__ import annotations

import importlib
import json
import unicodedata
from pathlib import Path
from typing import Any, Final

from spica.errors import DataSetError
from spica.training.cleaning import Tally
from spica.training.formats.text import read_lines, read_text
from spica.training.formats.yolo_folder import SPLITS, find

_MAX_YAML: Final = 2**18  # letters; they take seconds, and a thousand names take 2**15
_MAX_NUMBER: Final = 9  # digits of a class
_NOT_NAMED: Final = "the names of the classes can't be read"


def yaml_files(folder: Path) -> list[Path]:
    """The yaml files of a folder, data.yaml first."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".yaml", ".yml") and path.is_file())
    return sorted(found, key=lambda path: path.stem not in ("data", "dataset"))


def damaged_yaml(folder: Path) -> list[Path]:
    """The yaml files of a folder that can't be read."""
    return [path for path in yaml_files(folder) if _attempt(path) is None]


def is_yolo(folder: Path) -> bool:
    """Whether a folder looks like this format."""
    if any((folder / name).is_file() for name in ("obj.data", "obj.names", "classes.txt", "labels/classes.txt")):
        return True
    if (folder / "labels").is_dir() and (folder / "images").is_dir():
        return True
    if any((folder / split / "labels").is_dir() for split in SPLITS):
        return True
    return any(_is_description(_attempt(path) or {}) for path in yaml_files(folder))


def describe(data: Path, tally: Tally) -> tuple[Path, dict[str, Any]]:
    """The description at or in ``data``, and the file it is from; empty if there is none.

    Other yaml files may lie there, such as ``args.yaml`` of a training: the one that names classes and images counts.

    Raises:
        DataSetError: several might be meant, or data.yaml is damaged: it may have had another order of classes.
    """
    if data.is_file():
        return data, _read_yaml(data, tally)
    files = yaml_files(data)
    usual = [path for path in files if path.stem in ("data", "dataset")]
    for path in usual[:1]:
        if (body := _read_yaml(path, tally)).get("names"):
            return path, body
    read = {path: body for path in files if _is_description(body := _attempt(path) or {})}
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
    return data, {}


def _is_description(body: dict[str, Any]) -> bool:
    return bool(body.get("names")) or isinstance(body.get("train"), str | list)


def _rank(body: dict[str, Any]) -> int:
    return 2 * bool(body.get("names")) + any(body.get(key) for key in ("train", "val", "valid", "path"))


def _attempt(path: Path) -> dict[str, Any] | None:
    try:
        return _read_yaml(path, Tally())
    except DataSetError:
        return None


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

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [str(key.value) for key, _ in node.value]
            if len(set(keys)) < len(keys):
                raise yaml.YAMLError(f"a key is there twice, from line {node.start_mark.line + 1} on")
            return super().construct_mapping(node, deep)

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


def _listed_names(root: Path, tally: Tally) -> list[str] | dict[str, str]:
    """The names that lie beside the images, a line each; the number of a Label Studio label is its category."""
    for name in ("classes.txt", "obj.names", "labels/classes.txt", "images/classes.txt"):
        if (root / name).is_file():
            lines = read_lines(root / name, tally)
            numbers = _label_studio_numbers(root / "notes.json")
            if len(numbers) != len(list(filter(None, lines))):
                return lines
            numbered = zip(numbers, lines, strict=False)  # the last end of line gives a line more
            return {number: name if numbers.count(number) == 1 else "" for number, name in numbered}
    raise DataSetError(
        "the names of the classes are missing",
        where=str(root),
        expected="data.yaml with names:, or classes.txt with a name a line",
    )


def _label_studio_numbers(notes: Path) -> list[str]:
    """The numbers of the lines of ``classes.txt``, as Label Studio's export tells them; none where it does not."""
    try:
        body = json.loads(notes.read_text("utf-8"))
        return [str(each["id"]) for each in body["categories"]] if body["info"]["contributor"] == "Label Studio" else []
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
