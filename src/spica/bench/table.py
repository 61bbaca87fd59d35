"""The figures of a measurement as rows: for the screen, for Markdown and for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spica.bench.contestants import TUTORIAL_LIMIT, Way
from spica.bench.race import Measured
from spica.bench.startup import Startup
from spica.detectors.comparison import Agreement, agreement

HEAD = (
    "way",
    "seconds an image, median",
    "the shortest",
    "times as fast as the tutorial (medians / shortest)",
    "times as fast as inference mode",
    "boxes shown",
    "same boxes as torch",
    "scores differ by, median",
    "memory, MiB",
    "start to healthy, s",
    "start to first boxes, s",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One way's figures.

    Attributes:
        measured: of the race.
        startup: of the real server with a warm cache; None where it was not started, and for torch's ways, which are
            scripts.
        ratios: to the tutorial's way: how many times as fast, by medians and by shortest looks; None without it.
        plain_ratios: the same to inference mode.
        agreement: with torch's boxes; None without torch's ways.
    """

    measured: Measured
    startup: Startup | None
    ratios: tuple[float, float] | None
    plain_ratios: tuple[float, float] | None
    agreement: Agreement | None

    def cells(self) -> tuple[str, ...]:
        """One text for each entry of ``HEAD``."""
        found, same = self.measured, self.agreement
        shown = same.others if same is not None else sum(map(len, found.answers.values()))
        memory = self.startup.memory_bytes if self.startup is not None else found.memory_bytes
        healthy = self.startup.healthy_s if self.startup is not None else found.load_s
        first = self.startup.first_s if self.startup is not None else found.first_s
        return (
            found.title,
            f"{found.median_s:.3f}",
            f"{found.min_s:.3f}",
            _pair(self.ratios),
            _pair(self.plain_ratios),
            str(shown),
            f"{100 * same.share:.1f} %" if same is not None else "–",
            f"{same.score_median:.4f}" if same is not None and same.score_median is not None else "–",
            f"{memory / 2**20:.0f}" if memory is not None else "not measured",
            f"{healthy:.2f}",
            f"{first:.2f}",
        )

    def as_json(self) -> dict[str, Any]:
        """For programs: seconds, bytes, shares."""
        found, same = self.measured, self.agreement
        return {
            "way": found.way,
            "median_s": found.median_s,
            "min_s": found.min_s,
            "seconds": found.seconds,
            "times_tutorial": self.ratios,
            "times_inference_mode": self.plain_ratios,
            "boxes": same.others if same is not None else None,
            "same_boxes": same.share if same is not None else None,
            "score_difference_median": same.score_median if same is not None else None,
            "worst_side_px": same.box_px_max if same is not None else None,
            "threads": found.threads,
            "memory_bytes": self.startup.memory_bytes if self.startup is not None else found.memory_bytes,
            "start_to_healthy_s": self.startup.healthy_s if self.startup is not None else None,
            "start_to_loaded_s": found.load_s,
            "start_to_first_boxes_s": self.startup.first_s if self.startup is not None else found.first_s,
        }


def rows(found: Sequence[Measured], startups: Mapping[Way, Startup], *, threshold: float) -> list[Row]:
    """The rows of a table, each way against torch's."""
    by_way = {each.way: each for each in found}
    torch = by_way.get("inference_mode") or by_way.get("tutorial")
    return [
        Row(
            each,
            startups.get(each.way),
            _ratios(by_way.get("tutorial"), each),
            _ratios(by_way.get("inference_mode"), each),
            _agreement(torch, each, threshold) if torch else None,
        )
        for each in found
    ]


def _agreement(first: Measured, second: Measured, threshold: float) -> Agreement:
    paths = list(first.answers)
    answers = ([measured.answers[path] for path in paths] for measured in (first, second))
    return agreement(*answers, threshold=threshold, limit=TUTORIAL_LIMIT)


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    told = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in told) + "\n"


def _ratios(slow: Measured | None, fast: Measured) -> tuple[float, float] | None:
    return (slow.median_s / fast.median_s, slow.min_s / fast.min_s) if slow is not None else None


def _pair(ratios: tuple[float, float] | None) -> str:
    return f"{ratios[0]:.2f} / {ratios[1]:.2f}" if ratios is not None else "–"
