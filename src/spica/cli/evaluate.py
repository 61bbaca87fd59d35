"""`spica evaluate`: how good a model is on annotated images."""

from __future__ import annotations

import importlib.util
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from spica.cli.console import count, err, identify, note, out
from spica.cli.data import DataOptions
from spica.cli.optimise import find_weights
from spica.cli.options import AnyWeights, Computing
from spica.cli.progress import Bar, working
from spica.errors import DataSetError, UsageError

if TYPE_CHECKING:
    from spica.boxes import Detections
    from spica.detectors.contract import Detector
    from spica.evaluation.report import Effort, Model, Report
    from spica.evaluation.truth import Truth
    from spica.models.version import ModelIdentity
    from spica.project import ProjectKey
    from spica.settings import Settings
    from spica.training.dataset import DataSet

SOME_FAILED = 3
"""Exit status if some images could not be judged."""

_MOST_FAILURES = 10


def evaluate(
    weights: AnyWeights,
    data: DataOptions,
    computing: Computing,
    everything: Annotated[
        bool, typer.Option("--all", help="Of a project all images, not only those held out of training.")
    ] = False,
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
) -> None:
    """Judge a model by annotated images: COCO's metrics, counts, and what is left for a person to correct.

    AP and AR take all boxes; --threshold decides which are shown and counted. Of a project that Spica trains on, only
    the images that are held out of training are judged by.

    [bold]Example[/bold]: spica evaluate gwhd.pth annotations.json --html gwhd.html

    [bold]Exit status[/bold]: 0 all images were judged whose labels are in no doubt (notes name those left out), 3 some
    of them could not be, 2 wrong usage, 1 other errors.
    """
    settings = data.settings(**computing.given())
    path = find_weights(weights, settings)
    json_path = None if json_file in (None, "-") else Path(json_file)
    _check_outputs({"--json": json_path, "--html": html_file, "--notes": data.notes}, [path, data.data])
    data.check("judge by")
    _require_packages(figures=html_file is not None)
    identity = identify(path, settings)  # a mistake in the first argument is said before the images are read
    notes: list[str] = []
    dataset, project = data.read(settings, split=split)
    if project is None:
        dataset, source = _grouped(dataset), str(data.data)
    else:
        dataset, source = _held_out(dataset, project, settings, notes, everything=everything)
    detector, model = _load(identity, settings, labels)
    report = _judge(detector, model, dataset, source, settings, notes)
    text = json.dumps(report.as_json(), ensure_ascii=False, indent=2)
    from spica.files import write_text

    if json_path is not None:
        write_text(json_path, text + "\n")
    if html_file is not None:
        write_text(html_file, report.as_html())
    if json_file == "-":
        print(text)
    else:
        _show(report)
    _show_trouble(report)
    written = [str(file) for file in (json_path, html_file) if file is not None]
    if written:
        err.print(f"Wrote {escape(' and '.join(written))}")
    if report.failures:
        raise typer.Exit(SOME_FAILED)


def _check_outputs(outputs: dict[str, Path | None], inputs: Sequence[Path | None]) -> None:
    """Raise if something would be written over what is read, or over another output.

    Raises:
        UsageError: it would.
    """
    taken = {path.resolve(): "what is read" for path in inputs if path is not None}
    for option, path in outputs.items():
        if path is None:
            continue
        if path.resolve() in taken:
            raise UsageError(
                f"this would be written over {taken[path.resolve()]}",
                where=f"{option} {path}",
                hint="give another file",
            )
        taken[path.resolve()] = f"what {option} writes"


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
    from spica.training import holdout

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
    """With tiles of one photo and near-duplicates marked, so that the interval does not take them for independent."""
    from spica.training.likeness import grouped

    with working("Looking for images that show the same thing …"):
        return grouped(dataset)


