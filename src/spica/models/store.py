"""The store of model versions: a folder each, made once for each content and settings that matter.

An id is ``<stem>-<8 hex digits>``. The digits come from all that the answers depend on, and from nothing else; the
stem before them is for people. A renamed file is therefore found again under the id it had first: the version has not
changed, since the answers can't have.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spica.detectors.architecture import eps_is_a_setting, own_eps
from spica.detectors.checkpoint import read_safetensors
from spica.detectors.convert import Request, convert
from spica.detectors.exported import ARCHITECTURES, save_exported
from spica.detectors.refusals import damaged, shown
from spica.detectors.weights import WeightsInfo, inspect
from spica.errors import StorageError, UsageError, WeightsError
from spica.files import discard, put_in_place, scratch, storage_error, sync, sync_folder
from spica.models.card import (
    CARD,
    GRAPHS,
    MAX_CARD_BYTES,
    WEIGHTS,
    Card,
    check_files,
    describe_files,
    fingerprint,
    read_card,
    update_card,
    version_id,
)
from spica.models.locks import is_held, leases_of, writing
from spica.models.version import (
    ModelIdentity,
    ModelVersion,
    base_of,
    open_version,
    version_folder,
    version_info,
    weights_in,
)

logger = logging.getLogger(__name__)

EXPORT_FORMAT = 2
"""Raised when the conversion changes so that answers can change. 2: images are scaled to torch's size to the pixel."""

Progress = Callable[[str], None]

_SPARE_BYTES = 100 * 2**20
_ATTEMPTS = 3
_PAUSES_S = (0.1, 0.4, 1.0)
"""A shared folder may not answer for a moment: between these pauses a version is read again."""
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_CHUNK = 2**20
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_RESERVED = {CARD, *GRAPHS, "model.bin", WEIGHTS}


@dataclass(frozen=True, slots=True)
class Origin:
    """How a trained version came about; goes into its card (:class:`Card` has the same entries).

    Attributes:
        extra_files: curves and the like, copied into the version's folder under their own names.
    """

    parent: str | None = None
    base: str | None = None
    training: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    gate: Mapping[str, Any] | None = None
    extra_files: tuple[Path, ...] = ()


def prepare(
    weights: Path,
    *,
    data_dir: Path,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    **settings: Any,
) -> ModelVersion:
    """:func:`identify`, with these settings, and :func:`ensure` at once."""
    return ensure(identify(weights, data_dir=data_dir, **settings), data_dir=data_dir, progress=progress, stop=stop)


def identify(
    weights: Path,
    *,
    data_dir: Path,
    score_floor: float,
    max_detections: int,
    norm_eps: float,
    architecture: str | None = None,
) -> ModelIdentity:
    """What a weights file, a graph or the folder of a version will be served as.

    Reads it once, without torch and without running anything in it; nothing is written. Boxes with a score below
    ``score_floor`` are never kept, and at most ``max_detections`` an image; ``norm_eps`` is the eps of frozen batch
    norm where the weights don't say it. Graphs that Spica exported and versions keep theirs.

    Raises:
        WeightsError: the file can't be used.
    """
    folder = version_folder(weights)
    if folder is not None:
        return _identity_of_version(folder, read_card(folder), data_dir)
    info = inspect(weights, architecture)
    floor: float = score_floor
    limit: int | None = max_detections
    eps: float | None = None
    if info.needs_conversion:
        settable = eps_is_a_setting(info.architecture, info.norm or "batch")
        eps = norm_eps if settable else own_eps(info.architecture)
    elif info.architecture not in ARCHITECTURES:  # in which the boxes are sorted out already
        floor, limit = 0.0, None
    content = fingerprint([info.sha256, info.architecture, eps, floor, limit, EXPORT_FORMAT])
    stem = info.path.stem
    return ModelIdentity(_known_id(data_dir, stem, content), stem, content, info, floor, limit, eps)


