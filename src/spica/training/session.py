"""One training of a project from its submissions to a judged version in the store; runs in the process that trains."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spica.boxes import Detections
from spica.detectors.card import read_card
from spica.detectors.contract import Detector
from spica.detectors.load import load_detector
from spica.detectors.weights import inspect
from spica.errors import DataSetError, ImageError, MediaError, SpicaError
from spica.evaluation.truth import Truth
from spica.images import decode
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.label_config import match_labels, parse_label_config
from spica.labelstudio.media import MediaReader
from spica.labelstudio.tokens import LabelStudioAuth
from spica.models import versions
from spica.models.version import ModelVersion
from spica.training import annotations as submissions
from spica.training import gate, holdout, initialise, loop
from spica.training.dataset import DataSet
from spica.training.gate import Verdict
from spica.training.photos import photos_in
from spica.training.process import Request
from spica.training.progress import Progress
from spica.training.recipe import Recipe

logger = logging.getLogger(__name__)

_SMALL = 60
"""With fewer images to learn from, none of them is spared to stop early by: the recipe's epochs are done."""

_VALID_SHARE = 0.1
_VALID_MIN = 5
_TELL_EVERY_S = 0.5

Tell = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Parent:
    """The version that answers now.

    Attributes:
        folder: with its files.
        id: in the store.
        names: of its classes as the project calls them; their own where the project does not know them.
        init: the folder, if a training can begin with it, else None.
        why_not: why it can't, None if it can.
    """

    folder: Path
    id: str
    names: tuple[str, ...]
    init: Path | None
    why_not: str | None


def run(request: Request, tell: Tell) -> dict[str, Any]:
    """Fetch, hold out, train, store, judge.

    Args:
        request: what to train.
        tell: called with fields of :class:`spica.training.runs.Run`.

    Returns:
        Fields of :class:`spica.training.runs.Run`, ``version``, ``verdict`` and ``learned`` among them.

    Raises:
        SpicaError: why nothing came of it; the store is as it was.
    """
    tell(stage="reading annotations")
    with _label_studio(request) as (client, media):
        data = submissions.fetch(
            client,
            media,
            request.project,
            photos_in(Path(request.data_dir)),
            progress=lambda done, total: tell(stage=f"reading annotations, task {done} of {total}"),
        )
        controls = parse_label_config(client.project(request.project).label_config).controls
    train, held = _held_out(request, data)
    tell(images=len(train.examples), boxes=train.boxes, holdout=len(held.examples), notes=[*data.problems][:5])
    parent = _parent(request, controls)
    trained, notes = _train(request, train, parent, tell)
    tell(stage="converting the network", eta_s=None)
    learned = {str(number): updated for number, updated in submissions.learned(data).items()}
    version = _store(request, data, train, trained, parent, learned)
    tell(stage="comparing it with the version that answers now", version=version.id)
    verdict, metrics = _judge(request, version, parent, held, tell)
    # what the store and the pages read, beside the gate's own words
    ruling = {**verdict.as_json(), "accepted": verdict.passed, "sentence": verdict.reason}
    versions.record(Path(request.data_dir), version.id, gate=ruling, metrics={"holdout": metrics})
    return {
        "stage": "done",
        "version": version.id,
        "verdict": ruling,
        "learned": learned,
        "notes": [*data.problems, *held.problems, *notes][:20],
    }


@contextmanager
def _label_studio(request: Request) -> Iterator[tuple[LabelStudioClient, MediaReader]]:
    root = request.settings.get("local_files_document_root")
    with (
        LabelStudioClient(request.label_studio_url, request.token) as client,
        MediaReader(
            label_studio_url=request.label_studio_url,
            auth=LabelStudioAuth(request.label_studio_url, request.token),
            document_root=Path(root) if root else None,
            media_dir=Path(request.settings["label_studio_data_dir"]) / "media",
            max_bytes=int(request.settings["max_image_bytes"]),
            timeout_s=float(request.settings["media_timeout_s"]),
        ) as media,
    ):
        yield client, media


