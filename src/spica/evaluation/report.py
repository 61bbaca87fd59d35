"""A model on a data set: as JSON, and as one page that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from spica import __version__
from spica.evaluation.bootstrap import Interval, draws, interval
from spica.evaluation.counting import AtThreshold, Counting, at_threshold, best_f1
from spica.evaluation.figures import counts, precision_recall
from spica.evaluation.matching import Matches
from spica.evaluation.metrics import SIZES, Metrics

FORMAT: Final = 1
"""Of the JSON; raised when a key changes its meaning."""

_TEMPLATES: Final = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Model:
    """The model that was judged: id it is served under, architecture, classes, arithmetic."""

    id: str
    architecture: str
    classes: tuple[str, ...]
    precision: str


@dataclass(frozen=True, slots=True)
class Data:
    """What it was judged by: a path or project, its classes, and the fingerprint of its content."""

    source: str
    classes: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Effort:
    """What correcting the shown boxes takes, against drawing all by hand.

    Attributes:
        seconds: expected, an image, with the boxes.
        by_hand: expected, an image, without.
        edits: how many of each kind, in all images.
    """

    seconds: float
    by_hand: float
    edits: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """Rounded to two decimals."""
        return {
            "seconds_per_image": round(self.seconds, 2),
            "by_hand_seconds_per_image": round(self.by_hand, 2),
            "edits": dict(self.edits),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """Everything of one evaluation.

    Attributes:
        ap50: with its 95 % interval over images; None without objects.
        matches: at IoU 0.5.
        counting: at the threshold.
        effort: at the threshold; None without images.
        failures: images that could not be judged, with their reasons.
        notes: a sentence each.
        seconds_per_image: median time of the network; None without images.
    """

    model: Model
    data: Data
    metrics: Metrics
    ap50: Interval | None
    matches: Matches
    counting: Counting
    effort: Effort | None
    failures: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    seconds_per_image: float | None = None

    @property
    def shown(self) -> AtThreshold:
        """What the boxes from the threshold on are worth."""
        return at_threshold(self.matches, self.counting.threshold)

    @property
    def best(self) -> AtThreshold | None:
        """The same at the threshold with the highest F1."""
        return best_f1(self.matches)

    def as_json(self) -> dict[str, Any]:
        """Shares and metrics are in [0, 1], None is what can't be said."""
        best, ap50 = self.best, self.ap50
        return {
            "format": FORMAT,
            "spica": __version__,
            "model": asdict(self.model),
            "data": asdict(self.data),
            "metrics": self.metrics.as_json(),
            "ap50_interval": None if ap50 is None else [round(ap50.low, 5), round(ap50.high, 5)],
            "counting": self.counting.as_json(),
            "at_threshold": self.shown.as_json(),
            "best_f1": None if best is None else best.as_json(),
            "effort": None if self.effort is None else self.effort.as_json(),
            "seconds_per_image": None if self.seconds_per_image is None else round(self.seconds_per_image, 4),
            "failures": [{"image": name, "reason": reason} for name, reason in self.failures],
            "notes": list(self.notes),
        }

    def as_html(self) -> str:
        """One page with the figures in it: no script, nothing from elsewhere, every name escaped.

        Raises:
            UsageError: matplotlib is not installed.
        """
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        environment = Environment(
            loader=FileSystemLoader(_TEMPLATES, encoding="utf-8"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters["share"] = _share
        figures = {
            "precision_recall": precision_recall(self.matches, self.data.classes, "svg", shown=self.shown),
            "counts": counts(self.counting, "svg"),
        }
        return environment.get_template("evaluation.html").render(
            report=self,
            shown=self.shown,
            best=self.best,
            sizes={name: _size_text(*limits) for name, limits in SIZES.items()},
            figures={name: _data_uri(svg) for name, svg in figures.items()},
            version=__version__,
        )


def ap50_interval(
    matches: Matches, groups: list[str | None], *, resamples: int = 1000, seed: int = 0
) -> Interval | None:
    """AP50 with its 95 % interval over images; None without objects.

    Args:
        matches: at IoU 0.5.
        groups: one an image, as :func:`spica.evaluation.bootstrap.draws` takes them.
        resamples: how many.
        seed: equal seeds, equal intervals.
    """
    if not matches.objects.sum():
        return None
    return interval(matches.ap, draws(len(matches.objects), resamples=resamples, seed=seed, groups=groups))


def _share(value: float | None) -> str:
    """A share or metric with three decimals, a dash for what can't be said."""
    return "–" if value is None else f"{value:.3f}"


def _size_text(low: float, high: float) -> str:
    if not low:
        return f"up to {high**0.5:.0f} × {high**0.5:.0f} pixels"
    if high > 1e9:
        return f"from {low**0.5:.0f} × {low**0.5:.0f} pixels on"
    return f"{low**0.5:.0f} × {low**0.5:.0f} to {high**0.5:.0f} × {high**0.5:.0f} pixels"


def _data_uri(svg: bytes) -> str:
    """For an ``img``: what an image holds is never run, and names in two figures can't clash."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")
