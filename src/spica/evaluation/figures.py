"""The figures of reports: losses and metrics by epoch, counts, precision against recall.

Drawn without pyplot, whose figures live on and belong to one thread. SVG keeps its text as text, so that a browser
shows names in any script with its own fonts; PNG uses the fonts of this machine, Japanese ones if there are any.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from spica.errors import UsageError
from spica.evaluation.counting import AtThreshold, Counting
from spica.evaluation.matching import Matches

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FileType = Literal["svg", "png"]

WHEAT: Final = "#855f00"
INK: Final = "#26221a"
_SOFT: Final = "#655f51"
_LINE: Final = "#e3dccb"
_COLOURS: Final = (WHEAT, "#0072b2", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#7a7a7a", "#5d3a9b")
"""Distinct for people with any colour vision (Okabe and Ito, "Color universal design", 2008), save the first."""
_MOST_CURVES: Final = 8
_LONGEST_NAME: Final = 24
_METRICS: Final = {"ap50": "mAP50", "ap": "mAP", "ar": "mAR"}

_FONTS: Final = (
    *("Noto Sans CJK JP", "Noto Sans JP", "IPAexGothic", "IPAPGothic", "IPAGothic", "TakaoPGothic", "VL PGothic"),
    *("Hiragino Sans", "Hiragino Maru Gothic Pro", "Yu Gothic", "Meiryo", "MS Gothic"),
)
"""With Japanese: Linux's, macOS's and Windows's usual ones."""


def curves(history: Sequence[Mapping[str, Any]], kind: FileType) -> bytes:
    """Loss and metrics by epoch, the first figure of a training.

    Args:
        history: one an epoch: ``number`` from 1, ``losses`` with ``loss``, and ``metrics`` with ``ap``, ``ap50`` and
            ``ar`` in [0, 1], or None where it was not judged.
        kind: of file.

    Raises:
        UsageError: matplotlib is not installed.
    """
    with _panels(2, kind) as (file, (left, right)):
        from matplotlib.ticker import MaxNLocator

        epochs = [int(epoch["number"]) for epoch in history]
        left.plot(epochs, [float(epoch["losses"]["loss"]) for epoch in history], color=_COLOURS[0], marker="o", ms=3)
        left.set(title="Loss", xlabel="epoch", ylim=(0, None))
        for (name, text), colour in zip(_METRICS.items(), _COLOURS, strict=False):
            judged = [
                (int(epoch["number"]), float(epoch["metrics"][name]))
                for epoch in history
                if epoch.get("metrics") and epoch["metrics"].get(name) is not None
            ]
            if judged:
                right.plot(*zip(*judged, strict=True), color=colour, marker="o", ms=3, label=text)
        right.set(title="On the validation images", xlabel="epoch", ylim=(0, 1))
        if right.lines:
            right.legend(frameon=False, loc="lower right")
        else:
            _write(right, "not judged")
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return file.getvalue()


def counts(counting: Counting, kind: FileType) -> bytes:
    """Predicted against true number of objects, an image a point, with R² and bias; errors as :func:`curves`."""
    with _panels(1, kind) as (file, (axes,)):
        top = max(int(max(counting.true.max(initial=0), counting.predicted.max(initial=0))), 1) * 1.05
        axes.plot([0, top], [0, top], color=_SOFT, lw=1, ls="--", zorder=1)
        axes.scatter(counting.true, counting.predicted, s=22, color=WHEAT, alpha=0.65, linewidths=0, zorder=2)
        axes.set(
            title="Objects in each image",
            xlabel="true number",
            ylabel=f"predicted, score {counting.threshold:g} and more",
            xlim=(0, top),
            ylim=(0, top),
            aspect="equal",
        )
        lines = [
            "" if counting.r2 is None else f"R² = {counting.r2:.2f}",
            "" if counting.bias is None else f"bias = {counting.bias:+.1f} objects".replace("-", "−"),
            "" if counting.mae is None else f"mean error = {counting.mae:.1f} objects",
        ]
        axes.text(0.04, 0.96, "\n".join(filter(None, lines)), transform=axes.transAxes, va="top", linespacing=1.5)
    return file.getvalue()


def precision_recall(
    matches: Matches, classes: Sequence[str], kind: FileType, *, shown: AtThreshold | None = None
) -> bytes:
    """Precision against recall of each class, those with the most objects if there are many; errors as :func:`curves`.

    Args:
        matches: at IoU 0.5.
        classes: names by class id.
        kind: of file.
        shown: marks where a threshold lies; it is of all classes together, so only drawn for one class.
    """
    with _panels(1, kind) as (file, (axes,)):
        objects = matches.objects.sum(axis=0)
        most = [int(class_id) for class_id in np.argsort(-objects, kind="stable") if objects[class_id]][:_MOST_CURVES]
        for class_id, colour in zip(sorted(most), _COLOURS, strict=False):
            recall, precision, _ = matches.curve(class_id)
            highest_after = np.maximum.accumulate(precision[::-1])[::-1]
            ends = [0.0] * len(recall[:1])  # none for a class without detections: its line is in the legend only
            name = classes[class_id]
            cut = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
            axes.step(
                np.concatenate([ends, recall, recall[-1:]]),
                np.concatenate([highest_after[:1], highest_after, ends]),
                where="pre",
                color=colour,
                label=f"AP50 {matches.class_ap(class_id):.3f}  {cut}".replace("$", r"\$"),  # which begins a formula
            )
        if shown is not None and len(most) == 1 and shown.precision is not None and shown.recall is not None:
            point = (shown.recall, shown.precision)
            axes.plot(*([value] for value in point), "o", ms=8, mfc="white", color=INK, zorder=3)
            axes.annotate(f"score {shown.threshold:g}", point, (-10, -14), textcoords="offset points", ha="right")
        axes.set(title="Precision and recall at IoU 0.5", xlabel="recall", ylabel="precision")
        axes.set(xlim=(0, 1.01), ylim=(0, 1.01), aspect="equal")
        if most:
            axes.legend(frameon=False, loc="lower left")
        else:
            _write(axes, "no objects")
    return file.getvalue()


def _write(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color=_SOFT)


@contextlib.contextmanager
def _panels(count: int, kind: FileType) -> Iterator[tuple[io.BytesIO, list[Axes]]]:
    """Axes side by side to draw in, and the file that has the figure afterwards."""
    try:
        import matplotlib as mpl
        from matplotlib import font_manager
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "figures need a package that is not installed", expected="matplotlib", hint='pip install "spica[train]"'
        ) from None
    installed = {font.name for font in font_manager.fontManager.ttflist}
    style = {
        "font.family": ["DejaVu Sans", *(name for name in _FONTS if name in installed)],
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.edgecolor": _SOFT,
        "grid.color": _LINE,
        "grid.linewidth": 0.8,
        "axes.axisbelow": True,
        "lines.linewidth": 1.8,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
        "svg.fonttype": "none",
        "svg.hashsalt": "spica",  # the same figure is the same text
    }
    file = io.BytesIO()
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box in its place, or the browser's font
        figure = Figure(figsize=(4.8 * count, 4.4), layout="constrained")
        panels = [figure.add_subplot(1, count, number) for number in range(1, count + 1)]
        for axes in panels:
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(visible=True)
        yield file, panels
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(file, format=kind, dpi=150, facecolor="white", metadata=metadata)