def _held_out(request: Request, data: DataSet) -> tuple[DataSet, DataSet]:
    """What to learn from and what to judge by, decided once and for all before anything is trained."""
    path = holdout.path_of(Path(request.data_dir), request.project)
    train, held, frozen = holdout.split(
        data,
        holdout.read(path),
        share=float(request.settings["holdout_share"]),
        minimum=int(request.settings["holdout_min"]),
    )
    if not train.examples or not held.examples:
        raise DataSetError(
            "there are too few annotated images to train on some and judge by others",
            where=f"project {request.project}",
            expected="two images at least, better twenty",
            got=f"{len(data.examples)}" + (f"; {'; '.join(data.problems)}" if data.problems else ""),
            hint="annotate more images; near-duplicates count as one",
        )
    holdout.write(path, frozen)
    return train, held


def _parent(request: Request, controls: Sequence[Any]) -> Parent | None:
    if request.parent is None or request.parent_id is None:
        return None
    folder = Path(request.parent)
    info = inspect(folder)
    why_not = initialise.obstacle(info)
    names = _names(info.classes, controls)
    return Parent(folder, request.parent_id, names, folder if why_not is None else None, why_not)


def _names(classes: Sequence[str], controls: Sequence[Any]) -> tuple[str, ...]:
    """A model's classes as the project calls them: by the rules that its predictions are shown by."""
    found: list[str | None] = [None] * len(classes)
    for control in controls:
        labels = match_labels(classes, control).labels
        found = [before or label for before, label in zip(found, labels, strict=True)]
    return tuple(
        label or own or f"class {number}"
        for number, (label, own) in enumerate(zip(found, classes, strict=True), start=1)
    )


def _train(request: Request, train: DataSet, parent: Parent | None, tell: Tell) -> tuple[loop.Trained, list[str]]:
    init = parent.init if parent is not None else None
    notes: list[str] = []
    if parent is not None and init is None:
        notes.append(f"It begins with a new network, not with {parent.id}: {parent.why_not}.")
    data, valid = _spared(train)
    chosen: dict[str, Any] = {"norm_eps": float(request.settings["norm_eps"]), "threads": request.threads}
    chosen |= request.settings.get("recipe") or {}
    architecture = chosen.pop("architecture", None) or (inspect(init).architecture if init is not None else None)
    recipe = Recipe.for_data(len(data.examples), architecture, continued=init is not None, **chosen)
    tell(stage="training", epochs=recipe.epochs)
    trained = loop.train(
        data,
        valid,
        Path(request.folder) / "loop",
        recipe,
        init=init,
        init_classes=parent.names if parent is not None and init is not None else None,
        on_progress=_teller(tell),
    )
    return trained, [*notes, *trained.notes]


def _spared(train: DataSet) -> tuple[DataSet, DataSet | None]:
    """Some images to judge epochs by; not the held-out ones, which nothing may be chosen by."""
    if len(train.examples) < _SMALL:
        return train, None
    data, valid, _ = holdout.split(train, holdout.Frozen(), share=_VALID_SHARE, minimum=_VALID_MIN)
    return (data, valid) if valid.boxes and data.boxes else (train, None)


def _teller(tell: Tell) -> Callable[[Progress], None]:
    told = 0.0

    def on_progress(progress: Progress) -> None:
        nonlocal told
        if time.monotonic() - told < _TELL_EVERY_S and progress.step < progress.steps:
            return
        told = time.monotonic()
        losses = {"loss": round(float(progress.losses["loss"]), 4)} if "loss" in progress.losses else {}
        best = max((epoch.ap50 for epoch in progress.history if epoch.ap50 is not None), default=None)
        tell(
            stage="judging the epoch" if progress.judging else f"training, step {progress.step} of {progress.steps}",
            epoch=progress.epoch,
            epochs=progress.epochs,
            losses=losses if best is None else {**losses, "best mAP50": round(best, 4)},
            eta_s=None if progress.eta_s is None else round(progress.eta_s, 1),
        )

    return on_progress


