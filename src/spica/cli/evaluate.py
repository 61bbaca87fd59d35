"""`spica evaluate`: how good a model is on annotated images."""

from __future__ import annotations

import importlib.util
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from spica.cli.annotated import fetch_project, read_data, require_one
from spica.cli.console import err, identify, label_studio, settings_with
from spica.cli.evaluation_tables import show, tell
from spica.cli.optimise import find_weights
from spica.cli.options import (
    AllowPartial,
    AnnotatedData,
    AnnotatedProject,
    AnyWeights,
    ChosenPrecision,
    DataDir,
    Eps,
    ImagesOfData,
    MaxDetections,
    NotesFile,
    Overlap,
    Threshold,
    Tile,
    Token,
    Url,
)
from spica.cli.progress import Bar, working
from spica.errors import DataSetError, UsageError

if TYPE_CHECKING:
    from spica.boxes import Detections
    from spica.detectors.contract import Detector
    from spica.evaluation.predict import Predictions
    from spica.evaluation.report import Effort, Model, Report
    from spica.evaluation.truth import Truth
    from spica.project import ProjectKey
    from spica.settings import Settings
    from spica.training.dataset import DataSet

SOME_FAILED = 3
"""Exit status if some images could not be judged."""


def evaluate(
    weights: AnyWeights,
    data: AnnotatedData = None,
    project: AnnotatedProject = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Of a project all images, not only those held out of training.")
    ] = False,
    images: ImagesOfData = None,
    split: Annotated[
        str | None, typer.Option(help="Only this part (train, val, test) of a YOLO or VOC folder.", show_default="all")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="What the model's classes are called in the data, in their order, separated by commas.",
            show_default="the weights' own names",
        ),
    ] = None,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE|-", help="Write all figures for programs.", show_default=False),
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Write a page that needs nothing else.", show_default=False)
    ] = None,
    allow_partial: AllowPartial = False,
    notes_file: NotesFile = None,
    threshold: Threshold = None,
    norm_eps: Eps = None,
    max_detections: MaxDetections = None,
    precision: ChosenPrecision = None,
    tile: Tile = None,
    overlap: Overlap = None,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Judge a model by annotated images: COCO's metrics, counts, and what is left for a person to correct.

    AP and AR take all boxes; --threshold tells which are shown and counted. Of a project that Spica trains on, only the
    images that are held out of training are judged by.

    [bold]Example[/bold]: spica evaluate gwhd.pth annotations.json --html gwhd.html

    [bold]Exit status[/bold]: 0 all images judged, 3 some could not be, 2 wrong usage, 1 other errors.
    """
    require_one(data, project, "judge by", notes_file)
    _require_packages(figures=html_file is not None)
    given = {
        "threshold": threshold,
        "norm_eps": norm_eps,
        "max_detections": max_detections,
        "precision": precision,
        "tile": tile,
        "overlap": overlap,
    }
    if project is None:
        settings = settings_with(data_dir=data_dir, **given)
    else:
        settings = label_studio(url, token, data_dir, **given)
        settings = settings if data_dir is None else settings.model_copy(update={"data_dir": data_dir})
    path = find_weights(weights, settings)
    identify(path, settings)  # a mistake in the first argument is told before the images are read
    notes: list[str] = []
    if data is not None:
        dataset = _grouped(read_data(data, images, split=split, allow_partial=allow_partial, notes=notes_file))
        source = str(data)
    else:
        dataset, key = fetch_project(project or 0, settings, allow_partial=allow_partial, notes=notes_file)
        dataset, source = _held_out(dataset, key, settings, notes, everything=everything)
    detector, model = _load(path, settings, labels)
    report = _judge(detector, model, dataset, source, settings, notes)
    _write(report, json_file, html_file)
    if json_file != "-":
        show(report)
    tell(report)
    written = [str(each) for each in (json_file, html_file) if each not in (None, "-")]
    if written:
        err.print(f"Wrote {escape(' and '.join(written))}")
    if report.failures:
        raise typer.Exit(SOME_FAILED)


def _require_packages(*, figures: bool) -> None:
    wanted = {"faster_coco_eval": "faster-coco-eval", **({"matplotlib": "matplotlib"} if figures else {})}
    missing = [name for module, name in wanted.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(
            "packages that this command needs are not installed",
            expected=", ".join(missing),
            hint='pip install "spica[train]"',
        )


def _held_out(
    dataset: DataSet, project: ProjectKey, settings: Settings, notes: list[str], *, everything: bool
) -> tuple[DataSet, str]:
    """The hold-out of a project if there is one, and what it is called."""
    from spica.cli.projects import with_old_state
    from spica.training import holdout

    with_old_state(settings.data_dir, project)
    path = holdout.path_of(settings.data_dir, project)
    if everything and path.exists():
        notes.append("Versions that were trained on this project have seen most of these images: the metrics flatter.")
    if everything or not path.exists():
        return _grouped(dataset), f"project {project}"
    _, held, _ = holdout.split(dataset, holdout.read(path), share=settings.holdout_share, minimum=settings.holdout_min)
    if not held.examples:
        raise DataSetError(
            "no image of the project is held out of training",
            where=f"project {project}",
            hint="annotate more images, or judge by all with --all",
        )
    notes += dataset.problems  # the hold-out has problems of its own
    return held, f"the hold-out of project {project}"


def _grouped(dataset: DataSet) -> DataSet:
    """With tiles of one photo and near-duplicates told, so that the interval does not take them for independent."""
    from spica.training.likeness import grouped

    with working("Looking for images that show the same thing …"):
        return grouped(dataset)


def _load(path: Path, settings: Settings, labels: str | None) -> tuple[Detector, Model]:
    from spica.evaluation.report import Model
    from spica.models import store
    from spica.models.load import load_detector
    from spica.models.serving import choose, served_id

    identity = identify(path, settings)
    names = identity.classes if labels is None else tuple(label.strip() for label in labels.split(","))
    if len(names) != len(identity.classes):
        raise UsageError(
            "there are not as many labels as the model has classes",
            where=f"--labels {labels}",
            expected=f"{len(identity.classes)} names, separated by commas",
            got=str(len(names)),
        )
    with working("Loading the model …") as say:
        version = store.ensure(identity, data_dir=settings.data_dir, progress=say)
        serving = choose(identity, settings)
        detector = load_detector(version, threads=settings.threads, serving=serving)
    return detector, Model(served_id(identity, serving), identity.architecture, names, serving.precision)


def _judge(
    detector: Detector, model: Model, dataset: DataSet, source: str, settings: Settings, notes: list[str]
) -> Report:
    from spica.classes import map_classes
    from spica.evaluation.counting import count
    from spica.evaluation.matching import match_all
    from spica.evaluation.metrics import evaluate as coco_metrics
    from spica.evaluation.predict import reason
    from spica.evaluation.report import Data, Report, ap50_interval

    classes = map_classes(model.classes, dataset.classes, where=f"{model.id} and {source}")
    predictions = _predict(detector, dataset, settings)
    failures = tuple((dataset.examples[at].name, reason(error)) for at, error in predictions.errors.items())
    if not predictions.detections:
        raise DataSetError(
            "no image could be judged",
            where=source,
            got="; ".join(f"{name}: {why}" for name, why in failures[:3]) or "no images",
        )
    examples = [dataset.examples[at] for at in predictions.detections]
    truths = [example.truth for example in examples]
    detections = [classes.translate(each) for each in predictions.detections.values()]
    most = settings.max_detections
    matches = match_all(truths, detections, len(dataset.classes), max_detections=most)
    return Report(
        model=model,
        data=Data(source, dataset.classes, dataset.fingerprint),
        metrics=coco_metrics(truths, detections, dataset.classes, max_detections=most),
        ap50=ap50_interval(matches, [example.group for example in examples]),
        matches=matches,
        counting=count(truths, detections, settings.threshold),
        effort=_effort(detections, truths, settings.threshold),
        failures=failures,
        notes=(*notes, *classes.notes, *dataset.problems),
        seconds_per_image=statistics.median(predictions.seconds.values()),
    )


def _predict(detector: Detector, dataset: DataSet, settings: Settings) -> Predictions:
    from spica.detectors.torch_gpu import cuda_available
    from spica.evaluation.predict import image_file, predict

    images = [
        image_file(each.path, max_pixels=settings.max_pixels, size=(each.truth.width, each.truth.height))
        for each in dataset.examples
    ]
    with Bar("Looking at images", transient=True) as bar:
        batch = 4 if cuda_available() else 1  # a processor computes one after the other anyway
        (predictions,) = predict([detector], images, batch=batch, between=lambda done: bar.show(done, len(images)))
    return predictions


def _effort(detections: Sequence[Detections], truths: Sequence[Truth], threshold: float) -> Effort:
    from spica.assistance.edits import Edits, cost_s, edits
    from spica.boxes import Detections
    from spica.evaluation.report import Effort

    total = by_hand = Edits()
    for predicted, truth in zip(detections, truths, strict=True):
        total += edits(predicted.where(predicted.scores >= threshold), truth)
        by_hand += edits(Detections.empty(), truth)
    return Effort(cost_s(total) / len(truths), cost_s(by_hand) / len(truths), total.as_json())


def _write(report: Report, json_file: str | None, html_file: Path | None) -> None:
    from spica.files import write_text

    if json_file is not None:
        text = json.dumps(report.as_json(), ensure_ascii=False, indent=2)
        if json_file == "-":
            print(text)
        else:
            write_text(Path(json_file), text + "\n")
    if html_file is not None:
        write_text(html_file, report.as_html())
