"""The card of a model version: ``model.json`` in its folder, which says what the files are and what they hold."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spica.detectors.refusals import damaged, shown
from spica.errors import WeightsError
from spica.files import patiently, sha256_file, write_text

CARD = "model.json"
"""Name of the card in a version's folder."""

CARD_FORMAT = 1
"""Number of this layout of the card."""

WEIGHTS = "model.safetensors"
"""The state_dict in a version's folder, so that a training can begin with it and CUDA can load it."""

INPUT = {"name": "image", "layout": "CHW", "color": "RGB", "dtype": "float32", "range": [0, 1], "size": "native"}
"""What every graph takes: one image as it is, any size."""

GRAPHS = ("model.xml", "model.onnx")
"""The file that the runtime loads; ``model.xml`` goes with ``model.bin``."""

MAX_CARD_BYTES = 32 * 2**20
"""A card names every submission that its version has learned from: some 50 bytes each."""

_READERS = 4
"""Files that are hashed at the same time."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_SLUG_CHARS = 40


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of a version: its SHA-256 in hex and its size."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Variant:
    """A version in a precision other than f32, and how it was checked against f32.

    Attributes:
        passed: whether ``auto`` may take it.
        check: what was measured; ``processor``, ``seconds`` and ``f32_seconds`` (medians an image) tell whether it is
            worth it on this machine.
        accepted_loss: it did not pass, and somebody accepted that.
        graph: name of the graph of its own that it needs, None if it is the version's.
        files: of that graph, by name. They are not among the version's files: the version is the same without them.
    """

    passed: bool
    check: Mapping[str, Any] = field(default_factory=dict)
    accepted_loss: bool = False
    graph: str | None = None
    files: Mapping[str, FileEntry] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether ``auto`` may take it, passed or accepted."""
        return self.passed or self.accepted_loss

    @property
    def digits(self) -> str:
        """Four hex digits that tell this graph from another of the same version; empty without one of its own."""
        if not self.files:
            return ""
        joined = "\n".join(entry.sha256 for _, entry in sorted(self.files.items()))
        return hashlib.sha256(joined.encode("ascii")).hexdigest()[:4]


@dataclass(frozen=True, slots=True)
class Card:
    """What ``model.json`` says.

    Attributes:
        id: what Label Studio sees as ``model_version``, and the folder's name in the store; derived from name, files
            and classes where the card says none.
        name: for people, the weights file's stem.
        architecture: torchvision's name, or the exporter's own.
        classes: names by class id, without the background; empty strings where the weights carry none.
        files: by name; one of ``GRAPHS`` is among them.
        score_floor: boxes with a lower score are not in the graph's answers.
        max_detections: the graph answers at most this many boxes; None if it does not say.
        norm: ``frozen`` or ``batch``, None where it does not apply.
        norm_eps: eps of the batch norm in the graph, None where it does not apply.
        created: UTC, ISO 8601.
        parent: id of the version this one was trained from.
        base: id of the weights that the line of trained versions began with, None for a version that was not trained.
        training: what it was trained on and how, for a trained version.
        gate: the gate's verdict on it, None before it was judged.
        metrics: what was measured, the check against torch included.
        fingerprint: SHA-256 over all that the answers depend on, of which the id shows the first digits.
        weights: name, sha256 and format of the file it was made from.
        precisions: the variants by name, ``bf16`` and ``int8``, as far as they were made and checked.
    """

    id: str
    name: str
    architecture: str
    classes: tuple[str, ...]
    files: Mapping[str, FileEntry]
    score_floor: float = 0.0
    max_detections: int | None = None
    norm: str | None = None
    norm_eps: float | None = None
    created: str | None = None
    parent: str | None = None
    base: str | None = None
    training: Any = None
    gate: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str | None = None
    weights: Mapping[str, Any] = field(default_factory=dict)
    precisions: Mapping[str, Variant] = field(default_factory=dict)

    @property
    def graph(self) -> str:
        """Name of the file that the runtime loads."""
        return next(name for name in GRAPHS if name in self.files)

    @property
    def all_files(self) -> dict[str, FileEntry]:
        """All files by name, those of the variants too; the card itself is not among them."""
        own = [variant.files for variant in self.precisions.values()]
        return {name: entry for files in (self.files, *own) for name, entry in files.items()}

    def as_json(self) -> str:
        """The text of ``model.json``."""
        return _text({"format": CARD_FORMAT, **asdict(self), "input": INPUT})


def fingerprint(matters: object) -> str:
    """SHA-256 in hex over all that the answers depend on, as JSON values."""
    return hashlib.sha256(json.dumps(matters).encode("utf-8")).hexdigest()


def version_id(name: str, content: str) -> str:
    """``<slug of the name>-<first 8 digits of the fingerprint>``; letters, digits and dashes of ASCII alone."""
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode("ascii")
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_only.lower())[:_SLUG_CHARS].strip("-")
    return f"{slug or 'model'}-{content[:8]}"


