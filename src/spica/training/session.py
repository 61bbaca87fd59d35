"""One training of a project, from its submissions to a judged version in the store.

Run as a module it is the process that trains, started through :mod:`spica.detectors.child`: the process that serves
never imports torch, and a training that breaks breaks nothing else.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from spica.detectors import child
from spica.errors import DataSetError, TrainingError
from spica.files import storage_error
from spica.labelstudio.auth import LabelStudioAuth
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.config import RectangleControl, effective_threshold, parse_extra_params, parse_label_config
from spica.labelstudio.media import MediaReader, media_for
from spica.models import store
from spica.models.version import ModelVersion, weights_info
from spica.settings import Settings
from spica.training import holdout, submissions
from spica.training.dataset import DataSet
from spica.training.footprint import lacks_memory, lower_priority, watch_memory
from spica.training.judgement import Parent, judge, record_bf16
from spica.training.progress import Progress, Trained
from spica.training.recipe import Recipe
from spica.training.runs import TrainingJob

_REPORT_EVERY_S = 0.5

Report = Callable[..., None]


def main() -> int:
    """The process that trains; the exit status is 0 if a result or an error was reported."""
    lower_priority()
    return child.answer(_work)


def _work(request: dict[str, Any], answers: child.Answers) -> dict[str, Any]:
    job = TrainingJob.from_json(request)

    def exceeded(peak: int) -> None:
        answers.fail(_too_much(job, f"{peak // 2**20} MB"))
        os._exit(3)

    watch_memory(job.settings.train_memory_bytes, exceeded)
    try:
        return run(job, lambda **fields: answers(fields))
    except MemoryError:
        raise _too_much(job, "all there is") from None
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        raise _too_much(job, "all there is") from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise storage_error(error, job.folder) from error


def _too_much(job: TrainingJob, got: str) -> TrainingError:
    return TrainingError(
        "the training needs more memory than it may have",
        where=f"project {job.project}",
        expected=f"at most {job.settings.train_memory_bytes // 2**20} MB",
        got=got,
        hint="raise SPICA_TRAIN_MEMORY_BYTES, or train on a machine with more memory with `spica train`",
    )


def run(job: TrainingJob, report: Report) -> dict[str, Any]:
    """Fetch, hold out, train, store, judge.

    Args:
        job: what to train.
        report: called with fields of :class:`spica.training.runs.Run`.

    Returns:
        Fields of :class:`spica.training.runs.Run`, ``version``, ``verdict`` and ``learned`` among them.

    Raises:
        SpicaError: why nothing came of it; the store is as it was.
    """
    report(stage="reading annotations")
    data_dir = job.settings.data_dir
    with _label_studio(job.settings) as (client, media):
        controls = parse_label_config(client.known_project(job.project).label_config).controls
        threshold = _threshold(job, client, controls)
        data = submissions.fetch(
            client,
            media,
            job.project.number,
            submissions.image_cache(data_dir),
            progress=lambda done, total: report(stage=f"reading annotations, task {done} of {total}"),
            allow_partial=True,  # nobody is there to be asked: it goes on with what is sure, and its notes say so
        )
    learned = {str(number): updated for number, updated in submissions.learned(data).items()}
    train, held = _held_out(job, data)
    report(images=len(train.examples), boxes=train.boxes, holdout=len(held.examples), notes=[*data.problems][:5])
    parent = Parent.of(job, controls)
    trained, notes = _train(job, train, parent, report)
    report(stage="converting the network", eta_s=None)
    version = _store(job, data, train, trained, parent, learned)
    report(stage="comparing it with the active version", version=version.id)
    judgement = judge(job, version, parent, held, threshold=threshold, report=report)
    verdict = judgement.verdict
    # what the store and the pages read, beside the gate's own words
    ruling = {**verdict.as_json(), "accepted": verdict.passed, "sentence": verdict.reason}
    store.record(data_dir, version.id, gate=ruling, metrics={"holdout": judgement.metrics})
    notes += record_bf16(data_dir, version, judgement)
    return {
        "stage": "done",
        "version": version.id,
        "verdict": ruling,
        "learned": learned,
        "notes": [*data.problems, *held.problems, *notes][:20],
    }


@contextmanager
def _label_studio(settings: Settings) -> Iterator[tuple[LabelStudioClient, MediaReader]]:
    token = settings.label_studio_api_key
    assert token is not None  # noqa: S101 - no training begins without one
    secret = token.get_secret_value()
    with (
        LabelStudioClient(settings.label_studio_url, secret) as client,
        media_for(settings, LabelStudioAuth(settings.label_studio_url, secret)) as media,
    ):
        yield client, media


def _threshold(job: TrainingJob, client: LabelStudioClient, controls: Sequence[RectangleControl]) -> float:
    """The lowest score that the project shows, in [0, 1]: of its control tags, its model's extra params, the server."""
    models = client.backends(job.project.number)
    # Label Studio asks the first connected model only, with its extra params
    extra_params, _ = parse_extra_params(models[0].extra_params if models else None)
    default = job.settings.threshold
    return min((effective_threshold(default, extra_params, control) for control in controls), default=default)


