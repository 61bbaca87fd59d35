"""The store of model versions: a folder each, made once for each content and settings that matter.

An id is ``<stem>-<8 hex digits>``. The digits come from all that the answers depend on, and from nothing else; the
weights file's stem before them is for people. A renamed file is therefore found again under the id it had first: the
version has not changed, since the answers can't have.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spica.detectors.architecture import eps_is_a_setting, own_eps
from spica.detectors.conversion import Request, convert
from spica.detectors.exported import ARCHITECTURES, save_exported
from spica.detectors.refusals import damaged
from spica.detectors.weights import WeightsInfo, inspect
from spica.errors import StorageError, WeightsError
from spica.files import discard, put_in_place, scratch, storage_error, sync, sync_folder
from spica.models.card import (
    CARD,
    WEIGHTS,
    Card,
    check_files,
    describe_files,
    read_card,
    version_folder,
    version_info,
)
from spica.models.locks import is_held, writing
from spica.models.version import ModelIdentity, ModelVersion, Origin
from spica.models.version_id import fingerprint, version_id

logger = logging.getLogger(__name__)

EXPORT_FORMAT = 2
"""Raised when the conversion changes so that answers can change. 2: images are scaled to torch's size to the pixel."""

Progress = Callable[[str], None]

_SPARE_BYTES = 100 * 2**20
_ATTEMPTS = 3
_PAUSES_S = (0.1, 0.4, 1.0)
"""A shared folder may not answer for a moment: between these pauses a version is read again."""
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
"""What no waiting mends."""


