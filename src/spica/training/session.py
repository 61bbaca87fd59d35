"""One training of a project from its submissions to a judged version in the store; runs in the process that trains."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spica.errors import DataSetError
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.control_tags import RectangleControl
from spica.labelstudio.label_config import effective_threshold, parse_extra_params, parse_label_config
from spica.labelstudio.media import MediaReader
from spica.labelstudio.tokens import LabelStudioAuth
from spica.models import versions
from spica.models.card import weights_info
from spica.models.version import ModelVersion
from spica.training import holdout, loop, material, submissions
from spica.training import parent as parents
from spica.training.dataset import DataSet
from spica.training.formats.label_studio import class_names
from spica.training.judgement import judge, record_bf16
from spica.training.parent import Parent
from spica.training.process import Request
from spica.training.progress import Progress
from spica.training.recipe import Recipe
from spica.training.submissions import image_cache

_TELL_EVERY_S = 0.5
_LOOP = "loop"
"""Name of the folder with the checkpoints in a run's folder."""

Tell = Callable[..., None]


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
        controls = parse_label_config(client.known_project(request.project).label_config).controls
        threshold = _threshold(request, client, controls)
        data, notes = _material(request, client, media, controls, tell)
    train, held = _held_out(request, data)
    tell(images=len(train.examples), boxes=train.boxes, holdout=len(held.examples), notes=[*data.problems][:5])
    parent = parents.read(request, controls)
    trained, told = _train(request, train, parent, tell)
    tell(stage="converting the network", eta_s=None)
    learned = {str(number): updated for number, updated in submissions.learned(data).items()}
    version = _store(request, data, train, trained, parent, learned)
    tell(stage="comparing it with the version that answers now", version=version.id)
    judged = judge(request, version, parent, held, threshold=threshold, tell=tell)
    verdict = judged.verdict
    # what the store and the pages read, beside the gate's own words
    ruling = {**verdict.as_json(), "accepted": verdict.passed, "sentence": verdict.reason}
    versions.record(Path(request.data_dir), version.id, gate=ruling, metrics={"holdout": judged.metrics})
    notes = [*notes, *told, *record_bf16(Path(request.data_dir), version, judged)]
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


def _material(
    request: Request,
    client: LabelStudioClient,
    media: MediaReader,
    controls: tuple[RectangleControl, ...],
    tell: Tell,
) -> tuple[DataSet, list[str]]:
    """The annotated images: those that a run which is taken up has begun with, else those of now; and what to note."""
    from spica.training.checkpoints import LAST

    folder = Path(request.folder)
    notes: list[str] = []
    if (folder / _LOOP / LAST).exists():  # else nothing was learned yet, and the newest annotations are better
        kept, why_not = material.read(folder, parent=request.parent_id, classes=class_names(controls))
        if kept is not None:
            return kept, ["It was interrupted and went on with the annotations that it had begun with."]
        notes = [f"It was interrupted and began anew: {why_not}."] if why_not is not None else []
    data = submissions.fetch(  # nobody is there to be asked: it goes on with what is sure, and its notes say so
        client,
        media,
        request.project.number,
        image_cache(Path(request.data_dir)),
        progress=lambda done, total: tell(stage=f"reading annotations, task {done} of {total}"),
        allow_partial=True,
    )
    material.write(folder, data, parent=request.parent_id)
    return data, notes


def _threshold(request: Request, client: LabelStudioClient, controls: Sequence[RectangleControl]) -> float:
    """The lowest score that the project shows, in [0, 1]: of its control tags, its model's extra params, the server."""
    models = client.call("GET", "/api/ml/", params={"project": request.project.number})
    # Label Studio asks the first connected model only, with its extra params
    extra_params, _ = parse_extra_params(models[0].get("extra_params") if models else None)
    default = float(request.settings["threshold"])
    return min((effective_threshold(default, extra_params, control) for control in controls), default=default)


def _held_out(request: Request, data: DataSet) -> tuple[DataSet, DataSet]:
    """What to learn from and what to judge by, decided once and for all before anything is trained."""
    path = holdout.path_of(Path(request.data_dir), request.project)
    train, held = holdout.divide(
        path,
        data,
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
    return train, held


def _train(request: Request, train: DataSet, parent: Parent | None, tell: Tell) -> tuple[loop.Trained, list[str]]:
    from spica.training.photographs import mixed  # needs torch

    init = parent.init if parent is not None else None
    notes: list[str] = []
    if parent is not None and init is None:
        notes.append(f"It begins with a new network, not with {parent.id}: {parent.why_not}.")
    seed = mixed(train.fingerprint, request.run) % 2**31  # a run after a refusal is another attempt, not the same again
    chosen: dict[str, Any] = {"norm_eps": float(request.settings["norm_eps"]), "threads": request.threads, "seed": seed}
    chosen |= request.settings.get("recipe") or {}
    architecture = chosen.pop("architecture", None) or (weights_info(init).architecture if init is not None else None)
    recipe = Recipe.for_data(len(train.examples), architecture, continued=init is not None, **chosen)
    tell(stage="training", epochs=recipe.epochs)
    trained = loop.train(
        train,
        None,  # no image is spared to choose an epoch by: a few would choose by chance, and the held-out ones may not
        Path(request.folder) / _LOOP,
        recipe,
        init=init,
        init_classes=parent.names if parent is not None and init is not None else None,
        on_progress=_teller(tell),
    )
    return trained, [*notes, *trained.notes]


def _teller(tell: Tell) -> Callable[[Progress], None]:
    told = 0.0

    def on_progress(progress: Progress) -> None:
        nonlocal told
        if time.monotonic() - told < _TELL_EVERY_S and progress.step < progress.steps:
            return
        told = time.monotonic()
        losses = {"loss": round(float(progress.losses["loss"]), 4)} if "loss" in progress.losses else {}
        tell(
            stage=f"training, step {progress.step} of {progress.steps}",
            epoch=progress.epoch,
            epochs=progress.epochs,
            losses=losses,
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
        parent=parent.id if parent is not None and parents.is_stored(Path(request.data_dir), parent.id) else None,
        training={
            "project": request.project.number,
            "project_created": request.project.date,
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