def _held_out(job: TrainingJob, data: DataSet) -> tuple[DataSet, DataSet]:
    """What to learn from and what to judge by, decided for good before anything is trained."""
    train, held = holdout.divide(
        holdout.path_of(job.settings.data_dir, job.project),
        data,
        share=job.settings.holdout_share,
        minimum=job.settings.holdout_min,
    )
    if not train.examples or not held.examples:
        raise DataSetError(
            "there are too few annotated images to train on some and judge by others",
            where=f"project {job.project}",
            expected="two images at least, better twenty",
            got=f"{len(data.examples)}" + (f"; {'; '.join(data.problems)}" if data.problems else ""),
            hint="annotate more images; near-duplicates count as one",
        )
    return train, held


def _train(job: TrainingJob, train: DataSet, parent: Parent | None, report: Report) -> tuple[Trained, tuple[str, ...]]:
    from spica.training import loop  # needs torch
    from spica.training.samples import mixed

    init = parent.init if parent is not None else None
    notes: tuple[str, ...] = ()
    if parent is not None and init is None:
        notes = (f"It begins with a new network, not with {parent.id}: {parent.why_not}.",)
    seed = mixed(train.fingerprint, job.run) % 2**31  # a run after a refusal is another attempt, not the same again
    options: dict[str, Any] = {
        "norm_eps": job.settings.norm_eps,
        "threads": job.threads,
        "seed": seed,
    }
    options |= job.recipe
    architecture = options.pop("architecture", None) or (weights_info(init).architecture if init is not None else None)
    recipe = Recipe.for_data(len(train.examples), architecture, continued=init is not None, **options)
    report(stage="training", epochs=recipe.epochs)
    trained = loop.train(
        train,
        None,  # no image is spared to choose an epoch by: a few would choose by chance, and the held-out ones may not
        job.folder / "loop",
        recipe,
        init=init,
        init_classes=parent.names if parent is not None and init is not None else None,
        on_progress=_reporter(report),
    )
    return trained, (*notes, *trained.notes)


def _reporter(report: Report) -> Callable[[Progress], None]:
    latest = 0.0

    def on_progress(progress: Progress) -> None:
        nonlocal latest
        if time.monotonic() - latest < _REPORT_EVERY_S and progress.step < progress.steps:
            return
        latest = time.monotonic()
        report(
            stage=f"training, step {progress.step} of {progress.steps}",
            epoch=progress.epoch,
            epochs=progress.epochs,
            losses={"loss": round(float(progress.losses["loss"]), 4)} if "loss" in progress.losses else {},
            eta_s=None if progress.eta_s is None else round(progress.eta_s, 1),
        )

    return on_progress


def _store(
    job: TrainingJob,
    data: DataSet,
    train: DataSet,
    trained: Trained,
    parent: Parent | None,
    learned: dict[str, str],
) -> ModelVersion:
    return store.add(
        job.settings.data_dir,
        trained.weights,
        name=f"project{job.project}",
        parent=parent.id if parent is not None and parent.is_stored(job.settings.data_dir) else None,
        training={
            "project": job.project.number,
            "project_created": job.project.date,
            "run": job.run,
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
        score_floor=job.settings.score_floor,
        max_detections=job.settings.max_detections,
        norm_eps=job.settings.norm_eps,
    )


if __name__ == "__main__":
    sys.exit(main())