def _load(identity: ModelIdentity, settings: Settings, labels: str | None) -> tuple[Detector, Model]:
    from spica.evaluation.report import Model
    from spica.models import store
    from spica.models.load import load_detector
    from spica.models.serving import choose, served_id

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
    from spica.detectors.torch_gpu import cuda_available
    from spica.evaluation import counting
    from spica.evaluation.matching import match_all
    from spica.evaluation.metrics import evaluate as coco_metrics
    from spica.evaluation.predict import image_file, predict, reason
    from spica.evaluation.report import Data, Report, ap50_interval

    classes = map_classes(model.classes, dataset.classes, where=f"{model.id} and {source}")
    images = [
        image_file(each.path, max_pixels=settings.max_pixels, size=(each.truth.width, each.truth.height))
        for each in dataset.examples
    ]
    batch = 4 if cuda_available() else 1  # a processor computes one after the other anyway
    with Bar("Looking at images", transient=True) as bar:
        (predictions,) = predict([detector], images, batch=batch, between=lambda done: bar.show(done, len(images)))
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
        counting=counting.count(truths, detections, settings.threshold),
        effort=_effort(detections, truths, settings.threshold),
        failures=failures,
        notes=(*notes, *classes.notes, *dataset.problems),
        seconds_per_image=statistics.median(predictions.seconds.values()),
    )


def _effort(detections: Sequence[Detections], truths: Sequence[Truth], threshold: float) -> Effort:
    from spica.assistance.edits import Edits, cost_s, edits
    from spica.boxes import Detections
    from spica.evaluation.report import Effort

    total = by_hand = Edits()
    for predicted, truth in zip(detections, truths, strict=True):
        total += edits(predicted.where(predicted.scores >= threshold), truth)
        by_hand += edits(Detections.empty(), truth)
    return Effort(cost_s(total) / len(truths), cost_s(by_hand) / len(truths), total.as_json())


# --- on the screen ---------------------------------------------------------------------------------------------------


def _show(report: Report) -> None:
    """Tables on standard output."""
    metrics, counting, ap50 = report.metrics, report.counting, report.ap50
    out.print(
        f"[bold]{escape(report.model.id)}[/bold] ({escape(report.model.architecture)}, {report.model.precision}) on "
        f"{count(metrics.images, 'image')} with {count(metrics.objects, 'object')} from {escape(report.data.source)}"
    )
    between = "–" if ap50 is None or metrics.images < 2 else f"{ap50.low:.3f}–{ap50.high:.3f}"
    _table(
        ("", "AP50", "95 %", "AP", "AP75", "AR"),
        [("all", share(metrics.ap50), between, share(metrics.ap), share(metrics.ap75), share(metrics.ar))],
    )
    _table(
        ("class", "objects", "AP50", "AP"),
        [(escape(row.name), str(row.objects), share(row.ap50), share(row.ap)) for row in metrics.per_class],
    )
    _table(
        ("size", "objects", "AP", "AR"),
        [(name, str(row.objects), share(row.ap), share(row.ar)) for name, row in metrics.per_size.items()],
    )
    rows = [(report.shown, "as set"), *([(report.best, "highest F1")] if report.best is not None else [])]
    _table(
        ("score from", "precision", "recall", "F1", "right", "wrong", "missed"),
        [
            (
                f"{row.threshold:.2f} {word}",
                *(share(value) for value in (row.precision, row.recall, row.f1)),
                *(str(number) for number in (row.right, row.wrong, row.missed)),
            )
            for row, word in rows
        ],
    )
    if counting.bias is not None and counting.mae is not None:
        r2 = "" if counting.r2 is None else f", R² {counting.r2:.2f}"
        error = f"{counting.bias:+.1f} objects an image, mean error {counting.mae:.1f}{r2}"
        out.print(f"Counting at {counting.threshold:g}: {error}")
    if (effort := report.effort) is not None:
        kinds = ("kept", "moved", "relabelled", "deleted", "drawn")
        edits = ", ".join(f"{effort.edits[kind]} {kind}" for kind in kinds)
        out.print(f"To correct an image: about {effort.seconds:.0f} s, by hand {effort.by_hand:.0f} s ({edits})")
    if report.seconds_per_image is not None:
        out.print(f"Network: {report.seconds_per_image:.3g} s an image")


def _show_trouble(report: Report) -> None:
    """Notes and failures on standard error."""
    for text in report.notes:
        note(text)
    for name, reason in report.failures[:_MOST_FAILURES]:
        err.print(f"[red]Failed:[/red] {escape(name)}: {escape(reason)}")
    if len(report.failures) > _MOST_FAILURES:
        err.print(f"and {len(report.failures) - _MOST_FAILURES} more images that could not be judged")


def share(value: float | None) -> str:
    """Three decimals; a dash for what can't be said."""
    return "–" if value is None else f"{value:.3f}"


def _table(names: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number else "left", no_wrap=bool(number))
    for row in rows:
        table.add_row(*row)
    out.print(table, soft_wrap=False)
