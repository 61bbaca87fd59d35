"""The card of a model version: ``model.json`` in its folder, which says what the files are and what they hold."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spica.detectors.exported import ARCHITECTURES
from spica.detectors.graph import data_files
from spica.detectors.refusals import damaged, other_graph, shown
from spica.detectors.weights import WeightsInfo, inspect, joined
from spica.errors import WeightsError
from spica.files import patiently, sha256_file, storage_error
from spica.models.version_id import fingerprint, version_id

CARD = "model.json"
"""Name of the card in a version's folder."""

CARD_FORMAT = 1
"""Number of this layout of the card."""

WEIGHTS = "model.safetensors"
"""The state_dict in a version's folder, so that a training can begin with it and CUDA can load it."""

INPUT = {"name": "image", "layout": "CHW", "color": "RGB", "dtype": "float32", "range": [0, 1], "size": "native"}
"""What every graph is given: one image as it is, any size."""

GRAPHS = ("model.xml", "model.onnx")
"""The file that the runtime is given; ``model.xml`` goes with ``model.bin``."""

MAX_CARD_BYTES = 32 * 2**20
"""A card names every submission that its version has learned from: some 50 bytes each."""
_READERS = 4
"""Files that are hashed at the same time."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of a version: its SHA-256 in hex and its size."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Form:
    """A version in an arithmetic other than f32, and how it was checked against f32.

    Attributes:
        passed: whether ``auto`` may take it.
        check: what was measured, for people and programs; ``processor``, ``seconds`` and ``f32_seconds`` (medians an
            image) tell whether it is worth it on this machine.
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
        id: what Label Studio sees as ``model_version``, and the folder's name in the store; a card without one is given
            one that is derived from its name, its files and its classes.
        name: for people, the weights file's stem.
        architecture: torchvision's name, or the exporter's own.
        classes: names by class id, without the background; empty strings where the weights carry none.
        files: by name; one of ``GRAPHS`` is among them.
        score_floor: boxes with a lower score are not in the graph's answers.
        max_detections: the graph answers at most so many boxes; None if it does not say.
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
        precisions: other arithmetics than f32 by name, ``bf16`` and ``int8``, as far as they were made and checked.
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
    precisions: Mapping[str, Form] = field(default_factory=dict)

    @property
    def graph(self) -> str:
        """Name of the file that the runtime is given."""
        return next(name for name in GRAPHS if name in self.files)

    def as_json(self) -> str:
        """The text of ``model.json``."""
        told = {"format": CARD_FORMAT, **asdict(self), "input": INPUT}
        return json.dumps(told, ensure_ascii=False, indent=2) + "\n"