def _store(
    request: Request,
    data: DataSet,
    train: DataSet,
    trained: loop.Trained,
    parent: Parent | None,
    learned: dict[str, str],
) -> ModelVersion:
    settings = request.settings
    return versions.add(
        Path(request.data_dir),
        trained.weights,
        name=f"project{request.project}",
        parent=parent.id if parent is not None and _is_stored(request, parent.id) else None,
        training={
            "project": request.project,
            "run": request.run,
            "fingerprint": train.fingerprint,
            "images": len(train.examples),
            "boxes": train.boxes,
            "annotated": len(data.examples),
            "seconds": round(trained.seconds, 1),
            "start": trained.start,
            "recipe": trained.recipe.as_json(),
            "history": [epoch.as_json() for epoch in trained.history],
            "learned": learned,
        },
        metrics={},
        score_floor=float(settings["score_floor"]),
        max_detections=int(settings["max_detections"]),
        norm_eps=float(settings["norm_eps"]),
    )


def _is_stored(request: Request, version: str) -> bool:
    return (Path(request.data_dir) / "models" / version).is_dir()


def _judge(
    request: Request, version: ModelVersion, parent: Parent | None, held: DataSet, tell: Tell
) -> tuple[Verdict, dict[str, Any]]:
    from spica.evaluation import coco

    candidate = load_detector(version, threads=request.threads)
    active, problem = _active(request, parent)
    truths: list[Truth] = []
    groups: list[str | None] = []
    theirs: list[Detections] = []
    ours: list[Detections] = []
    for number, example in enumerate(held.examples, start=1):
        tell(stage=f"comparing it with the version that answers now, image {number} of {len(held.examples)}")
        try:
            image = decode(
                example.path.read_bytes(), where=example.name, max_pixels=int(request.settings["max_pixels"])
            )
            answer = _answer(candidate, image.pixels, version.classes, held.classes)
            other = Detections.empty() if active is None else _answer(active[0], image.pixels, active[1], held.classes)
        except (ImageError, MediaError, OSError) as error:  # it has gone since it was read: it counts for neither
            logger.warning("hold-out, %s: %s", example.name, error)
            continue
        truths.append(example.truth)
        groups.append(example.group)
        ours.append(answer)
        theirs.append(other)
    verdict = gate.judge(
        truths,
        theirs if active is not None else None,
        ours,
        held.classes,
        threshold=float(request.settings["threshold"]),
        groups=groups,
    )
    if problem is not None:
        verdict = replace(verdict, reason=f"{verdict.reason} {problem}")
    return verdict, coco.evaluate(truths, ours, held.classes).as_json()


def _active(request: Request, parent: Parent | None) -> tuple[tuple[Detector, tuple[str, ...]] | None, str | None]:
    """What answers now, with its classes' names in the project; None and why if it can't be asked."""
    if parent is None:
        return None, None
    try:
        card = read_card(parent.folder)
        known = versions.open(Path(request.data_dir), parent.id) if _is_stored(request, parent.id) else None
        opened = known or ModelVersion(parent.folder, card, Path(request.data_dir) / "cache" / f"{parent.id}-compared")
        return (load_detector(opened, threads=request.threads), parent.names), None
    except SpicaError as error:
        logger.warning("the version that answers now can't be compared with: %s", error.one_line)
        return None, f"{parent.id} could not be asked ({error.what}), so it was compared with drawing by hand."


def _answer(detector: Detector, pixels: Any, names: Sequence[str], classes: Sequence[str]) -> Detections:
    """A detector's answer with the class ids of the data set; classes that it does not have are left out."""
    (found,) = detector.detect([pixels])
    ids = {name: number for number, name in enumerate(classes)}
    table = np.array([ids.get(name, -1) for name in names], np.int64)
    class_ids = table[found.class_ids] if len(found) else found.class_ids
    kept = class_ids >= 0
    return Detections(found.boxes_xyxy[kept], found.scores[kept], class_ids[kept])