def is_id(text: object) -> bool:
    """Whether a text could be the id of a version."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def read_card(folder: Path) -> Card:
    """The card in a version's folder; the files themselves are not looked at.

    Raises:
        WeightsError: missing, damaged, or of a later format.
    """
    path, entries = folder / CARD, _entries(folder)
    if entries.get("format") != CARD_FORMAT:
        raise WeightsError(
            "this model version is of another format",
            where=str(path),
            expected=f"format {CARD_FORMAT}",
            got=shown(repr(entries.get("format"))),
            hint="use the version of Spica that wrote it, or export it again",
        )
    try:
        return _card(entries)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise damaged(path, f"a card with a wrong or missing entry: {error}") from error


def update_card(folder: Path, **entries: Any) -> Card:
    """Replace entries of a version's card, in one step; all others stay as they are, those of later versions too.

    Raises:
        WeightsError: the card can't be read.
        StorageError: the folder can't be written; the card is as it was.
    """
    read_card(folder)
    write_text(folder / CARD, _text({**_entries(folder), **entries}))
    return read_card(folder)


def record_variant(folder: Path, precision: str, variant: Variant) -> Card:
    """Write a variant, ``bf16`` or ``int8``, into a version's card; its files must be there before.

    Raises:
        WeightsError: the card can't be read.
        StorageError: the folder can't be written; the card is as it was.
    """
    known = _entries(folder).get("precisions") or {}
    return update_card(folder, precisions={**known, precision: asdict(variant)})


def check_files(folder: Path, card: Card) -> None:
    """Compare every file of the version, those of its variants too, with its card.

    Raises:
        WeightsError: a file is missing or differs.
    """
    own = [variant.files for variant in card.precisions.values()]
    listed = [(folder / name, entry) for files in (card.files, *own) for name, entry in files.items()]
    for path, entry in listed:
        if not path.is_file():
            raise damaged(path, "missing")
        if path.stat().st_size != entry.bytes:
            raise damaged(path, f"not the file that {CARD} describes")
    with ThreadPoolExecutor(_READERS) as pool:  # hashing lets other threads run, and every start waits for it
        digests = pool.map(sha256_file, (path for path, _ in listed))
        for (path, entry), digest in zip(listed, digests, strict=True):
            if digest != entry.sha256:
                raise damaged(path, f"not the file that {CARD} describes")


def describe_files(folder: Path, names: tuple[str, ...]) -> dict[str, FileEntry]:
    """Digests and sizes of files in a folder, for a new card."""
    return {name: FileEntry(sha256_file(folder / name), (folder / name).stat().st_size) for name in names}


def _entries(folder: Path) -> dict[str, Any]:
    path = folder / CARD
    try:
        if path.stat().st_size > MAX_CARD_BYTES:
            raise damaged(path, f"a card of {path.stat().st_size} bytes")
        entries = json.loads(patiently(lambda: path.read_text("utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"a card that can't be read: {error}") from error
    if not isinstance(entries, dict):
        raise damaged(path, "a card that is no JSON object")
    return entries


def _text(entries: dict[str, Any]) -> str:
    return json.dumps(entries, ensure_ascii=False, indent=2) + "\n"


def _files(entries: Any) -> dict[str, FileEntry]:
    return {
        _matching(_FILE_NAME, name): FileEntry(str(entry["sha256"]), int(entry["bytes"]))
        for name, entry in dict(entries).items()
    }


def _variant(entries: dict[str, Any]) -> Variant:
    files, graph = _files(entries.get("files") or {}), entries.get("graph")
    if (graph is None) == bool(files) or (graph is not None and graph not in files):
        raise ValueError("a variant whose graph is not among its files")
    return Variant(
        passed=bool(entries["passed"]),
        check=dict(entries.get("check") or {}),
        accepted_loss=bool(entries.get("accepted_loss")),
        graph=graph,
        files=files,
    )


def _card(entries: dict[str, Any]) -> Card:
    files = _files(entries["files"])
    if not any(name in files for name in GRAPHS) or ("model.xml" in files and "model.bin" not in files):
        raise ValueError(f"files without {' or '.join(GRAPHS)}")
    classes = entries["classes"]
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise ValueError("classes that are no list of names")
    limit, eps = entries.get("max_detections"), entries.get("norm_eps")
    name = str(entries.get("name") or entries.get("id") or "model")
    derived = version_id(name, fingerprint([sorted([key, entry.sha256] for key, entry in files.items()), classes]))
    return Card(
        id=_matching(_ID, entries.get("id") or derived),
        name=name,
        architecture=str(entries["architecture"]),
        classes=tuple(classes),
        files=files,
        score_floor=float(entries.get("score_floor") or 0.0),
        max_detections=int(limit) if limit is not None else None,
        norm=entries.get("norm"),
        norm_eps=float(eps) if eps is not None else None,
        created=entries.get("created"),
        parent=entries.get("parent"),
        base=entries.get("base"),
        training=entries.get("training"),
        gate=dict(entries["gate"]) if entries.get("gate") else None,
        metrics=dict(entries.get("metrics") or {}),
        fingerprint=entries.get("fingerprint"),
        weights=dict(entries.get("weights") or {}),
        precisions={str(key): _variant(dict(entry)) for key, entry in dict(entries.get("precisions") or {}).items()},
    )


def _matching(pattern: re.Pattern[str], text: object) -> str:
    if not isinstance(text, str) or not pattern.fullmatch(text):
        raise ValueError(f"{shown(repr(text))}, which is no plain name")
    return text
