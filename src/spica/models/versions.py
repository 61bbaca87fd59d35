"""Trained versions: put into the store, opened, listed.

A version is a folder like every other of the store (:mod:`spica.models.store`), with its parent, what it learned from,
its metrics and the gate's verdict in its card.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spica.detectors.refusals import shown
from spica.errors import UsageError, WeightsError
from spica.files import write_text
from spica.models import store
from spica.models.card import CARD, GRAPHS, MAX_CARD_BYTES, WEIGHTS, read_card
from spica.models.content import content_digest
from spica.models.folders import base_of, find, open_version, peek
from spica.models.listed import Listed, Use, listing
from spica.models.locks import writing
from spica.models.version import ModelIdentity, ModelVersion, Origin
from spica.models.version_id import fingerprint, version_id

__all__ = ["Listed", "Use", "add", "all", "find", "open", "peek", "record"]

open = open_version  # noqa: A001 - read as versions.open(…)
all = listing  # noqa: A001 - read as versions.all(…)

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_TAKEN = {CARD, *GRAPHS, "model.bin", WEIGHTS}


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
    score_floor: float,
    max_detections: int,
    norm_eps: float,
    progress: store.Progress | None = None,
    stop: threading.Event | None = None,
) -> ModelVersion:
    """Put trained weights into the store: converted in a child process, compared with torch, in place at one stroke.

    The id comes from the tensors, the file's metadata and the settings that answers depend on: the same weights give
    the same id however often they were saved, and adding them twice is once; the first one's record stays then.
    Metadata must therefore hold nothing that changes from one saving to the next, such as the time.

    Args:
        data_dir: the folder with the store.
        weights: a ``.safetensors`` file; architecture, classes and what else the network is built from in its metadata.
        name: for people, the beginning of the id.
        parent: id of the version that the training began with, None if with no version of the store.
        training: what it learned from and how, as JSON values. ``images`` and ``boxes`` are shown in lists,
            ``fingerprint`` (of the data set) tells whether two versions learned from the same.
        metrics: as JSON values; those of the hold-out under ``holdout``.
        gate: the verdict, if there is one already; else :func:`record` it. ``accepted`` in it is true or false, and
            ``sentence`` says why; refused versions are the first to go when the disk's share is used up.
        extra_files: curves and the like, kept in the version's folder under their own names.
        score_floor: boxes with a lower score are never kept.
        max_detections: at most so many boxes an image.
        norm_eps: eps of frozen batch norm; other weights don't depend on it.
        progress: told what is being done, in a few words.
        stop: when set, a conversion under way is given up.

    Raises:
        UsageError: an extra file's name can't be used, or the records are too long for a card.
        WeightsError: the weights can't be used, torch is missing, or the converted network answers differently.
        StorageError: the store can't be written; it is as it was.
        ModelUnavailableError: ``stop`` was set.
    """
    if weights.suffix.lower() != ".safetensors":
        raise UsageError("trained weights are kept as safetensors", where=str(weights), expected=WEIGHTS)
    _check_names(extra_files)
    told = len(json.dumps([training, metrics, gate], ensure_ascii=False, indent=2).encode("utf-8"))
    if told > MAX_CARD_BYTES // 2:
        raise UsageError(
            "too much is told of this training for a card",
            where=str(weights),
            expected=f"at most {MAX_CARD_BYTES // 2} bytes of JSON",
            got=f"{told} bytes",
        )
    identity = _identity(
        data_dir, weights, name, score_floor=score_floor, max_detections=max_detections, norm_eps=norm_eps
    )
    base = (base_of(data_dir, parent) or parent) if parent is not None else None
    origin = Origin(parent, base, dict(training), dict(metrics), dict(gate) if gate else None, tuple(extra_files))
    store.ensure(identity, data_dir=data_dir, progress=progress, stop=stop, origin=origin)
    version = open_version(data_dir, identity.id)
    if gate is not None and version.card.gate is None:
        return record(data_dir, version.id, gate=gate)
    return version


def record(
    data_dir: Path, version: str, *, gate: Mapping[str, Any] | None = None, metrics: Mapping[str, Any] | None = None
) -> ModelVersion:
    """Write the gate's verdict, or more metrics, into a version's card; every other entry stays as it is.

    Args:
        data_dir: the folder with the store.
        version: its id.
        gate: takes the place of an earlier verdict; None leaves it.
        metrics: added to those that are there, the same names replaced.

    Raises:
        UsageError: there is no such version.
        WeightsError: it is damaged.
        StorageError: it can't be written; the card is as it was.
    """
    with writing(data_dir):
        folder = open_version(data_dir, version).folder
        path = folder / CARD
        told = json.loads(path.read_text("utf-8"))
        if gate is not None:
            told["gate"] = dict(gate)
        told["metrics"] = {**(told.get("metrics") or {}), **(metrics or {})}
        write_text(path, json.dumps(told, ensure_ascii=False, indent=2) + "\n")
    return open_version(data_dir, version)


def _identity(data_dir: Path, weights: Path, name: str, **settings: Any) -> ModelIdentity:
    found = store.identify(weights, data_dir=data_dir, **settings)
    content = fingerprint(
        [
            content_digest(weights),
            found.architecture,
            list(found.classes),
            found.norm_eps,
            found.score_floor,
            found.max_detections,
            store.EXPORT_FORMAT,
        ]
    )
    return replace(found, id=_known_id(data_dir, name, content), name=name, fingerprint=content)


def _known_id(data_dir: Path, name: str, content: str) -> str:
    """The id that this content has in the store already, under whatever name, else a new one."""
    new = version_id(name, content)
    if not (data_dir / "models" / new).exists():
        for folder in sorted((data_dir / "models").glob(f"*-{content[:8]}")):
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
        if not _FILE_NAME.fullmatch(name) or name in _TAKEN or name in names[:number]:
            raise UsageError(
                "a file of this name can't be kept with a version",
                where=str(files[number]),
                expected=f"a plain name of its own, other than {', '.join(sorted(_TAKEN))}",
                got=shown(name),
            )
