"""An evaluation on the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from spica.cli.console import err, note, out

if TYPE_CHECKING:
    from spica.evaluation.report import Report

_MOST_FAILURES = 10


def show(report: Report) -> None:
    """Tables on standard output."""
    metrics, counting = report.metrics, report.counting
    out.print(
        f"[bold]{escape(report.model.id)}[/bold] ({escape(report.model.architecture)}, {report.model.precision}) on "
        f"{metrics.images} images with {metrics.objects} objects from {escape(report.data.source)}"
    )
    _table(("", "AP50", "95 %", "AP", "AP75", "AR"), [_all(report)])
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
        out.print(f"Counting at {counting.threshold:g}: {counting.bias:+.1f} objects an image, mean error "
                  f"{counting.mae:.1f}{r2}")  # fmt: skip
    if report.effort is not None:
        done = report.effort.edits
        told = ", ".join(f"{done[name]} {name}" for name in ("kept", "moved", "relabelled", "deleted", "drawn"))
        out.print(
            f"To correct an image: about {report.effort.seconds:.0f} s, by hand {report.effort.by_hand:.0f} s ({told})"
        )
    if report.seconds_per_image is not None:
        out.print(f"Network: {report.seconds_per_image:.3g} s an image")


def tell(report: Report) -> None:
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


def _all(report: Report) -> tuple[str, ...]:
    metrics, ap50 = report.metrics, report.ap50
    between = "–" if ap50 is None or metrics.images < 2 else f"{ap50.low:.3f}–{ap50.high:.3f}"
    return ("all", share(metrics.ap50), between, share(metrics.ap), share(metrics.ap75), share(metrics.ar))


def _table(names: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number else "left", no_wrap=bool(number))
    for row in rows:
        table.add_row(*row)
    out.print(table, soft_wrap=False)