def read_card(folder: Path) -> Card:
    """The card in a version's folder; the files themselves are not looked at.

    Raises:
        WeightsError: missing, damaged, or of a later format.
    """
    path = folder / CARD
    try:
        if path.stat().st_size > MAX_CARD_BYTES:
            raise damaged(path, f"a card of {path.stat().st_size} bytes")
        told = json.loads(patiently(lambda: path.read_text("utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"a card that can't be read: {error}") from error
    if not isinstance(told, dict):
        raise damaged(path, "a card that is no JSON object")
    if told.get("format") != CARD_FORMAT:
        raise WeightsError(
            "this model version is of another format",
            where=str(path),
            expected=f"format {CARD_FORMAT}",
            got=shown(repr(told.get("format"))),
            hint="use the version of Spica that wrote it, or export it again",
        )
    try:
        return _card(told)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise damaged(path, f"a card with a wrong or missing entry: {error}") from error


def weights_info(path: Path, architecture: str | None = None) -> WeightsInfo:
    """What a weights file is, or a model version: its folder, or the graph in it.

    Args:
        path: the file or folder.
        architecture: of a state_dict that fits several networks (:func:`spica.detectors.weights.inspect`).

    Raises:
        WeightsError: missing, damaged, unsafe, or of a kind that is not served; each with its own message.
    """
    folder = version_folder(path)
    return inspect(path, architecture) if folder is None else version_info(folder, read_card(folder))


def version_folder(path: Path) -> Path | None:
    """The folder of the model version that a path is, or whose graph it is; None for a file on its own."""
    if path.is_dir():
        return path if (path / CARD).is_file() else None
    named = path.name in GRAPHS and (path.parent / CARD).is_file() and read_card(path.parent).graph == path.name
    return path.parent if named else None


def version_info(folder: Path, card: Card) -> WeightsInfo:
    """What a model version is as weights; every file is compared with the card.

    Raises:
        WeightsError: a file is missing or differs, or the graph's numbers are in files that the card doesn't list.
    """
    check_files(folder, card)
    is_onnx = card.graph == "model.onnx"
    if is_onnx and not _has_its_numbers(folder, card):
        raise other_graph(folder / card.graph, "a graph whose numbers are kept in other files")
    return WeightsInfo(
        folder,
        joined([entry.sha256 for _, entry in sorted(card.files.items())]),
        "onnx" if is_onnx else "openvino",
        card.architecture,
        card.classes,
        None,
        sum(entry.bytes for entry in card.files.values()),
    )


def _has_its_numbers(folder: Path, card: Card) -> bool:
    """Whether all numbers of a version's ONNX file are in files that its card lists."""
    graph = folder / card.graph
    files = data_files(graph)
    return not files or (card.architecture in ARCHITECTURES and all(file.name in card.files for file in files))


def check_files(folder: Path, card: Card) -> None:
    """Compare every file of the version, those of its other arithmetics too, with its card.

    Raises:
        WeightsError: a file is missing or differs.
    """
    own = [form.files for form in card.precisions.values()]
    found = [(folder / name, entry) for files in (card.files, *own) for name, entry in files.items()]
    for path, entry in found:
        if not path.is_file():
            raise damaged(path, "missing")
        if path.stat().st_size != entry.bytes:
            raise damaged(path, f"not the file that {CARD} describes")
    with ThreadPoolExecutor(_READERS) as pool:  # hashing lets other threads run, and every start waits for it
        digests = pool.map(sha256_file, (path for path, _ in found))
        for (path, entry), digest in zip(found, digests, strict=True):
            if digest != entry.sha256:
                raise damaged(path, f"not the file that {CARD} describes")


def describe_files(folder: Path, names: tuple[str, ...]) -> dict[str, FileEntry]:
    """Digests and sizes of files in a folder, for a new card."""
    return {name: FileEntry(sha256_file(folder / name), (folder / name).stat().st_size) for name in names}


def record_form(folder: Path, precision: str, form: Form) -> Card:
    """Write a form into the card of a version's folder; every other entry stays as it is.

    The card is replaced at one stroke: whoever reads it meets the old one or the new one. The files of the form must be
    there before.

    Args:
        folder: of the version.
        precision: ``bf16`` or ``int8``.
        form: with the check's result.

    Raises:
        WeightsError: the card can't be read.
        StorageError: the folder can't be written.
    """
    read_card(folder)
    path = folder / CARD
    told = json.loads(path.read_text("utf-8"))
    told["precisions"] = {**(told.get("precisions") or {}), precision: asdict(form)}
    aside = folder / f".{CARD}.{uuid.uuid4().hex}"
    try:
        aside.write_text(json.dumps(told, ensure_ascii=False, indent=2) + "\n", "utf-8")
        patiently(lambda: aside.replace(path))
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise storage_error(error, folder) from error
    return read_card(folder)


def _files(told: Any) -> dict[str, FileEntry]:
    return {
        _matching(_FILE_NAME, name): FileEntry(str(entry["sha256"]), int(entry["bytes"]))
        for name, entry in dict(told).items()
    }


def _form(told: dict[str, Any]) -> Form:
    files, graph = _files(told.get("files") or {}), told.get("graph")
    if (graph is None) == bool(files) or (graph is not None and graph not in files):
        raise ValueError("a form whose graph is not among its files")
    return Form(
        passed=bool(told["passed"]),
        check=dict(told.get("check") or {}),
        accepted_loss=bool(told.get("accepted_loss")),
        graph=graph,
        files=files,
    )


def _card(told: dict[str, Any]) -> Card:
    files = _files(told["files"])
    if not any(name in files for name in GRAPHS) or ("model.xml" in files and "model.bin" not in files):
        raise ValueError(f"files without {' or '.join(GRAPHS)}")
    classes = told["classes"]
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise ValueError("classes that are no list of names")
    limit, eps = told.get("max_detections"), told.get("norm_eps")
    name = str(told.get("name") or told.get("id") or "model")
    derived = version_id(name, fingerprint([sorted([key, entry.sha256] for key, entry in files.items()), classes]))
    return Card(
        id=_matching(_ID, told.get("id") or derived),
        name=name,
        architecture=str(told["architecture"]),
        classes=tuple(classes),
        files=files,
        score_floor=float(told.get("score_floor") or 0.0),
        max_detections=int(limit) if limit is not None else None,
        norm=told.get("norm"),
        norm_eps=float(eps) if eps is not None else None,
        created=told.get("created"),
        parent=told.get("parent"),
        base=told.get("base"),
        training=told.get("training"),
        gate=dict(told["gate"]) if told.get("gate") else None,
        metrics=dict(told.get("metrics") or {}),
        fingerprint=told.get("fingerprint"),
        weights=dict(told.get("weights") or {}),
        precisions={str(name): _form(dict(form)) for name, form in dict(told.get("precisions") or {}).items()},
    )


def _matching(pattern: re.Pattern[str], text: object) -> str:
    if not isinstance(text, str) or not pattern.fullmatch(text):
        raise ValueError(f"{shown(repr(text))}, which is no plain name")
    return text