def prepare(
    weights: Path,
    *,
    data_dir: Path,
    score_floor: float,
    max_detections: int,
    norm_eps: float,
    architecture: str | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> ModelVersion:
    """:func:`identify` and :func:`ensure` at once."""
    identity = identify(
        weights,
        data_dir=data_dir,
        score_floor=score_floor,
        max_detections=max_detections,
        norm_eps=norm_eps,
        architecture=architecture,
    )
    return ensure(identity, data_dir=data_dir, progress=progress, stop=stop)


def identify(
    weights: Path,
    *,
    data_dir: Path,
    score_floor: float,
    max_detections: int,
    norm_eps: float,
    architecture: str | None = None,
) -> ModelIdentity:
    """What a weights file will be served as. Reads the file once, without torch and without running anything in it.

    Args:
        weights: a state_dict, a graph that Spica exported, or the folder of a model version.
        data_dir: the folder with the store; nothing is written there.
        score_floor: boxes with a lower score are never kept.
        max_detections: at most so many boxes an image.
        norm_eps: eps of frozen batch norm where the weights don't tell it; others don't depend on it.
        architecture: of weights that fit several networks (:func:`spica.detectors.weights.inspect`).

    Exported graphs and versions keep the floor, the limit and the eps they were exported with.

    Raises:
        WeightsError: the file can't be used.
    """
    folder = version_folder(weights)
    if folder is not None:
        card = read_card(folder)
        return identity_of(card, version_info(folder, card))
    info = inspect(weights, architecture)
    if info.architecture in ARCHITECTURES:  # of others, whose boxes are sorted out here
        return _identity(info, data_dir, score_floor=score_floor, max_detections=max_detections, norm_eps=None)
    if not info.needs_conversion:
        return _identity(info, data_dir, score_floor=0.0, max_detections=None, norm_eps=None)
    settable = eps_is_a_setting(info.architecture, info.norm or "batch")
    eps = norm_eps if settable else own_eps(info.architecture)
    return _identity(info, data_dir, score_floor=score_floor, max_detections=max_detections, norm_eps=eps)


def identity_of(card: Card, info: WeightsInfo) -> ModelIdentity:
    """What a version with a card of its own is served as."""
    return ModelIdentity(
        card.id, card.name, card.fingerprint, info, card.score_floor, card.max_detections, card.norm_eps, card
    )


def ensure(
    identity: ModelIdentity,
    *,
    data_dir: Path,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    origin: Origin | None = None,
) -> ModelVersion:
    """The version itself: from the store if it is there and sound, else made now, which may take a minute.

    Several processes may do this at once: each ends with the same whole version.

    Args:
        identity: from :func:`identify`, with the same ``data_dir``.
        data_dir: the folder with the store.
        progress: told what is being done, in a few words.
        stop: when set, a conversion under way is given up.
        origin: of a trained version, for its card.

    Raises:
        WeightsError: the weights are not usable, or torch is needed and missing.
        StorageError: the store can't be written, or the version in it can't be read now.
        ModelUnavailableError: ``stop`` was set.
    """
    if identity.card is not None:
        folder, card = identity.weights.path, identity.card
        return ModelVersion(folder, card, _cache_dir(identity, data_dir), _source(folder, card))
    for _ in range(_ATTEMPTS):
        found = _stored(identity, data_dir)
        if found is not None:
            return found
        _make(identity, data_dir, progress, stop, origin)
    raise StorageError(
        "a model version was made, but is damaged each time it is read back",
        where=str(_folder(identity, data_dir)),
        hint="check the disk, or choose another folder with --data-dir",
    )


def _identity(
    info: WeightsInfo, data_dir: Path, *, score_floor: float, max_detections: int | None, norm_eps: float | None
) -> ModelIdentity:
    content = fingerprint([info.sha256, info.architecture, norm_eps, score_floor, max_detections, EXPORT_FORMAT])
    return ModelIdentity(
        _known_id(content, data_dir, info.path.stem),
        info.path.stem,
        content,
        info,
        score_floor,
        max_detections,
        norm_eps,
    )


def _known_id(content: str, data_dir: Path, name: str) -> str:
    """The id that this content has in the store already, else a new one."""
    models, new = data_dir / "models", version_id(name, content)
    if (models / new).exists():
        return new
    for folder in sorted(models.glob(f"*-{new.rpartition('-')[2]}")):
        try:
            card = read_card(folder)
        except WeightsError:  # damaged; it will be made again under its own name
            continue
        if card.fingerprint == content and card.id == folder.name:
            return card.id
    return new


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
    return ModelVersion(folder, card, _cache_dir(identity, data_dir), _source(folder, card) or source)


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
    if not is_held(data_dir, identity.id):
        return False
    return any(
        not lease.name.startswith(f"{os.getpid()}-") for lease in (data_dir / "leases" / identity.id).glob("*.lock")
    )


def _source(folder: Path, card: Card) -> Path | None:
    """The weights beside the graph; versions made by the first Spica have none."""
    return folder / WEIGHTS if WEIGHTS in card.files else None


def _make(
    identity: ModelIdentity,
    data_dir: Path,
    progress: Progress | None,
    stop: threading.Event | None,
    origin: Origin | None,
) -> None:
    models = data_dir / "models"
    with scratch(models) as aside:
        _require_space(aside, 3 * identity.weights.nbytes + _SPARE_BYTES)
        try:
            if identity.weights.needs_conversion:
                metrics = {"verification": convert(_request(identity, aside), progress=progress, stop=stop)}
            else:
                metrics = {}
                _copy_graph(identity.weights, aside)
            if origin is not None:
                _copy_origin(identity.weights, origin, aside)
            _write_card(identity, aside, metrics, origin or Origin())
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


def _copy_origin(weights: WeightsInfo, origin: Origin, folder: Path) -> None:
    """The trained numbers themselves, if the conversion has not written them already, and what the training drew."""
    numbers = folder / WEIGHTS
    if weights.format == "safetensors" and not numbers.exists():
        shutil.copyfile(weights.path, numbers)
    for path in origin.extra_files:
        shutil.copyfile(path, folder / path.name)


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


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            "there is too little space on the disk for the converted model",
            where=str(folder.parent),
            expected=f"{needed // 2**20} MB",
            got=f"{free // 2**20} MB",
            hint="free some space, or choose another folder with --data-dir",
        )
