"""A model version: a folder of files; and what weights will be served as before there is one."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from spica.detectors.exported import ARCHITECTURES
from spica.detectors.graph import data_files
from spica.detectors.refusals import other_graph, shown
from spica.detectors.weights import WeightsInfo, inspect, joined, trained_size
from spica.errors import UsageError, WeightsError
from spica.models.card import CARD, GRAPHS, WEIGHTS, Card, check_files, is_id, read_card

_DEEPEST = 1000
_SUFFIX = re.compile(r"(-bf16|-int8-[0-9a-f]{4})?(-t(a|[0-9]+)o[0-9]+)?(\.[0-9a-f]+)?")
"""What the name under which predictions are stored adds to a version's id: precision, tiles, recipe."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What a weights file will be served as; known in a moment, before any conversion.

    Attributes:
        id: what Label Studio sees as ``model_version``, and the folder's name in the store.
        name: for people, the weights file's stem.
        fingerprint: SHA-256 over all that the answers depend on, in hex; None for a version that has a card of its own.
        weights: what the file is.
        score_floor: boxes with a lower score are never kept.
        max_detections: at most this many boxes an image; None if an exported graph does not say.
        norm_eps: eps of the batch norm, None for exported graphs.
        card: of a version that has one already, whose folder is ``weights.path``; None for a weights file.
    """

    id: str
    name: str
    fingerprint: str | None
    weights: WeightsInfo
    score_floor: float
    max_detections: int | None
    norm_eps: float | None
    card: Card | None = None

    @classmethod
    def of_version(cls, card: Card, weights: WeightsInfo) -> ModelIdentity:
        """Of a version, which keeps the floor, the limit and the eps that it was exported with."""
        return cls(
            card.id, card.name, card.fingerprint, weights, card.score_floor, card.max_detections, card.norm_eps, card
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by class id; empty strings where the weights carry none."""
        return self.weights.classes

    @property
    def architecture(self) -> str:
        """The network's kind."""
        return self.weights.architecture

    @property
    def sha256(self) -> str:
        """Of the weights file, in hex."""
        return self.weights.sha256


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version whose files are there and are what its card says.

    Attributes:
        folder: where the files are.
        card: what they are.
        cache_dir: where the compiled graph may be kept; it can be deleted at any time.
        source: its weights, if torch can load them: those in the folder, else the file it was made from.
    """

    folder: Path
    card: Card
    cache_dir: Path
    source: Path | None = None

    @property
    def id(self) -> str:
        """What Label Studio sees as ``model_version``."""
        return self.card.id

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by class id; empty strings where the weights carry none."""
        return self.card.classes


# --- a version anywhere ---------------------------------------------------------------------------------------------


def weights_info(path: Path, architecture: str | None = None) -> WeightsInfo:
    """What a weights file is, or a model version: its folder, or the graph in it.

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
    digest = joined([entry.sha256 for _, entry in sorted(card.files.items())])
    return replace(unchecked_info(folder, card, digest), input_size=trained_size(weights_in(folder, card)))


def unchecked_info(folder: Path, card: Card, digest: str = "") -> WeightsInfo:
    """What a model version is as weights, by its card alone."""
    return WeightsInfo(
        folder,
        digest,
        "onnx" if card.graph == "model.onnx" else "openvino",
        card.architecture,
        card.classes,
        None,
        sum(entry.bytes for entry in card.files.values()),
        source=weights_in(folder, card),
    )


def weights_in(folder: Path, card: Card) -> Path | None:
    """The weights beside the graph; versions made by the first Spica have none."""
    return folder / WEIGHTS if WEIGHTS in card.files else None


def _has_its_numbers(folder: Path, card: Card) -> bool:
    """Whether all numbers of a version's ONNX file are in files that its card lists."""
    files = data_files(folder / card.graph)
    return not files or (card.architecture in ARCHITECTURES and all(file.name in card.files for file in files))


# --- the versions of a store: by id, and never by anything that could lead elsewhere --------------------------------


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


def answers_with(name: str, version: str) -> bool:
    """Whether the name of a project's predictions is that of a version, in whatever precision."""
    return name.startswith(version) and _SUFFIX.fullmatch(name[len(version) :]) is not None


def ids(data_dir: Path) -> list[str]:
    """The ids of all folders in the store, damaged ones included, sorted."""
    models = data_dir / "models"
    return (
        sorted(path.name for path in models.iterdir() if is_id(path.name) and path.is_dir()) if models.is_dir() else []
    )


def find_version(data_dir: Path, text: str) -> str:
    """The one id that a person means: the id itself, its beginning, or the eight digits at its end.

    Raises:
        UsageError: there is none, or more than one.
    """
    known = ids(data_dir)
    fitting = (
        [text] if text in known else [name for name in known if name.startswith(text) or name.endswith(f"-{text}")]
    )
    if len(fitting) == 1 and text:
        return fitting[0]
    raise UsageError(
        "several model versions begin or end like this" if len(fitting) > 1 else "there is no such model version",
        where=str(data_dir / "models"),
        expected="one of " + ", ".join((fitting or known)[:8]) if fitting or known else "no version is stored there",
        got=shown(text),
        hint="`spica models list` shows the ids; --data-dir says where they are",
    )


def open_version(data_dir: Path, version: str) -> ModelVersion:
    """A version whose every file has the digest that its card says. Reads all of its bytes.

    Raises:
        UsageError: no id, or no such version.
        WeightsError: damaged: the card can't be read, is another version's, or a file is missing or differs.
    """
    folder, card = folder_of(data_dir, version), peek(data_dir, version)
    digest = version_info(folder, card).sha256
    return ModelVersion(folder, card, data_dir / "cache" / f"{version}-{digest[:8]}", weights_in(folder, card))


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
    for name, entry in card.all_files.items():
        path = folder / name
        try:
            size = path.stat().st_size if path.is_file() else None
        except OSError:  # deleted between the two
            size = None
        if size != entry.bytes:
            raise _damaged(path, "missing" if size is None else f"{size} bytes instead of {entry.bytes}")
    return card


def base_of(data_dir: Path, version: str) -> str | None:
    """The id of the weights that a version's line began with; None for a version without any parent.

    It is the base that the nearest card names, else the farthest parent whose name is known.
    """
    seen, now = {version}, version
    for _ in range(_DEEPEST):
        try:
            card = read_card(folder_of(data_dir, now))
        except (WeightsError, UsageError):
            break
        if is_id(card.base):
            return card.base
        if not is_id(card.parent) or card.parent in seen:
            break
        now = str(card.parent)
        seen.add(now)
    return now if now != version else None


def _damaged(path: Path, got: str) -> WeightsError:
    return WeightsError(
        "this model version is damaged",
        where=str(path),
        expected=f"what its {CARD} says",
        got=shown(got),
        hint="restore the folder from a copy, import it again, or delete it with `spica models delete`",
    )