def ensure(
    identity: ModelIdentity,
    *,
    data_dir: Path,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    origin: Origin | None = None,
) -> ModelVersion:
    """The version itself: from the store if it is there and sound, else made now, which may take a minute.

    Several processes may do this at once: each ends with the same whole version. ``progress`` is called with what is
    being done, in a few words; ``stop`` gives a conversion under way up; ``origin`` is for a trained version's card.

    Raises:
        WeightsError: the weights are not usable, or torch is needed and missing.
        StorageError: the store can't be written, or the version in it can't be read now.
        ModelUnavailableError: ``stop`` was set.
    """
    if identity.card is not None:
        folder, card = identity.weights.path, identity.card
        return ModelVersion(folder, card, _cache_dir(identity, data_dir), weights_in(folder, card))
    for _ in range(_ATTEMPTS):
        stored = _stored(identity, data_dir)
        if stored is not None:
            return stored
        _make(identity, data_dir, progress, stop, origin or Origin())
    raise StorageError(
        "a model version was made, but is damaged each time it is read back",
        where=str(_folder(identity, data_dir)),
        hint="check the disk, or choose another folder with --data-dir",
    )


def add(
    data_dir: Path,
    weights: Path,
    *,
    name: str,
    parent: str | None,
    training: Mapping[str, Any],
    metrics: Mapping[str, Any],
    gate: Mapping[str, Any] | None = None,
    extra_files: Sequence[Path] = (),
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    **settings: Any,
) -> ModelVersion:
    """Put trained weights into the store: converted in a child process, compared with torch, in place in one step.

    The id comes from the tensors, the file's metadata and the settings that answers depend on: the same weights give
    the same id however often they were saved, and adding them again keeps the first one's record. Metadata must
    therefore hold nothing that changes from one saving to the next, such as the time.

    ``weights`` is a ``.safetensors`` file, with architecture, classes and what else the network is built from in its
    metadata; ``settings`` are those of :func:`identify`, ``progress`` and ``stop`` those of :func:`ensure`.

    The records are JSON values. ``training``: what it learned from and how; ``images`` and ``boxes`` are shown in
    lists, ``fingerprint`` (of the data set) tells whether two versions learned from the same. ``metrics``: those of the
    hold-out under ``holdout``. ``gate``: ``accepted`` is true or false, ``sentence`` says why; without it
    :func:`record` it later. ``extra_files`` are curves and the like, kept under their own names.

    Raises:
        UsageError: an extra file's name can't be used, or the records are too long for a card.
        WeightsError: the weights can't be used, torch is missing, or the converted network answers differently.
        StorageError: the store can't be written; it is as it was.
        ModelUnavailableError: ``stop`` was set.
    """
    if weights.suffix.lower() != ".safetensors":
        raise UsageError("trained weights are kept as safetensors", where=str(weights), expected=WEIGHTS)
    _check_names(extra_files)
    length = len(json.dumps([training, metrics, gate], ensure_ascii=False, indent=2).encode("utf-8"))
    if length > MAX_CARD_BYTES // 2:
        raise UsageError(
            "the record of this training is too long for a card",
            where=str(weights),
            expected=f"at most {MAX_CARD_BYTES // 2} bytes of JSON",
            got=f"{length} bytes",
        )
    plain = identify(weights, data_dir=data_dir, **settings)
    kept = [plain.norm_eps, plain.score_floor, plain.max_detections, EXPORT_FORMAT]
    content = fingerprint([content_digest(weights), plain.architecture, list(plain.classes), *kept])
    identity = replace(plain, id=_known_id(data_dir, name, content), name=name, fingerprint=content)
    base = (base_of(data_dir, parent) or parent) if parent is not None else None
    origin = Origin(parent, base, dict(training), dict(metrics), dict(gate) if gate else None, tuple(extra_files))
    ensure(identity, data_dir=data_dir, progress=progress, stop=stop, origin=origin)
    version = open_version(data_dir, identity.id)
    if gate is not None and version.card.gate is None:
        return record(data_dir, version.id, gate=gate)
    return version


def record(
    data_dir: Path, version: str, *, gate: Mapping[str, Any] | None = None, metrics: Mapping[str, Any] | None = None
) -> ModelVersion:
    """Write the gate's verdict, or more metrics, into a version's card; every other entry stays as it is.

    Raises:
        UsageError: there is no such version.
        WeightsError: it is damaged.
        StorageError: it can't be written; the card is as it was.
    """
    with writing(data_dir):
        opened = open_version(data_dir, version)
        verdict = {"gate": dict(gate)} if gate is not None else {}
        card = update_card(opened.folder, metrics={**opened.card.metrics, **(metrics or {})}, **verdict)
    return replace(opened, card=card)


