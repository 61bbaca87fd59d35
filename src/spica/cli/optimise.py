"""`spica models optimise`: faster forms of a model, made and checked with the user's own photographs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from spica.cli.console import identify, note, out, settings_with
from spica.cli.data import note_problems
from spica.cli.options import AnyWeights, DataDir, Eps, MaxDetections, Threshold
from spica.cli.progress import working
from spica.errors import DataSetError, WeightsError
from spica.settings import Settings

if TYPE_CHECKING:
    from spica.models.checks import Check
    from spica.models.optimise import KnownImage, Report, Row
    from spica.training.dataset import Example


def optimise(
    weights: AnyWeights,
    images: Annotated[
        Path,
        typer.Option(help="Folder of photographs of your own, sub-folders included.", show_default=False),
    ],
    truth: Annotated[
        Path | None,
        typer.Option(help="COCO file with the boxes of these photographs: AP50 decides then.", show_default=False),
    ] = None,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Install a form that loses too much, and write that into the card.")
    ] = False,
    data_dir: DataDir = None,
    threshold: Threshold = None,
    norm_eps: Eps = None,
    max_detections: MaxDetections = None,
) -> None:
    """Make the int8 form of a model with your own photographs, and check it and bf16 against f32.

    What passes is taken by `--precision auto` from the next start on. With --truth a form may lose half a point of AP50
    at most; without it, its boxes must agree with those of f32.

    [bold]Example[/bold]: spica models optimise gwhd.pth --images photos --truth boxes.json
    """
    from spica.models import store
    from spica.models.optimise import find_photographs, require_packages
    from spica.models.optimise import optimise as make

    settings = settings_with(data_dir=data_dir, threshold=threshold, norm_eps=norm_eps, max_detections=max_detections)
    identity = identify(find_weights(weights, settings), settings)
    require_packages(identity.architecture, truth=truth is not None)
    photographs = find_photographs(images)
    known = read_truth(truth, images, identity.classes) if truth is not None else None
    with working() as say:
        version = store.ensure(identity, data_dir=settings.data_dir, progress=say)
        report = make(version, photographs, settings, truth=known, accept_loss=accept_loss, progress=say)
    print_report(report, accept_loss=accept_loss)
    if report.refused:
        raise WeightsError(
            f"{' and '.join(report.refused)} lost too much and {'is' if len(report.refused) == 1 else 'are'} not used",
            where=str(version.folder),
            expected="at most half a point of AP50 less than f32" if known is not None else _agreement_wanted(),
            got="; ".join(f"{row.precision}: {row.check.result}" for row in _refused(report) if row.check is not None),
            hint="give more photographs, of all kinds that will come; or accept it with --accept-loss",
        )


def find_weights(told: str, settings: Settings) -> Path:
    """A path that exists, else a version in the store by its id; else the path, to be refused as such."""
    stored = settings.data_dir / "models" / told
    is_id = told == Path(told).name and told not in ("", ".", "..")
    return stored if not Path(told).exists() and is_id and stored.is_dir() else Path(told)


def read_truth(path: Path, folder: Path, classes: Sequence[str]) -> tuple[KnownImage, ...]:
    """What an annotated data set says about photographs, read as it is read to be learned from.

    Classes are met by name; where the model's have no names, by their order, and there must be as many.

    Args:
        path: of the data set.
        folder: of the photographs.
        classes: of the model, by class id.

    Raises:
        DataSetError: no data set, other images, or other classes.
    """
    import numpy as np

    from spica.classes import map_classes
    from spica.models.optimise import KnownImage
    from spica.training.sources import load

    dataset = load(path, images=folder, allow_partial=True)
    note_problems(dataset)
    used = sorted({int(each) for example in dataset.examples for each in example.truth.class_ids})
    known = list(range(len(dataset.classes)))
    if not any(classes) and len(known) != len(classes):
        known = used  # some tools add a category without boxes above the others
    mapped = map_classes(classes, [dataset.classes[number] for number in known]).class_ids
    own = {known[place]: class_id for class_id, place in reversed(list(enumerate(mapped))) if place >= 0}
    strange = [dataset.classes[number] for number in used if number not in own]
    if strange:
        raise DataSetError(
            "the truth file has other classes than the model",
            where=str(path),
            expected=", ".join(filter(None, classes)) or f"so many classes: {len(classes)}",
            got=", ".join(strange),
            hint="rename the classes in the file to the model's" if any(classes) else None,
        )

    def known_image(example: Example) -> KnownImage:
        class_ids = np.array([own[int(number)] for number in example.truth.class_ids], np.int64)
        return KnownImage(example.path, dataclasses.replace(example.truth, class_ids=class_ids))

    return tuple(map(known_image, dataset.examples))


def _refused(report: Report) -> list[Row]:
    return [row for row in report.rows if row.precision in report.refused]


def _agreement_wanted() -> str:
    from spica.detectors.comparison import MAX_MEDIAN_SCORE, MIN_MEDIAN_IOU, MIN_SHARE

    alike = f"an IoU of {MIN_MEDIAN_IOU} and scores within {MAX_MEDIAN_SCORE} in the middle"
    return f"{MIN_SHARE:.0%} of the boxes in common with f32, with {alike}"


def print_report(report: Report, *, accept_loss: bool) -> None:
    """The table, and what it was made of."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    with_truth = any(row.metrics is not None for row in report.rows)
    table = Table(
        title=escape(report.version.id), title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0)
    )
    names = ("AP", "AP50", "change (95 %)", "agree") if with_truth else ("boxes", "agree", "scores")
    for name in ("", "s/image", "times", *names, "check"):
        table.add_column(name, justify="left" if name in ("", "check") else "right", no_wrap=True)
    exact = report.rows[0].run.median_s
    for row in report.rows:
        table.add_row(*_cells(row, exact, with_truth=with_truth, accept_loss=accept_loss))
    out.print(table, soft_wrap=False)
    if with_truth:
        out.print("AP and AP50 in points of 100; change of AP50 against f32, with the interval over photographs.")
    else:
        threshold = next(row.check.agreement.threshold for row in report.rows if row.check is not None)
        out.print(f"Boxes with a score of {threshold:g} and more against those of f32; how far scores differ.")
    if report.calibrated:
        out.print(
            f"int8 was made with {report.calibrated} photographs; compared on {report.checked}, "
            f"{report.unseen} of which int8 was not made with."
        )
    for text in report.notes:
        note(text)
    if report.installed:
        out.print(f"--precision auto may take from now on: {', '.join(report.installed)}.")