def content_digest(path: Path) -> str:
    """SHA-256 in hex over a safetensors file's tensors by name, their kinds, shapes and numbers, and its metadata.

    The library that writes these files orders their header at random: the same network saved again gives other bytes.

    Raises:
        WeightsError: the file is damaged.
    """
    _, metadata = read_safetensors(path)  # checks every bound
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode("utf-8"))
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items()):
            begin, end = entry["data_offsets"]
            digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode("utf-8"))
            file.seek(8 + length + begin)
            for start in range(begin, end, _CHUNK):
                wanted = min(_CHUNK, end - start)
                chunk = file.read(wanted)
                if len(chunk) != wanted:
                    raise damaged(path, f"{name} ends early")
                digest.update(chunk)
    return digest.hexdigest()


def _identity_of_version(folder: Path, card: Card, data_dir: Path) -> ModelIdentity:
    """Of a version anywhere; where the store has it too, of the store's, which may have more variants."""
    stored = data_dir / "models" / card.id
    with contextlib.suppress(WeightsError):
        known = read_card(stored)
        if stored.resolve() != folder.resolve() and known.files == card.files and known.classes == card.classes:
            return ModelIdentity.of_version(known, version_info(stored, known))
    return ModelIdentity.of_version(card, version_info(folder, card))


def require_space(folder: Path, nbytes: int, what: str) -> None:
    """Raise if the disk of a folder has no room for this many bytes, and some more.

    Raises:
        StorageError: it has not.
    """
    needed, free = nbytes + _SPARE_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"there is too little space on the disk for {what}",
            where=str(folder.parent),
            expected=f"{needed // 2**20} MB",
            got=f"{free // 2**20} MB",
            hint="free some space, or choose another folder with --data-dir",
        )


def _known_id(data_dir: Path, name: str, content: str) -> str:
    """The id that this content has in the store already, under whatever name, else a new one."""
    models, new = data_dir / "models", version_id(name, content)
    if (models / new).exists():
        return new
    for folder in sorted(models.glob(f"*-{content[:8]}")):
        try:
            card = read_card(folder)
        except WeightsError:  # damaged; it will be made again under its own name
            continue
        if card.fingerprint == content and card.id == folder.name:
            return card.id
    return new


def _check_names(files: Sequence[Path]) -> None:
    names = [path.name for path in files]
    for number, name in enumerate(names):
        if not _FILE_NAME.fullmatch(name) or name in _RESERVED or name in names[:number]:
            raise UsageError(
                "a file of this name can't be kept with a version",
                where=str(files[number]),
                expected=f"a plain name of its own, other than {', '.join(sorted(_RESERVED))}",
                got=shown(name),
            )


def _folder(identity: ModelIdentity, data_dir: Path) -> Path:
    return data_dir / "models" / identity.id


def _cache_dir(identity: ModelIdentity, data_dir: Path) -> Path:
    # the digest, because the id of a version that somebody copied here says nothing about its files
    return data_dir / "cache" / f"{identity.id}-{identity.sha256[:8]}"


def _stored(identity: ModelIdentity, data_dir: Path) -> ModelVersion | None:
    """The version in the store; None if it is missing, or was damaged and has been thrown away.

    Raises:
        StorageError: it can't be read now, or is damaged while another process serves it; nothing was thrown away.
    """
    folder = _folder(identity, data_dir)
    if not folder.exists():
        return None
    try:
        card = _card_of(identity, folder)
    except WeightsError:
        made_again = _discard_damaged(identity, data_dir)
        if made_again is None:
            return None
        card = made_again
    source = identity.weights.path if identity.weights.needs_conversion else None
    return ModelVersion(folder, card, _cache_dir(identity, data_dir), weights_in(folder, card) or source)


def _card_of(identity: ModelIdentity, folder: Path) -> Card:
    """The card of a version whose files are what it says.

    Raises:
        WeightsError: it is damaged.
        StorageError: it can't be read, also after some tries: on a shared folder that says nothing of the version.
    """
    for pause in (*_PAUSES_S, None):
        try:
            card = read_card(folder)
            if card.fingerprint != identity.fingerprint or card.id != identity.id:
                raise WeightsError("another version under this name", where=str(folder), got=card.fingerprint)
            check_files(folder, card)
        except (WeightsError, OSError) as error:
            failure = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(failure, OSError):
                raise
            if failure.errno in _MISSING:
                raise damaged(folder, f"a file is missing: {failure}") from error
            if pause is None:
                raise StorageError(
                    "a stored model version can't be read",
                    where=str(folder),
                    got=failure.strerror or type(failure).__name__,
                    hint="look whether the data folder is there, and can be read",
                ) from error
            time.sleep(pause)
        else:
            return card
    raise AssertionError  # the last pause is None


def _discard_damaged(identity: ModelIdentity, data_dir: Path) -> Card | None:
    """Throw a version away, unless another process serves it, or has made it anew meanwhile: then its card."""
    folder = _folder(identity, data_dir)
    with writing(data_dir):
        try:
            return _card_of(identity, folder)
        except WeightsError as error:
            if _is_served_elsewhere(identity, data_dir):
                raise StorageError(
                    "the stored model version is damaged, and can't be made again while another process serves it",
                    where=str(folder),
                    got=error.got,
                    hint="stop the other server, and start again",
                ) from error
            logger.warning("the stored model version is damaged and will be made again: %s", error.summary)
            discard(folder)
    return None


def _is_served_elsewhere(identity: ModelIdentity, data_dir: Path) -> bool:
    """Whether another process holds a lease; ours is taken before the version is opened."""
    leases = leases_of(data_dir, identity.id)
    return is_held(data_dir, identity.id) and any(
        not lease.name.startswith(f"{os.getpid()}-") for lease in leases.glob("*.lock")
    )


def _make(
    identity: ModelIdentity, data_dir: Path, progress: Progress | None, stop: threading.Event | None, origin: Origin
) -> None:
    models, weights = data_dir / "models", identity.weights
    with scratch(models) as aside:
        require_space(aside, 3 * weights.nbytes, "the converted model")
        try:
            metrics: dict[str, Any] = {}
            if weights.needs_conversion:
                metrics["verification"] = convert(_request(identity, aside), progress=progress, stop=stop)
            else:
                _copy_graph(weights, aside)
            trained = origin.training is not None and weights.format == "safetensors"
            if trained and not (aside / WEIGHTS).exists():
                shutil.copyfile(weights.path, aside / WEIGHTS)
            for path in origin.extra_files:
                shutil.copyfile(path, aside / path.name)
            _write_card(identity, aside, metrics, origin)
        except OSError as error:
            raise storage_error(error, models) from error
        sync(aside)  # else a power cut could leave the name, and files that are empty
        if put_in_place(aside, _folder(identity, data_dir)):
            sync_folder(models)
        else:
            logger.info("model version %s was made by another process meanwhile", identity.id)


def _request(identity: ModelIdentity, folder: Path) -> Request:
    weights = identity.weights
    return Request(
        weights=str(weights.path.resolve()),
        sha256=weights.sha256,
        folder=str(folder.resolve()),
        architecture=weights.architecture,
        classes=weights.classes,
        norm=weights.norm or "frozen",
        norm_eps=identity.norm_eps,
        score_floor=identity.score_floor,
        max_detections=identity.max_detections or 1000,
        input_size=weights.input_size,
    )


def _copy_graph(weights: WeightsInfo, folder: Path) -> None:
    copy = folder / ("model.onnx" if weights.format == "onnx" else "model.xml")
    if weights.format == "onnx" and weights.architecture in ARCHITECTURES:
        save_exported(weights.path, folder)
        copy = weights.path
    else:
        shutil.copyfile(weights.path, copy)
    if weights.format == "openvino":
        shutil.copyfile(weights.path.with_suffix(".bin"), copy.with_suffix(".bin"))
    if inspect(copy).sha256 != weights.sha256:
        raise WeightsError("the file has changed while it was copied", where=str(weights.path), hint="start again")


def _write_card(identity: ModelIdentity, folder: Path, metrics: dict[str, Any], origin: Origin) -> None:
    names = tuple(sorted(path.name for path in folder.iterdir()))
    weights = identity.weights
    card = Card(
        id=identity.id,
        name=identity.name,
        architecture=weights.architecture,
        classes=weights.classes,
        files=describe_files(folder, names),
        score_floor=identity.score_floor,
        max_detections=identity.max_detections,
        norm=weights.norm,
        norm_eps=identity.norm_eps,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        parent=origin.parent,
        base=origin.base,
        training=origin.training,
        gate=origin.gate,
        metrics={**origin.metrics, **metrics},
        fingerprint=identity.fingerprint,
        weights={"name": weights.path.name, "sha256": weights.sha256, "format": weights.format},
    )
    (folder / CARD).write_text(card.as_json(), "utf-8")