def _cells(row: Row, exact_s: float, *, with_truth: bool, accept_loss: bool) -> list[str]:
    cells = [row.precision, f"{row.run.median_s:.3f}", f"{exact_s / row.run.median_s:.2f}"]
    if with_truth:
        cells += [_points(row.metrics.ap if row.metrics else None), _points(row.metrics.ap50 if row.metrics else None)]
    if row.check is None:
        return [*cells, *(("", "") if with_truth else ("", "", "")), ""]
    from spica.models.checks import points

    found, loss = row.check.agreement, row.check.loss
    if with_truth:
        change = f"{points(-loss.estimate)} ({points(-loss.high)} to {points(-loss.low)})" if loss else "–"
        cells += [change, f"{found.share:.1%}"]
    else:
        cells += [f"{found.others} of {found.boxes}", f"{found.share:.1%}", _scores(row.check)]
    refused = "[yellow]accepted[/yellow]" if accept_loss else "[red]refused[/red]"
    return [*cells, "[green]passed[/green]" if row.check.passed else refused]


def _scores(check: Check) -> str:
    """Median and 95th percentile of the differences."""
    median, p95 = check.agreement.score_median, check.agreement.score_p95
    return "–" if median is None or p95 is None else f"±{median:.3f}, p95 {p95:.3f}"


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"
